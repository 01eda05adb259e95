//! A progress bar on stderr, for work that takes longer than a second and only where somebody looks.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a run is at.
pub(crate) struct Progress {
    wanted: bool,
    started: Instant,
    phase: Cell<&'static str>,
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let wanted = !quiet && std::io::stderr().is_terminal();
        Self {
            wanted,
            started: Instant::now(),
            phase: Cell::new(""),
            bar: RefCell::new(None),
        }
    }

    /// The next phase starts.
    pub(crate) fn begin(&self, phase: &'static str) {
        self.phase.set(phase);
        self.set(0, 0);
    }

    /// `done` of `of` units of the phase are done; `of` is 0 where nobody knows.
    pub(crate) fn set(&self, done: u64, of: u64) {
        if !self.wanted || self.started.elapsed() < PATIENCE {
            return;
        }
        let mut slot = self.bar.borrow_mut();
        let bar = slot.get_or_insert_with(new_bar);
        bar.set_message(self.phase.get());
        bar.set_length(of.max(done));
        bar.set_position(done);
        bar.tick();
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:24} {bar:40} {percent:>3}%");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
