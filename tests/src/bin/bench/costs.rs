//! What an operation and a device cost: system calls, memory, allocations. CPU time is taken with every
//! measurement; these are runs of their own, and nothing in them is timed.

use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use glassine_tests::load::{Load, Pattern};
use glassine_tests::server::text;

use crate::measure::{Storage, explain};
use crate::processes;
use crate::results::{Round, Row};
use crate::servers::{InPlace, Kind};
use crate::workloads::{Stage, Workload};

/// Counts the system calls of a server under a load.
pub(crate) fn system_calls(
    storage: &Storage,
    workload: &Workload,
    stage: Stage,
    pattern: Pattern,
) -> Row {
    let mut row = storage.row(workload);
    once(&mut row, |kind| {
        let server = kind.start(&storage.setup(1, InPlace::Copy))?;
        let connection = storage.warm(&server, stage)?;
        let connection = std::slice::from_ref(&connection);
        let load = storage.load(stage, pattern, 4096, 32);
        let load = Load { time: Duration::from_millis(300), ..load };
        // Threads that a server makes when there is much to do are there before.
        let _ = load.try_run(connection, 0)?;
        let report = storage.home.path().join("strace");
        let tracer = Tracer::attach(&server.roots(), &report)?;
        let outcome = load.try_run(connection, 1);
        let calls = tracer.detach();
        let (outcome, calls) = (outcome?, calls?);
        let operations = outcome.microseconds.len();
        if operations < 100 {
            return Err(io::Error::other(format!("only {operations} operations under strace")));
        }
        let total: u64 = calls.iter().map(|(_, count)| count).sum();
        let each = |count: u64| count as f64 / operations as f64;
        Ok(Round {
            figure: each(total),
            details: calls.into_iter().map(|(name, count)| (name, each(count))).collect(),
            ..Round::default()
        })
    });
    row
}

/// `strace` on running processes.
struct Tracer {
    strace: Child,
    report: std::path::PathBuf,
}

