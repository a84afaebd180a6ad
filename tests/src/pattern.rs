//! Bytes that name themselves.

/// Fills a buffer with bytes that depend on `version` and on where they lie on the device.
pub fn fill(bytes: &mut [u8], version: u64, offset: u64) {
    let mut chunks = bytes.chunks_exact_mut(8);
    let mut at = offset;
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word(version, at).to_le_bytes());
        at += 8;
    }
    let rest = chunks.into_remainder();
    let last = word(version, at).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Eight bytes of a payload.
#[must_use]
pub fn word(version: u64, offset: u64) -> u64 {
    let mut word = version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ offset;
    word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ (word >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_depend_on_version_and_place() {
        let mut bytes = [[0u8; 20]; 3];
        fill(&mut bytes[0], 1, 0);
        fill(&mut bytes[1], 2, 0);
        fill(&mut bytes[2], 1, 4096);
        assert_ne!(bytes[0], bytes[1]);
        assert_ne!(bytes[0], bytes[2]);
    }
}
