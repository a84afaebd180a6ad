//! What templates and payloads hold: every block of 4 KiB begins with a word that says its version and
//! its place; the rest of it is the same in every block. So a payload is made by changing a word a
//! block, and checked by comparing one, and the client is not what is measured.

use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use crate::pattern;

const BLOCK: usize = 4096;

static REST: LazyLock<[u8; BLOCK]> = LazyLock::new(|| {
    let mut block = [0; BLOCK];
    pattern::fill(&mut block, 77, 0);
    block
});

/// Makes a payload for this place; `bytes` were prepared by [`prepare`], or stamped before.
pub(super) fn stamp(bytes: &mut [u8], version: u64, offset: u64) {
    for (block, at) in bytes.chunks_exact_mut(BLOCK).zip((offset..).step_by(BLOCK)) {
        block[..8].copy_from_slice(&pattern::word(version, at).to_le_bytes());
    }
}

/// Fills in what is the same in every block.
pub(super) fn prepare(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK) {
        block.copy_from_slice(&*REST);
    }
}

/// Compares a payload with what it must be: the first word of every block, or every byte. Answers
/// where it differs first.
pub(super) fn check(bytes: &[u8], version: u64, offset: u64, whole: bool) -> Result<(), u64> {
    for (block, at) in bytes.chunks_exact(BLOCK).zip((offset..).step_by(BLOCK)) {
        if block[..8] != pattern::word(version, at).to_le_bytes() {
            return Err(at);
        }
        if whole && block[8..] != REST[8..] {
            let first = block[8..].iter().zip(&REST[8..]).position(|(one, other)| one != other);
            return Err(at + 8 + first.unwrap_or(0) as u64);
        }
    }
    Ok(())
}

/// Writes the content that a load of this version expects to read.
///
/// # Panics
/// If the file cannot be written.
pub fn make_template(path: &Path, bytes: u64, version: u64) {
    let mut file = std::fs::File::create(path).expect("the directory is writable");
    let mut buffer = vec![0; 1 << 20];
    prepare(&mut buffer);
    for offset in (0..bytes).step_by(buffer.len()) {
        stamp(&mut buffer, version, offset);
        let count = (bytes - offset).min(buffer.len() as u64) as usize;
        file.write_all(&buffer[..count]).expect("the directory has room");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_found_wrong_in_any_word_that_is_looked_at() {
        let mut bytes = vec![0; 4 * BLOCK];
        prepare(&mut bytes);
        stamp(&mut bytes, 3, 8192);
        assert_eq!(check(&bytes, 3, 8192, true), Ok(()));
        assert_eq!(check(&bytes, 4, 8192, false), Err(8192), "another version");
        assert_eq!(check(&bytes, 3, 4096, false), Err(4096), "another place");
        bytes[BLOCK + 100] ^= 1;
        assert_eq!(check(&bytes, 3, 8192, false), Ok(()), "only first words are looked at");
        assert_eq!(check(&bytes, 3, 8192, true), Err(8192 + 4096 + 100));
        bytes[3 * BLOCK + 7] ^= 1;
        assert_eq!(check(&bytes, 3, 8192, false), Err(8192 + 3 * 4096));
    }
}
