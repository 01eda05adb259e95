//! Reads a file into an ordinary `Vec`, and says clearly why it could not.

use super::Failure;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Read at a time, so that progress can be shown and a file that grows is noticed.
const CHUNK: usize = 4 << 20;

/// The bytes of `path`.
pub(crate) fn read(path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Vec<u8>, Failure> {
    let unreadable = |source| Failure::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    if about.is_dir() {
        return Err(unreadable(ErrorKind::IsADirectory.into()));
    }
    refuse_endless(path, &about)?;
    let mut text = Vec::new();
    // One byte of room more than the file has tells the end without growing.
    reserve(
        &mut text,
        usize::try_from(about.len()).unwrap_or(usize::MAX).saturating_add(1),
        path,
    )?;
    loop {
        if text.capacity() == text.len() {
            reserve(&mut text, CHUNK, path)?;
        }
        let room = (text.capacity() - text.len()).min(CHUNK) as u64;
        let got = file.by_ref().take(room).read_to_end(&mut text).map_err(unreadable)?;
        if got == 0 {
            return Ok(text);
        }
        progress(text.len() as u64, about.len());
    }
}

/// Devices such as /dev/zero never end.
fn refuse_endless(path: &Path, about: &std::fs::Metadata) -> Result<(), Failure> {
    use std::os::unix::fs::FileTypeExt;
    let kind = about.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        return Err(Failure::NotAFile { path: path.to_owned() });
    }
    Ok(())
}

fn reserve(text: &mut Vec<u8>, more: usize, path: &Path) -> Result<(), Failure> {
    text.try_reserve(more)
        .map_err(|_| Failure::TooLarge { path: path.to_owned() })
}

/// An empty `Vec` with room for `len` elements, or an error instead of an abort.
pub(crate) fn vec_for<T>(len: usize, path: &Path) -> Result<Vec<T>, Failure> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len)
        .map_err(|_| Failure::TooLarge { path: path.to_owned() })?;
    Ok(vec)
}

/// Each line without its newline, with its number from 1 on. What follows the last newline is a line if there is any.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let empty = text.is_empty();
    body.split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(move |_| !empty)
}

/// Bytes as text for a message: escaped where unprintable, and cut when long.
pub(crate) fn show(bytes: &[u8]) -> String {
    const LONGEST: usize = 48;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * LONGEST)]);
    let mut shown = String::new();
    for (count, letter) in text.chars().enumerate() {
        if count == LONGEST {
            shown.push('…');
            break;
        }
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

#[cfg(test)]
mod tests;
