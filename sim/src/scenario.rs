//! The one body that every test runs: a world from a tape, first with faults, then without.

use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use crate::broken::Broken;
use crate::choice::Tape;
use crate::exhaust::SmallWorld;
use crate::trace::Trace;
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
    /// Crashes survived.
    pub crashes: u64,
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
    /// Which checker found it, in a word or two.
    pub check: String,
    /// What was found, in words.
    pub message: String,
    /// At which step.
    pub steps: u64,
    /// How many connections there were at a time.
    pub connections: u64,
    /// The drawn configuration.
    pub configuration: String,
    /// The last events.
    pub trace: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}, found by the check \"{}\": {}", self.kind, self.check, self.message)?;
        writeln!(f, "commit: {}", env!("SIM_COMMIT"))?;
        writeln!(f, "configuration: {}", self.configuration)?;
        write!(f, "last events (step, connection, what, numbers):\n{}", self.trace)
    }
}

/// Steps with faults, and after them.
const FAULTY_STEPS_MAX: u64 = 40_000;
const HEALING_STEPS_MAX: u64 = 1_500_000;

/// Everything about a run, for whoever wants more than the verdict.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub outcome: Result<Report, Box<Failure>>,
    /// What was drawn, as far as the tape kept it.
    pub tape: Tape,
    /// What happened, if the trace was complete.
    pub trace: Trace,
}

/// Runs a world to its end.
pub fn run(tape: Tape) -> Result<Report, Box<Failure>> {
    run_whole(tape, Trace::default()).outcome
}

/// Runs a world to its end, and keeps what the tape and the trace keep.
pub fn run_whole(tape: Tape, trace: Trace) -> Run {
    run_world(World::new(tape, trace), live)
}

/// Runs a world in which one bit of one reply is spoiled on its way: a canary, which the oracle must
/// notice.
pub fn run_spoiled(tape: Tape, trace: Trace) -> Run {
    let mut world = World::new(tape, trace);
    world.spoil_a_reply();
    run_world(world, live)
}

/// Runs one interleaving of a small world, to its end or for as long as `go_on` likes what it sees
/// after each step.
pub fn run_small(
    small: &SmallWorld,
    tape: Tape,
    trace: Trace,
    go_on: impl FnMut(&World) -> bool,
) -> Run {
    run_world(World::small(small, tape, trace), |world| live_small(world, small, go_on))
}

fn run_world(
    mut world: World,
    body: impl FnOnce(&mut World) -> Result<(), (FailureKind, Broken)>,
) -> Run {
    let outcome = match quietly(|| body(&mut world)) {
        Ok(Ok(())) => Ok(Report {
            hash: world.trace.hash(),
            steps: world.steps(),
            answered: world.answered(),
            crashes: world.crashed(),
        }),
        Ok(Err((kind, broken))) => Err((kind, broken.check.to_owned(), broken.text)),
        // The place of the assertion is its name; the line would change with every edit.
        Err(Panicked { file, message }) => {
            Err((FailureKind::Panic, format!("assertion in {file}"), message))
        }
    };
    let outcome = outcome.map_err(|(kind, check, message)| {
        let configuration = format!("{:?}", world.swarm);
        let trace = world.trace.tail();
        let steps = world.steps();
        let connections = world.swarm.connections;
        Box::new(Failure { kind, check, message, steps, connections, configuration, trace })
    });
    Run { outcome, tape: world.tape, trace: world.trace }
}

/// Runs a seed twice: both must succeed, and be the same.
pub fn run_twice(seed: u64) -> Result<Report, Box<Failure>> {
    let first = run(Tape::seeded(seed))?;
    let second = run(Tape::seeded(seed))?;
    if first == second {
        return Ok(first);
    }
    Err(Box::new(Failure {
        kind: FailureKind::NonDeterministic,
        check: "same tape, same run".to_owned(),
        message: format!("{first:?} the first time, {second:?} the second"),
        steps: first.steps,
        connections: 0,
        configuration: String::new(),
        trace: String::new(),
    }))
}

fn live(world: &mut World) -> Result<(), (FailureKind, Broken)> {
    let wrong = |broken| (FailureKind::Wrong, broken);
    let stuck = |broken| (FailureKind::Stuck, broken);
    let mut probes = world.swarm.probes;
    let mut probe_at = world.draw_steps();
    let mut crashes = world.crashes();
    let mut crash_at = if crashes > 0 { world.draw_steps() } else { 0 };
    // Safety: faults are on.
    while !world.is_spent() && world.steps() < FAULTY_STEPS_MAX {
        if probes > 0 && world.steps() >= probe_at {
            probes -= 1;
            probe_at = world.steps() + world.draw_steps();
            world.probe().map_err(stuck)?;
        }
        if crashes > 0 && world.steps() >= crash_at {
            crashes -= 1;
            crash_at = world.steps() + world.draw_steps();
            world.crash(true).map_err(wrong)?;
        }
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
            let (check, text) = ("everything ends", world.stuck());
            return Err((FailureKind::Stuck, Broken { check, text }));
        }
    }
    world.check_end().map_err(wrong)?;
    if world.crashes() > 0 {
        world.crash(false).map_err(wrong)?;
    }
    Ok(())
}

fn live_small(
    world: &mut World,
    small: &SmallWorld,
    mut go_on: impl FnMut(&World) -> bool,
) -> Result<(), (FailureKind, Broken)> {
    let wrong = |broken| (FailureKind::Wrong, broken);
    world.prepare(small).map_err(wrong)?;
    while go_on(world) {
        if !world.step().map_err(wrong)? {
            if world.is_over() {
                return world.check_end().map_err(wrong);
            }
            let (check, text) = ("everything ends", world.stuck());
            return Err((FailureKind::Stuck, Broken { check, text }));
        }
    }
    Ok(())
}

/// A panic that was caught.
#[derive(Debug, Default)]
struct Panicked {
    file: String,
    message: String,
}

thread_local! {
    static PANIC: RefCell<Option<Panicked>> = const { RefCell::new(None) };
}

/// Runs something that may panic; answers the panic's message and place instead of printing them.
fn quietly<T>(body: impl FnOnce() -> T) -> Result<T, Panicked> {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let caught = PANIC.with_borrow_mut(|slot| {
                let Some(slot) = slot else { return false };
                let path = info.location().map_or("", |location| location.file());
                slot.file = path.rsplit('/').next().unwrap_or_default().to_owned();
                slot.message = info.to_string();
                true
            });
            if !caught {
                usual(info);
            }
        }));
    });
    PANIC.set(Some(Panicked::default()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    let caught = PANIC.take();
    outcome.map_err(|_| caught.unwrap_or_default())
}
