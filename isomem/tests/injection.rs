//! System calls that fail, one site after the other: every call of the API ends, with success or with an error that says what failed; no
//! byte is lost (PRF-4, MIG-9); and when the trouble is over everything works again.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a raw launch and the accesses in its kernel share one reason"
)]

mod apart;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use apart::{MIB, Mapped, apart, config, device_sum};
use isomem::{Access, LaunchError, Mirror, Mm, PAGE_SIZE, SoftDevice};
use isomem_linux::sys::inject::{self, Site};

const ERRNOS: [i32; 7] = [
    libc::ENOMEM,
    libc::EAGAIN,
    libc::EEXIST,
    libc::EBUSY,
    libc::ENOENT,
    libc::EINTR,
    libc::EINVAL,
];
/// Calls of a site that go through before the first that fails.
const SKIPS: [u32; 5] = [0, 1, 2, 4, 9];
/// Calls that fail then.
const TIMES: [u32; 3] = [1, 3, 40];
const LEN_BYTES: usize = 3 * MIB;

/// How often a step ended; a watchdog ends the process when it stands still.
static STEPS: AtomicU64 = AtomicU64::new(0);

fn watch() {
    std::thread::spawn(|| {
        let mut seen = u64::MAX;
        loop {
            let now = STEPS.load(Ordering::Relaxed);
            if now == seen {
                eprintln!("no step for 20 s: it hangs");
                std::process::abort();
            }
            seen = now;
            std::thread::sleep(Duration::from_secs(20));
        }
    });
}

/// What a plan made fail.
#[derive(Debug, Clone, Copy)]
struct Plan {
    site: Site,
    errno: i32,
    skip: u32,
    times: u32,
}

/// The memory and what must be in it.
struct Story {
    plan: Plan,
    memory: Mapped,
    model: Vec<u64>,
}

impl Story {
    /// The memory is the same for all plans: unmapping it behind isomem's back is another test's matter.
    fn new(plan: Plan, mut memory: Mapped) -> Self {
        memory.number();
        let model = memory.words().to_vec();
        Self { plan, memory, model }
    }

