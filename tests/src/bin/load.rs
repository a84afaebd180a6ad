//! `load`: puts a load on an NBD server, or compares Glassine with its peers in one run.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use glassine_tests::load::{Load, Outcome, Pattern, make_template};
use glassine_tests::server::{Server, glassine, tool};

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
    /// Compare Glassine with qemu-nbd and nbdkit, interleaved, and print medians.
    Compare {
        /// Where templates, overlays and sockets go.
        #[arg(long, default_value = "/dev/shm")]
        dir: PathBuf,
        /// Rounds.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds a measurement.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Fail unless 4 KiB random reads and writes are twice as fast as the best peer's.
        #[arg(long)]
        check: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
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
const TEMPLATE_BYTES: u64 = 256 << 20;

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

fn main() -> ExitCode {
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
            ExitCode::SUCCESS
        }
        What::Template { path, bytes } => {
            make_template(&path, bytes, VERSION);
            ExitCode::SUCCESS
        }
        What::Compare { dir, rounds, seconds, check, json } => {
            compare(&dir, rounds, seconds, check, json)
        }
    }
}

/// The rows of the comparison: name, workload, requests in flight.
const ROWS: [(&str, Workload, u64); 6] = [
    ("4 KiB random read, QD 1", Workload::RandomRead, 1),
    ("4 KiB random read, QD 32", Workload::RandomRead, 32),
    ("4 KiB random write (again), QD 32", Workload::RandomWrite, 32),
    ("4 KiB random read of written blocks, QD 32", Workload::RandomRead, 32),
    ("1 MiB sequential read, QD 8", Workload::SequentialRead, 8),
    ("1 MiB sequential write (again), QD 8", Workload::SequentialWrite, 8),
];
const NAMES: [&str; 3] = ["glassine", "qemu-nbd qcow2", "nbdkit cow"];
/// The rows that are promised, and are checked.
const PROMISED: [usize; 2] = [1, 2];

fn compare(dir: &Path, rounds: usize, seconds: f64, check: bool, json: bool) -> ExitCode {
    let scratch = tempfile::Builder::new().prefix("glassine-compare-").tempdir_in(dir);
    let scratch = scratch.expect("the directory is writable");
    let template = scratch.path().join("template.img");
    make_template(&template, TEMPLATE_BYTES, VERSION);
    let servers = [start_glassine(&template), start_qemu(&template), start_nbdkit(&template)];
    eprintln!("warming up: every block is read, and written, through each server");
    for server in &servers {
        let mut client = glassine_tests::client::Client::open(&server.socket());
        for offset in (0..TEMPLATE_BYTES).step_by(1 << 20) {
            client.read(offset, 1 << 20);
        }
    }
    // figures[row][server]: one a round.
    let mut figures = vec![vec![Vec::new(); servers.len()]; ROWS.len()];
    for (row, (name, workload, depth)) in ROWS.iter().enumerate() {
        let load = load(*workload, *depth, TEMPLATE_BYTES, seconds);
        if matches!(workload, Workload::RandomWrite) {
            // First touch is another story: everything is written once before it is timed.
            let all = Load {
                pattern: Pattern::SequentialWrite,
                bytes: 1 << 20,
                time: Duration::from_secs(2),
                ..load
            };
            for server in &servers {
                let _ = all.run(&server.socket(), 1);
            }
        }
        for round in 0..rounds {
            for (server, figures) in servers.iter().zip(&mut figures[row]) {
                let outcome: Outcome = load.run(&server.socket(), round as u64);
                figures.push(outcome.per_second);
            }
        }
        eprintln!("measured: {name}");
    }
    for server in servers {
        drop(server);
    }
    print(&mut figures, json);
    let kept = PROMISED.iter().all(|row| ratio(&figures[*row]) >= 2.0);
    if check && !kept {
        eprintln!("glassine is not twice as fast as the best peer where that is promised");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Glassine's median over the best peer's.
fn ratio(figures: &[Vec<f64>]) -> f64 {
    median(&figures[0]) / figures[1..].iter().map(|one| median(one)).fold(0.0, f64::max)
}

fn print(figures: &mut [Vec<Vec<f64>>], json: bool) {
    if json {
        let rows: Vec<_> = ROWS.iter().zip(figures.iter()).map(|((name, ..), row)| {
            serde_json::json!({ "workload": name, "servers": NAMES, "operations_per_second": row })
        }).collect();
        println!("{}", serde_json::Value::from(rows));
        return;
    }
    println!("operations/s, median (lowest to highest)");
    println!("{:44}{:>30}{:>30}{:>30}{:>8}", "", NAMES[0], NAMES[1], NAMES[2], "ratio");
    for ((name, ..), row) in ROWS.iter().zip(figures.iter()) {
        print!("{name:44}");
        for one in row {
            let (low, high) = one.iter().fold((f64::MAX, 0.0f64), |(low, high), figure| {
                (low.min(*figure), high.max(*figure))
            });
            print!("{:>30}", format!("{:.0} ({low:.0} to {high:.0})", median(one)));
        }
        println!("{:>8.1}", ratio(row));
    }
}

fn directory(template: &Path) -> tempfile::TempDir {
    let parent = template.parent().expect("the template is in the scratch directory");
    tempfile::tempdir_in(parent).expect("scratch is writable")
}

fn start_glassine(template: &Path) -> Server {
    let directory = directory(template);
    let mut command = Command::new(glassine());
    command.arg("serve").arg("--template").arg(template);
    command.arg("--sheet").arg(directory.path().join("sheet"));
    command.arg("--listen").arg(format!("unix:{}", directory.path().join("x.sock").display()));
    Server::spawn(command, directory)
}

fn start_qemu(template: &Path) -> Server {
    let directory = directory(template);
    let overlay = directory.path().join("overlay.qcow2");
    let (overlay, template) = (overlay.to_str().expect("UTF-8"), template.to_str().expect("UTF-8"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", template, "-F", "raw", overlay]);
    let mut command = Command::new("qemu-nbd");
    command.args(["-t", "-e", "16", "--cache=writeback", "-f", "qcow2", "-k"]);
    command.arg(directory.path().join("x.sock")).arg(overlay);
    Server::spawn(command, directory)
}

fn start_nbdkit(template: &Path) -> Server {
    let directory = directory(template);
    let mut command = Command::new("nbdkit");
    command.args(["-f", "--filter=cow", "-U"]).arg(directory.path().join("x.sock"));
    command.arg("file").arg(template);
    Server::spawn(command, directory)
}
