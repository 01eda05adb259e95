//! The threads that serve held calls.
//!
//! # Invariants
//! - SUP-1: each notification that is received is answered once.
//! - SUP-2: a supervisor waits only for devices, for pages in transit and for the reader of events; what these wait for is held by none of them,
//!   or served by another supervisor.
//!
//! ```text
//! thread that forks            supervisor                         reader of events
//! fork: held                   .                                  .
//!   waits                      all pages home; none may leave     .
//!   .                          announces a fork; lets it go on    .
//! copies the address space     looks                              .
//!   waits until it is read     .                                  reads the event: announced
//! goes on                      seen: pages may leave again        .
//! ```

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use isomem_core::mm::Mm;
use isomem_core::world::World;
use rustix::io::Errno;
use rustix::thread::futex;

use super::current::{Current, Serving};
use super::watch::Watch;
use crate::bracket::{Outcome, make_here, perform};
use crate::calls::{Context, Effect, context, effect};
use crate::own::Change;
use crate::sys::metadata::MetaArc;
use crate::sys::seccomp::{Answer, Held, Listener, Notice, Shared, is_thread_of, read_word, shares};
use crate::sys::warden::Notices;
use crate::world::Linux;

/// How often a fork's event is looked for before the thread that forks is looked at, too.
const LOOKS: usize = 100;
const LOOK_NS: u64 = 10_000;
const WATCH_NS: u64 = 1_000_000;

/// What the supervisors are to do.
const WAIT: u32 = 0;
const SERVE: u32 = 1;
const LEAVE: u32 = 2;

/// What the supervisors share.
#[derive(Debug)]
pub(super) struct Supervisors {
    state: AtomicU32,
    listener: OnceLock<Listener>,
    process: u32,
    current: Current,
    /// Where notifications are received, so that the warden finds those that nobody answered.
    notices: Option<&'static Notices>,
}

impl Supervisors {
    pub(super) fn new(notices: Option<&'static Notices>) -> Self {
        Self {
            state: AtomicU32::new(WAIT),
            listener: OnceLock::new(),
            process: std::process::id(),
            current: Current::new(),
            notices,
        }
    }

    /// Sends them to work. Allocates nothing.
    pub(super) fn begin(&self, listener: Listener) -> &Listener {
        let listener = self.listener.get_or_init(|| listener);
        self.tell(SERVE);
        listener
    }

    /// Sends them home; the filter was refused.
    pub(super) fn dismiss(&self) {
        self.tell(LEAVE);
    }

    fn tell(&self, state: u32) {
        self.state.store(state, Ordering::Release);
        let _ = futex::wake(&self.state, futex::Flags::PRIVATE, u32::MAX >> 1);
    }

    /// Calls are bracketed for `mm` from now on.
    pub(super) fn serve(&self, mm: Mm<Linux>) -> Result<(), Errno> {
        self.current.open(mm)
    }

    /// All go on from now on. Waits until none is served (EXA-4).
    pub(super) fn serve_nobody(&self) {
        self.current.close();
    }

    /// The life of supervisor number `index`.
    pub(super) fn run(this: &MetaArc<Self>, index: usize) {
        while this.state.load(Ordering::Acquire) == WAIT {
            let _ = futex::wait(&this.state, futex::Flags::PRIVATE, WAIT, None);
        }
        let Some(listener) = this.listener.get() else { return };
        let mut own = Notice::default();
        let place = this
            .notices
            .and_then(|notices| notices.place(index))
            .unwrap_or(&mut own);
        loop {
            match listener.receive(place) {
                Ok(held) => Self::handle(this, listener, &held),
                // Who was held is gone.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                // The program closed the descriptor. Nobody can be answered any more: the kernel refuses what would be held.
                Err(_) => return,
            }
        }
    }

