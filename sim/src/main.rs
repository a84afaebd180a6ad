//! `sim`: long sweeps, and a closer look at one run.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use glassine_core::judge::{self, Bug, Mark};
use sim::choice::{Script, Tape};
use sim::crashes;
use sim::exhaust::{self, FailedWorld, Scope, SmallWorld};
use sim::planted::{self, Search};
use sim::scenario::{self, Failure, Run};
use sim::shrink;
use sim::sweep::{self, Options, Sweep};
use sim::trace::Trace;

/// The deterministic simulator of Glassine's core.
#[derive(Debug, Parser)]
#[command(
    name = "sim",
    after_help = "Examples:
  sim run --seeds 1000 --twice           a thousand worlds, each twice with equal traces
  sim sweep --seeds 1000000              a long sweep: failures by check, marks never hit
  sim replay --seed 17                   every event of one world
  sim shrink --seed 17 --out short.tape  the plainest tape that fails like seed 17
  sim replay --tape short.tape --html out.html
  sim planted --trials 10                does every planted bug get caught, and how soon?
  sim exhaust                            every interleaving of all small worlds
  sim crashes                            a power cut at every point of all short sequences

Exit codes:
   0  no failure
   1  a planted bug was not found, or a mark was never hit
   2  the command line or a file is wrong
  10  the core broke one of its own assertions
  11  wrong bytes, a wrong error, or a broken rule
  12  something never came to an end, or waited for what it must not
  13  two runs of one seed differed"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run many seeds; stop at the first failure.
    Run {
        #[command(flatten)]
        seeds: Seeds,
        /// Run each seed twice and compare.
        #[arg(long)]
        twice: bool,
        /// Go on after a failure, and count them.
        #[arg(long)]
        all: bool,
        /// Plant a bug in the core.
        #[arg(long, value_parser = parse_bug, value_name = "BUG")]
        plant: Option<Bug>,
        /// Spoil a reply in every hundredth seed: a sweep that does not report them is blind.
        #[arg(long)]
        canary: bool,
    },
    /// Run one world and print every event, or draw it.
    Replay {
        #[command(flatten)]
        which: Which,
        /// Write a picture of it to this file instead: one HTML page that needs nothing else.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Make a failing tape as plain as it can be.
    Shrink {
        #[command(flatten)]
        which: Which,
        /// Write the tape to this file instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Give up after about so many runs.
        #[arg(long, default_value_t = 40_000)]
        runs: u64,
    },
    /// Run very many seeds, count failures by the check that found them, and name the marks never hit.
    Sweep {
        #[command(flatten)]
        seeds: Seeds,
    },
    /// Run every interleaving of all small worlds.
    Exhaust {
        /// Only these, like "slots direct steady write-both,read write-part"; all if none is named.
        #[arg(value_name = "WORLD")]
        worlds: Vec<SmallWorld>,
        /// Two requests on one connection and one on the other, instead of one on each.
        #[arg(long)]
        triples: bool,
        /// Plant a bug in the core.
        #[arg(long, value_parser = parse_bug, value_name = "BUG")]
        plant: Option<Bug>,
    },
    /// Run every sequence of a few operations on two blocks, with a power cut at every point of each.
    Crashes {
        /// How many operations.
        #[arg(long, default_value_t = 4)]
        operations: usize,
        /// Plant a bug in the core.
        #[arg(long, value_parser = parse_bug, value_name = "BUG")]
        plant: Option<Bug>,
    },
    /// Plant every bug there is, and tell how soon each is found.
    Planted {
        /// Only these; all if none is named.
        #[arg(value_parser = parse_bug, value_name = "BUG")]
        bugs: Vec<Bug>,
        /// Independent searches for each.
        #[arg(long, default_value_t = 10)]
        trials: u64,
        /// Seeds after which a search gives up.
        #[arg(long, default_value_t = 20_000)]
        budget: u64,
    },
    /// Tell how many seeds take each rare path of the core.
    Marks {
        #[command(flatten)]
        seeds: Seeds,
    },
}

