use super::*;

fn changes(number: libc::c_long, args: [usize; 6]) -> Vec<(usize, usize)> {
    match effect(&Call {
        number: number as usize,
        args,
    }) {
        Effect::Changes(changes) => changes.iter().map(|c| (c.range.start(), c.range.len_bytes())).collect(),
        Effect::Nothing => vec![],
        other => panic!("{other:?}"),
    }
}

#[test]
fn wld_2_only_a_fixed_mapping_replaces_what_was_there() {
    let flags = |flags: i32| [0x10000, 0x3000, 3, flags as usize, 0, 0];
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    assert_eq!(changes(libc::SYS_mmap, flags(anonymous)), []);
    assert_eq!(
        changes(libc::SYS_mmap, flags(anonymous | libc::MAP_FIXED)),
        [(0x10000, 0x3000)]
    );
    assert_eq!(
        changes(
            libc::SYS_mmap,
            flags(anonymous | libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE)
        ),
        []
    );
}

#[test]
fn wld_2_a_mapping_that_moves_changes_both_its_places() {
    let fixed = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
    assert_eq!(
        changes(libc::SYS_mremap, [0x10000, 0x2000, 0x3000, fixed, 0x50000, 0]),
        [(0x10000, 0x2000), (0x50000, 0x3000)]
    );
}

#[test]
fn inv_5_a_mapping_that_shrinks_keeps_its_beginning() {
    assert_eq!(
        changes(libc::SYS_mremap, [0x10000, 0x4000, 0x1001, 0, 0, 0]),
        [(0x12000, 0x2000)]
    );
}

#[test]
fn inv_5_advice_that_keeps_contents_is_nobodys_business() {
    let advise = |advice: i32| changes(libc::SYS_madvise, [0x10000, 0x1000, advice as usize, 0, 0, 0]);
    assert_eq!(advise(libc::MADV_WILLNEED), []);
    assert_eq!(advise(libc::MADV_PAGEOUT), []);
    assert_eq!(advise(libc::MADV_DONTNEED), [(0x10000, 0x1000)]);
}

#[test]
fn wld_2_a_range_that_leaves_user_space_is_cut_there() {
    assert_eq!(
        changes(libc::SYS_mprotect, [0x10000, USER_END, 0, 0, 0, 0]),
        [(0x10000, USER_END - 0x10000)]
    );
    assert_eq!(changes(libc::SYS_munmap, [0x10000, 0, 0, 0, 0, 0]), []);
    assert_eq!(changes(libc::SYS_munmap, [usize::MAX - 0xfff, 0x1000, 0, 0, 0, 0]), []);
}

#[test]
fn mig_4_a_copy_of_the_address_space_is_a_fork() {
    let clone = |flags: i32| effect(&Call::new(libc::SYS_clone, [flags as usize]));
    assert_eq!(clone(libc::SIGCHLD), Effect::Fork);
    assert_eq!(clone(libc::CLONE_VM | libc::CLONE_THREAD), Effect::Nothing);
    assert_eq!(effect(&Call::new(libc::SYS_vfork, [])), Effect::Nothing);
}

#[test]
fn wld_2_a_file_that_is_cut_keeps_the_page_with_its_last_byte() {
    assert_eq!(
        effect(&Call::new(libc::SYS_ftruncate, [3, 4097])),
        Effect::CutFile(
            3,
            Cut {
                start: 8192,
                end: u64::MAX
            }
        )
    );
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(
        effect(&Call::new(libc::SYS_fallocate, [3, punch as usize, 4096, 8192])),
        Effect::CutFile(
            3,
            Cut {
                start: 4096,
                end: 12288
            }
        )
    );
    assert_eq!(
        effect(&Call::new(libc::SYS_fallocate, [3, 0, 0, 8192])),
        Effect::Nothing
    );
}
