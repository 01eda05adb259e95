//! Where the worker is asked for pages, because bringing them in sleeps.

use isomem_core::addr::PageRange;
use isomem_core::mirror::range::FaultError;
use isomem_core::notifier::Attempt;
use isomem_core::sync::{Condvar, Mutex};
use isomem_core::world::{Access, World};

use super::flights::{Begun, Flight, MAX_FLIGHTS, Side};
use super::{MAX_OBJECTS, Shared, State, SubmitError, Wants};
/// Who asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// Waits, and is to get the flight that was begun.
    Waits,
    /// Submits again some time.
    WentOn,
}

enum Request<W: World> {
    Asked(Wants, Asker),
    /// The worker is at it.
    Served(Wants, Asker),
    Answered(Result<Flight<W>, SubmitError>),
}

struct Requests<W: World> {
    list: [Option<Request<W>>; MAX_FLIGHTS],
    /// The worker looks from here on, so that everybody gets a turn.
    next: usize,
    stopped: bool,
}

/// See the module.
pub(super) struct Desk<W: World> {
    state: Shared<W, State<W>>,
    requests: Mutex<Requests<W>>,
    changed: Condvar,
}

impl<W: World> Desk<W> {
    pub(super) fn new(state: Shared<W, State<W>>) -> Self {
        let requests = Requests {
            list: [const { None }; MAX_FLIGHTS],
            next: 0,
            stopped: false,
        };
        Self {
            state,
            requests: Mutex::new("userptr desk", requests),
            changed: Condvar::new("userptr desk changed"),
        }
    }

    pub(super) fn state(&self) -> &Shared<W, State<W>> {
        &self.state
    }

    /// Asks for pages, and goes on. Who asks for the same twice asks once.
    pub(super) fn ask(&self, wants: Wants) -> Result<(), SubmitError> {
        let mut requests = self.requests.lock();
        let asked = |request: &Request<W>| match request {
            Request::Asked(others, _) | Request::Served(others, Asker::WentOn) => *others == wants,
            _ => false,
        };
        if !requests.list.iter().flatten().any(asked) {
            requests.put(wants, Asker::WentOn)?;
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Asks for pages, and waits until the work has begun on them.
    pub(super) fn ask_and_wait(&self, wants: Wants) -> Result<Flight<W>, SubmitError> {
        let mut requests = self.requests.lock();
        let number = requests.put(wants, Asker::Waits)?;
        self.changed.notify_all();
        loop {
            match requests.list[number].take() {
                Some(Request::Answered(answer)) => return answer,
                other => requests.list[number] = other,
            }
            requests = self.changed.wait(requests);
        }
    }

    /// The worker's life.
    pub(super) fn serve(&self) {
        let mut requests = self.requests.lock();
        loop {
            if let Some((number, wants, asker)) = requests.take() {
                drop(requests);
                let answer = self.get(&wants);
                let answer = match asker {
                    Asker::Waits => Some(Request::Answered(answer)),
                    // The pages stay where they are now. An error comes again when it is asked for again.
                    Asker::WentOn => None,
                };
                requests = self.requests.lock();
                requests.list[number] = answer;
                self.changed.notify_all();
            } else if requests.stopped {
                return;
            } else {
                requests = self.changed.wait(requests);
            }
        }
    }

    /// No more requests; the worker ends when it has answered those there are.
    pub(super) fn stop(&self) {
        self.requests.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Brings pages in until work has begun on all of them: the core has the loop and its bound.
    fn get(&self, wants: &Wants) -> Result<Flight<W>, SubmitError> {
        let mut list = [(PageRange::ALL, Access::Read); MAX_OBJECTS];
        let mut count = 0;
        for (place, want) in list.iter_mut().zip(wants.iter().flatten()) {
            *place = *want;
            count += 1;
        }
        let list = &list[..count];
        let all = list.iter().map(|&(range, _)| range).reduce(PageRange::hull);
        self.state.fault_then(
            all.unwrap_or(PageRange::ALL),
            list,
            &mut |_| match Side::begin(&self.state, wants) {
                Begun::Flies(flight) => Attempt::Done(Ok(flight)),
                Begun::Missing => Attempt::Retry,
                Begun::Full => Attempt::Done(Err(SubmitError::Full)),
                Begun::Released => Attempt::Done(Err(FaultError::Released.into())),
            },
        )?
    }
}

impl<W: World> Requests<W> {
    fn put(&mut self, wants: Wants, asker: Asker) -> Result<usize, SubmitError> {
        let free = self.list.iter().position(Option::is_none);
        let number = free.filter(|_| !self.stopped).ok_or(SubmitError::Full)?;
        self.list[number] = Some(Request::Asked(wants, asker));
        Ok(number)
    }

    /// What the worker does next.
    fn take(&mut self) -> Option<(usize, Wants, Asker)> {
        let count = self.list.len();
        for number in (self.next..self.next + count).map(|number| number % count) {
            if let Some(Request::Asked(wants, asker)) = self.list[number] {
                self.list[number] = Some(Request::Served(wants, asker));
                self.next = number + 1;
                return Some((number, wants, asker));
            }
        }
        None
    }
}
