//! Looks at the areas of the process, by address and in order, without the heap.
//!
//! PROCMAP_QUERY (Linux 6.11) where there is one; else the text of /proc/self/maps, parsed byte by byte.
//!
//! # Invariants
//! - MAPS-1: the areas come in address order and do not overlap, also when they are joined with their neighbours while they are reported: then
//!   the second begins where the first ended.
//! - MAPS-2: nothing is allocated: buffers are on the stack.
//!
//! # Locking
//! None. The answer may be stale when it arrives.
//!
//! Linux: fs/proc/task_mmu.c.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use isomem_core::addr::{BLOCK_SIZE, PAGE_SIZE, PageRange, USER_END};
use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use super::inject::{self, Site};

const QUERY: Opcode = opcode::read_write::<raw::procmap_query>(b'f', 17);
/// Bytes of text that one read fetches.
const TEXT_BYTES: usize = 2048;
/// How much of a name is looked at.
const NAME_BYTES: usize = 24;

/// What a name in /proc/self/maps says of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// None, or one that the program gave (`[anon:..]`).
    None,
    /// `[heap]`.
    Heap,
    /// `[stack]`, the first thread's.
    Stack,
    /// `[vdso]`, `[vvar]` and other areas that the kernel makes.
    Special,
    /// A path.
    Path,
}

/// One area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vma {
    /// Where it lies.
    pub range: PageRange,
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub exec: bool,
    /// MAP_SHARED.
    pub shared: bool,
    /// A file is behind it (also memfd, shared memory, huge-page pool).
    pub file: bool,
    /// The file's number on its file system; 0 where there is none.
    pub inode: u64,
    /// Where in the file the area begins, in bytes.
    pub offset: u64,
    /// Its name.
    pub name: Name,
    /// The size of a page: larger for the huge-page pool. Where the kernel has only text, known by the name of the pool's own mappings.
    pub page_bytes: usize,
}

impl Vma {
    /// Whether its pages are private and anonymous through and through.
    pub fn is_private_anonymous(&self) -> bool {
        !self.shared && !self.file && !matches!(self.name, Name::Special | Name::Path)
    }

    /// Without what was reported before (MAPS-1), up to the address `reported`.
    fn after(mut self, reported: Option<usize>) -> Self {
        if let Some(start) = reported
            && start > self.range.start()
            && let Ok(rest) = PageRange::new(start, self.range.end() - start)
        {
            self.offset += (start - self.range.start()) as u64;
            self.range = rest;
        }
        self
    }
}

/// The areas of the process that opened it.
#[derive(Debug)]
pub struct Maps {
    fd: OwnedFd,
    /// PROCMAP_QUERY works here; cleared when the kernel says it does not know it.
    has_query: AtomicBool,
}

impl Maps {
    /// Opens those of the calling process.
    pub fn open() -> Result<Self> {
        inject::check(Site::ProcOpen)?;
        let fd = rustix::fs::open("/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            fd,
            has_query: AtomicBool::new(true),
        })
    }

    /// Whether PROCMAP_QUERY works here, as far as is known: true until a first query failed.
    pub fn has_query(&self) -> bool {
        self.has_query.load(Ordering::Relaxed)
    }

    /// Reports the areas that overlap `range` (whole, not cut) to `each`.
    pub fn in_range(&self, range: PageRange, each: &mut dyn FnMut(Vma)) -> Result<()> {
        // Relaxed: a reader that misses the news only asks the kernel once more.
        if !self.has_query.load(Ordering::Relaxed) {
            return self.parse(range, each);
        }
        let mut at = range.start();
        while at < range.end() {
            match self.query(at) {
                Ok(Some(vma)) if vma.range.start() < range.end() => {
                    let reported = (at > range.start()).then_some(at);
                    at = vma.range.end();
                    each(vma.after(reported));
                }
                Ok(_) => break,
                Err(Errno::NOTTY | Errno::INVAL) if at == range.start() => {
                    self.has_query.store(false, Ordering::Relaxed);
                    return self.parse(range, each);
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// The same by parsing the text only, as on a kernel before 6.11.
    pub fn in_range_by_text(&self, range: PageRange, each: &mut dyn FnMut(Vma)) -> Result<()> {
        self.parse(range, each)
    }

    /// The area at `addr`, or else the next after it.
    fn query(&self, addr: usize) -> Result<Option<Vma>> {
        let mut name = [0_u8; 256];
        let mut name_bytes = name.len();
        loop {
            let mut arg = query_arg(addr, &mut name[..name_bytes]);
            // SAFETY: the opcode is built from the size of this structure.
            let request = unsafe { Updater::<QUERY, _>::new(&mut arg) };
            // SAFETY: the request writes `arg` and at most `vma_name_size` bytes of `name`.
            let call = || unsafe { ioctl(&self.fd, request) };
            match inject::check(Site::ProcmapQuery).and_then(|()| call()) {
                Ok(()) => return Ok(vma_of(&arg, &name)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::INTR) => {}
                // A long path: that it is a path is all that we want to know.
                Err(Errno::NAMETOOLONG) if name_bytes > 0 => name_bytes = 0,
                Err(errno) => return Err(errno),
            }
        }
    }

    fn parse(&self, range: PageRange, each: &mut dyn FnMut(Vma)) -> Result<()> {
        let mut text = [0_u8; TEXT_BYTES];
        let mut line = Line::default();
        let mut offset = 0;
        let mut reported = None;
        loop {
            let mut read = || rustix::io::pread(&self.fd, &mut text[..], offset);
            let got = match inject::check(Site::MapsRead).and_then(|()| read()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if got == 0 {
                return Ok(());
            }
            offset += got as u64;
            for &byte in &text[..got] {
                let Some(vma) = line.push(byte) else { continue };
                if vma.range.start() >= range.end() {
                    return Ok(());
                }
                if vma.range.overlaps(range) && Some(vma.range.end()) > reported {
                    each(vma.after(reported));
                    reported = Some(vma.range.end());
                }
            }
        }
    }
}

fn query_arg(addr: usize, name: &mut [u8]) -> raw::procmap_query {
    raw::procmap_query {
        size: size_of::<raw::procmap_query>() as u64,
        query_flags: raw::procmap_query_flags::PROCMAP_QUERY_COVERING_OR_NEXT_VMA as u64,
        query_addr: addr as u64,
        vma_start: 0,
        vma_end: 0,
        vma_flags: 0,
        vma_page_size: 0,
        vma_offset: 0,
        inode: 0,
        dev_major: 0,
        dev_minor: 0,
        vma_name_size: name.len() as u32,
        build_id_size: 0,
        vma_name_addr: if name.is_empty() {
            0
        } else {
            name.as_mut_ptr().expose_provenance() as u64
        },
        build_id_addr: 0,
    }
}

fn vma_of(arg: &raw::procmap_query, name: &[u8]) -> Option<Vma> {
    let has = |flag: raw::procmap_query_flags| arg.vma_flags & flag as u64 != 0;
    let file = arg.inode != 0 || arg.dev_major != 0 || arg.dev_minor != 0;
    let name = match (arg.vma_name_size as usize).min(name.len()) {
        0 if file => Name::Path,
        len => name_of(&name[..len]),
    };
    Some(Vma {
        range: user_range(arg.vma_start as usize, arg.vma_end as usize)?,
        read: has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_READABLE),
        write: has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_WRITABLE),
        exec: has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_EXECUTABLE),
        shared: has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_SHARED),
        file,
        inode: arg.inode,
        offset: arg.vma_offset,
        name,
        page_bytes: arg.vma_page_size as usize,
    })
}

