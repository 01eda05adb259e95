//! Breaks words into lines.

/// Lines of at most `width` characters; a word that is longer is cut. At least one line, which may be empty.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let line = lines.last_mut().expect("there is always a line");
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + rest.len() <= width {
                line.extend(std::iter::repeat_n(' ', gap).chain(rest.drain(..)));
            } else if used == 0 {
                line.extend(rest.drain(..width));
            } else {
                lines.push(String::new());
            }
        }
    }
    lines
}
