use isomem_sim::journal::{Actor, Step};
use isomem_sim::sync::{LockId, LockStep};

use super::fold::folded;
use super::locks::Part;
use super::svg::{draw, escape};
use super::wrap::wrap;
use super::*;

const A: LockId = LockId {
    name: "a",
    at: 1,
    shared: false,
};
const B: LockId = LockId {
    name: "b",
    at: 2,
    shared: false,
};

fn note(text: &str) -> Event {
    Event::Note(text.to_owned())
}

fn record(threads: &[&str], steps: Vec<(usize, Event)>, verdict: Verdict, sentence: &str) -> Record {
    Record {
        threads: threads.iter().map(ToString::to_string).collect(),
        steps: steps
            .into_iter()
            .map(|(thread, event)| Step { thread, event })
            .collect(),
        finding: Some(Finding::new(verdict, sentence)),
    }
}

/// Each has one lock and wants the other's.
fn crossed() -> Record {
    use LockStep::{Has, Left, Wants};
    let other = LockId {
        name: "other",
        at: 3,
        shared: false,
    };
    let steps = vec![
        (0, note("Both begin.")),
        (1, Event::Lock(Wants, other)),
        (1, Event::Lock(Has, other)),
        (1, Event::Lock(Left, other)),
        (1, Event::Lock(Wants, A)),
        (1, Event::Lock(Has, A)),
        (2, Event::Lock(Wants, B)),
        (2, Event::Lock(Has, B)),
        (1, Event::Lock(Wants, B)),
        (2, Event::Lock(Wants, A)),
    ];
    let sentence = "thread left holds `a` and waits for `b`; thread right holds `b` and waits for `a`";
    record(&["story", "left", "right", "idle"], steps, Verdict::Deadlock, sentence)
}

fn words(timeline: &Timeline) -> Vec<&str> {
    timeline.rows.iter().map(|row| row.words.as_str()).collect()
}

#[test]
fn a_deadlock_shows_who_has_and_wants_what() {
    let timeline = Timeline::of(&crossed());
    assert_eq!(
        timeline.threads,
        ["story", "left", "right"],
        "a thread without a step has no column"
    );
    let wanted = [
        "Both begin.",
        "has \u{201c}a\u{201d}",
        "has \u{201c}b\u{201d}",
        "wants \u{201c}b\u{201d}, which right has",
        "wants \u{201c}a\u{201d}, which left has",
    ];
    assert_eq!(words(&timeline), wanted);
    assert_eq!(timeline.rows.iter().filter(|row| row.kind == Kind::Stuck).count(), 2);
    assert!(timeline.rows.iter().all(|row| !row.decides), "it is about all who wait");
    let held = |thread, name, from| Held {
        thread,
        name,
        from,
        to: None,
    };
    assert_eq!(timeline.held, [held(1, "a", 1), held(2, "b", 2)]);
    let wait = |thread, row, holder| Wait {
        thread,
        row,
        holder: Some(holder),
    };
    assert_eq!(timeline.waits, [wait(1, 3, 2), wait(2, 4, 1)]);
}

#[test]
fn who_waits_for_itself_is_told_so_and_others_only_had_no_turn() {
    use LockStep::{Has, Left, Wants};
    let read = LockId { shared: true, ..A };
    let steps = vec![
        (0, Event::Lock(Has, read)),
        (1, Event::Lock(Has, B)),
        (1, Event::Lock(Left, B)),
        (1, Event::Lock(Wants, B)),
        (0, Event::Lock(Wants, A)),
    ];
    let timeline = Timeline::of(&record(
        &["driver", "fork"],
        steps,
        Verdict::Deadlock,
        "it waits for itself",
    ));
    let wanted = [
        "has \u{201c}a\u{201d} to read",
        "wants \u{201c}a\u{201d} to write, which it has itself",
    ];
    assert_eq!(words(&timeline), wanted);
    assert!(!draw(&timeline).contains("class=\"waits\""), "no arrow to itself");
}

