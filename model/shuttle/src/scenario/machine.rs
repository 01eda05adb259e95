//! The smallest machine on which a page can get lost: page frames of a few words, the CPU's page table and a device's.
//!
//! The designs that failed run on it. Ours runs in the simulated kernel, which is larger for the same reason that it is more faithful.
//!
//! # Invariants
//! - Every method is one step, as an instruction or a change of a page-table entry is: the scheduler may switch threads before it, not in it.
//! - Once an entry is taken out, no access through it is in flight: that it takes a flush to get there is another story.
//!
//! # Locking
//! One lock of std, a leaf, which the scheduler does not see.

use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use isomem_sim::journal::{Actor, Event, Frame, Journal};
use isomem_sim::sync::{AtomicBool, Ordering};

/// Words of a page.
pub const WORDS: usize = 4;
/// Pages of the program.
pub const PAGES: usize = 4;
/// What a frame holds that belongs to somebody else.
pub const FOREIGN: u64 = 999;
/// The only device's name.
pub const DEVICE: Actor = Actor::Device("device");

/// Address of a word, as the history has it.
pub const fn addr(page: u64, word: usize) -> u64 {
    page * 4096 + word as u64 * 8
}

/// The device answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// An entry of a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where it leads.
    pub frame: Frame,
    /// Whether writes are let through.
    pub writable: bool,
}

impl Entry {
    /// For reads and writes.
    pub const fn to(frame: Frame) -> Self {
        Self { frame, writable: true }
    }

    /// For reads only.
    pub const fn read_only(frame: Frame) -> Self {
        Self { frame, writable: false }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let only = if self.writable { "" } else { ", read-only" };
        write!(f, "frame {}{only}", self.frame)
    }
}

/// What the machine is to fail at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every copy from here on.
    Copies,
    /// The next entry for the device, once.
    NextEntry,
}

struct State {
    frames: Vec<[u64; WORDS]>,
    cpu: [Option<Entry>; PAGES],
    device: [Option<Entry>; PAGES],
    copies_fail: bool,
    entry_fails: bool,
}

/// A handle to a machine.
#[derive(Clone)]
pub struct Machine {
    journal: Journal,
    state: Arc<Mutex<State>>,
    /// Read for the sake of the scheduler only, which may switch threads there.
    point: Arc<AtomicBool>,
}

