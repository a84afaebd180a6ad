//! Load: connections that keep their queues full, batch their requests, and check what they read.

mod content;
mod engine;
pub(crate) mod handshake;
mod lane;
pub mod sys;

use std::io;
use std::path::Path;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::client::Client;
pub use content::make_template;
pub use handshake::Connection;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// READs at random places.
    RandomRead,
    /// WRITEs at random places.
    RandomWrite,
    /// So many READs in a hundred, the others WRITEs, at random places.
    RandomMix(u32),
    /// Every place is read once, in scattered order; the load ends when all were.
    EachRead,
    /// Every place is written once, in scattered order; the load ends when all were.
    EachWrite,
    /// READs one behind the other.
    SequentialRead,
    /// WRITEs one behind the other.
    SequentialWrite,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// What is asked for.
    pub pattern: Pattern,
    /// Bytes a request; a multiple of 4 KiB.
    pub bytes: u32,
    /// Requests in flight on each connection.
    pub depth: u64,
    /// How long.
    pub time: Duration,
    /// The part of the device that is used, from its start.
    pub span: u64,
    /// Payloads of this version are written, and expected where something is read.
    pub version: u64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Requests answered in a second.
    pub per_second: f64,
    /// How long each took, in microseconds, sorted.
    pub microseconds: Vec<u32>,
}

impl Outcome {
    /// A percentile of the latency, in microseconds.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> u32 {
        let last = self.microseconds.len().saturating_sub(1) as f64;
        self.microseconds.get((last * percent / 100.0) as usize).copied().unwrap_or(0)
    }
}

impl Load {
    fn writes(&self) -> bool {
        use Pattern::{EachRead, RandomRead, SequentialRead};
        !matches!(self.pattern, RandomRead | SequentialRead | EachRead)
    }

    /// Whether it ends when every place was asked for.
    fn is_once(&self) -> bool {
        matches!(self.pattern, Pattern::EachRead | Pattern::EachWrite)
    }

    /// Whether replies are received one at a time, each to its place.
    fn is_large(&self) -> bool {
        !self.writes() && self.bytes > 32 << 10
    }

    /// From one prepared message to the next.
    fn stride(&self) -> usize {
        (self.bytes as usize).next_multiple_of(64) + 64
    }

    fn places(&self) -> u64 {
        self.span / u64::from(self.bytes)
    }

    /// The place of a request, and whether it is a WRITE.
    fn next(&self, index: u64, rng: &mut ChaCha8Rng) -> (u64, bool) {
        let places = self.places();
        match self.pattern {
            Pattern::RandomRead => (rng.random_range(0..places), false),
            Pattern::RandomWrite => (rng.random_range(0..places), true),
            Pattern::RandomMix(reads) => {
                (rng.random_range(0..places), rng.random_range(0..100) >= reads)
            }
            Pattern::EachRead => (index * scattered(places) % places, false),
            Pattern::EachWrite => (index * scattered(places) % places, true),
            Pattern::SequentialRead => (index % places, false),
            Pattern::SequentialWrite => (index % places, true),
        }
    }

    /// Puts the load on a server.
    ///
    /// # Panics
    /// If the server fails.
    #[must_use]
    pub fn run(&self, socket: &Path, seed: u64) -> Outcome {
        let connection = Connection::open(socket, "").expect("the server takes clients");
        self.try_run(&[connection], seed).expect("the server answers as it must")
    }

    /// Puts the load on a connection, on which nothing is in flight.
    ///
    /// # Panics
    /// If the server fails.
    #[must_use]
    pub fn run_on(&self, client: &mut Client, seed: u64) -> Outcome {
        engine::run(self, &[client.stream()], seed).expect("the server answers as it must")
    }

    /// Puts the load on each of these connections, from one thread, or from two when there are more
    /// than one. A server that fails is an error.
    pub fn try_run(&self, connections: &[Connection], seed: u64) -> io::Result<Outcome> {
        let streams: Vec<_> = connections.iter().map(|one| &one.stream).collect();
        if streams.len() < 2 {
            return engine::run(self, &streams, seed);
        }
        let (left, right) = streams.split_at(streams.len() / 2);
        let (left, right) = std::thread::scope(|scope| {
            let left = scope.spawn(|| engine::run(self, left, seed));
            let right = engine::run(self, right, seed + 1);
            (left.join().expect("the engine does not panic"), right)
        });
        let (left, right) = (left?, right?);
        let mut microseconds = left.microseconds;
        microseconds.extend(right.microseconds);
        microseconds.sort_unstable();
        Ok(Outcome { per_second: left.per_second + right.per_second, microseconds })
    }
}

/// A step that visits every place once before it visits one again, about 0.618 of all places long.
fn scattered(places: u64) -> u64 {
    let divisor = |mut one: u64, mut other: u64| {
        while other != 0 {
            (one, other) = (other, one % other);
        }
        one
    };
    let start = (places as f64 * 0.618_034) as u64 | 1;
    (start..).find(|step| divisor(*step, places) == 1).expect("the next prime, at the latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_places_are_all_places() {
        for places in [1, 2, 5, 64, 1000, 65536] {
            let step = scattered(places);
            let mut seen = vec![false; places as usize];
            for index in 0..places {
                seen[(index * step % places) as usize] = true;
            }
            assert!(seen.iter().all(|one| *one), "{places}");
        }
    }
}
