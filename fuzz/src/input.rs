//! How bytes become choices: every body reads its input front to back, one small choice at a time, so
//! that a fuzzer's edit changes one thing. What is used up reads as zeroes.

use arbitrary::Unstructured;

/// Choices out of a fuzzer's bytes.
pub(crate) struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether all bytes are used up.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub(crate) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// One of `0..below`, of one byte if it fits.
    pub(crate) fn below(&mut self, below: u32) -> u32 {
        self.0.int_in_range(0..=below - 1).unwrap_or(0)
    }

    /// One of a list.
    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize]
    }

    /// How many bytes go at a time: everything, a few, or some thousand.
    pub(crate) fn portion(&mut self) -> usize {
        match usize::from(self.byte()) {
            0 => usize::MAX,
            few @ 1..=127 => few,
            many => (many - 127) * 64,
        }
    }

    /// What is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}

/// Where a stream is cut into pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cuts {
    kind: u8,
    state: u32,
}

impl Cuts {
    /// 0: nowhere. Up to 127: into pieces of as many bytes. Above: into pieces of up to 64 bytes, which
    /// look random.
    pub(crate) fn new(kind: u8) -> Self {
        Self { kind, state: u32::from(kind) }
    }

    /// The length of the next piece, at least 1.
    pub(crate) fn next(&mut self) -> usize {
        match self.kind {
            0 => usize::MAX,
            1..=127 => usize::from(self.kind),
            _ => {
                self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                1 + (self.state >> 26) as usize
            }
        }
    }
}
