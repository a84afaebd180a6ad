//! Every interleaving of small worlds: two connections, two blocks, a few requests.
//!
//! A world is run again and again, each time along another path of choices, until no choice is left.
//! Where a path comes to a state that another one has been in, it ends: what follows is known. So all
//! interleavings are judged, though far fewer are run.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::{AddAssign, Range};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use glassine_core::judge::{self, Bug};
use glassine_core::{Limits, SpaceLimits, wire};

use crate::choice::{Tape, next_path};
use crate::scenario::{self, Failure};
use crate::swarm::Swarm;
use crate::sweep;
use crate::trace::Trace;

/// Declares an enum of words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its word.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                let named = Self::ALL.iter().copied().find(|one| one.word() == word);
                named.ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|one| one.word()).collect();
                    format!("there is no {word:?} here; there are: {}", all.join(", "))
                })
            }
        }
    };
}

words! {
    /// A request of a small world.
    Ask {
        /// Both blocks.
        Read = "read",
        /// The end of one and the start of the other.
        ReadMiddle = "read-middle",
        /// The first block.
        WriteFirst = "write-first",
        /// Both.
        WriteBoth = "write-both",
        /// The end of one and the start of the other.
        WriteMiddle = "write-middle",
        /// A few bytes of the first.
        WritePart = "write-part",
        /// The first block.
        TrimFirst = "trim-first",
        /// Both.
        TrimBoth = "trim-both",
        /// Zeroes over a few bytes of the first block.
        ZeroPart = "zero-part",
        /// Zeroes over both, with space set aside.
        ZeroBoth = "zero-both",
        /// A flush.
        Flush = "flush",
    }
}

words! {
    /// What both blocks are at first.
    Before {
        /// The template, which ends within the second.
        Template = "template",
        /// Slots.
        Slots = "slots",
        /// Zero.
        Zero = "zero",
        /// Zero, with space set aside.
        SetAside = "set-aside",
    }
}

impl Ask {
    /// The command, its flags, and its range.
    #[must_use]
    pub fn request(self) -> (u16, u16, Range<u64>) {
        match self {
            Self::Read => (wire::CMD_READ, 0, 0..8192),
            Self::ReadMiddle => (wire::CMD_READ, 0, 4000..5000),
            Self::WriteFirst => (wire::CMD_WRITE, 0, 0..4096),
            Self::WriteBoth => (wire::CMD_WRITE, 0, 0..8192),
            Self::WriteMiddle => (wire::CMD_WRITE, 0, 3000..6000),
            Self::WritePart => (wire::CMD_WRITE, 0, 100..300),
            Self::TrimFirst => (wire::CMD_TRIM, 0, 0..4096),
            Self::TrimBoth => (wire::CMD_TRIM, 0, 0..8192),
            Self::ZeroPart => (wire::CMD_WRITE_ZEROES, 0, 200..400),
            Self::ZeroBoth => (wire::CMD_WRITE_ZEROES, wire::CMD_FLAG_NO_HOLE, 0..8192),
            Self::Flush => (wire::CMD_FLUSH, 0, 0..0),
        }
    }
}

impl Before {
    /// The requests that bring it about.
    #[must_use]
    pub fn asks(self) -> &'static [Ask] {
        match self {
            Self::Template => &[],
            Self::Slots => &[Ask::WriteBoth],
            Self::Zero => &[Ask::TrimBoth],
            Self::SetAside => &[Ask::ZeroBoth],
        }
    }
}

/// A small world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallWorld {
    /// What is there at first.
    pub before: Before,
    /// Payloads go straight into their slots, as far as they can, instead of the staging buffer.
    pub direct: bool,
    /// At any moment, one of the connections may break.
    pub resets: bool,
    /// What the two clients ask for, each in this order, without waiting for answers.
    pub asks: [Vec<Ask>; 2],
}

/// As it is written and read: `slots direct resets write-both,read write-middle`.
impl fmt::Display for SmallWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = if self.direct { "direct" } else { "staged" };
        let resets = if self.resets { "resets" } else { "steady" };
        let words = |asks: &[Ask]| asks.iter().map(|ask| ask.word()).collect::<Vec<_>>().join(",");
        let [one, other] = &self.asks;
        write!(f, "{} {route} {resets} {} {}", self.before.word(), words(one), words(other))
    }
}

