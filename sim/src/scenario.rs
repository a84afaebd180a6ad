//! The one body that every test runs: a world from a tape, first with faults, then without.

use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use crate::choice::Tape;
use crate::world::World;

/// How a run ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that happened.
    pub hash: u64,
    /// Steps taken.
    pub steps: u64,
    /// Requests answered.
    pub answered: u64,
}

/// What kind of mistake was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The core broke one of its own assertions.
    Panic,
    /// Wrong bytes, a wrong error, a broken rule.
    Wrong,
    /// Something never came to an end.
    Stuck,
    /// Two runs of one tape differed.
    NonDeterministic,
}

impl FailureKind {
    /// The exit code that says so.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Panic => 10,
            Self::Wrong => 11,
            Self::Stuck => 12,
            Self::NonDeterministic => 13,
        }
    }
}

/// How a run failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind of mistake it is.
    pub kind: FailureKind,
    /// What was found, in words.
    pub message: String,
    /// The drawn configuration.
    pub configuration: String,
    /// The last events.
    pub trace: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}: {}", self.kind, self.message)?;
        writeln!(f, "configuration: {}", self.configuration)?;
        write!(f, "last events (step, connection, what, numbers):\n{}", self.trace)
    }
}

/// Steps with faults, and after them.
const FAULTY_STEPS_MAX: u64 = 40_000;
const HEALING_STEPS_MAX: u64 = 1_500_000;

/// Runs a world to its end.
pub fn run(tape: Tape, print: bool) -> Result<Report, Box<Failure>> {
    let mut world = World::new(tape, print);
    let outcome = quietly(|| live(&mut world));
    let (kind, message) = match outcome {
        Ok(Ok(())) => {
            return Ok(Report {
                hash: world.trace.hash(),
                steps: world.steps(),
                answered: world.answered(),
            });
        }
        Ok(Err((kind, message))) => (kind, message),
        Err(message) => (FailureKind::Panic, message),
    };
    let configuration = format!("{:?}", world.swarm);
    let trace = world.trace.tail();
    Err(Box::new(Failure { kind, message, configuration, trace }))
}

/// Runs a seed twice: both must succeed, and be the same.
pub fn run_twice(seed: u64) -> Result<Report, Box<Failure>> {
    let first = run(Tape::seeded(seed), false)?;
    let second = run(Tape::seeded(seed), false)?;
    if first == second {
        return Ok(first);
    }
    Err(Box::new(Failure {
        kind: FailureKind::NonDeterministic,
        message: format!("{first:?} the first time, {second:?} the second"),
        configuration: String::new(),
        trace: String::new(),
    }))
}

fn live(world: &mut World) -> Result<(), (FailureKind, String)> {
    let wrong = |message| (FailureKind::Wrong, message);
    // Safety: faults are on.
    while !world.is_spent() && world.steps() < FAULTY_STEPS_MAX {
        if !world.step().map_err(wrong)? {
            break;
        }
    }
    for _ in 0..200 {
        world.step().map_err(wrong)?;
    }
    // Liveness: faults are off, and everything must end.
    world.heal();
    world.read_everything();
    world.dismiss();
    let limit = world.steps() + HEALING_STEPS_MAX;
    while !world.is_over() {
        if !world.step().map_err(wrong)? || world.steps() > limit {
            return Err((FailureKind::Stuck, world.stuck()));
        }
    }
    world.check_end().map_err(wrong)
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs something that may panic; answers the panic's message and place instead of printing them.
fn quietly<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let caught = PANIC.with_borrow_mut(|slot| {
                slot.as_mut().map(|message| *message = info.to_string()).is_some()
            });
            if !caught {
                usual(info);
            }
        }));
    });
    PANIC.set(Some(String::new()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    let message = PANIC.take();
    outcome.map_err(|_| message.unwrap_or_default())
}
