use super::*;
use proptest::prelude::*;

fn words_in(rule: WordRule, pieces: &[&[u8]]) -> Vec<Word> {
    let mut scanner = Scanner::new(Classes::of(rule), 0);
    let mut words = Vec::new();
    for piece in pieces {
        scanner.feed(piece, |word| words.push(word));
    }
    words.extend(scanner.end());
    words
}

#[test]
fn a_word_holds_a_printable_character() {
    let count = |rule, text: &[u8]| words_in(rule, &[text]).len();
    let text = "a \u{1} b \u{e9} \u{2014} c\u{1}d \u{7f} 1\u{1f}2".as_bytes();
    assert_eq!(count(WordRule::C, text), 4);
    assert_eq!(count(WordRule::Utf8, text), 6);
    assert_eq!(count(WordRule::Posix, text), 8);
}

#[test]
fn the_locale_is_found_as_wc_finds_it() {
    let with = |set: &'static [(&str, &str)]| {
        locale_is_utf8(|name| {
            set.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    };
    assert!(!with(&[]));
    assert!(with(&[("LANG", "C.UTF-8")]));
    assert!(with(&[("LANG", "de_DE.utf8")]));
    assert!(!with(&[("LANG", "C.UTF-8"), ("LC_ALL", "C")]));
    assert!(with(&[("LANG", "C"), ("LC_CTYPE", "en_US.UTF-8"), ("LC_ALL", "")]));
}

proptest! {
    #[test]
    fn where_the_pieces_are_cut_changes_nothing(
        text in prop::collection::vec(prop::sample::select(&b"ab \n\x01\xc3"[..]), 0..60), cut in 0..60usize,
    ) {
        let cut = cut.min(text.len());
        for rule in [WordRule::C, WordRule::Utf8, WordRule::Posix] {
            let whole = words_in(rule, &[&text]);
            prop_assert_eq!(&whole, &words_in(rule, &[&text[..cut], &text[cut..]]));
            let classes = Classes::of(rule);
            let plain: Vec<&[u8]> =
                text.split(|&byte| classes.is_space(byte)).filter(|run| classes.is_word(run)).collect();
            let found: Vec<&[u8]> = whole.iter().map(|word| &text[word.start..][..word.len]).collect();
            prop_assert_eq!(plain, found);
        }
    }

    #[test]
    fn equal_words_have_equal_hashes(word in "[a-z]{1,9}", before in " {0,9}") {
        let text = format!("{before}{word} {word}");
        let words = words_in(WordRule::C, &[text.as_bytes()]);
        prop_assert_eq!(words[0].hash, words[1].hash);
    }
}
