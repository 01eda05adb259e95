//! What of userfaultfd is granted, one by one.

use linux_raw_sys::general as raw;

/// How the descriptor was got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// By /dev/userfaultfd: needs permission on that file.
    Device,
    /// By the system call: needs CAP_SYS_PTRACE or vm.unprivileged_userfaultfd.
    Syscall,
    /// By the system call, with faults of user mode only: system calls that touch a missing page fail with EFAULT.
    UserModeOnly,
}

/// What of userfaultfd is granted, one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// How the descriptor was got.
    pub opened: Opened,
    pub(super) bits: u64,
}

impl Features {
    /// What a descriptor for the program's areas wants.
    pub const PROGRAM: u64 = Self::ARENA
        | raw::UFFD_FEATURE_EVENT_FORK as u64
        | raw::UFFD_FEATURE_EVENT_REMAP as u64
        | raw::UFFD_FEATURE_EVENT_REMOVE as u64
        | raw::UFFD_FEATURE_EVENT_UNMAP as u64;
    /// What a descriptor for the arena wants: no events, so that our own changes there never wait.
    pub const ARENA: u64 = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64
        | raw::UFFD_FEATURE_THREAD_ID as u64
        | raw::UFFD_FEATURE_EXACT_ADDRESS as u64
        | raw::UFFD_FEATURE_POISON as u64
        | raw::UFFD_FEATURE_MOVE as u64;
    /// Every feature that this crate can tell the name of.
    pub const NAMES: [(u64, &'static str); 11] = [
        (raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64, "write-protect"),
        (raw::UFFD_FEATURE_WP_UNPOPULATED as u64, "write-protect-unpopulated"),
        (raw::UFFD_FEATURE_WP_ASYNC as u64, "write-protect-async"),
        (raw::UFFD_FEATURE_EVENT_REMOVE as u64, "event-remove"),
        (raw::UFFD_FEATURE_EVENT_UNMAP as u64, "event-unmap"),
        (raw::UFFD_FEATURE_EVENT_REMAP as u64, "event-remap"),
        (raw::UFFD_FEATURE_EVENT_FORK as u64, "event-fork"),
        (raw::UFFD_FEATURE_MOVE as u64, "move"),
        (raw::UFFD_FEATURE_POISON as u64, "poison"),
        (raw::UFFD_FEATURE_THREAD_ID as u64, "thread-id"),
        (raw::UFFD_FEATURE_EXACT_ADDRESS as u64, "exact-address"),
    ];

    /// The raw bits.
    pub const fn bits(self) -> u64 {
        self.bits
    }

    const fn has(self, bit: u32) -> bool {
        self.bits & bit as u64 != 0
    }

    /// Whether write-protection faults are told.
    pub const fn wp(self) -> bool {
        self.has(raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP)
    }

    /// Whether empty entries can be write-protected.
    pub const fn wp_unpopulated(self) -> bool {
        self.has(raw::UFFD_FEATURE_WP_UNPOPULATED)
    }

    /// Whether MADV_DONTNEED and its like are told.
    pub const fn event_remove(self) -> bool {
        self.has(raw::UFFD_FEATURE_EVENT_REMOVE)
    }

    /// Whether munmap is told.
    pub const fn event_unmap(self) -> bool {
        self.has(raw::UFFD_FEATURE_EVENT_UNMAP)
    }

    /// Whether mremap is told; without it, mremap ends the registration.
    pub const fn event_remap(self) -> bool {
        self.has(raw::UFFD_FEATURE_EVENT_REMAP)
    }

    /// Whether fork is told (CAP_SYS_PTRACE).
    pub const fn event_fork(self) -> bool {
        self.has(raw::UFFD_FEATURE_EVENT_FORK)
    }

    /// Whether pages can be moved without a copy (Linux 6.8).
    pub const fn move_(self) -> bool {
        self.has(raw::UFFD_FEATURE_MOVE)
    }

    /// Whether a page can be made an error (Linux 6.6).
    pub const fn poison(self) -> bool {
        self.has(raw::UFFD_FEATURE_POISON)
    }

    /// Whether a fault names its thread.
    pub const fn thread_id(self) -> bool {
        self.has(raw::UFFD_FEATURE_THREAD_ID)
    }

    /// Whether a fault's address is exact, instead of its page's.
    pub const fn exact_address(self) -> bool {
        self.has(raw::UFFD_FEATURE_EXACT_ADDRESS)
    }

    /// Whether faults inside system calls go unserved.
    pub const fn user_mode_only(self) -> bool {
        matches!(self.opened, Opened::UserModeOnly)
    }
}
