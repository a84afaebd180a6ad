//! A connection's two byte streams, as a kernel would keep them.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

/// Takes bytes from the front of a queue; there must be as many.
pub(crate) fn take_front(queue: &mut VecDeque<u8>, count: usize) -> Vec<u8> {
    let (first, second) = queue.as_slices();
    let here = count.min(first.len());
    let taken = [&first[..here], &second[..count - here]].concat();
    queue.drain(..count);
    taken
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Pipe {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The writer will write no more.
    pub ended: bool,
}

impl Hash for Pipe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_bytes(&self.bytes, state);
        self.ended.hash(state);
    }
}

/// Hashes bytes in one piece: one by one would take far longer.
pub fn hash_bytes(bytes: &VecDeque<u8>, state: &mut impl Hasher) {
    let (one, other) = bytes.as_slices();
    [one, other].concat().hash(state);
}

impl Pipe {
    /// An empty pipe that holds so many bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity, ended: false }
    }

    /// Holds at least so many bytes from now on.
    pub fn widen(&mut self, capacity: usize) {
        self.capacity = self.capacity.max(capacity);
    }

    /// Room left.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.bytes.len()
    }

    /// Bytes waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds bytes; there must be room.
    pub fn push(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room());
        self.bytes.extend(bytes);
    }

    /// Takes bytes; there must be as many.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        take_front(&mut self.bytes, count)
    }
}
