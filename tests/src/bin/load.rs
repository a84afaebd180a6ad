//! `load`: puts one load on an NBD server that runs already, for profiling.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use glassine_tests::load::{Load, Pattern, make_template};

/// A load generator for NBD servers that checks what it reads.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Put one load on a server that is already there (template made by `load template`).
    Run {
        /// Its unix socket.
        #[arg(long)]
        socket: PathBuf,
        /// What to ask for.
        #[arg(long, value_enum)]
        workload: Workload,
        /// Requests in flight.
        #[arg(long, default_value_t = 32)]
        depth: u64,
        /// Bytes of the device to use.
        #[arg(long, default_value_t = 256 << 20)]
        span: u64,
        /// For how long.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make the image that READ loads expect.
    Template {
        /// Where.
        path: PathBuf,
        /// How large.
        #[arg(long, default_value_t = 256 << 20)]
        bytes: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    RandomRead,
    RandomWrite,
    SequentialRead,
    SequentialWrite,
}

const VERSION: u64 = 1;

fn load(workload: Workload, depth: u64, span: u64, seconds: f64) -> Load {
    let (pattern, bytes) = match workload {
        Workload::RandomRead => (Pattern::RandomRead, 4096),
        Workload::RandomWrite => (Pattern::RandomWrite, 4096),
        Workload::SequentialRead => (Pattern::SequentialRead, 1 << 20),
        Workload::SequentialWrite => (Pattern::SequentialWrite, 1 << 20),
    };
    let time = Duration::from_secs_f64(seconds);
    Load { pattern, bytes, depth, time, span, version: VERSION }
}

fn main() {
    match Cli::parse().command {
        What::Run { socket, workload, depth, span, seconds, json } => {
            let load = load(workload, depth, span, seconds);
            let outcome = load.run(&socket, 1);
            let mib = outcome.per_second * f64::from(load.bytes) / f64::from(1 << 20);
            let (p50, p99) = (outcome.percentile(50.0), outcome.percentile(99.0));
            if json {
                let value = serde_json::json!({
                    "operations_per_second": outcome.per_second, "mib_per_second": mib,
                    "p50_microseconds": p50, "p99_microseconds": p99,
                });
                println!("{value}");
            } else {
                println!(
                    "{:.0} operations/s, {mib:.0} MiB/s, p50 {p50} us, p99 {p99} us",
                    outcome.per_second
                );
            }
        }
        What::Template { path, bytes } => {
            make_template(&path, bytes, VERSION);
        }
    }
}
