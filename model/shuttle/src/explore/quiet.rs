//! Panics of stories are findings, not noise: while a thread explores, its panics are kept for the explorer and not printed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, PanicHookInfo};
use std::sync::Once;

use shuttle::scheduler::RoundRobinScheduler;
use shuttle::{Config, Runner};

thread_local! {
    static EXPLORING: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// While this lives, the panics of this thread of the system are kept.
pub(super) struct Quiet(());

impl Quiet {
    pub(super) fn begin() -> Self {
        install();
        SAID.with(|said| said.borrow_mut().take());
        EXPLORING.set(true);
        Self(())
    }
}

/// What the first panic of this thread of the system said, since it began to be quiet or since this was asked last.
pub(super) fn said() -> String {
    SAID.with(|said| said.borrow_mut().take()).unwrap_or_default()
}

impl Drop for Quiet {
    fn drop(&mut self) {
        EXPLORING.set(false);
    }
}

/// Puts our hook where shuttle's would be: shuttle installs one with its first execution, which prints advice that does not apply here.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let original = panic::take_hook();
        Runner::new(RoundRobinScheduler::new(1), Config::new()).run(|| {});
        drop(panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            if EXPLORING.get() {
                keep(info);
            } else {
                original(info);
            }
        }));
    });
}

fn keep(info: &PanicHookInfo<'_>) {
    let text = said_by(info.payload());
    let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
    SAID.with(|said| {
        // A panic in the middle of this very borrow would be lost, and nothing else.
        if let Ok(mut said) = said.try_borrow_mut() {
            said.get_or_insert_with(|| format!("{text}{}", place.unwrap_or_default()));
        }
    });
}

/// The text that a panic carries.
fn said_by(payload: &(dyn Any + Send)) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(owned)
        .unwrap_or("(no message)")
}
