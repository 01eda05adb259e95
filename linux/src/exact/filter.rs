//! The filter: which system calls are held.
//!
//! Held are the calls of [`crate::calls`] that may change what is mapped, unless they come from isomem's own place
//! ([`crate::sys::call`]), or name addresses outside every window.
//!
//! # Invariants
//! - FIL-1: what is not held touches no page of a window. Where the filter cannot tell (a length behind a pointer, a file that may be mapped)
//!   the call is held.
//! - FIL-2: calls with other numbers are let pass by number alone, before anything else is looked at: the kernel then remembers that they pass,
//!   and does not run the filter for them again.
//!
//! Linux: seccomp_is_const_allow (kernel/seccomp.c) is what FIL-2 is for.

use isomem_core::addr::PageRange;

use super::assembler::{Assembler, Label, Test};
use crate::calls::{ADVICES, Kind, X32};
use crate::sys::seccomp::Instruction;

/// AUDIT_ARCH_X86_64.
const ARCH: u32 = 0xc000_003e;
const NUMBER_AT: usize = 0;
const ARCH_AT: usize = 4;
const PLACE_AT: usize = 8;
/// Bytes between the low and the high half of a word.
const HIGH: usize = 4;

/// Where the filter keeps halves of addresses.
const START: (u32, u32) = (0, 1);
const END: (u32, u32) = (2, 3);
const CARRY: u32 = 4;
const LEN: (u32, u32) = (5, 6);

/// How far above its beginning the heap is thought to reach.
const HEAP_BYTES: u64 = 16 << 40;

/// Where argument `index` is.
const fn arg(index: usize) -> usize {
    16 + 8 * index
}

/// What the filter is to hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    /// Windows; none means everything.
    pub(super) windows: &'a [PageRange],
    /// The instruction pointer of isomem's own calls.
    pub(super) own_place: u64,
    /// Where the heap begins.
    pub(super) heap_start: u64,
}

struct Writer<'a> {
    asm: Assembler,
    plan: Plan<'a>,
    allow: Label,
    hold: Label,
}

/// The filter for `plan`. `None` where it would be too long.
pub(super) fn assemble(plan: Plan<'_>) -> Option<Vec<Instruction>> {
    let mut asm = Assembler::default();
    let (allow, hold) = (asm.label(), asm.label());
    let mut writer = Writer { asm, plan, allow, hold };
    writer.write();
    let Writer { mut asm, .. } = writer;
    asm.here(allow);
    asm.answer(libc::SECCOMP_RET_ALLOW);
    asm.here(hold);
    asm.answer(libc::SECCOMP_RET_USER_NOTIF);
    asm.assemble().filter(|code| code.len() <= 4096)
}

