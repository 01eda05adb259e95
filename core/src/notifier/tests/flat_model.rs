//! Random operations, compared with a model that is one list and no cleverness.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Subscribe {
        range: PageRange,
        owner: Option<Owner>,
        answer: Answer,
    },
    /// The index is taken modulo what there is, here and below.
    Unsubscribe(usize),
    Invalidate {
        range: PageRange,
        owner: Option<Owner>,
        blocking: Blocking,
    },
    End(usize, Outcome),
    Begin(PageRange),
    EndRead(usize),
}

fn range() -> impl Strategy<Value = PageRange> {
    (0_usize..12, 1_usize..6).prop_map(|(first, count)| pages(first, count))
}

fn owner() -> impl Strategy<Value = Option<Owner>> {
    prop_oneof![Just(None), (0_u64..2).prop_map(|id| Some(Owner(id)))]
}

fn op() -> impl Strategy<Value = Op> {
    let answer = prop_oneof![4 => Just(Answer::Done), 1 => Just(Answer::Refused), 1 => Just(Answer::Fenced)];
    let blocking = prop_oneof![Just(Blocking::May), Just(Blocking::Never)];
    let outcome = prop_oneof![Just(Outcome::Committed), Just(Outcome::Aborted)];
    prop_oneof![
        2 => (range(), owner(), answer).prop_map(|(range, owner, answer)| Op::Subscribe { range, owner, answer }),
        1 => any::<usize>().prop_map(Op::Unsubscribe),
        4 => (range(), owner(), blocking).prop_map(|(range, owner, blocking)| Op::Invalidate { range, owner, blocking }),
        3 => (any::<usize>(), outcome).prop_map(|(index, outcome)| Op::End(index, outcome)),
        2 => range().prop_map(Op::Begin),
        1 => any::<usize>().prop_map(Op::EndRead),
    ]
}

/// A subscription as the model knows it, in the list's order.
struct Flat {
    number: usize,
    range: PageRange,
    owner: Option<Owner>,
    answer: Answer,
    /// Until its end is asked for. Where that is deferred it is told as before (SUB-4).
    handle: Option<Subscription<Global>>,
}

/// An invalidation in flight as the model knows it.
struct Pass<'n> {
    range: PageRange,
    told: Vec<usize>,
    guard: Guard<'n, Global>,
}

struct Run<'n> {
    notifier: &'n TestNotifier,
    log: Log,
    subscribers: Vec<Flat>,
    next_number: usize,
    passes: Vec<Pass<'n>>,
    expected: Vec<Told>,
}

impl<'n> Run<'n> {
    fn subscribe(&mut self, range: PageRange, owner: Option<Owner>, answer: Answer) {
        let number = self.next_number;
        self.next_number += 1;
        let recorder = Recorder {
            owner,
            answer,
            ..Recorder::new(number, &self.log)
        };
        let handle = Some(self.notifier.subscribe(range, Arc::new(recorder)).unwrap());
        let at = self
            .subscribers
            .iter()
            .position(|flat| flat.range.first_page() > range.first_page());
        let flat = Flat {
            number,
            range,
            owner,
            answer,
            handle,
        };
        self.subscribers.insert(at.unwrap_or(self.subscribers.len()), flat);
    }

    fn unsubscribe(&mut self, index: usize) {
        let count = self.subscribers.iter().filter(|flat| flat.handle.is_some()).count();
        let Some(flat) = self
            .subscribers
            .iter_mut()
            .filter(|flat| flat.handle.is_some())
            .nth(index % count.max(1))
        else {
            return;
        };
        let result = flat.handle.take().unwrap().unsubscribe();
        if self.passes.is_empty() {
            assert!(result.is_ok());
            self.expected.push(Told::Release(flat.number));
            let number = flat.number;
            self.subscribers.retain(|flat| flat.number != number);
        } else {
            assert_eq!(result.unwrap_err().inside(), Inside::Invalidation);
        }
    }

    fn invalidate(&mut self, range: PageRange, owner: Option<Owner>, blocking: Blocking) -> bool {
        let mut told = Vec::new();
        let mut refused = false;
        for flat in &self.subscribers {
            let left_out = flat.owner.is_some() && flat.owner == owner;
            if left_out || !flat.range.overlaps(range) {
                continue;
            }
            if blocking == Blocking::Never && flat.answer == Answer::Refused {
                refused = true;
                break;
            }
            self.expected.push(Told::Start(flat.number, range));
            told.push(flat.number);
        }
        let guard = match blocking {
            Blocking::May => Some(self.notifier.invalidate(range, Cause::Clear, owner).unwrap()),
            Blocking::Never => self.notifier.try_invalidate(range, Cause::Clear, owner).ok(),
        };
        assert_eq!(guard.is_none(), refused);
        match guard {
            Some(guard) => self.passes.push(Pass { range, told, guard }),
            None => self.expect_ends(&told, range, Outcome::Aborted),
        }
        true
    }

