use super::*;
use proptest::prelude::*;

fn parsed(text: &str, sort_as: SortAs) -> Result<Data, String> {
    parse(Path::new("data"), text.as_bytes(), sort_as)
        .map(|(data, _)| data)
        .map_err(|failure| failure.to_string())
}

fn is_lines(text: &str) -> bool {
    matches!(parsed(text, SortAs::Auto), Ok(Data::Lines(_)))
}

#[test]
fn integers_floats_and_lines_are_told_apart() {
    assert_eq!(
        parsed("3\n-1\n\n +2 \n", SortAs::Auto),
        Ok(Data::Integers(vec![3, -1, 2]))
    );
    assert_eq!(
        parsed("3\n-1.5\n2e3\r\n", SortAs::Auto),
        Ok(Data::Floats(vec![3.0, -1.5, 2000.0]))
    );
    for text in ["b\na\n", "1\n2\nx\n", "nan\n", "1.5\ninf\n", "\n\n", "1e999\n"] {
        assert!(is_lines(text), "{text:?}");
    }
}

#[test]
fn a_number_that_a_float_would_change_stays_as_it_is() {
    assert!(is_lines("99999999999999999999\n1\n"));
    assert!(is_lines("9007199254740993\n1.5\n"));
    assert!(parsed("9007199254740993\n", SortAs::Floats).is_ok());
}

#[test]
fn why_a_file_of_numbers_is_sorted_as_lines_is_told() {
    let (_, reason) = parse(Path::new("data"), b"1\n2\nx\n", SortAs::Auto).expect("lines");
    assert!(reason.expect("a reason").contains("line 3: 'x'"));
    let (_, reason) = parse(Path::new("data"), b"x\n1\n", SortAs::Auto).expect("lines");
    assert_eq!(reason, None);
}

#[test]
fn a_malformed_number_is_told_with_its_line() {
    let said = parsed("1\n2\n3x\n", SortAs::Integers).expect_err("malformed");
    assert!(said.contains("line 3") && said.contains("3x"), "{said}");
    assert!(parsed("1\n1.5\n", SortAs::Integers).is_err());
    assert!(parsed("1\nNaN\n", SortAs::Floats).is_err());
}

#[test]
fn an_empty_file_is_told() {
    for sort_as in [SortAs::Auto, SortAs::Integers, SortAs::Floats, SortAs::Lines] {
        assert!(parsed("", sort_as).expect_err("nothing").contains("holds no "));
    }
}

proptest! {
    #[test]
    fn an_index_gives_every_line_back(lines in prop::collection::vec("[a-c]{0,12}", 1..20)) {
        let text = lines.join("\n") + "\n";
        let back: Vec<String> = index(text.as_bytes())
            .iter()
            .map(|entry| String::from_utf8_lossy(line(text.as_bytes(), entry)).into_owned())
            .collect();
        prop_assert_eq!(back, lines);
    }

    #[test]
    fn a_float_is_written_so_that_it_reads_back(value in prop::num::f64::NORMAL | prop::num::f64::ZERO) {
        prop_assert_eq!(show_float(&value).parse::<f64>(), Ok(value));
    }
}
