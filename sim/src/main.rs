//! `sim`: long sweeps, and a closer look at one seed.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::{Parser, Subcommand};
use sim::choice::Tape;
use sim::scenario::{self, Failure};

/// The deterministic simulator of Glassine's core.
#[derive(Debug, Parser)]
#[command(
    name = "sim",
    after_help = "Exit codes:
   0  no failure
   2  the command line is wrong
  10  the core broke one of its own assertions
  11  wrong bytes, a wrong error, or a broken rule
  12  something never came to an end
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
        /// How many.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first of them.
        #[arg(long, default_value_t = 0)]
        start: u64,
        /// Run each seed twice and compare.
        #[arg(long)]
        twice: bool,
        /// Go on after a failure, and count them.
        #[arg(long)]
        all: bool,
    },
    /// Run one seed and print every event.
    Replay {
        /// Which.
        #[arg(long)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { seeds, start, twice, all } => run(start, seeds, twice, all),
        Command::Replay { seed } => match scenario::run(Tape::seeded(seed), true) {
            Ok(report) => {
                println!("{report:?}");
                ExitCode::SUCCESS
            }
            Err(failure) => fail(seed, &failure),
        },
    }
}

fn run(start: u64, seeds: u64, twice: bool, all: bool) -> ExitCode {
    let began = Instant::now();
    let next = AtomicU64::new(start);
    let failures: Mutex<Vec<(u64, Box<Failure>)>> = Mutex::default();
    let (steps, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let stop = !all && !failures.lock().expect("no panic").is_empty();
                    if seed >= start + seeds || stop {
                        return;
                    }
                    let outcome = if twice {
                        scenario::run_twice(seed)
                    } else {
                        scenario::run(Tape::seeded(seed), false)
                    };
                    match outcome {
                        Ok(report) => {
                            steps.fetch_add(report.steps, Ordering::Relaxed);
                            answered.fetch_add(report.answered, Ordering::Relaxed);
                        }
                        Err(failure) => {
                            failures.lock().expect("no panic").push((seed, failure));
                        }
                    }
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let answered = answered.into_inner();
    let failures = failures.into_inner().expect("no panic");
    println!(
        "{seeds} seeds from {start}: {} failures, {answered} requests answered, {} steps, {seconds:.1} s, \
         {:.0} requests per second",
        failures.len(),
        steps.into_inner(),
        answered as f64 / seconds
    );
    match failures.iter().min_by_key(|(seed, _)| *seed) {
        None => ExitCode::SUCCESS,
        Some((seed, failure)) => fail(*seed, failure),
    }
}

fn fail(seed: u64, failure: &Failure) -> ExitCode {
    eprintln!("seed {seed} failed\n{failure}");
    eprintln!("to see it again: cargo run -p sim --release -- replay --seed {seed}");
    ExitCode::from(failure.kind.exit_code())
}
