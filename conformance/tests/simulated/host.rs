//! The bytes of a simulated process: of a page the simulator keeps the first words, the rest reads as zero.

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::world::{self, Access};
use isomem_dmirror::{AreaKind, Place};
use isomem_sim::journal::Actor;
use isomem_sim::kernel::{Op, Process, WORDS};
use rustix::io::Errno;

pub(crate) const WORD: usize = size_of::<u64>();
const DEVICE: Actor = Actor::Device("dmirror");

/// The bytes of a process that its driver reaches.
#[derive(Clone)]
pub(crate) struct Host(pub(crate) Process);

impl Host {
    /// Does `op` to the words that lie `at`, in pieces of a page each: with the program's address of the piece, and where it is in the data.
    fn each_page(place: Place, len: usize, mut op: impl FnMut(Place, core::ops::Range<usize>) -> bool) -> usize {
        let mut done = 0;
        while done < len {
            let piece = Place {
                addr: place.addr + done,
                known_as: place.known_as + done,
            };
            let bytes = (PAGE_SIZE - piece.addr % PAGE_SIZE).min(len - done);
            if !op(piece, done..done + bytes) {
                break;
            }
            done += bytes;
        }
        done
    }

    /// One word of a piece; `None` where it is not allowed.
    fn word(&self, actor: Actor, place: Place, word: usize, op: Op) -> Option<u64> {
        let (at, page) = (place.addr / PAGE_SIZE, place.known_as / PAGE_SIZE);
        self.0.access(actor, at, page, word, op).ok()
    }

    pub(crate) fn load(&self, actor: Actor, place: Place, out: &mut [u8]) -> usize {
        Self::each_page(place, out.len(), |piece, part| {
            let mut page = [0; PAGE_SIZE];
            for (word, bytes) in page.chunks_mut(WORD).take(WORDS).enumerate() {
                match self.word(actor, piece, word, Op::Load) {
                    Some(value) => bytes.copy_from_slice(&value.to_ne_bytes()),
                    None => return false,
                }
            }
            let first = piece.addr % PAGE_SIZE;
            out[part.clone()].copy_from_slice(&page[first..first + part.len()]);
            true
        })
    }

    pub(crate) fn store(&self, actor: Actor, place: Place, from: &[u8]) -> usize {
        Self::each_page(place, from.len(), |piece, part| {
            if self.0.touch(piece.addr / PAGE_SIZE, Access::Write).is_err() {
                return false;
            }
            let first = piece.addr % PAGE_SIZE;
            (0..WORDS).all(|word| {
                let bytes = word * WORD..(word + 1) * WORD;
                if bytes.start < first || bytes.end > first + part.len() {
                    return true;
                }
                let at = part.start + bytes.start - first;
                let value = u64::from_ne_bytes(from[at..at + WORD].try_into().expect("a word"));
                self.word(actor, piece, word, Op::Store(value)).is_some()
            })
        })
    }
}

impl isomem_dmirror::Process for Host {
    fn read(&self, place: Place, out: &mut [u8]) -> usize {
        self.load(DEVICE, place, out)
    }

    fn write(&self, place: Place, from: &[u8]) -> usize {
        self.store(DEVICE, place, from)
    }

    fn areas(&self, range: PageRange, each: &mut dyn FnMut(PageRange, AreaKind)) -> Result<(), Errno> {
        for area in self.0.areas(range) {
            let kind = match area.backing {
                world::Backing::Anonymous => AreaKind::Anonymous,
                _ => AreaKind::Shared,
            };
            each(area.range, kind);
        }
        Ok(())
    }

    fn file_pages(&self, _: PageRange, _: &mut dyn FnMut(PageRange)) -> Result<(), Errno> {
        Ok(())
    }
}