impl FromStr for SmallWorld {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [before, route, resets, one, other] = words[..] else {
            return Err(format!(
                "{text:?} is not five words, like \"slots direct steady write-both read\""
            ));
        };
        let either = |word: &str, yes: &str, no: &str| match word {
            word if word == yes => Ok(true),
            word if word == no => Ok(false),
            _ => Err(format!("expected {yes:?} or {no:?}, found {word:?}")),
        };
        let asks = |words: &str| words.split(',').map(Ask::from_str).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            before: before.parse()?,
            direct: either(route, "direct", "staged")?,
            resets: either(resets, "resets", "steady")?,
            asks: [asks(one)?, asks(other)?],
        })
    }
}

impl SmallWorld {
    /// The configuration of such a world.
    #[must_use]
    pub fn swarm(&self) -> Swarm {
        Swarm {
            connections: 2,
            depth: 4,
            requests: 0,
            size_bytes: 8192,
            template_bytes: if self.before == Before::Template { 5000 } else { 0 },
            quota_bytes: u64::MAX,
            space: SpaceLimits::growing_by(2),
            hot_blocks: 2,
            length_max: 8192,
            aligned_percent: 0,
            weights: [0; 7],
            // A reply to a read of both blocks leaves in parts.
            pipe_bytes: [100_000, 5000],
            delay_steps: 0,
            never_percent: 0,
            fault_percent: 0,
            full_percent: 0,
            reset_per_10k: 0,
            deaf_percent: 0,
            vanish_percent: 0,
            limits: Limits {
                requests_max: 4,
                staging_bytes: 16 << 10,
                direct_bytes_min: if self.direct { 0 } else { 1 << 20 },
                ..Limits::default()
            },
            jumps: false,
            zeroes_percent: 0,
            probes: 0,
            sheet: None,
            seals: 0,
        }
    }
}

/// Which small worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One request on each connection.
    Pairs,
    /// Two on one connection, one on the other: the requests that differ most, on a steady connection
    /// with staged payloads.
    Triples,
}

/// The requests of the larger worlds.
const FEW: [Ask; 5] = [Ask::Read, Ask::WriteBoth, Ask::WritePart, Ask::TrimFirst, Ask::ZeroPart];

/// All small worlds of a scope. Which connection is which makes no difference, nor does the way of a
/// payload where there is none; and a connection that breaks is the same over whatever there was, but for space that
/// its writes had claimed.
#[must_use]
pub fn worlds(scope: Scope) -> Vec<SmallWorld> {
    let mut worlds = Vec::new();
    for before in Before::ALL.iter().copied() {
        match scope {
            Scope::Pairs => {
                for (at, one) in Ask::ALL.iter().enumerate() {
                    for other in &Ask::ALL[at..] {
                        let writes =
                            [one, other].iter().any(|ask| ask.request().0 == wire::CMD_WRITE);
                        let kinds = [(false, false), (false, true), (true, false), (true, true)];
                        for (direct, resets) in kinds {
                            let breaks = matches!(before, Before::Slots | Before::SetAside);
                            if direct && !writes || resets && !breaks {
                                continue;
                            }
                            let asks = [vec![*one], vec![*other]];
                            worlds.push(SmallWorld { before, direct, resets, asks });
                        }
                    }
                }
            }
            Scope::Triples => {
                for one in FEW {
                    for two in FEW {
                        for other in FEW {
                            let asks = [vec![one, two], vec![other]];
                            worlds.push(SmallWorld { before, direct: false, resets: false, asks });
                        }
                    }
                }
            }
        }
    }
    worlds
}

/// What came of exploring worlds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Explored {
    /// Small worlds.
    pub worlds: u64,
    /// Different states they can be in.
    pub states: u64,
    /// Ways from one state to the next.
    pub transitions: u64,
    /// States in which a world ends.
    pub ends: u64,
    /// Different orders in which everything can happen.
    pub interleavings: f64,
    /// The longest of them, in steps with a choice.
    pub choices_max: u64,
}