#[test]
fn locks_are_left_out_where_the_verdict_is_not_about_them() {
    let mut record = crossed();
    record.finding = Some(Finding::new(Verdict::LostWrite, "A write is gone."));
    let timeline = Timeline::of(&record);
    assert_eq!(words(&timeline), ["Both begin."]);
    assert!(timeline.rows[0].decides);
    assert!(timeline.held.is_empty() && timeline.waits.is_empty());
}

#[test]
fn a_cycle_shows_only_the_locks_that_it_names() {
    let mut record = crossed();
    record.finding = Some(Finding::new(
        Verdict::LockOrder,
        "thread left holds `a`, another wants it",
    ));
    let part = Part::of(&record);
    let shown: Vec<usize> = (0..record.steps.len())
        .filter(|index| part.shows(*index).is_some())
        .collect();
    // Not `b`, and not `other`, of which "another" is no mention; asking for `a` is dull where it is given at once.
    assert_eq!(shown, [5, 9]);
}

fn rows(all: &[(usize, Kind, &str)]) -> Vec<Shown> {
    let row = |(index, (thread, kind, words)): (usize, &(usize, Kind, &str))| {
        let row = Row {
            thread: *thread,
            words: (*words).to_owned(),
            kind: *kind,
            decides: false,
        };
        (row, (index, index))
    };
    all.iter().enumerate().map(row).collect()
}

fn words_of(rows: &[Shown]) -> Vec<(&str, (usize, usize))> {
    rows.iter().map(|(row, steps)| (row.words.as_str(), *steps)).collect()
}

#[test]
fn three_notes_that_differ_in_numbers_are_one_row() {
    let copies = rows(&[
        (0, Kind::Note, "copies word 0: 5"),
        (0, Kind::Note, "copies word 1: 0"),
        (0, Kind::Note, "copies word 2: 0"),
        (1, Kind::Event, "the CPU writes 1"),
        (1, Kind::Event, "the CPU writes 2"),
        (0, Kind::Note, "copies word 3: 1"),
        (0, Kind::Note, "copies word 4: 0"),
    ]);
    let wanted = [
        ("copies word 0: 5 (2 more like it)", (0, 2)),
        ("the CPU writes 1", (3, 3)),
        ("the CPU writes 2", (4, 4)),
        ("copies word 3: 1", (5, 5)),
        ("copies word 4: 0", (6, 6)),
    ];
    assert_eq!(words_of(&folded(&copies)), wanted);
}

#[test]
fn of_many_rounds_the_first_and_the_last_are_shown() {
    let round = [
        (0, Kind::Event, "tries"),
        (1, Kind::Note, "a change"),
        (0, Kind::Note, "starts again"),
    ];
    let mut all = vec![(1, Kind::Note, "begins")];
    for _ in 0..5 {
        all.extend(round);
    }
    all.push(round[0]);
    let shown = folded(&rows(&all));
    let words: Vec<&str> = words_of(&shown).into_iter().map(|(words, _)| words).collect();
    let wanted = [
        "begins",
        "tries",
        "a change",
        "starts again",
        "(3 more rounds like it)",
        "tries",
        "a change",
        "starts again",
        "tries",
    ];
    assert_eq!(words, wanted);
    assert_eq!(shown[4].1, (4, 12), "the gap stands for the steps that are left out");
    let twice = [&all[..1], &round, &round].concat();
    assert_eq!(folded(&rows(&twice)).len(), twice.len(), "two rounds are both shown");
}

#[test]
fn of_too_many_rows_the_middle_is_left_out() {
    let names: Vec<String> = (0..200_u32)
        .map(|index| format!("step {}", "i".repeat(index as usize)))
        .collect();
    let all: Vec<_> = names.iter().map(|name| (0, Kind::Event, name.as_str())).collect();
    let shown = folded(&rows(&all));
    assert_eq!(shown.len(), 65);
    assert_eq!(words_of(&shown)[32], ("(136 more steps)", (32, 167)));
    assert_eq!(shown[64].0.words, names[199]);
}