#[derive(Debug, Clone, Copy, Args)]
struct Seeds {
    /// How many.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    start: u64,
}

/// Which world.
#[derive(Debug, Default, Args)]
struct Which {
    /// The world of a seed.
    #[arg(long, required_unless_present_any = ["tape", "bytes", "small"])]
    seed: Option<u64>,
    /// The world of a tape, as `shrink` writes it.
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    tape: Option<PathBuf>,
    /// The world of a fuzzer's input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "tape"])]
    bytes: Option<PathBuf>,
    /// A small world, as `exhaust` names it.
    #[arg(long, value_name = "WORLD", conflicts_with_all = ["seed", "tape", "bytes"])]
    small: Option<SmallWorld>,
    /// One of its interleavings: what is chosen, step by step.
    #[arg(long, value_delimiter = ',', requires = "small")]
    path: Vec<u64>,
    /// Plant a bug in the core.
    #[arg(long, value_parser = parse_bug, value_name = "BUG")]
    plant: Option<Bug>,
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    let named = Bug::ALL.iter().copied().find(|bug| bug.id() == name);
    named.ok_or_else(|| {
        let all: Vec<_> = Bug::ALL.iter().map(|bug| bug.id()).collect();
        format!("there is no such bug; those there are: {}", all.join(", "))
    })
}

impl Which {
    fn tape(&self) -> anyhow::Result<Tape> {
        if let Some(path) = &self.tape {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let script: Script = text
                .parse()
                .map_err(anyhow::Error::msg)
                .with_context(|| path.display().to_string())?;
            return Ok(Tape::script(script));
        }
        if let Some(path) = &self.bytes {
            return Ok(Tape::bytes(fs::read(path).with_context(|| path.display().to_string())?));
        }
        Ok(Tape::seeded(self.seed.expect("one of them is required")))
    }

    fn run(&self) -> anyhow::Result<Run> {
        judge::plant(self.plant);
        let trace = Trace::complete();
        Ok(match &self.small {
            None => scenario::run_whole(self.tape()?, trace),
            Some(small) => {
                scenario::run_small(small, Tape::path(self.path.clone()), trace, |_| true)
            }
        })
    }

    /// The arguments that name this world.
    fn arguments(&self) -> String {
        let mut text = match (&self.seed, &self.tape, &self.bytes, &self.small) {
            (Some(seed), ..) => format!("--seed {seed}"),
            (_, Some(path), ..) => format!("--tape {}", path.display()),
            (_, _, Some(path), _) => format!("--bytes {}", path.display()),
            (.., Some(small)) => {
                let path: Vec<_> = self.path.iter().map(u64::to_string).collect();
                format!("--small \"{small}\" --path {}", path.join(","))
            }
            _ => String::new(),
        };
        if let Some(bug) = self.plant {
            text += &format!(" --plant {}", bug.id());
        }
        text
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run { seeds, twice, all, plant, canary } => {
            Ok(run(seeds, Options { twice, all, plant, canary }))
        }
        Command::Replay { which, html } => replay(&which, html),
        Command::Shrink { which, out, runs } => shrink_one(&which, out, runs),
        Command::Sweep { seeds } => Ok(long_sweep(seeds)),
        Command::Exhaust { worlds, triples, plant } => Ok(run_small_worlds(worlds, triples, plant)),
        Command::Crashes { operations, plant } => Ok(crash_everywhere(operations, plant)),
        Command::Planted { bugs, trials, budget } => Ok(plant(&bugs, trials, budget)),
        Command::Marks { seeds } => Ok(marks(seeds)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("sim: {error:#}");
        ExitCode::from(2)
    })
}

