//! Programs for seccomp with jumps to labels, so that the filter reads like one.
//!
//! # Invariants
//! - ASM-1: jumps go forward only, as the kernel asks; a label that was never placed makes assembling fail.
//!
//! Linux: Documentation/userspace-api/seccomp_filter.rst.

use crate::sys::seccomp::Instruction;

/// A place in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// What the accumulator is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    /// Equal to a number.
    Is(u32),
    /// Greater than a number.
    Above(u32),
    /// A bit in common with a number.
    Has(u32),
    /// At least the index register.
    AtLeastIndex,
}

#[derive(Debug, Clone, Copy)]
enum Line {
    Plain { code: u32, k: u32 },
    Branch { test: Test, yes: Label, no: Label },
    Go(Label),
    Here(Label),
}

/// A program as it is written.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    lines: Vec<Line>,
    labels: usize,
}

impl Assembler {
    /// A label to be placed later.
    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// The label is here.
    pub(super) fn here(&mut self, label: Label) {
        self.lines.push(Line::Here(label));
    }

    /// Goes to `yes` or to `no`.
    pub(super) fn branch(&mut self, test: Test, yes: Label, no: Label) {
        self.lines.push(Line::Branch { test, yes, no });
    }

    /// Goes to `yes`, or on.
    pub(super) fn when(&mut self, test: Test, yes: Label) {
        let next = self.label();
        self.branch(test, yes, next);
        self.here(next);
    }

    /// Goes to `no`, or on.
    pub(super) fn unless(&mut self, test: Test, no: Label) {
        let next = self.label();
        self.branch(test, next, no);
        self.here(next);
    }

    /// Goes there.
    pub(super) fn go(&mut self, label: Label) {
        self.lines.push(Line::Go(label));
    }

    /// Loads the word at `offset` of the call's description.
    pub(super) fn load(&mut self, offset: usize) {
        self.plain(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
    }

    /// Loads a number.
    pub(super) fn load_number(&mut self, number: u32) {
        self.plain(libc::BPF_LD | libc::BPF_IMM, number);
    }

    /// Loads what was kept in `place`.
    pub(super) fn recall(&mut self, place: u32) {
        self.plain(libc::BPF_LD | libc::BPF_MEM, place);
    }

    /// Keeps the accumulator in `place`.
    pub(super) fn keep(&mut self, place: u32) {
        self.plain(libc::BPF_ST, place);
    }

    /// Keeps those bits of the accumulator.
    pub(super) fn mask(&mut self, bits: u32) {
        self.plain(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, bits);
    }

    /// Adds what was kept in `place`; the index register then holds that.
    pub(super) fn add(&mut self, place: u32) {
        self.plain(libc::BPF_LDX | libc::BPF_MEM, place);
        self.plain(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0);
    }

    /// Ends with the answer.
    pub(super) fn answer(&mut self, answer: u32) {
        self.plain(libc::BPF_RET | libc::BPF_K, answer);
    }

    fn plain(&mut self, code: u32, k: u32) {
        self.lines.push(Line::Plain { code, k });
    }

    /// The program. `None` where a label is missing or lies behind.
    pub(super) fn assemble(self) -> Option<Vec<Instruction>> {
        let mut places = vec![None; self.labels];
        let mut at = 0;
        for line in &self.lines {
            if let Line::Here(Label(label)) = *line {
                places[label] = Some(at);
            }
            at += line.len();
        }
        let mut code = Vec::with_capacity(at);
        for line in &self.lines {
            // ASM-1: the distance is counted from the instruction after the jump.
            let jump = |from: usize, Label(to): Label| {
                let distance = places[to]?.checked_sub(from + 1)?;
                Some(instruction(
                    libc::BPF_JMP | libc::BPF_JA,
                    u32::try_from(distance).ok()?,
                    0,
                    0,
                ))
            };
            match *line {
                Line::Here(_) => {}
                Line::Plain { code: what, k } => code.push(instruction(what, k, 0, 0)),
                Line::Go(label) => code.push(jump(code.len(), label)?),
                Line::Branch { test, yes, no } => {
                    let (what, k) = test.code();
                    // A branch reaches 255 instructions, a jump any: so it chooses between two jumps.
                    code.push(instruction(libc::BPF_JMP | what, k, 0, 1));
                    code.push(jump(code.len(), yes)?);
                    code.push(jump(code.len(), no)?);
                }
            }
        }
        Some(code)
    }
}

impl Line {
    const fn len(&self) -> usize {
        match self {
            Self::Here(_) => 0,
            Self::Plain { .. } | Self::Go(_) => 1,
            Self::Branch { .. } => 3,
        }
    }
}

impl Test {
    const fn code(self) -> (u32, u32) {
        match self {
            Self::Is(k) => (libc::BPF_JEQ | libc::BPF_K, k),
            Self::Above(k) => (libc::BPF_JGT | libc::BPF_K, k),
            Self::Has(k) => (libc::BPF_JSET | libc::BPF_K, k),
            Self::AtLeastIndex => (libc::BPF_JGE | libc::BPF_X, 0),
        }
    }
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
