use super::*;

fn counts(pairs: &[(&'static str, u64)]) -> Counts<'static> {
    pairs.iter().map(|(word, count)| (word.as_bytes(), *count)).collect()
}

#[test]
fn the_cpu_counts_words_by_their_bytes() {
    let found = count_on_cpu(b"a b  a\n\tc \x01 a", Classes::of(WordRule::C));
    assert_eq!(found, counts(&[("a", 3), ("b", 1), ("c", 1)]));
}

#[test]
fn the_first_word_that_differs_is_told() {
    let cpu = counts(&[("a", 3), ("b", 1)]);
    assert_eq!(first_difference(&cpu, &cpu), None);
    let device = counts(&[("a", 3), ("b", 2), ("z", 1)]);
    let said = first_difference(&device, &cpu).expect("they differ");
    assert_eq!(said, "the word 'b' came 2 times on the device, 1 on the CPU");
}

#[test]
fn a_word_that_stands_in_the_table_twice_is_told() {
    let text = b"ab ab";
    let cell = AtomicU64::new;
    let table = [cell(1), cell(1), cell(4), cell(1), cell(2)];
    let (_, repeated) = harvest(&table, text, Classes::of(WordRule::C));
    assert!(repeated.expect("told").contains("'ab' twice"));
}

#[test]
fn the_most_frequent_come_first_and_equals_in_byte_order() {
    let found = counts(&[("b", 2), ("a", 2), ("c", 9)]);
    let summary = summary(&found, 10, Classes::of(WordRule::C), true);
    let words: Vec<_> = summary.top.iter().map(|frequent| frequent.word.as_str()).collect();
    assert_eq!(words, ["c", "a", "b"]);
    assert_eq!((summary.words, summary.distinct), (13, 3));
}
