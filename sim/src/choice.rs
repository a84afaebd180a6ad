//! The choice tape: where every decision of a run comes from.
//!
//! There are four sources: a seed; recorded bytes (a fuzzer's input); a *script* (a shrunk failure);
//! and a path (one of all interleavings of a world so small that every one of them is run; only what
//! happens next is drawn then, everything else is plain). Each component draws from a lane of its own, so that one component's draws do not shift another's.
//!
//! In every place the choice 0 is the plainest: nothing fails, nothing is late, everything moves in
//! one piece, and whoever has waited longest is next. A tape that is used up goes on with zeroes, so a
//! script has to hold only what differs from the plainest run.

use std::fmt;
use std::str::FromStr;

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
    /// When seals are taken, and how long they are held.
    Seals,
    /// What records carry.
    Records,
    /// Space that is given back.
    Space,
    /// Checkpoints that find no space, and repairs of damaged ones.
    Checkpoints,
    /// Damaged records that the checkpoint needs.
    Needed,
}

impl Lane {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Swarm,
        Self::Schedule,
        Self::Net,
        Self::Backend,
        Self::Client,
        Self::Seals,
        Self::Records,
        Self::Space,
        Self::Checkpoints,
        Self::Needed,
    ];

    /// Whether most failures can do without it: with plain choices, nothing of it happens.
    fn is_extra(self) -> bool {
        matches!(self, Self::Seals | Self::Records | Self::Space | Self::Checkpoints | Self::Needed)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Swarm => "swarm",
            Self::Schedule => "schedule",
            Self::Net => "net",
            Self::Backend => "backend",
            Self::Client => "client",
            Self::Seals => "seals",
            Self::Records => "records",
            Self::Space => "space",
            Self::Checkpoints => "checkpoints",
            Self::Needed => "needed",
        }
    }
}

const LANES: usize = Lane::ALL.len();

/// A source of choices.
#[derive(Debug, Clone)]
pub struct Tape {
    source: Source,
    /// Everything drawn, if it is to be kept.
    record: Option<Script>,
}

#[derive(Debug, Clone)]
enum Source {
    Seeded(Box<[ChaCha8Rng; LANES]>),
    Redrawn { swarm: Vec<u64>, at: usize, lanes: Box<[ChaCha8Rng; LANES]>, is_plain: bool },
    Bytes { bytes: Vec<u8>, at: usize, is_plain: bool },
    Script { script: Box<Script>, at: [usize; LANES] },
    Path { prefix: Vec<u64>, taken: Vec<Branch> },
}

/// A choice on a path: what was taken, and of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// What was taken.
    pub taken: u64,
    /// Of how many.
    pub below: u64,
}

/// The choices of a run, lane by lane. Behind the last of a lane all are 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// By the number of the lane.
    pub lanes: [Vec<u64>; LANES],
}

impl Script {
    /// How many choices differ from the plainest.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.lanes.iter().flatten().filter(|choice| **choice != 0).count()
    }
}

/// One line for every choice that is not 0: the lane, the position in it, and the choice.
impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for lane in Lane::ALL {
            for (at, choice) in self.lanes[lane as usize].iter().enumerate() {
                if *choice != 0 {
                    writeln!(f, "{} {at} {choice}", lane.name())?;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const POSITION_MAX: usize = 10_000_000;
        let mut script = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = || {
                let number = number + 1;
                format!("line {number}: expected a lane, a position and a choice, found {line:?}")
            };
            let mut words = line.split_whitespace();
            let name = words.next();
            let lane = Lane::ALL.into_iter().find(|lane| Some(lane.name()) == name);
            let lane = lane.ok_or_else(wrong)?;
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            let (Some(at), Some(choice)) = (number(), number()) else { return Err(wrong()) };
            let at = usize::try_from(at).ok().filter(|at| *at < POSITION_MAX).ok_or_else(wrong)?;
            let choices = &mut script.lanes[lane as usize];
            choices.resize(choices.len().max(at + 1), 0);
            choices[at] = choice;
        }
        Ok(script)
    }
}

impl Tape {
    fn new(source: Source) -> Self {
        Self { source, record: None }
    }