    fn handle(this: &MetaArc<Self>, listener: &Listener, held: &Held) {
        let Some(serving) = this.enter(held) else {
            return listener.answer(held.id, Answer::GoOn);
        };
        if let Some(answer) = Self::decide(this, listener, serving.mm(), held) {
            listener.answer(held.id, answer);
        }
    }

    /// `None` for the calls of others, and while no address space is open.
    fn enter(&self, held: &Held) -> Option<Serving> {
        if !self.is_ours(held.thread) {
            return None;
        }
        self.current.enter()
    }

    /// Whether `thread` works in this address space: it is one of the process, or (after vfork) borrows its memory.
    fn is_ours(&self, thread: i32) -> bool {
        thread != 0 && (is_thread_of(self.process, thread) || shares(thread, Shared::Memory) == Some(true))
    }

    /// What to answer; `None` where it was answered already.
    fn decide(this: &MetaArc<Self>, listener: &Listener, mm: &Mm<Linux>, held: &Held) -> Option<Answer> {
        let effect = match effect(&held.call) {
            Effect::ForkIf(flags_at) => fork_if(flags_at),
            other => other,
        };
        match effect {
            Effect::Nothing => Some(Answer::GoOn),
            Effect::Fork => {
                this.fork(listener, mm, held);
                None
            }
            _ if may_stand_in(held) => {
                let outcome = perform(mm, held.call, effect, make_here);
                Some(match outcome {
                    Outcome::Untouched => Answer::GoOn,
                    Outcome::Made(result) => Answer::Returned(result),
                    Outcome::Refused(errno) => Answer::Returned(-(errno.raw_os_error() as isize)),
                })
            }
            _ => {
                let (shared, held) = (this.clone(), *held);
                let let_go = move |world: &Linux, _| shared.let_go(world, &held);
                match perform(mm, held.call, effect, let_go) {
                    Outcome::Made(_) => None,
                    Outcome::Untouched => Some(Answer::GoOn),
                    Outcome::Refused(errno) => Some(Answer::Returned(-(errno.raw_os_error() as isize))),
                }
            }
        }
    }

    /// Lets the thread make the call itself, and waits until it has.
    fn let_go(&self, world: &Linux, held: &Held) -> isize {
        let watch = Watch::new(world, self.process, held);
        if let Some(listener) = self.listener.get() {
            listener.answer(held.id, Answer::GoOn);
        }
        while !watch.has_left() {
            world.pause(WATCH_NS);
        }
        0
    }

    /// Brings everything home, lets the thread fork, and lets pages leave again when the child has its copy (MIG-4).
    fn fork(&self, listener: &Listener, mm: &Mm<Linux>, held: &Held) {
        let world = mm.world();
        mm.fork_prepare();
        let ticket = world.announce(Change::Forked);
        let watch = Watch::new(world, self.process, held);
        listener.answer(held.id, Answer::GoOn);
        let is_seen = || ticket.is_some_and(|ticket| world.own_changes().is_seen(ticket));
        let mut looks = 0;
        // Where the fork fails there is no event.
        while !is_seen() && (looks < LOOKS || !watch.has_left()) {
            looks += 1;
            world.pause(if looks < LOOKS { LOOK_NS } else { WATCH_NS });
        }
        world.settle(ticket);
        mm.fork_done();
    }
}

/// Flags that cannot be read are no thread's: then the kernel cannot read them either.
fn fork_if(flags_at: usize) -> Effect {
    match read_word(flags_at) {
        Some(flags) if flags & libc::CLONE_VM as u64 != 0 => Effect::Nothing,
        _ => Effect::Fork,
    }
}

/// Whether a supervisor has what the call means: descriptors and paths can be a thread's own. Where the kernel does not tell, they hardly are.
fn may_stand_in(held: &Held) -> bool {
    let shared = match context(&held.call) {
        Context::None => return true,
        Context::Files => shares(held.thread, Shared::Files),
        Context::Paths => shares(held.thread, Shared::Paths),
    };
    shared != Some(false)
}
