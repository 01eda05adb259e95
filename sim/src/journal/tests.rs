use super::*;
use crate::checker::all;

fn note(text: &str) -> Event {
    Event::Note(String::from(text))
}

#[test]
fn jrn_1_after_the_first_finding_nothing_is_recorded() {
    let journal = Journal::new(all(), true);
    journal.record(note("before"));
    assert!(!journal.is_decided());
    journal.record(Event::Used {
        what: String::from("it"),
    });
    assert!(journal.is_decided());
    journal.record(note("after"));
    journal.found(Verdict::Leak, "too late");
    let record = journal.finish();
    assert_eq!(record.steps.len(), 2);
    assert_eq!(
        record.finding.map(|finding| finding.verdict),
        Some(Verdict::UseAfterFree)
    );
}

#[test]
fn jrn_1_what_comes_after_the_end_belongs_to_no_story() {
    let journal = Journal::new(all(), true);
    journal.record(note("a step"));
    assert_eq!(journal.finish().steps.len(), 1);
    assert!(journal.is_decided());
    journal.record(note("a thread that nobody joined"));
    assert!(journal.finish().steps.is_empty());
}

#[test]
fn threads_of_one_name_are_told_apart() {
    let journal = Journal::new(Vec::new(), true);
    journal.note("first");
    for _ in 0..2 {
        let inner = journal.clone();
        let thread = spawn(&journal, "cpu", move || {
            inner.note("one");
            inner.note("two");
        });
        thread.join().expect("the thread ends");
    }
    let record = journal.finish();
    assert_eq!(record.threads, ["story", "cpu", "cpu 2"]);
    let by: Vec<usize> = record.steps.iter().map(|step| step.thread).collect();
    assert_eq!(by, [0, 1, 1, 2, 2]);
}