    /// Choices that follow from a number.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let lane = |index: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(index as u64);
            rng
        };
        Self::new(Source::Seeded(Box::new(std::array::from_fn(lane))))
    }

    /// The configuration of a script, and everything else as it follows from a number.
    #[must_use]
    pub fn redrawn(script: &Script, seed: u64) -> Self {
        let Self { source: Source::Seeded(lanes), .. } = Self::seeded(seed) else { unreachable!() };
        let swarm = script.lanes[Lane::Swarm as usize].clone();
        let is_plain = seed.is_multiple_of(2);
        Self::new(Source::Redrawn { swarm, at: 0, lanes, is_plain })
    }

    /// Choices from bytes. Where their number is even, no byte is spent on what most failures can do without: a
    /// fuzzer finds those sooner.
    #[must_use]
    pub fn bytes(bytes: Vec<u8>) -> Self {
        let is_plain = bytes.len().is_multiple_of(2);
        Self::new(Source::Bytes { bytes, at: 0, is_plain })
    }

    /// Choices from a script.
    #[must_use]
    pub fn script(script: Script) -> Self {
        Self::new(Source::Script { script: Box::new(script), at: [0; LANES] })
    }

    /// One path of all: what happens next is taken from `prefix`, then the first everywhere.
    #[must_use]
    pub fn path(prefix: Vec<u64>) -> Self {
        Self::new(Source::Path { prefix, taken: Vec::new() })
    }

    /// The same choices, to be kept: [`Self::recorded`] has them afterwards.
    #[must_use]
    pub fn recording(mut self) -> Self {
        self.record = Some(Script::default());
        self
    }

    /// What was drawn since recording began.
    #[must_use]
    pub fn recorded(&self) -> Option<&Script> {
        self.record.as_ref()
    }

    /// The choices of a path, so far.
    #[must_use]
    pub fn taken(&self) -> &[Branch] {
        match &self.source {
            Source::Path { taken, .. } => taken,
            _ => &[],
        }
    }

    /// One of `0..below`.
    pub fn draw(&mut self, lane: Lane, below: u64) -> u64 {
        assert!(below > 0);
        let choice = match &mut self.source {
            Source::Redrawn { swarm, at, .. } if lane == Lane::Swarm => {
                *at += 1;
                swarm.get(*at - 1).map_or(0, |choice| choice % below)
            }
            Source::Redrawn { is_plain: true, .. } | Source::Bytes { is_plain: true, .. }
                if lane.is_extra() =>
            {
                0
            }
            Source::Seeded(lanes) | Source::Redrawn { lanes, .. } => {
                lanes[lane as usize].random_range(0..below)
            }
            Source::Bytes { bytes, at, .. } => {
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
            Source::Script { script, at } => {
                let at = &mut at[lane as usize];
                *at += 1;
                script.lanes[lane as usize].get(*at - 1).map_or(0, |choice| choice % below)
            }
            Source::Path { .. } if lane != Lane::Schedule || below == 1 => 0,
            Source::Path { prefix, taken } => {
                let choice = prefix.get(taken.len()).copied().unwrap_or(0);
                assert!(choice < below, "a path is followed by the world it came from");
                taken.push(Branch { taken: choice, below });
                choice
            }
        };
        if let Some(record) = &mut self.record {
            record.lanes[lane as usize].push(choice);
        }
        choice
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, lane: Lane, percent: u64) -> bool {
        // Drawn even if it is certain, so that a ratio of zero does not shift what follows.
        self.draw(lane, 100) >= 100 - percent.min(100)
    }

    /// One of a range.
    pub fn between(&mut self, lane: Lane, low: u64, high: u64) -> u64 {
        low + self.draw(lane, high - low + 1)
    }

    /// One of a list.
    pub fn pick<'a, T>(&mut self, lane: Lane, list: &'a [T]) -> &'a T {
        &list[self.draw(lane, list.len() as u64) as usize]
    }

    /// A length up to `most`, short ones far more often than long ones; the plainest is 0.
    pub fn length(&mut self, lane: Lane, most: u64) -> u64 {
        let bits = 64 - most.leading_zeros();
        let width = self.draw(lane, u64::from(bits) + 1);
        let most = if width >= 63 { most } else { most.min(1 << width) };
        self.draw(lane, most + 1)
    }
}

/// The path that comes after this one, if any.
#[must_use]
pub fn next_path(taken: &[Branch]) -> Option<Vec<u64>> {
    let last = taken.iter().rposition(|branch| branch.taken + 1 < branch.below)?;
    let mut prefix: Vec<u64> = taken[..=last].iter().map(|branch| branch.taken).collect();
    prefix[last] += 1;
    Some(prefix)
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
    fn bytes_are_followed_by_the_plainest_choices() {
        let mut tape = Tape::bytes(vec![5, 1, 2]);
        assert_eq!(tape.draw(Lane::Net, 10), 5);
        assert_eq!(tape.draw(Lane::Net, 1000), 0x0102);
        assert!((0..20).all(|_| tape.draw(Lane::Net, 10) == 0 && !tape.chance(Lane::Net, 99)));
    }

    #[test]
    fn an_even_number_of_bytes_is_spent_on_what_matters_most() {
        for (bytes, seals, net) in [(vec![5, 1], 0, 5), (vec![5, 1, 2], 5, 1)] {
            let mut tape = Tape::bytes(bytes);
            assert_eq!((tape.draw(Lane::Seals, 10), tape.draw(Lane::Net, 10)), (seals, net));
        }
    }

    #[test]
    fn what_was_drawn_replays_from_its_text() {
        let draw = |mut tape: Tape| {
            let lanes = Lane::ALL.into_iter().cycle().take(40);
            let all: Vec<u64> = lanes.map(|lane| tape.draw(lane, 1 << 33)).collect();
            (all, tape)
        };
        let (first, tape) = draw(Tape::seeded(3).recording());
        let text = tape.recorded().expect("it was recorded").to_string();
        let script: Script = text.parse().expect("its own text");
        assert_eq!(script.choices(), 40);
        assert_eq!(draw(Tape::script(script)).0, first);
        assert_eq!("net 3 5 # why\n\n".parse::<Script>().expect("valid").lanes[2], [0, 0, 0, 5]);
        for wrong in ["net", "net 1", "net x 1", "nothing 1 2", "net 99999999999 1"] {
            assert!(wrong.parse::<Script>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_are_all_different_and_all_there_are() {
        let mut seen = Vec::new();
        let mut next = Some(Vec::new());
        while let Some(prefix) = next {
            let mut tape = Tape::path(prefix);
            assert_eq!(tape.draw(Lane::Net, 7), 0);
            let first = tape.draw(Lane::Schedule, 2);
            let rest: Vec<u64> = (0..first + 1).map(|_| tape.draw(Lane::Schedule, 3)).collect();
            seen.push((first, rest));
            next = next_path(tape.taken());
        }
        assert_eq!(seen.len(), 3 + 9);
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
