//! What a word is, and a scanner that finds words in text that comes piece by piece.

use crate::args::WordRule;

/// What a byte means for words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Ends a word.
    Space,
    /// Makes the run that it stands in a word.
    Letter,
    /// Neither ends a word nor makes one.
    Neutral,
}

/// The class of each byte under one rule.
#[derive(Debug)]
pub(crate) struct Classes {
    of: [Class; 256],
    pub(crate) name: &'static str,
}

impl Classes {
    const fn new(name: &'static str, high: Class, control: Class) -> Self {
        let mut of = [control; 256];
        let mut byte = 0x21;
        while byte < 256 {
            of[byte] = if byte < 0x7f { Class::Letter } else { high };
            byte += 1;
        }
        of[0x7f] = control;
        let mut space = 0x09;
        while space <= 0x0d {
            of[space] = Class::Space;
            space += 1;
        }
        of[b' ' as usize] = Class::Space;
        Self { of, name }
    }

    /// The table for a rule; `Auto` asks the environment, as wc does.
    pub(crate) fn of(rule: WordRule) -> &'static Self {
        static C: Classes = Classes::new("c", Class::Neutral, Class::Neutral);
        static UTF8: Classes = Classes::new("utf8", Class::Letter, Class::Neutral);
        static POSIX: Classes = Classes::new("posix", Class::Letter, Class::Letter);
        match rule {
            WordRule::C => &C,
            WordRule::Utf8 => &UTF8,
            WordRule::Posix => &POSIX,
            WordRule::Auto if locale_is_utf8(|name| std::env::var(name).ok()) => &UTF8,
            WordRule::Auto => &C,
        }
    }

    pub(crate) fn is_space(&self, byte: u8) -> bool {
        self.of[usize::from(byte)] == Class::Space
    }

    /// Whether a run without spaces is a word.
    pub(crate) fn is_word(&self, run: &[u8]) -> bool {
        run.iter().any(|&byte| self.of[usize::from(byte)] == Class::Letter)
    }
}

/// The first of the three variables that is set and not empty decides.
fn locale_is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(variable)
        .find(|value| !value.is_empty());
    set.is_some_and(|value| value.to_ascii_lowercase().replace('-', "").contains(".utf8"))
}

/// A word, by its place in the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) hash: u64,
}

/// Finds words in text fed piece by piece; a word may span pieces.
#[derive(Debug)]
pub(crate) struct Scanner {
    classes: &'static Classes,
    at: usize,
    run: Option<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    start: usize,
    hash: u64,
    is_word: bool,
}

impl Scanner {
    /// A scanner whose first byte is the text's byte `at`, where no word is under way.
    pub(crate) fn new(classes: &'static Classes, at: usize) -> Self {
        Self { classes, at, run: None }
    }

    /// Whether a run is under way that the next piece may go on with.
    pub(crate) fn is_open(&self) -> bool {
        self.run.is_some()
    }

    /// Takes the next piece, calling `found` for each word that ends in it.
    pub(crate) fn feed(&mut self, piece: &[u8], mut found: impl FnMut(Word)) {
        for &byte in piece {
            let class = self.classes.of[usize::from(byte)];
            if class == Class::Space {
                self.end().into_iter().for_each(&mut found);
            } else {
                let fresh = Run {
                    start: self.at,
                    hash: 0xcbf2_9ce4_8422_2325,
                    is_word: false,
                };
                let run = self.run.get_or_insert(fresh);
                run.hash = (run.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                run.is_word |= class == Class::Letter;
            }
            self.at += 1;
        }
    }

    /// Ends the run under way, as a space or the end of the text does.
    pub(crate) fn end(&mut self) -> Option<Word> {
        let run = self.run.take().filter(|run| run.is_word)?;
        Some(Word {
            start: run.start,
            len: self.at - run.start,
            hash: mix(run.hash),
        })
    }
}

/// Spreads the hash: its low bits choose a slot and its high bits are the tag.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests;