fn run(seeds: Seeds, options: Options) -> ExitCode {
    let sweep = sweep::sweep(range(seeds), options, |_| {});
    summary(&sweep);
    let Some((seed, failure)) = sweep.failures.first_key_value() else {
        return ExitCode::SUCCESS;
    };
    fail(&Which { seed: Some(*seed), plant: options.plant, ..Which::default() }, failure)
}

fn range(Seeds { seeds, start }: Seeds) -> std::ops::Range<u64> {
    start..start.saturating_add(seeds)
}

fn summary(sweep: &Sweep) {
    let seconds = sweep.time.as_secs_f64();
    println!(
        "{} seeds: {} failures, {} crashes survived, {} requests answered, {} steps, {seconds:.1} s, {:.0} \
         requests and {:.0} steps per second",
        sweep.seeds,
        sweep.failures.len(),
        sweep.crashes,
        sweep.answered,
        sweep.steps,
        sweep.answered as f64 / seconds,
        sweep.steps as f64 / seconds
    );
}

fn fail(which: &Which, failure: &Failure) -> ExitCode {
    let arguments = which.arguments();
    eprintln!("{arguments} failed\n{failure}");
    eprintln!("to see it again:  cargo run -p sim --release -- replay {arguments}");
    if which.small.is_none() {
        eprintln!(
            "to make it plain: cargo run -p sim --release -- shrink {arguments} --out short.tape"
        );
    }
    ExitCode::from(failure.kind.exit_code())
}

fn replay(which: &Which, html: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let run = which.run()?;
    match &html {
        Some(path) => {
            let page = sim::picture::page(&run, &which.arguments());
            fs::write(path, page).with_context(|| path.display().to_string())?;
            println!("a picture of it is in {}", path.display());
        }
        None => {
            let mut out = std::io::stdout().lock();
            for event in run.trace.events() {
                // A reader that goes away early wants no more.
                if writeln!(out, "{event}").is_err() {
                    break;
                }
            }
        }
    }
    match run.outcome {
        Ok(report) => {
            println!("no failure: {report:?}");
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => Ok(fail(which, &failure)),
    }
}

fn shrink_one(which: &Which, out: Option<PathBuf>, runs: u64) -> anyhow::Result<ExitCode> {
    if which.small.is_some() {
        bail!("a small world is as small as it gets: there is nothing to shrink");
    }
    judge::plant(which.plant);
    let run = scenario::run_whole(which.tape()?.recording(), Trace::default());
    let script = run.tape.recorded().expect("it was recorded").clone();
    let choices = script.choices();
    let Some(shrunk) = shrink::shrink(script, which.plant, runs) else {
        bail!("{} does not fail: there is nothing to shrink", which.arguments());
    };
    let plant = which.plant.map_or(String::new(), |bug| format!(" --plant {}", bug.id()));
    let file = out.as_deref().map_or("FILE".into(), Path::to_string_lossy);
    let text = format!(
        "# {}: {}\n# to see it: cargo run -p sim --release -- replay{plant} --tape {file}\n{}",
        shrunk.failure.check,
        shrunk.failure.message.replace('\n', " "),
        shrunk.script
    );
    match &out {
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string())?,
        None => println!("{text}"),
    }
    println!(
        "{choices} choices became {} in {} runs; it still fails by the check \"{}\"",
        shrunk.script.choices(),
        shrunk.runs,
        shrunk.failure.check
    );
    Ok(ExitCode::from(shrunk.failure.kind.exit_code()))
}

fn long_sweep(seeds: Seeds) -> ExitCode {
    let terminal = std::io::stderr().is_terminal();
    let sweep = sweep::sweep(range(seeds), Options { all: true, ..Options::default() }, |done| {
        let often = if terminal { 1000 } else { 100_000 };
        if done.is_multiple_of(often) {
            eprintln!("{done} seeds");
        }
    });
    summary(&sweep);
    for (check, (count, first)) in sweep.by_check() {
        println!("{count} failures by the check \"{check}\", the first with seed {first}");
    }
    tell_never_hit(&sweep);
    match sweep.failures.first_key_value() {
        None => ExitCode::SUCCESS,
        Some((seed, failure)) => fail(&Which { seed: Some(*seed), ..Which::default() }, failure),
    }
}