impl Writer<'_> {
    fn write(&mut self) {
        self.asm.load(ARCH_AT);
        self.asm.unless(Test::Is(ARCH), self.allow);
        self.asm.load(NUMBER_AT);
        self.asm.mask(!(X32 as u32));
        let labels = Kind::ALL.map(|kind| {
            let label = self.asm.label();
            for &number in kind.numbers() {
                self.asm.when(Test::Is(number as u32), label);
            }
            (kind, label)
        });
        self.asm.go(self.allow);
        for (kind, label) in labels {
            self.asm.here(label);
            self.own_passes();
            self.kind(kind);
        }
    }

    /// isomem's own calls pass.
    fn own_passes(&mut self) {
        let other = self.asm.label();
        self.asm.load(PLACE_AT);
        self.asm.unless(Test::Is(self.plan.own_place as u32), other);
        self.asm.load(PLACE_AT + HIGH);
        self.asm
            .branch(Test::Is((self.plan.own_place >> 32) as u32), self.allow, other);
        self.asm.here(other);
    }

    fn kind(&mut self, kind: Kind) {
        match kind {
            Kind::Unmap | Kind::Protect | Kind::RemapFile => self.range(0, 1),
            Kind::Map => {
                self.asm.load(arg(3));
                self.asm.unless(Test::Has(libc::MAP_FIXED as u32), self.allow);
                self.asm.when(Test::Has(libc::MAP_FIXED_NOREPLACE as u32), self.allow);
                self.range(0, 1);
            }
            Kind::Remap => self.remap(),
            Kind::Advise => {
                self.advice(2);
                self.range(0, 1);
            }
            Kind::AdviseProcess => {
                self.advice(3);
                self.asm.go(self.hold);
            }
            Kind::Break => self.program_break(),
            Kind::Attach => {
                self.asm.load(arg(2));
                self.asm
                    .branch(Test::Has(libc::SHM_REMAP as u32), self.hold, self.allow);
            }
            Kind::Allocate => {
                self.asm.load(arg(1));
                self.asm
                    .branch(Test::Has(crate::calls::CUTTING_MODES as u32), self.hold, self.allow);
            }
            Kind::Clone => {
                self.asm.load(arg(0));
                self.asm.branch(Test::Has(libc::CLONE_VM as u32), self.allow, self.hold);
            }
            Kind::Detach | Kind::Truncate | Kind::TruncatePath | Kind::Fork | Kind::Clone3 => self.asm.go(self.hold),
        }
    }

    /// Goes on for an advice that drops contents.
    fn advice(&mut self, index: usize) {
        let drops = self.asm.label();
        self.asm.load(arg(index));
        for advice in ADVICES {
            self.asm.when(Test::Is(advice as u32), drops);
        }
        self.asm.go(self.allow);
        self.asm.here(drops);
    }

    fn remap(&mut self) {
        let replaced = self.asm.label();
        self.range_or(0, 1, replaced);
        self.asm.here(replaced);
        self.asm.load(arg(3));
        self.asm.unless(Test::Has(libc::MREMAP_FIXED as u32), self.allow);
        self.range(4, 2);
    }

    /// Held where the new end of the heap lies before the end of a window that the heap may reach: it may shrink.
    fn program_break(&mut self) {
        let has_argument = self.asm.label();
        for offset in [arg(0), arg(0) + HIGH] {
            self.asm.load(offset);
            let zero = self.asm.label();
            self.asm.branch(Test::Is(0), zero, has_argument);
            self.asm.here(zero);
        }
        self.asm.go(self.allow);
        self.asm.here(has_argument);
        if self.plan.windows.is_empty() {
            return self.asm.go(self.hold);
        }
        self.asm.load(arg(0));
        self.asm.keep(START.0);
        self.asm.load(arg(0) + HIGH);
        self.asm.keep(START.1);
        let heap = self.plan.heap_start..self.plan.heap_start.saturating_add(HEAP_BYTES);
        for window in self.plan.windows {
            if (window.start() as u64) < heap.end && window.end() as u64 > heap.start {
                let next = self.asm.label();
                self.below(START, window.end() as u64, self.hold, next);
                self.asm.here(next);
            }
        }
        self.asm.go(self.allow);
    }

    /// Held when the range by arguments `start` and `len` meets a window, else let pass.
    fn range(&mut self, start: usize, len: usize) {
        self.range_or(start, len, self.allow);
    }

    fn range_or(&mut self, start: usize, len: usize, otherwise: Label) {
        if self.plan.windows.is_empty() {
            return self.asm.go(self.hold);
        }
        self.load_range(start, len);
        for window in self.plan.windows {
            let (starts_before, next) = (self.asm.label(), self.asm.label());
            self.below(START, window.end() as u64, starts_before, next);
            self.asm.here(starts_before);
            self.above(END, window.start() as u64, self.hold, next);
            self.asm.here(next);
        }
        self.asm.go(otherwise);
    }

    /// Puts the range into START and END. One that wraps around is refused by the kernel, whatever becomes of it here.
    fn load_range(&mut self, start: usize, len: usize) {
        for (offset, place) in [
            (arg(start), START.0),
            (arg(start) + HIGH, START.1),
            (arg(len), LEN.0),
            (arg(len) + HIGH, LEN.1),
        ] {
            self.asm.load(offset);
            self.asm.keep(place);
        }
        let (carried, plain, done) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.recall(LEN.0);
        self.asm.add(START.0);
        self.asm.keep(END.0);
        // Smaller than what was added: it went around.
        self.asm.branch(Test::AtLeastIndex, plain, carried);
        self.asm.here(carried);
        self.asm.load_number(1);
        self.asm.go(done);
        self.asm.here(plain);
        self.asm.load_number(0);
        self.asm.here(done);
        self.asm.keep(CARRY);
        self.asm.add(LEN.1);
        self.asm.add(START.1);
        self.asm.keep(END.1);
    }

    /// Goes to `yes` where the kept number is less than `bound`.
    fn below(&mut self, kept: (u32, u32), bound: u64, yes: Label, no: Label) {
        let (low, high) = (bound as u32, (bound >> 32) as u32);
        let same = self.asm.label();
        self.asm.recall(kept.1);
        self.asm.when(Test::Above(high), no);
        self.asm.branch(Test::Is(high), same, yes);
        self.asm.here(same);
        if low == 0 {
            return self.asm.go(no);
        }
        self.asm.recall(kept.0);
        self.asm.branch(Test::Above(low - 1), no, yes);
    }

    /// Goes to `yes` where the kept number is greater than `bound`.
    fn above(&mut self, kept: (u32, u32), bound: u64, yes: Label, no: Label) {
        let (low, high) = (bound as u32, (bound >> 32) as u32);
        let same = self.asm.label();
        self.asm.recall(kept.1);
        self.asm.when(Test::Above(high), yes);
        self.asm.branch(Test::Is(high), same, no);
        self.asm.here(same);
        self.asm.recall(kept.0);
        self.asm.branch(Test::Above(low), yes, no);
    }
}

#[cfg(test)]
mod tests;
