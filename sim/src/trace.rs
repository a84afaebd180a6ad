//! What is remembered of a run: a hash of every event, and the last few in words.

use std::collections::VecDeque;
use std::fmt;

/// Events kept for the report of a failure.
const KEPT: usize = 50;

/// One event: what, whose, and two numbers that say more.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    step: u64,
    what: &'static str,
    connection: u64,
    first: u64,
    second: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, what, connection, first, second } = self;
        write!(f, "{step:>7}  c{connection:<3} {what:<18} {first:>10} {second:>10}")
    }
}

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    last: VecDeque<Event>,
    print: bool,
}

impl Trace {
    /// An empty trace; with `print`, events are printed as they come.
    #[must_use]
    pub fn new(print: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, last: VecDeque::with_capacity(KEPT), print }
    }

    /// Notes an event.
    pub fn note(
        &mut self,
        step: u64,
        what: &'static str,
        connection: u64,
        first: u64,
        second: u64,
    ) {
        let event = Event { step, what, connection, first, second };
        for word in [step, what.len() as u64, connection, first, second] {
            self.mix(word);
        }
        for byte in what.bytes() {
            self.mix(u64::from(byte));
        }
        if self.print {
            println!("{event}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(event);
    }

    /// Adds bytes to the hash.
    pub fn note_bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.mix(u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
        }
        for byte in chunks.remainder() {
            self.mix(u64::from(*byte));
        }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last events, a line each.
    #[must_use]
    pub fn tail(&self) -> String {
        self.last.iter().map(|event| format!("{event}\n")).collect()
    }
}
