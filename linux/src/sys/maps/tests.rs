use super::{Line, Name, Vma};

fn parse(text: &str) -> Vec<Vma> {
    let mut line = Line::default();
    text.bytes().filter_map(|byte| line.push(byte)).collect()
}

#[test]
fn maps_1_lines_are_parsed_field_by_field() {
    let areas = parse(
        "55bc2439f000-55bc243a0000 r--p 00009000 fe:00 247030                     /usr/bin/cat\n\
         55bc4699e000-55bc469bf000 rw-p 00000000 00:00 0                          [heap]\n\
         7fad31175000-7fad31197000 rw-p 00000000 00:00 0 \n\
         7fad313dd000-7fad313e4000 r--s 00000000 fe:00 325745                     /usr/lib/a b [x]\n\
         7fad313eb000-7fad313ed000 r--p 00000000 00:00 0                          [vvar_vclock]\n\
         7fad313ed000-7fad313ef000 rw-p 00000000 00:00 0                          [anon:pool]\n\
         7ffd68b7c000-7ffd68b9d000 ---p 00000000 00:00 0                          [stack]\n\
         ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n",
    );
    assert_eq!(areas.len(), 7, "vsyscall is not user space");
    assert_eq!(
        (areas[0].range.start(), areas[0].range.end()),
        (0x55bc_2439_f000, 0x55bc_243a_0000)
    );
    let names: Vec<_> = areas.iter().map(|area| area.name).collect();
    assert_eq!(
        names,
        [
            Name::Path,
            Name::Heap,
            Name::None,
            Name::Path,
            Name::Special,
            Name::None,
            Name::Stack
        ]
    );
    let anonymous: Vec<_> = areas.iter().map(Vma::is_private_anonymous).collect();
    assert_eq!(anonymous, [false, true, true, false, false, true, true]);
    assert!(areas[3].shared && areas[3].file && !areas[3].write);
    assert!(!areas[6].read && !areas[6].write && !areas[6].exec);
}

#[test]
fn a_long_or_broken_line_does_no_harm() {
    let long = format!(
        "1000-2000 rw-p 00000000 00:00 1 /{}\n2000-3000 rw-p 0 00:00 0\n",
        "x".repeat(5000)
    );
    assert_eq!(parse(&long).len(), 2);
    assert!(parse("garbage\n\n-\n3000-1000 rw-p 0 0:0 0\n").is_empty());
}