impl Tracer {
    fn attach(roots: &[u32], report: &std::path::Path) -> io::Result<Self> {
        let pids = processes::tree(roots);
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "name,calls", "-o"]).arg(report);
        for pid in &pids {
            command.arg("-p").arg(pid.to_string());
        }
        let strace = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut tracer = Self { strace, report: report.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !pids.iter().all(|pid| is_traced(*pid)) {
            let ended = tracer.strace.try_wait()?.is_some();
            if ended || Instant::now() > deadline {
                let _ = tracer.detach();
                return Err(io::Error::other("not measured: strace does not attach"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(tracer)
    }

    /// Lets go, and tells how often each call was made.
    fn detach(mut self) -> io::Result<Vec<(String, u64)>> {
        // SAFETY: takes no memory; the process is our child, and not waited for.
        let _ = unsafe { libc::kill(self.strace.id().cast_signed(), libc::SIGINT) };
        self.strace.wait()?;
        Ok(counts(&fs::read_to_string(&self.report)?))
    }
}

/// Whether every thread of a process is traced.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    })
}

/// What `strace -c -U name,calls` reports.
fn counts(report: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let (name, count) = line.trim().split_once(' ')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    report.lines().filter_map(line).filter(|(name, _)| name != "total").collect()
}

/// Private memory of an idle device: of 200 in one process, or of one process where it serves but one.
pub(crate) fn idle_memory(storage: &Storage, workload: &Workload) -> Row {
    let mut row = storage.row(workload);
    once(&mut row, |kind| {
        let count = if kind.serves_many() { 200 } else { 1 };
        let server = kind.start(&storage.setup(count, InPlace::Copy))?;
        thread::sleep(Duration::from_millis(200));
        let bytes = processes::private_bytes(&processes::tree(&server.roots()));
        let figure = bytes as f64 / 1024.0 / count as f64;
        let details = vec![("devices".into(), count as f64)];
        Ok(Round { figure, details, ..Round::default() })
    });
    for entry in &mut row.entries {
        let one = if entry.server.serves_many() { "of 200 in one process" } else { "one process" };
        entry.note = Some(one.into());
    }
    row
}

/// How much longer a server takes until it serves when it has one device more: 200 against one, each with
/// a new overlay over a template that is there. The middle of five starts.
pub(crate) fn start_up(storage: &Storage, workload: &Workload) -> Row {
    const MANY: usize = 200;
    let mut row = storage.row(workload);
    once(&mut row, |kind| {
        if !kind.serves_many() {
            return Err(io::Error::other("not measured: a process for each device"));
        }
        let milliseconds = |count: usize| {
            let mut times = [0.0; 5];
            for time in &mut times {
                let setup = storage.setup(count, InPlace::Copy);
                let began = Instant::now();
                let server = kind.start(&setup)?;
                // It may listen before it is ready: the last device takes its first client.
                let connection = server.open(count - 1)?;
                *time = began.elapsed().as_secs_f64() * 1e3;
                drop(connection);
            }
            times.sort_by(f64::total_cmp);
            Ok::<_, io::Error>(times[2])
        };
        let (one, many) = (milliseconds(1)?, milliseconds(MANY)?);
        let figure = (many - one).max(0.0) / (MANY - 1) as f64;
        let details = vec![("one device".into(), one), (format!("{MANY} devices"), many)];
        Ok(Round { figure, details, ..Round::default() })
    });
    row
}

/// How much private memory grows when all of a device is written, in small pieces.
pub(crate) fn touched_memory(storage: &Storage, workload: &Workload) -> Row {
    let mut row = storage.row(workload);
    once(&mut row, |kind| {
        let server = kind.start(&storage.setup(1, InPlace::Sparse))?;
        let connection = server.open(0)?;
        let private = || processes::private_bytes(&processes::tree(&server.roots()));
        let load = storage.load(Stage::Written, Pattern::EachWrite, 4096, 32);
        // The connection's own buffers are there before.
        let part = Load { span: 1 << 20, time: Duration::from_secs(60), ..load };
        let _ = part.try_run(std::slice::from_ref(&connection), 0)?;
        let before = private();
        let all = Load { time: Duration::from_secs(60), ..load };
        let _ = all.try_run(std::slice::from_ref(&connection), 0)?;
        let grown = private().saturating_sub(before) as f64 / 1024.0;
        let figure = grown * f64::from(1 << 30) / (storage.span - part.span) as f64;
        Ok(Round { figure, ..Round::default() })
    });
    row
}

/// What `tests/alloc` says: it counts the allocations of a whole Glassine server in its process.
pub(crate) fn allocations(storage: &Storage, workload: &Workload) -> Row {
    let mut row = storage.row(workload);
    once(&mut row, |kind| {
        if kind != Kind::Glassine {
            return Err(io::Error::other("not measured"));
        }
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.args(["test", "--release", "-q", "-p", "glassine-tests", "--test", "alloc"]);
        let output = command.args(["--", "--nocapture"]).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(io::Error::other("tests/alloc fails"));
        }
        let rounds = alloc_lines(&text(&output.stdout));
        // Of every kind of request, the quietest round: growth to a buffer's final size is no cost of a
        // request, and it is not the same in every round.
        let worst = rounds.iter().map(|(_, each)| *each).max_by(f64::total_cmp);
        let figure = worst.ok_or_else(|| io::Error::other("tests/alloc printed no figures"))?;
        Ok(Round { figure, details: rounds, ..Round::default() })
    });
    row
}

/// Allocations per request of each kind, the least of all rounds.
fn alloc_lines(out: &str) -> Vec<(String, f64)> {
    let mut rounds: Vec<(String, f64)> = Vec::new();
    for line in out.lines() {
        let mut read = || {
            let (name, rest) = line.split_once(": ")?;
            let (allocations, rest) = rest.split_once(" allocations in ")?;
            let requests: f64 = rest.strip_suffix(" requests")?.parse().ok()?;
            let each = allocations.parse::<f64>().ok()? / requests;
            match rounds.iter_mut().find(|(known, _)| known == name) {
                Some((_, least)) => *least = least.min(each),
                None => rounds.push((name.to_owned(), each)),
            }
            Some(())
        };
        // Lines that say something else are the test harness's.
        let _ = read();
    }
    rounds
}

/// One measurement of each server.
fn once(row: &mut Row, mut measure: impl FnMut(Kind) -> io::Result<Round>) {
    for entry in &mut row.entries {
        match measure(entry.server) {
            Ok(round) => entry.rounds.push(round),
            Err(error) => entry.failure = Some(explain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_strace_and_the_allocation_test_print() {
        let report = "syscall          calls\n---------------- ---------\nsendmsg                 12\n\
                      recvmsg                 30\n---------------- ---------\ntotal                   42\n";
        assert_eq!(counts(report), [("sendmsg".to_owned(), 12), ("recvmsg".to_owned(), 30)]);
        let out = "READ: 4 allocations in 8 requests\nREAD: 1 allocations in 10 requests\n\
                   WRITE: 0 allocations in 5 requests\ntest result: ok\n";
        assert_eq!(alloc_lines(out), [("READ".to_owned(), 0.1), ("WRITE".to_owned(), 0.0)]);
    }
}
