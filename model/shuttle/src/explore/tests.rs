//! The parts of exploration; `tests/explore.rs` has what they do together.

use std::cell::RefCell;
use std::panic::catch_unwind;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use isomem_sim::journal::Event;
use isomem_sim::sync::{AtomicU64, Mutex, Ordering};

use super::random::Random;
use super::*;
use crate::scenario::Run;

fn choices(text: &str) -> Choices {
    text.parse().expect("a schedule")
}

/// Two threads add to a sum in two steps, so that an addition can be lost; the first looks around before.
fn adds(run: &Run) {
    let sum = Arc::new(AtomicU64::new(0));
    let threads = [4, 0].map(|looks| {
        let (sum, journal) = (Arc::clone(&sum), run.journal.clone());
        run.spawn("adds", move || {
            for _ in 0..looks {
                sum.load(Ordering::SeqCst);
            }
            let seen = sum.load(Ordering::SeqCst);
            journal.record(Event::Note(format!("It has seen {seen}.")));
            sum.store(seen + 1, Ordering::SeqCst);
        })
    });
    for thread in threads {
        thread.join().expect("it ends");
    }
    if sum.load(Ordering::SeqCst) != 2 {
        run.journal.found(Verdict::LostWrite, "An addition is gone.");
    }
}

fn panics(run: &Run) {
    let thread = run.spawn("fails", || panic!("this belongs to the story"));
    thread.join().expect("it never ends");
}

/// Waits for itself, with a guard in its hands.
fn takes_twice(run: &Run) {
    let lock = Arc::new(Mutex::new("a", 0));
    let thread = run.spawn("takes", move || {
        let first = lock.lock();
        let second = lock.lock();
        drop((first, second));
    });
    thread.join().expect("it never ends");
}

const fn design(expected: Verdict, story: fn(&Run)) -> Design {
    Design {
        name: "a",
        about: "b",
        expected,
        story,
    }
}

static ADDS: Design = design(Verdict::LostWrite, adds);
static TWICE: Design = design(Verdict::Deadlock, takes_twice);
static PANICS: Design = design(Verdict::Panicked, panics);

fn budget(iterations: usize, seed: u64) -> Budget {
    Budget {
        iterations,
        seed,
        time: None,
    }
}

#[test]
fn choices_are_read_as_they_were_written() {
    let mut random = Random::new(7);
    for length in 0..50 {
        let mut written = Choices::default();
        for _ in 0..length {
            written.push(random.below(4));
        }
        assert_eq!(written.steps(), length);
        assert_eq!(choices(&written.to_string()), written);
    }
    assert_eq!(choices("0*2 3").to_string(), "0*2 3");
    assert_eq!(
        choices(" 0 0\t2*3\n2 0 ").to_string(),
        "0*2 2*4 0",
        "neighbours are one turn"
    );
    assert_eq!(choices(""), Choices::default());
}

#[test]
fn what_is_no_schedule_is_refused_with_its_word() {
    for (text, word) in [
        ("0*3 x", "x"),
        ("0*0", "0*0"),
        ("-1", "-1"),
        ("1*", "1*"),
        ("*2", "*2"),
        ("1*2*3", "1*2*3"),
    ] {
        let error = text.parse::<Choices>().expect_err(text);
        assert!(error.to_string().contains(&format!("{word:?}")), "{text}: {error}");
    }
}

#[test]
fn fewer_switches_are_easier_and_then_fewer_steps() {
    assert!(choices("0*90 2*90").cost() < choices("0 2 0").cost());
    assert!(choices("0*3 2").cost() < choices("0*3 2*2").cost());
}

#[test]
fn a_shorter_schedule_has_the_same_verdict() {
    let all = schedules(1, 900).into_iter().map(|choices| replay(&ADDS, &choices));
    let losing = all.filter(|told| told.verdict() == Verdict::LostWrite);
    let hardest = losing
        .max_by_key(|told| told.choices.cost())
        .expect("some lose an addition");
    assert!(
        hardest.choices.turns().len() > 8,
        "{} is short already",
        hardest.choices
    );
    let long = Told {
        choices: hardest.choices,
        record: hardest.record,
    };
    let before = long.choices.cost();
    let short = shorten::shorten(&ADDS, long, Mix::new(1));
    assert_eq!(short.verdict(), Verdict::LostWrite);
    assert!(short.choices.cost() < before, "{} is no shorter", short.choices);
    assert!(short.choices.turns().len() <= 6, "{} is long still", short.choices);
    let again = replay(&ADDS, &short.choices);
    assert!(!again.strayed);
    assert_eq!(again.verdict(), Verdict::LostWrite);
}