impl AddAssign for Explored {
    fn add_assign(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.states += other.states;
        self.transitions += other.transitions;
        self.ends += other.ends;
        self.interleavings += other.interleavings;
        self.choices_max = self.choices_max.max(other.choices_max);
    }
}

/// A path on which a small world fails.
#[derive(Debug)]
pub struct FailedWorld {
    /// The world.
    pub small: SmallWorld,
    /// What was chosen, step by step.
    pub path: Vec<u64>,
    /// How it fails.
    pub failure: Box<Failure>,
}

/// Explores worlds on all cores, until one fails.
///
/// `progress` hears of every world that is done.
pub fn explore_all(
    worlds: &[SmallWorld],
    plant: Option<Bug>,
    progress: impl Fn(&SmallWorld, &Explored) + Sync,
) -> Result<Explored, FailedWorld> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Ok(Explored::default()));
    thread::scope(|scope| {
        for _ in 0..sweep::threads() {
            scope.spawn(|| {
                judge::plant(plant);
                while let Some(small) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let explored = explore(small);
                    if let Ok(explored) = &explored {
                        progress(small, explored);
                    }
                    let mut all = all.lock().expect("no panic");
                    match (all.as_mut(), explored) {
                        (Ok(sum), Ok(explored)) => *sum += explored,
                        (Ok(_), Err(failed)) => *all = Err(failed),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    all.into_inner().expect("no panic")
}

/// Runs every interleaving of one world.
pub fn explore(small: &SmallWorld) -> Result<Explored, FailedWorld> {
    let mut seen = HashSet::new();
    let mut ways = HashMap::new();
    let mut explored = Explored { worlds: 1, ..Explored::default() };
    let mut start = None;
    let mut next = Some(Vec::new());
    while let Some(prefix) = next {
        let known = prefix.len();
        let mut before = None;
        let run = scenario::run_small(small, Tape::path(prefix), Trace::default(), |world| {
            // Up to the last choice of the prefix, an earlier run has been here.
            if world.tape.taken().len() + 1 < known {
                return true;
            }
            let state = world.state_hash();
            start.get_or_insert(state);
            let from = before.replace(state);
            if let Some(from) = from.filter(|from| *from != state) {
                ways.entry(from).or_insert_with(Vec::new).push(state);
            }
            // Where the last choice of the prefix is still to be made, we have been as well.
            world.tape.taken().len() < known || seen.insert(state)
        });
        explored.choices_max = explored.choices_max.max(run.tape.taken().len() as u64);
        if let Err(failure) = run.outcome {
            let path = run.tape.taken().iter().map(|branch| branch.taken).collect();
            return Err(FailedWorld { small: small.clone(), path, failure });
        }
        next = next_path(run.tape.taken());
    }
    explored.states = seen.len() as u64;
    explored.ends = seen.iter().filter(|state| !ways.contains_key(state)).count() as u64;
    for to in ways.values_mut() {
        to.sort_unstable();
        to.dedup();
        explored.transitions += to.len() as u64;
    }
    explored.interleavings = count_paths(start.expect("there is a first state"), &ways);
    Ok(explored)
}

/// How many different paths lead from a state to an end.
fn count_paths(start: u64, ways: &HashMap<u64, Vec<u64>>) -> f64 {
    let mut counts: HashMap<u64, f64> = HashMap::new();
    let mut stack = vec![start];
    while let Some(state) = stack.last().copied() {
        let to = ways.get(&state).map_or(&[][..], Vec::as_slice);
        let missing = to.iter().copied().filter(|state| !counts.contains_key(state));
        let before = stack.len();
        stack.extend(missing);
        if stack.len() == before {
            let count = to.iter().map(|state| counts[state]).sum();
            counts.insert(state, if to.is_empty() { 1.0 } else { count });
            stack.pop();
        }
        // Time goes forward: no state leads back to itself.
        assert!(stack.len() <= 10_000_000, "a circle of states");
    }
    counts[&start]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_world_is_what_it_is_written_as() {
        for small in worlds(Scope::Triples) {
            assert_eq!(small.to_string().parse(), Ok(small));
        }
        for wrong in ["", "slots", "slots direct steady read", "slots direct steady read sing"] {
            assert!(wrong.parse::<SmallWorld>().is_err(), "{wrong}");
        }
    }
}
