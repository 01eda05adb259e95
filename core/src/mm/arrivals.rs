//! Keeps pages from moving while the world's events are read and processed.
//!
//! Whoever moves pages reads, for one move; the reader of events writes, from before it reads some until it has processed them.
//!
//! # Invariants
//! - ARR-1: the reader of events gets its turn after the moves under way. Those who wait for an event to be read try the same move again and again,
//!   and would keep the lock among themselves: it does not hand itself over.
//!
//! # Locking
//! `turn` before `moving`; the former is held for taking the latter only.

use crate::sync::{MODEL, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) struct Arrivals {
    turn: Mutex<()>,
    moving: RwLock<()>,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self {
            turn: Mutex::new("turn", ()),
            moving: RwLock::new("arrivals", ()),
        }
    }

    /// For one move.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, ()> {
        // Under a model checker every order is tried, and none is unfair for ever.
        let _turn = (!MODEL).then(|| self.turn.lock());
        self.moving.read()
    }

    /// For the reader of events.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, ()> {
        let _turn = (!MODEL).then(|| self.turn.lock());
        self.moving.write()
    }
}
