use super::*;

fn command(addr: u64, npages: u64) -> Command {
    Command {
        addr,
        npages,
        ..Command::default()
    }
}

#[test]
fn drv_2_numbers_are_those_of_the_kernels_driver() {
    assert_eq!(Request::Read.ioctl(), 0xc028_4800);
    assert_eq!(Request::Release.ioctl(), 0xc028_4807);
    for request in Request::ALL {
        assert_eq!(Request::from_ioctl(request.ioctl()), Some(request));
    }
    for number in [0xc028_4808, 0xc029_4800, 0x8028_4800, 0xc028_4900, 0, u32::MAX] {
        assert_eq!(Request::from_ioctl(number), None);
    }
}

#[test]
fn drv_2_bad_ranges_are_invalid() {
    for (addr, npages) in [
        (4096, 0),
        (4097, 1),
        (0, 0),
        (!4095, 1),
        (4096, u64::MAX),
        (4096, 1 << 52),
        (4096, (1 << 52) - 1),
    ] {
        assert_eq!(
            command(addr, npages).target().err(),
            Some(Errno::INVAL),
            "{addr:#x} {npages}"
        );
    }
}

#[test]
fn drv_2_what_lies_outside_user_space_is_a_hole() {
    let beyond = command(USER_END as u64, 2).target().expect("a valid range");
    assert_eq!((beyond.npages, beyond.range, beyond.whole()), (2, None, None));
    let half = command(USER_END as u64 - 4096, 2).target().expect("a valid range");
    assert_eq!(half.range.map(PageRange::page_count), Some(1));
    assert!(half.whole().is_none());
}

#[test]
fn chunks_are_of_64_pages_and_cover_the_range() {
    let range = PageRange::from_pages(100, 130).expect("a range");
    let counts: Vec<usize> = chunks(range).map(PageRange::page_count).collect();
    assert_eq!(counts, [64, 64, 2]);
}