#[test]
fn exp_2_what_is_found_is_found_again_in_the_same_steps() {
    let exploration = explore(&ADDS, &budget(2_000, 1)).expect("it comes again");
    assert_eq!(exploration.schedules, exploration.tried.schedules());
    let found = exploration.found.expect("an addition is lost");
    let told = [(); 3].map(|()| replay(&ADDS, &found.choices));
    for again in told {
        assert!(!again.strayed);
        assert_eq!(again.choices, found.choices);
        assert_eq!(again.record.finding, found.record.finding);
        let steps = |record: &Record| format!("{:?} {:?}", record.threads, record.steps);
        assert_eq!(steps(&again.record), steps(&found.record));
    }
}

#[test]
fn exp_2_a_story_that_depends_on_more_than_the_schedule_is_fickle() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static TOLD: AtomicBool = AtomicBool::new(false);
    static FICKLE: Design = design(Verdict::Leak, |run| {
        if !TOLD.swap(true, Ordering::SeqCst) {
            run.journal.found(Verdict::Leak, "It was there only once.");
        }
    });
    let fickle = explore(&FICKLE, &budget(5, 1)).expect_err("it never comes again");
    assert_eq!(
        (fickle.first, fickle.then, fickle.schedules),
        (Verdict::Leak, Verdict::Holds, 1)
    );
}

/// Keeps the schedules of an exploration.
struct Keep {
    mix: Mix,
    left: usize,
    kept: Rc<RefCell<Vec<Choices>>>,
}

impl Plan for Keep {
    fn next(&mut self) -> bool {
        self.mix.next();
        self.left -= 1;
        self.left > 0
    }

    fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        self.mix.choose(choice)
    }

    fn ended(&mut self, told: Told) {
        self.kept.borrow_mut().push(told.choices);
    }
}

fn schedules(seed: u64, count: usize) -> Vec<Choices> {
    let kept = Rc::default();
    let keep = Keep {
        mix: Mix::new(seed),
        left: count + 1,
        kept: Rc::clone(&kept),
    };
    drop(run(&ADDS, keep, Detail::Verdict));
    kept.take()
}

#[test]
fn a_seed_means_its_schedules() {
    let count = 1_200;
    let [one, same, other] = [3, 3, 4].map(|seed| schedules(seed, count));
    assert_eq!(one.len(), count);
    assert_eq!(one, same);
    assert_eq!(one[..100], other[..100], "the sweep has no use for a seed");
    assert_ne!(one, other);
}

#[test]
fn the_sweep_tells_no_schedule_twice() {
    let mut swept = schedules(1, 200);
    let turns: Vec<usize> = swept.iter().map(|choices| choices.turns().len()).collect();
    assert!(turns[0] <= turns[199], "fewest switches first: {turns:?}");
    swept.sort_by_key(Choices::to_string);
    swept.dedup();
    // Each bound goes through the schedules of the one before again.
    assert!(swept.len() > 100, "{}", swept.len());
}

#[test]
fn each_way_to_choose_has_its_share() {
    let tried = explore(design_that_holds(), &budget(3_500, 1)).expect("it holds").tried;
    assert_eq!(tried.schedules(), 3_500);
    assert!(tried.random >= 1_000 && tried.pct >= 500, "{tried:?}");
    assert_eq!(tried.threads, 2);
    assert!(tried.steps > 3, "{tried:?}");
}

fn design_that_holds() -> &'static Design {
    static HOLDS: Design = design(Verdict::Holds, |run| {
        let sum = Arc::new(AtomicU64::new(0));
        let other = Arc::clone(&sum);
        let thread = run.spawn("adds", move || other.fetch_add(1, Ordering::SeqCst));
        sum.fetch_add(1, Ordering::SeqCst);
        thread.join().expect("it ends");
    });
    &HOLDS
}

/// Run by the test below, as a program of its own: what it prints is looked at.
#[test]
#[ignore = "only another test has a use for it"]
fn prints_what_is_not_the_storys() {
    let found = explore(&PANICS, &budget(10, 1))
        .expect("it comes again")
        .found
        .expect("a panic");
    let sentence = found.record.finding.expect("a finding").sentence;
    assert!(
        sentence.starts_with("A thread panics: this belongs to the story"),
        "{sentence}"
    );
    let exploration = explore(&TWICE, &budget(10, 1)).expect("it comes again");
    assert_eq!(exploration.verdict(), Verdict::Deadlock);
    catch_unwind(|| panic!("this does not")).expect_err("it panics");
}

#[test]
fn quiet_hides_what_stories_say_and_nothing_else() {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program);
    child.args([
        "--exact",
        "explore::tests::prints_what_is_not_the_storys",
        "--ignored",
        "--nocapture",
    ]);
    let output = child.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("this does not"), "{said}");
    assert_eq!(said.matches("panicked").count(), 1, "{said}");
    for word in ["this belongs to the story", "test panicked", "schedule", "deadlock"] {
        assert!(!said.contains(word), "{word:?} is in\n{said}");
    }
}
