//! The choice tape: where every decision of a run comes from.
//!
//! A seed, or recorded bytes (a fuzzer's input, a shrunk failure). Each component draws from a lane
//! of its own, so that one component's draws do not shift another's.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Who draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The configuration.
    Swarm,
    /// What happens next.
    Schedule,
    /// How bytes travel.
    Net,
    /// Files: delays and faults.
    Backend,
    /// What clients ask for.
    Client,
}

const LANES: usize = 5;

/// A source of choices.
#[derive(Debug, Clone)]
pub struct Tape {
    source: Source,
    draws: u64,
}

#[derive(Debug, Clone)]
enum Source {
    Seeded(Box<[ChaCha8Rng; LANES]>),
    Recorded { bytes: Vec<u8>, at: usize, rest: Box<ChaCha8Rng> },
}

impl Tape {
    /// Choices that follow from a number.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let lane = |index: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(index as u64);
            rng
        };
        Self { source: Source::Seeded(Box::new(std::array::from_fn(lane))), draws: 0 }
    }

    /// Choices from bytes. When they are used up, the rest comes from a fixed seed: a world in which
    /// the first thing that can happen always does would starve everything else.
    #[must_use]
    pub fn recorded(bytes: Vec<u8>) -> Self {
        let rest = Box::new(ChaCha8Rng::seed_from_u64(0));
        Self { source: Source::Recorded { bytes, at: 0, rest }, draws: 0 }
    }

    /// How many choices were drawn.
    #[must_use]
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// One of `0..below`.
    pub fn draw(&mut self, lane: Lane, below: u64) -> u64 {
        assert!(below > 0);
        self.draws += 1;
        match &mut self.source {
            Source::Seeded(lanes) => lanes[lane as usize].random_range(0..below),
            Source::Recorded { bytes, at, rest } if *at >= bytes.len() => {
                rest.random_range(0..below)
            }
            Source::Recorded { bytes, at, .. } => {
                let mut value = 0u64;
                let mut span = 1u64;
                while span < below {
                    let byte = bytes.get(*at).copied().unwrap_or(0);
                    *at += 1;
                    value = value << 8 | u64::from(byte);
                    span = span.saturating_mul(256);
                }
                value % below
            }
        }
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, lane: Lane, percent: u64) -> bool {
        // Drawn even if it is certain, so that a ratio of zero does not shift what follows.
        self.draw(lane, 100) < percent
    }

    /// One of a range.
    pub fn between(&mut self, lane: Lane, low: u64, high: u64) -> u64 {
        low + self.draw(lane, high - low + 1)
    }

    /// One of a list.
    pub fn pick<'a, T>(&mut self, lane: Lane, list: &'a [T]) -> &'a T {
        &list[self.draw(lane, list.len() as u64) as usize]
    }

    /// A length up to `most`, short ones far more often than long ones.
    pub fn length(&mut self, lane: Lane, most: u64) -> u64 {
        let bits = 64 - most.leading_zeros();
        let width = self.draw(lane, u64::from(bits) + 1);
        let most = if width >= 63 { most } else { most.min(1 << width) };
        self.draw(lane, most + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lane_does_not_shift_another() {
        let mut first = Tape::seeded(7);
        let mut second = Tape::seeded(7);
        for _ in 0..10 {
            second.draw(Lane::Net, 1000);
        }
        for _ in 0..10 {
            assert_eq!(first.draw(Lane::Client, 1000), second.draw(Lane::Client, 1000));
        }
    }

    #[test]
    fn a_recorded_tape_is_followed_by_fixed_choices() {
        let draw = || {
            let mut tape = Tape::recorded(vec![5, 1, 2]);
            assert_eq!(tape.draw(Lane::Net, 10), 5);
            assert_eq!(tape.draw(Lane::Net, 1000), 0x0102);
            (0..20).map(|_| tape.draw(Lane::Net, 10)).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }
}