    /// Says what a step came to: an error must be a sentence that names what failed.
    fn step<T, E: std::error::Error>(&self, what: &str, result: Result<T, E>) -> Option<T> {
        STEPS.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let text = error.to_string();
                let clear = [
                    "failed on",
                    "memory",
                    "not available",
                    "cannot open",
                    "cannot map",
                    "could not be",
                    "device",
                ];
                assert!(
                    clear.iter().any(|word| text.contains(word)),
                    "{what}, {:?}: {text}",
                    self.plan
                );
                None
            }
        }
    }

    #[track_caller]
    fn check(&self) {
        self.check_words(self.memory.words(), "all of it");
    }

    #[track_caller]
    fn check_words(&self, words: &[u64], what: &str) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        let wrong = words
            .iter()
            .zip(&self.model)
            .enumerate()
            .find(|(_, (word, model))| word != model);
        assert!(
            wrong.is_none(),
            "{what}, {:?}: (index, (is, was)) = {wrong:?}",
            self.plan
        );
    }

    /// Adds one to every word on the device. When it fails, each word has its old value or the new one.
    fn device_writes(&mut self, mirror: &Mirror) {
        let done = mirror.launch(self.memory.words_mut(), |worker, mut part| {
            part.for_chunks_mut(worker, 0..part.len(), |_, piece| {
                piece.iter_mut().for_each(|word| *word += 1);
            })
        });
        if self.step("device write", done).is_some() {
            self.model.iter_mut().for_each(|word| *word += 1);
            return;
        }
        for (index, (word, model)) in self.memory.words().iter().zip(&mut self.model).enumerate() {
            assert!(
                *word == *model || *word == *model + 1,
                "{:?}: word {index}: {word}",
                self.plan
            );
            *model = *word;
        }
    }

    fn device_reads(&self, mirror: &Mirror) {
        let expected = self.model.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
        let sums = mirror.launch(self.memory.words(), |worker, words| {
            let mut sum = 0u64;
            let share = worker.share(words.len());
            words.for_chunks(worker, share, |_, piece| {
                sum = piece.iter().fold(sum, |sum, word| sum.wrapping_add(*word));
            })?;
            Ok(sum)
        });
        if let Some(sums) = self.step("device read", sums) {
            assert_eq!(sums.into_iter().fold(0, u64::wrapping_add), expected, "{:?}", self.plan);
        }
    }

    fn discard(&mut self, mirror: &Mirror) {
        let part = 200 * PAGE_SIZE / 8..230 * PAGE_SIZE / 8;
        let words = &mut self.memory.words_mut()[part.clone()];
        let done = mirror.discard(words);
        if self.step("discard", done).is_some() {
            self.model[part].fill(0);
            return;
        }
        // A part of it may be gone: it was to go.
        for (word, model) in self.memory.words()[part.clone()].iter().zip(&mut self.model[part]) {
            assert!(*word == *model || *word == 0, "{:?}", self.plan);
            *model = *word;
        }
    }

    fn protect(&self, mm: &Mm, access: Access) {
        let range = self.memory.pages(300, 100);
        // SAFETY: nobody writes there until it may be written again.
        let done = unsafe { mm.protect(range, Some(access)) };
        self.step("protect", done);
    }

    fn run(&mut self, mm: &Mm, mirror: &Mirror) {
        self.step("prefetch", mirror.prefetch(self.memory.words()));
        self.device_reads(mirror);
        let pages = 20 * PAGE_SIZE / 8;
        self.check_words(&self.memory.words()[..pages], "the first pages");
        self.device_writes(mirror);
        self.check();
        self.step("prefetch again", mirror.prefetch(self.memory.words()));
        self.step(
            "bring home",
            mirror.bring_home(&self.memory.words()[..self.model.len() / 2]),
        );
        self.protect(mm, Access::Read);
        self.step("prefetch read-only", mirror.prefetch(self.memory.words()));
        self.device_reads(mirror);
        self.check();
        self.protect(mm, Access::Write);
        self.step("prefetch once more", mirror.prefetch(self.memory.words()));
        self.discard(mirror);
        self.check();
        self.step("snapshot", mirror.snapshot(self.memory.range()));
        self.step("fault", mirror.fault(self.memory.range(), Access::Read));
    }

    /// With nothing in its way everything works.
    fn works(&mut self, mm: &Mm, mirror: &Mirror) {
        // SAFETY: gives back what may have been taken.
        unsafe { mm.protect(self.memory.range(), Some(Access::Write)) }.unwrap();
        self.check();
        let report = mirror.prefetch(self.memory.words()).unwrap();
        assert_eq!(report.skipped, 0, "{:?}: {report:?}", self.plan);
        let expected = self.model.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
        assert_eq!(device_sum(mirror, self.memory.words()), expected, "{:?}", self.plan);
        self.check();
    }
}

/// Failures while it runs; it was opened and is closed without.
fn run_one(plan: Plan, memory: Mapped, mm: &Mm, mirror: &Mirror) -> (Mapped, u32) {
    let mut story = Story::new(plan, memory);
    inject::fail(plan.site, plan.errno, plan.skip, plan.times);
    story.run(mm, mirror);
    let hits = inject::hits(plan.site);
    inject::clear();
    story.works(mm, mirror);
    (story.memory, hits)
}

fn open(story: &Story) -> Option<(Mm, SoftDevice, Mirror)> {
    let mm = story.step("open", Mm::current())?;
    let device = story.step("device", mm.soft_device(config()))?;
    let mirror = story.step("mirror", device.mirror())?;
    Some((mm, device, mirror))
}