impl Machine {
    /// One whose CPU maps each page to a frame of zeroes.
    pub fn new(journal: &Journal) -> Self {
        let state = State {
            frames: vec![[0; WORDS]; PAGES],
            cpu: std::array::from_fn(|page| Some(Entry::to(page as Frame))),
            device: [None; PAGES],
            copies_fail: false,
            entry_fails: false,
        };
        Self {
            journal: journal.clone(),
            state: Arc::new(Mutex::new(state)),
            point: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Where to record.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    fn step<R>(&self, step: impl FnOnce(&mut State) -> R) -> R {
        // Relaxed: nothing is published by it.
        self.point.load(Ordering::Relaxed);
        step(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The frame of a page that never moves.
    pub fn frame(&self, page: u64) -> Frame {
        page
    }

    /// What is in a word of such a page.
    pub fn word(&self, page: u64, word: usize) -> u64 {
        self.step(|state| state.frames[page as usize][word])
    }

    /// A frame of zeroes.
    pub fn alloc(&self) -> Frame {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.frames.push([0; WORDS]);
        state.frames.len() as Frame - 1
    }

    /// Gives a frame back. Memory is short: it has another owner at once, who writes [`FOREIGN`] to it.
    pub fn free(&self, frame: Frame) {
        self.step(|state| {
            self.journal.note(format_args!("frees frame {frame}"));
            state.frames[frame as usize] = [FOREIGN; WORDS];
        });
    }

    /// Makes the device fail.
    pub fn inject(&self, fault: Fault) {
        self.step(|state| match fault {
            Fault::Copies => {
                self.journal.note("the copy engine is gone: copies fail from here on");
                state.copies_fail = true;
            }
            Fault::NextEntry => state.entry_fails = true,
        });
    }

    /// Copies work again.
    pub fn repair(&self) {
        self.step(|state| state.copies_fail = false);
    }

    /// Copies a frame, word by word.
    pub fn copy(&self, from: Frame, to: Frame) -> Result<(), Failed> {
        for word in 0..WORDS {
            self.step(|state| {
                if state.copies_fail {
                    self.journal
                        .note(format_args!("the copy of frame {from} fails at word {word}"));
                    return Err(Failed);
                }
                let value = state.frames[from as usize][word];
                self.journal.note(format_args!(
                    "copies word {word} from frame {from} to frame {to}: {value}"
                ));
                state.frames[to as usize][word] = value;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Sets or clears the CPU's entry.
    pub fn map_cpu(&self, page: u64, entry: Option<Entry>) {
        self.step(|state| {
            self.note_entry("the CPU", page, entry);
            state.cpu[page as usize] = entry;
        });
    }

    /// Sets the device's entry, where the device can take it.
    pub fn map_device(&self, page: u64, entry: Entry) -> Result<(), Failed> {
        self.step(|state| {
            if std::mem::take(&mut state.entry_fails) {
                self.journal
                    .note(format_args!("the device cannot take an entry for page {page}"));
                return Err(Failed);
            }
            self.note_entry("the device", page, Some(entry));
            state.device[page as usize] = Some(entry);
            Ok(())
        })
    }

    /// Clears the device's entry.
    pub fn unmap_device(&self, page: u64) {
        self.step(|state| {
            self.note_entry("the device", page, None);
            state.device[page as usize] = None;
        });
    }

    fn note_entry(&self, who: &str, page: u64, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.journal.note(format_args!("maps page {page} for {who}: {entry}")),
            None => self.journal.note(format_args!("unmaps page {page} for {who}")),
        }
    }

    /// What the CPU's entry leads to.
    pub fn cpu_entry(&self, page: u64) -> Option<Entry> {
        self.step(|state| state.cpu[page as usize])
    }

    /// Gives a hole of the CPU's page table a frame of zeroes, as a first touch does. False where there is a page already.
    pub fn fill_zero(&self, page: u64) -> bool {
        let frame = self.alloc();
        self.step(|state| {
            let hole = state.cpu[page as usize].is_none();
            if hole {
                self.note_entry("the CPU", page, Some(Entry::to(frame)));
                state.cpu[page as usize] = Some(Entry::to(frame));
            }
            hole
        })
    }

    /// The whole way to the device, as nobody argued about: the page is taken from the CPU, copied, given to the device, and its source freed.
    /// Answers its frame there.
    pub fn move_out(&self, page: u64) -> Frame {
        let source = self.cpu_entry(page).expect("a page that is sent is at home").frame;
        self.map_cpu(page, None);
        let target = self.alloc();
        self.copy(source, target).expect("copies work here");
        self.map_device(page, Entry::to(target))
            .expect("the device takes entries here");
        self.free(source);
        target
    }

    /// The whole way home of a page that is in `source` on the device.
    pub fn move_home(&self, page: u64, source: Frame) {
        self.unmap_device(page);
        let target = self.alloc();
        self.copy(source, target).expect("copies work here");
        self.map_cpu(page, Some(Entry::to(target)));
        self.free(source);
    }

    /// An access of one word. `None` is a fault.
    pub fn access(&self, actor: Actor, page: u64, word: usize, access: Access) -> Option<u64> {
        self.step(|state| {
            let table = if actor == Actor::Cpu { &state.cpu } else { &state.device };
            let writes = !matches!(access, Access::Read);
            let Some(entry) = table[page as usize].filter(|entry| entry.writable || !writes) else {
                self.journal
                    .note(format_args!("a fault: {actor} has no entry for page {page}"));
                return None;
            };
            let cell = &mut state.frames[entry.frame as usize][word];
            let addr = addr(page, word);
            *cell = match access {
                Access::Read => *cell,
                Access::Write(value) => value,
                Access::Add(value) => *cell + value,
            };
            let value = *cell;
            self.journal.record(match access {
                Access::Read => Event::Read { actor, addr, value },
                Access::Write(_) | Access::Add(_) => Event::Write {
                    actor,
                    addr,
                    value,
                    frame: None,
                },
            });
            Some(value)
        })
    }

    /// What the CPU finds in a word, for a story that judges by itself. `None` is a fault.
    pub fn peek(&self, page: u64, word: usize) -> Option<u64> {
        self.step(|state| state.cpu[page as usize].map(|entry| state.frames[entry.frame as usize][word]))
    }

    /// The CPU sees these words of a page at one moment. False is a fault.
    pub fn sees<const N: usize>(&self, page: u64, words: [usize; N]) -> bool {
        self.step(|state| {
            let Some(entry) = state.cpu[page as usize] else {
                self.journal
                    .note(format_args!("a fault: the CPU has no entry for page {page}"));
                return false;
            };
            let words = words.map(|word| state.frames[entry.frame as usize][word]).to_vec();
            self.journal.record(Event::SawPage {
                actor: Actor::Cpu,
                page,
                words,
            });
            true
        })
    }
}

/// What an actor does with a word.
#[derive(Debug, Clone, Copy)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes this.
    Write(u64),
    /// Adds this, in one step.
    Add(u64),
}
