//! What is remembered of a run: a hash of every event, the last few in words, or all of them.

use std::collections::VecDeque;
use std::fmt;

/// Events kept for the report of a failure.
const KEPT: usize = 50;

/// One event: what, whose, and numbers that say more.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// The step of the run.
    pub step: u64,
    /// What happened.
    pub what: &'static str,
    /// The connection it happened to; 0 for the device.
    pub connection: u64,
    /// What they mean depends on what happened: see `docs/simulation.md`.
    pub numbers: [u64; 4],
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, what, connection, numbers: [first, second, third, fourth] } = self;
        write!(f, "{step:>7}  c{connection:<3} {what:<16} ")?;
        write!(f, "{first:>16x} {second:>10} {third:>10} {fourth:>8}")
    }
}

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    last: VecDeque<Event>,
    /// Every event, and those that are only watched, if they are to be kept.
    all: Option<Vec<Event>>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, last: VecDeque::with_capacity(KEPT), all: None }
    }
}

impl Trace {
    /// An empty trace that keeps every event.
    #[must_use]
    pub fn complete() -> Self {
        Self { all: Some(Vec::new()), ..Self::default() }
    }

    /// Notes an event.
    pub fn note(&mut self, event: Event) {
        for word in [event.step, event.what.len() as u64, event.connection] {
            self.mix(word);
        }
        event.numbers.into_iter().for_each(|word| self.mix(word));
        event.what.bytes().for_each(|byte| self.mix(u64::from(byte)));
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(event);
        self.watch(event);
    }

    /// Whether every event is kept.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.all.is_some()
    }

    /// Notes an event that follows from others: it is only kept where every event is.
    pub fn watch(&mut self, event: Event) {
        if let Some(all) = &mut self.all {
            all.push(event);
        }
    }

    /// Every event, if they were kept.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        self.all.as_deref().unwrap_or_default()
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