/// Many threads, long words, and a finding.
fn crowd(threads: usize) -> Timeline {
    let names = ["program", "exit", "close", "unload", "work queue", "oom reaper"];
    let event = |thread: usize| Event::Touched {
        actor: Actor::Device("gpu"),
        page: 7,
        frame: 4_000 + thread as u64,
    };
    let told = |thread| {
        [
            (thread, note("A page is dropped: it invalidates.")),
            (thread, event(thread)),
        ]
    };
    let steps = (0..threads).flat_map(told).collect();
    let sentence = "the device gpu touched page 7 through an entry for frame 4000, which had gone back to the kernel";
    Timeline::of(&record(&names[..threads], steps, Verdict::StaleAccess, sentence))
}

#[test]
fn text_keeps_to_the_terminals_width() {
    for threads in 1..=6 {
        for width in [80, 100, 160, 300] {
            let text = text(&crowd(threads), width);
            let longest = text.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(width), "{threads} threads, {width} wide:\n{text}");
            assert!(text.lines().all(|line| line.trim_end() == line));
        }
    }
    // A terminal that is too narrow has lines that are too long, and nothing is lost.
    assert!(text(&crowd(6), 20).contains("oom reaper"));
}

#[test]
fn text_has_a_column_for_each_thread_and_ends_with_the_sentence() {
    let text = text(&crowd(2), 80);
    let wanted = "      program                              exit
      -----------------------------------  -----------------------------------
   1  A page is dropped: it invalidates.
   2  gpu touches page 7, which is frame
      4000
   3                                       A page is dropped: it invalidates.
>  4                                       gpu touches page 7, which is frame
>                                          4001

stale access: the device gpu touched page 7 through an entry for frame 4000,
which had gone back to the kernel
";
    assert_eq!(text, wanted);
}

#[test]
fn words_are_wrapped_at_gaps_and_cut_only_when_they_must_be() {
    assert_eq!(wrap("one two three", 7), ["one two", "three"]);
    assert_eq!(wrap("", 7), [""]);
    assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
    assert_eq!(
        wrap("\u{201c}\u{e9}\u{e9}\u{201d} b", 6),
        ["\u{201c}\u{e9}\u{e9}\u{201d} b"],
        "letters count, not bytes"
    );
}

/// The numbers of an attribute, in the order of the text.
fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<usize> {
    let (begin, name) = (format!("<{element} "), format!(" {attribute}=\""));
    let elements = svg.split(begin.as_str()).skip(1);
    let values = elements.filter_map(|text| {
        let inside = format!(" {}", text.split('>').next()?);
        let value = inside.split(name.as_str()).nth(1)?;
        value.split('"').next()?.parse().ok()
    });
    values.collect()
}

#[test]
fn boxes_of_the_picture_stand_one_below_the_other_and_inside() {
    for threads in 1..=6 {
        let timeline = crowd(threads);
        let svg = draw(&timeline);
        let [left, top, width, height] = ["x", "y", "width", "height"].map(|name| numbers(&svg, "rect", name));
        let [whole_width, whole_height] = ["width", "height"].map(|name| numbers(&svg, "svg", name)[0]);
        assert_eq!(top.len(), timeline.rows.len());
        for index in 0..top.len() {
            assert!(left[index] + width[index] < whole_width);
            assert!(top[index] + height[index] < whole_height);
            assert!(
                index == 0 || top[index - 1] + height[index - 1] < top[index],
                "they overlap"
            );
        }
    }
}

#[test]
fn what_stories_say_is_no_markup() {
    assert_eq!(escape("<a href='x'>\"&\u{7}"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp; ");
    let steps = vec![(0, note("it has <b>"))];
    let timeline = Timeline::of(&record(&["<i>"], steps, Verdict::Leak, "nobody freed `a<b`"));
    let page = Page {
        scenario: "<s>",
        about: "<p>",
        source: "<u>",
        design: "<d>",
        works: "<w>",
        command: "<c>",
        timeline: &timeline,
    };
    let html = page.html();
    for letter in ["b", "i", "s", "d", "w", "c", "u"] {
        assert!(!html.contains(&format!("<{letter}>")) || letter == "b", "{letter}");
        assert!(html.contains(&format!("&lt;{letter}&gt;")), "{letter}");
    }
    assert!(
        html.contains("<b>Leak:</b> Nobody freed <code>a&lt;b</code>."),
        "{html}"
    );
}