/// Answers whether there was any.
fn tell_never_hit(sweep: &Sweep) -> bool {
    let never: Vec<_> = sweep.never_hit().map(Mark::id).collect();
    if !never.is_empty() {
        println!("never hit: {}", never.join(", "));
    }
    !never.is_empty()
}

fn run_small_worlds(worlds: Vec<SmallWorld>, triples: bool, plant: Option<Bug>) -> ExitCode {
    let scope = if triples { Scope::Triples } else { Scope::Pairs };
    let worlds = if worlds.is_empty() { exhaust::worlds(scope) } else { worlds };
    let began = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let all = exhaust::explore_all(&worlds, plant, |small, explored| {
        if terminal {
            eprintln!("{small}: {} states", explored.states);
        }
    });
    match all {
        Ok(all) => {
            println!(
                "{} small worlds: no failure in {} states, {} transitions between them, {} ends, {:.3e} \
                 interleavings of up to {} choices, {:.1} s",
                all.worlds,
                all.states,
                all.transitions,
                all.ends,
                all.interleavings,
                all.choices_max,
                began.elapsed().as_secs_f64()
            );
            ExitCode::SUCCESS
        }
        Err(FailedWorld { small, path, failure }) => {
            fail(&Which { small: Some(small), path, plant, ..Which::default() }, &failure)
        }
    }
}

fn crash_everywhere(operations: usize, plant: Option<Bug>) -> ExitCode {
    judge::plant(plant);
    for carried_slots_max in [0, 2] {
        let began = Instant::now();
        match crashes::explore(operations, carried_slots_max) {
            Ok(all) => println!(
                "every sequence of up to {operations} operations, records carry {carried_slots_max} \
                 blocks: no failure in {} states, {} steps between them, {} power cuts, up to {} \
                 checkpoints, {:.1} s",
                all.states,
                all.steps,
                all.cuts,
                all.generations_max,
                began.elapsed().as_secs_f64()
            ),
            Err(found) => {
                eprintln!("records carry {carried_slots_max} blocks: {found}");
                return ExitCode::from(11);
            }
        }
    }
    ExitCode::SUCCESS
}

fn plant(bugs: &[Bug], trials: u64, budget: u64) -> ExitCode {
    let named = bugs.to_vec();
    let bugs = if named.is_empty() { planted::drawn().collect() } else { named };
    let search = Search { trials, seeds_max: budget };
    let all = planted::search(&bugs, search, |found| {
        eprintln!("{}: {} of {trials}", found.bug.id(), found.seeds.len());
    });
    println!("{}", planted::HEAD);
    all.iter().for_each(|found| println!("{found}"));
    if bugs.len() > 1 {
        for (bug, finder) in planted::ELSEWHERE {
            println!("| {} | {} | | | | {finder} |", bug.id(), bug.text());
        }
    }
    let missed: Vec<_> =
        all.iter().filter(|found| !found.always()).map(|found| found.bug.id()).collect();
    if missed.is_empty() {
        println!(
            "\nall {} bugs found in each of {trials} searches of at most {budget} seeds",
            all.len()
        );
        return ExitCode::SUCCESS;
    }
    println!("\nnot always found within {budget} seeds: {}", missed.join(", "));
    ExitCode::from(1)
}

fn marks(seeds: Seeds) -> ExitCode {
    let sweep = sweep::sweep(range(seeds), Options { all: true, ..Options::default() }, |_| {});
    for mark in Mark::ALL {
        let count = sweep.marks.get(mark).copied().unwrap_or(0);
        println!("{count:>8}  {:<22} {}", mark.id(), mark.text());
    }
    ExitCode::from(u8::from(tell_never_hit(&sweep)))
}
