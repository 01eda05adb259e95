//! What the kernel says when it is asked.

use isomem::Exactness;
use isomem_linux::sys::maps::Maps;
use isomem_linux::sys::pagemap::Pagemap;
use isomem_linux::sys::uffd::{Features, Opened, Uffd};
use std::fs;

/// Whose faults userfaultfd lets us serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Access {
    /// There is no way to open one.
    #[default]
    None,
    /// Those that a program's own instructions make.
    UserMode,
    /// Also those inside system calls.
    All,
}

impl Access {
    pub(super) fn tell(self) -> &'static str {
        match self {
            Self::None => "no way to open one is permitted, or the kernel has none",
            Self::UserMode => "opened for faults of user mode only",
            Self::All => "opened",
        }
    }
}

/// The facts that the checks are made from.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) kernel: String,
    pub(super) access: Access,
    pub(super) move_: bool,
    pub(super) write_protect: bool,
    pub(super) poison: bool,
    pub(super) event_remove: bool,
    pub(super) event_unmap: bool,
    pub(super) event_remap: bool,
    pub(super) event_fork: bool,
    pub(super) pagemap_scan: bool,
    pub(super) procmap_query: bool,
    /// The kernel's word for when it makes huge pages.
    pub(super) huge_pages: String,
    /// The level that is chosen.
    pub(super) level: Exactness,
    /// Why the exact level is not to be had.
    pub(super) no_exact: Option<String>,
}

impl Facts {
    pub(super) fn gather() -> Self {
        let mut facts = Self {
            kernel: read_line("/proc/sys/kernel/osrelease"),
            pagemap_scan: Pagemap::open().is_ok_and(|pagemap| pagemap.has_scan()),
            procmap_query: Maps::open().is_ok_and(|maps| maps.has_query()),
            level: Exactness::from_environment().unwrap_or_default(),
            no_exact: isomem_linux::exact::probe().err().map(|error| error.to_string()),
            huge_pages: chosen(&read_line("/sys/kernel/mm/transparent_hugepage/enabled")),
            ..Self::default()
        };
        if let Ok(uffd) = Uffd::open(Features::PROGRAM) {
            facts.granted(uffd.features());
        }
        facts
    }

    fn granted(&mut self, features: Features) {
        self.access = match features.opened {
            Opened::UserModeOnly => Access::UserMode,
            Opened::Device | Opened::Syscall => Access::All,
        };
        self.move_ = features.move_();
        self.write_protect = features.wp();
        self.poison = features.poison();
        self.event_remove = features.event_remove();
        self.event_unmap = features.event_unmap();
        self.event_remap = features.event_remap();
        self.event_fork = features.event_fork();
    }
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Of `always [madvise] never`, the word in brackets. A kernel without huge pages has no such file.
pub(super) fn chosen(line: &str) -> String {
    let word = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map_or("never", |(word, _)| word).to_owned()
}