/// Failures from before it is opened until it is closed.
fn run_whole(plan: Plan, memory: Mapped, threads: usize) -> Mapped {
    let mut story = Story::new(plan, memory);
    inject::fail(plan.site, plan.errno, plan.skip, plan.times);
    if let Some((mm, device, mirror)) = open(&story) {
        story.run(&mm, &mirror);
        story.step("prefetch last", mirror.prefetch(story.memory.words()));
        drop(mirror);
        story.step("unregister", device.unregister());
        drop(mm);
    }
    inject::clear();
    story.check();
    let (mm, device, mirror) = open(&story).unwrap();
    story.works(&mm, &mirror);
    mirror.unregister();
    device.unregister().unwrap();
    drop(mm);
    story.check();
    assert_eq!(apart::threads(threads), threads, "{plan:?}");
    story.memory
}

fn plans(site: Site) -> impl Iterator<Item = Plan> {
    let only = std::env::var("ISOMEM_INJECT").unwrap_or_default();
    ERRNOS
        .into_iter()
        .flat_map(move |errno| SKIPS.map(|skip| TIMES.map(|times| (errno, skip, times))))
        .flatten()
        .map(move |(errno, skip, times)| Plan {
            site,
            errno,
            skip,
            times,
        })
        // ENOENT is no failure there: it says that nothing is mapped.
        .filter(|plan| (plan.site, plan.errno) != (Site::ProcmapQuery, libc::ENOENT))
        .filter(move |plan| format!("{plan:?}").contains(&only))
}

/// Each site in a process of its own, so that one that breaks does not hide the others.
fn each_site(test: &str, body: impl Fn(Site)) {
    if let Some(role) = apart::role() {
        watch();
        let site = Site::ALL.into_iter().find(|site| format!("{site:?}") == role).unwrap();
        return body(site);
    }
    let broken: Vec<Site> = Site::ALL
        .into_iter()
        .filter(|site| {
            let child = apart::start_again(test, &format!("{site:?}"));
            !apart::wait(child, Duration::from_secs(120)).success()
        })
        .collect();
    assert_eq!(broken, []);
}

#[test]
fn prf_4_calls_that_fail_while_it_runs_lose_nothing() {
    each_site("prf_4_calls_that_fail_while_it_runs_lose_nothing", |site| {
        let (mm, device, mirror) = apart::open(config());
        let mut memory = Mapped::numbered(LEN_BYTES);
        let mut hits = 0;
        for plan in plans(site) {
            let (back, more) = run_one(plan, memory, &mm, &mirror);
            memory = back;
            hits += more;
        }
        println!("{site:?}: {hits} calls failed");
        mirror.unregister();
        device.unregister().unwrap();
    });
}

#[test]
fn prf_4_calls_that_fail_from_opening_to_closing_lose_nothing() {
    each_site("prf_4_calls_that_fail_from_opening_to_closing_lose_nothing", |site| {
        let threads = apart::threads(usize::MAX);
        plans(site).fold(Mapped::numbered(LEN_BYTES), |memory, plan| {
            run_whole(plan, memory, threads)
        });
    });
}

#[test]
fn prf_4_a_launch_that_failed_says_which_address_and_which_call() {
    apart("prf_4_a_launch_that_failed_says_which_address_and_which_call", || {
        let (_mm, device, mirror) = apart::open(config());
        let memory = Mapped::numbered(MIB);
        inject::fail(Site::ProcmapQuery, libc::ENOMEM, 0, u32::MAX);
        let failed = mirror.launch(memory.words(), |worker, words| words.get(worker, 0));
        inject::clear();
        let failed = failed.unwrap_err();
        assert!(matches!(failed, LaunchError::Kernel { worker: 0, .. }));
        let text = failed.to_string();
        for part in [
            "worker 0",
            "device fault at 0x",
            "PROCMAP_QUERY failed on",
            "os error 12",
        ] {
            assert!(text.contains(part), "{text}");
        }
        memory.check();
        mirror.unregister();
        device.unregister().unwrap();
    });
}
