//! Events in words.

use isomem_sim::journal::Event;
use isomem_sim::sync::LockStep;

use super::locks::Part;

/// What happens at a step, for somebody who never saw the code.
pub(super) fn of(event: &Event, part: &Part) -> String {
    match event {
        Event::Note(text) => text.clone(),
        Event::Start { subscriber, pass } => format!("pass {pass}: {subscriber} is told of the start"),
        Event::Refused { subscriber, pass } => format!("pass {pass}: {subscriber} refuses"),
        Event::End { subscriber, pass } => format!("pass {pass}: {subscriber} is told of the end"),
        Event::Release { mirror } => format!("the release callback of {mirror} runs"),
        Event::Callback { mirror } => format!("a callback of {mirror} runs"),
        Event::Unregistered { mirror } => format!("{mirror} is unregistered"),
        Event::Died { mm } => format!("{mm} is dead"),
        Event::Works { device, mm } => format!("{device} works on {mm}"),
        Event::Opened { what } => format!("{what} begins to exist"),
        Event::Closed { what } => format!("{what} is gone"),
        Event::Used { what } => format!("{what} is used"),
        Event::Attempt { what } => format!("{what}: it tries"),
        Event::Arrived { what } => format!("{what}: it got there"),
        Event::Lock(step, id) => lock(*step, id.name, part.way(id)),
        memory => of_memory(memory),
    }
}

fn of_memory(event: &Event) -> String {
    match event {
        Event::Mapped { actor, page, frame } => format!("{actor} can now reach frame {frame} as page {page}"),
        Event::Taken { actor, page, frame } => format!("page {page} (frame {frame}) is taken from {actor}"),
        Event::Touched { actor, page, frame } => format!("{actor} touches page {page}, which is frame {frame}"),
        Event::Freed { frame } => format!("frame {frame} goes back to the kernel"),
        Event::Write { actor, addr, value, .. } => format!("{actor} writes {value} at {addr:#x}"),
        Event::Read { actor, addr, value } => format!("{actor} reads {value} at {addr:#x}"),
        Event::Duplicated { page, home, away, .. } => {
            format!("page {page} is in frame {away}, and to be read in frame {home}")
        }
        Event::Discarded { start, end } => format!("the contents of {start:#x}..{end:#x} are thrown away"),
        Event::SawPage { actor, page, words } => format!("{actor} sees page {page} with {words:?}"),
        other => format!("{other:?}"),
    }
}

fn lock(step: LockStep, name: &str, way: &str) -> String {
    match step {
        LockStep::Wants => format!("wants \u{201c}{name}\u{201d}{way}"),
        LockStep::Has => format!("has \u{201c}{name}\u{201d}{way}"),
        LockStep::Left => format!("leaves \u{201c}{name}\u{201d}"),
        LockStep::Sleeps => format!("sleeps until \u{201c}{name}\u{201d}"),
        LockStep::Wakes => format!("wakes from \u{201c}{name}\u{201d}"),
    }
}