    fn expect_ends(&mut self, told: &[usize], range: PageRange, outcome: Outcome) {
        self.expected
            .extend(told.iter().rev().map(|&number| Told::End(number, range, outcome)));
    }

    fn end(&mut self, index: usize, outcome: Outcome) {
        if self.passes.is_empty() {
            return;
        }
        let Pass { range, told, guard } = self.passes.remove(index % self.passes.len());
        self.expect_ends(&told, range, outcome);
        match outcome {
            Outcome::Committed => guard.commit(),
            Outcome::Aborted => drop(guard),
        }
    }
}

fn run(ops: Vec<Op>) {
    let notifier = notifier();
    let mut readers: Vec<_> = (0..8).map(|_| None).collect();
    run_in(&notifier, ops, &mut readers);
}

/// A reader and whether the model takes its read for stale.
type ModelRead = Option<(PageRange, ReadHandle, bool)>;

/// A read that runs on a thread of its own, since a read borrows its reader: answers whether it is stale until told to end.
struct ReadHandle {
    ask: mpsc::Sender<()>,
    stale: mpsc::Receiver<bool>,
    thread: thread::JoinHandle<()>,
}

impl ReadHandle {
    /// `None` where an invalidation in flight makes it wait.
    fn begin(notifier: &TestNotifier, range: PageRange) -> Option<Self> {
        let (ask, asked) = mpsc::channel::<()>();
        let (answer, stale) = mpsc::channel();
        let notifier = notifier.clone();
        let thread = thread::spawn(move || {
            let mut reader = notifier.read(range).time_limit(Duration::ZERO);
            let Ok(read) = reader.begin() else { return };
            answer.send(read.is_stale()).unwrap();
            while asked.recv().is_ok() {
                answer.send(read.is_stale()).unwrap();
            }
        });
        match stale.recv() {
            Ok(stale_at_once) => {
                assert!(!stale_at_once);
                Some(Self { ask, stale, thread })
            }
            Err(_) => {
                thread.join().unwrap();
                None
            }
        }
    }

    fn is_stale(&self) -> bool {
        self.ask.send(()).unwrap();
        self.stale.recv().unwrap()
    }

    fn end(self) {
        drop(self.ask);
        self.thread.join().unwrap();
    }
}

fn run_in(notifier: &TestNotifier, ops: Vec<Op>, reads: &mut [ModelRead]) {
    let mut run = Run {
        notifier,
        log: Log::default(),
        subscribers: Vec::new(),
        next_number: 0,
        passes: Vec::new(),
        expected: Vec::new(),
    };
    for op in ops {
        match op {
            Op::Subscribe { range, owner, answer } => run.subscribe(range, owner, answer),
            Op::Unsubscribe(index) => run.unsubscribe(index),
            Op::Invalidate { range, owner, blocking } => {
                run.invalidate(range, owner, blocking);
                let hit = reads.iter_mut().flatten().filter(|(read, ..)| read.overlaps(range));
                hit.for_each(|(_, _, stale)| *stale = true);
            }
            Op::End(index, outcome) => run.end(index, outcome),
            Op::Begin(range) => begin(&run, range, reads),
            Op::EndRead(index) => {
                if let Some((_, read, _)) = reads[index % reads.len()].take() {
                    read.end();
                }
            }
        }
        assert_eq!(*run.log.lock().unwrap(), run.expected);
        for (_, read, stale) in reads.iter().flatten() {
            assert_eq!(read.is_stale(), *stale);
        }
    }
    finish(run, reads);
}

fn begin(run: &Run<'_>, range: PageRange, reads: &mut [ModelRead]) {
    let Some(free) = reads.iter_mut().find(|read| read.is_none()) else {
        return;
    };
    let read = ReadHandle::begin(run.notifier, range);
    assert_eq!(read.is_none(), run.passes.iter().any(|pass| pass.range.overlaps(range)));
    *free = read.map(|read| (range, read, false));
}

fn finish(mut run: Run<'_>, reads: &mut [ModelRead]) {
    while !run.passes.is_empty() {
        run.end(0, Outcome::Committed);
    }
    for read in reads {
        if let Some((_, read, _)) = read.take() {
            read.end();
        }
    }
    run.notifier.exit().unwrap();
    run.expected
        .extend(run.subscribers.iter().map(|flat| Told::Release(flat.number)));
    assert_eq!(*run.log.lock().unwrap(), run.expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ntf_1_to_5_agree_with_a_flat_model(ops in prop::collection::vec(op(), 1..60)) {
        run(ops);
    }
}
