//! `bench`: Glassine next to other NBD servers, and next to the least that a server can do.
//! `tests/bench/run` builds everything and runs it; docs/benchmarks.md says how it measures.

mod costs;
mod disturbed;
mod external;
mod fresh;
mod limit;
mod machine;
mod markdown;
mod measure;
mod options;
mod plots;
mod processes;
mod results;
mod servers;
mod tables;
mod workloads;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use crate::machine::Machine;
use crate::measure::{Standing, Storage, steady};
use crate::options::{Command, Options};
use crate::results::Row;
use crate::servers::Kind;
use crate::workloads::{What, Workload};

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<ExitCode> {
    if let Some(Command::Limit { socket, file, ring }) = &options.command {
        limit::serve(socket, file, *ring)?;
        return Ok(ExitCode::SUCCESS);
    }
    let workloads = options.workloads()?;
    let mut report = Machine::report(options);
    for (index, directory) in options.directories().iter().enumerate() {
        let (span, time) = (options.span(), options.time());
        let storage = Storage::new(directory, span, time, options.rounds(), options.kinds())?;
        measure_all(&storage, &workloads, index == 0, &mut report.rows, &mut report.commands)?;
    }
    print!("{}", tables::terminal(&report));
    if let Some(path) = options.json() {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    if let Some(directory) = options.plots() {
        plots::draw(&report, &directory)?;
    }
    if let Some(path) = options.markdown() {
        markdown::replace(&report, &path, options.plots().as_deref())?;
    }
    let Some(least) = options.check else { return Ok(ExitCode::SUCCESS) };
    let mut kept = true;
    for row in &report.rows {
        let ratio = row.over_peers().unwrap_or(0.0);
        if ratio < least {
            eprintln!("{}: {ratio:.2} times the best peer, not {least:.2}", row.title);
            kept = false;
        }
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All that is measured on one kind of storage. What a process costs does not depend on it, and is
/// measured on the first only.
fn measure_all(
    storage: &Storage,
    workloads: &[&Workload],
    with_costs: bool,
    rows: &mut Vec<Row>,
    commands: &mut Vec<(Kind, String)>,
) -> io::Result<()> {
    let mut standing = Standing::all(storage);
    for workload in workloads {
        let is_cost = matches!(
            workload.what,
            What::SystemCalls(..)
                | What::IdleMemory
                | What::TouchedMemory
                | What::StartUp
                | What::Allocations
        );
        if is_cost && !with_costs {
            continue;
        }
        eprint!("{}: {} ({})", storage.title, workload.title, workload.name);
        let began = std::time::Instant::now();
        let stays =
            matches!(workload.what, What::Steady(..) | What::Connections(_) | What::Stalled);
        if !stays {
            standing.iter_mut().for_each(Standing::end);
        }
        let row = match workload.what {
            What::Steady(..) | What::Connections(_) => steady(storage, &mut standing, workload),
            What::Stalled => disturbed::stalled(storage, &mut standing, workload),
            What::FirstTouch => fresh::first_touch(storage, workload),
            What::Devices(count) => fresh::devices(storage, workload, count),
            What::SlowTemplate => disturbed::slow_template(storage, workload)?,
            What::QuietDevice => disturbed::quiet_device(storage, workload),
            What::External(tool) => external::external(storage, workload, tool),
            What::SystemCalls(stage, pattern) => {
                costs::system_calls(storage, workload, stage, pattern)
            }
            What::IdleMemory => costs::idle_memory(storage, workload),
            What::TouchedMemory => costs::touched_memory(storage, workload),
            What::StartUp => costs::start_up(storage, workload),
            What::Allocations => costs::allocations(storage, workload),
        };
        eprintln!(": {:.1} s", began.elapsed().as_secs_f64());
        for entry in &row.entries {
            if let Some(failure) = entry.failure.as_ref().filter(|why| !tables::is_left_out(why)) {
                eprintln!("  {}: {failure}", entry.server.title());
            }
        }
        for line in standing.iter().filter_map(Standing::command_line) {
            if !commands.iter().any(|(kind, known)| *kind == line.0 && *known == line.1) {
                commands.push(line);
            }
        }
        rows.push(row);
    }
    Ok(())
}
