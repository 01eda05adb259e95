//! Where the loaded objects of the process lie: the program, its libraries, the loader.
//!
//! # Locking
//! The loader's own lock, which the program may hold: ask on the program's threads only, never on the fault path.
//!
//! Linux: fs/binfmt_elf.c maps them; dl_iterate_phdr(3) tells.

use core::ffi::{c_int, c_void};

use isomem_core::addr::PageRange;

type Each<'a> = &'a mut dyn FnMut(PageRange);

/// Reports each loaded segment (with .bss) of each loaded object, rounded outwards to pages.
#[doc(alias = "dl_iterate_phdr")]
pub fn loaded(mut each: Each<'_>) {
    let data = core::ptr::from_mut(&mut each).cast::<c_void>();
    // SAFETY: `visit` matches the signature, and `data` is an `Each` that lives until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(visit), data) };
}

extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: `loaded` passes its own `Each`, and the loader calls back on the same thread before it returns.
    let each = unsafe { &mut *data.cast::<Each<'_>>() };
    // SAFETY: the loader passes a valid structure for the time of the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: `dlpi_phdr` points to `dlpi_phnum` program headers of an object that stays loaded during the call.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
        let start = (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
        if let Ok(range) = PageRange::covering(start, header.p_memsz as usize) {
            each(range);
        }
    }
    0
}