/// `None` for what the kernel shows beyond user space (vsyscall).
fn user_range(start: usize, end: usize) -> Option<PageRange> {
    if start >= USER_END {
        return None;
    }
    PageRange::new(start, end.checked_sub(start)?).ok()
}

fn name_of(name: &[u8]) -> Name {
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    match name {
        b"" => Name::None,
        b"[heap]" => Name::Heap,
        b"[stack]" => Name::Stack,
        _ if name.starts_with(b"[anon:") => Name::None,
        _ if name.starts_with(b"[") => Name::Special,
        _ => Name::Path,
    }
}

/// A line of /proc/self/maps as its bytes arrive:
/// `start-end perms offset major:minor inode   name`.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    field: Field,
    start: usize,
    end: usize,
    perms: [u8; 4],
    perms_len: usize,
    file: bool,
    inode: u64,
    offset: u64,
    name: [u8; NAME_BYTES],
    name_len: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Field {
    #[default]
    Start,
    End,
    Perms,
    Offset,
    Device,
    Inode,
    Name,
}

impl Line {
    /// Takes the next byte; gives the area when it ends the line.
    fn push(&mut self, byte: u8) -> Option<Vma> {
        if byte == b'\n' {
            return core::mem::take(self).finish();
        }
        match (self.field, byte) {
            (Field::Start, b'-') => self.field = Field::End,
            (Field::End, b' ') => self.field = Field::Perms,
            (Field::Perms, b' ') => self.field = Field::Offset,
            (Field::Offset, b' ') => self.field = Field::Device,
            (Field::Device, b' ') => self.field = Field::Inode,
            (Field::Inode, b' ') => self.field = Field::Name,
            (Field::Start, digit) => self.start = self.start << 4 | hex(digit),
            (Field::End, digit) => self.end = self.end << 4 | hex(digit),
            (Field::Perms, letter) => {
                if let Some(place) = self.perms.get_mut(self.perms_len) {
                    *place = letter;
                    self.perms_len += 1;
                }
            }
            (Field::Offset, digit) => self.offset = self.offset << 4 | hex(digit) as u64,
            (Field::Device, digit) => self.file |= !matches!(digit, b'0' | b':'),
            (Field::Inode, digit) => {
                self.file |= digit != b'0';
                self.inode = self
                    .inode
                    .wrapping_mul(10)
                    .wrapping_add(u64::from(digit.wrapping_sub(b'0')));
            }
            (Field::Name, b' ') if self.name_len == 0 => {}
            (Field::Name, letter) => {
                if let Some(place) = self.name.get_mut(self.name_len) {
                    *place = letter;
                    self.name_len += 1;
                }
            }
        }
        None
    }

    fn finish(self) -> Option<Vma> {
        Some(Vma {
            range: user_range(self.start, self.end)?,
            read: self.perms[0] == b'r',
            write: self.perms[1] == b'w',
            exec: self.perms[2] == b'x',
            shared: self.perms[3] == b's',
            file: self.file,
            inode: self.inode,
            offset: self.offset,
            name: name_of(&self.name[..self.name_len]),
            page_bytes: match self.name.starts_with(b"/anon_hugepage") {
                true => BLOCK_SIZE,
                false => PAGE_SIZE,
            },
        })
    }
}

fn hex(digit: u8) -> usize {
    char::from(digit).to_digit(16).unwrap_or(0) as usize
}

#[cfg(test)]
mod tests;
