//! The commands that ask, or tell, a running server through its control socket.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli;
use crate::control::api::{
    Close, Durability, Export, Exports, NewQuota, NewSnapshot, Outcome, Slots, Status,
};
use crate::control::client::Client;
use crate::control::jobs::{JobState, Snapshot};
use crate::sync::{Arc, AtomicBool, Ordering, sleep};

/// How often to ask how far a snapshot is.
const POLL_TIME: Duration = Duration::from_millis(100);
/// How often to say so where there is no terminal.
const LINE_TIME: Duration = Duration::from_secs(5);

/// Prints a line, or several.
pub fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot print the answer"),
    }
}

/// Prints a report, for people or for programs.
pub fn print_report(report: &(impl Serialize + ToString), json: bool) -> anyhow::Result<()> {
    if json { print_json(report) } else { print(&report.to_string()) }
}

fn print_json(answer: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(answer).context("cannot put the answer into words")?)
}

/// `glassine status`: every export in a line, or all about one.
pub fn status(arguments: &cli::Status) -> anyhow::Result<()> {
    let client = Client::new(&arguments.target.control)?;
    if let Some(name) = &arguments.export {
        let status: Status = client.get_of("/v1/status", name)?;
        return if arguments.json { print_json(&status) } else { print(&describe(&status)) };
    }
    let all: Exports = client.get("/v1/exports")?;
    if arguments.json {
        return print_json(&all);
    }
    if all.exports.is_empty() {
        return print("no exports: all of them were closed");
    }
    let lines: Vec<_> = all.exports.iter().map(describe_export).collect();
    print(&lines.join("\n"))
}

fn describe_export(export: &Export) -> String {
    let Export { export, size_bytes, template, sheet, durability, connections } = export;
    let below = template.as_ref().map_or("blank".to_owned(), |path| format!("template {path}"));
    let above = match (sheet, durability) {
        (Some(path), Durability::Journal) => format!("sheet {path}"),
        (Some(path), _) => format!("ephemeral sheet {path}"),
        (None, Durability::ReadOnly) => "read-only".to_owned(),
        (None, _) => "temporary sheet".to_owned(),
    };
    format!("export {export:?}: {size_bytes} bytes, {below}, {above}, {connections} connections")
}

fn describe(status: &Status) -> String {
    let Status { written_bytes, reserved_bytes, data_file_bytes, .. } = status;
    let Slots { free_bytes, filling_bytes, live_bytes, displaced_bytes, sealed_bytes, hole_bytes } =
        status.slots;
    let quota = match status.quota_bytes {
        Some(bytes) => format!("quota {bytes} bytes"),
        None => "no quota".to_owned(),
    };
    let journal = match status.generation {
        Some(_) if status.journal_failed => {
            "journal: failed; writes and flushes are refused: mend the storage and restart"
                .to_owned()
        }
        Some(generation) => format!("journal: generation {generation}"),
        None => "no journal".to_owned(),
    };
    format!(
        "{}\n{written_bytes} bytes written, {reserved_bytes} reserved, {quota}\n\
         data file: {data_file_bytes} bytes, of these {live_bytes} live, {displaced_bytes} displaced, {sealed_bytes} sealed, \
         {filling_bytes} being filled, {free_bytes} free, {hole_bytes} given back\n{journal}",
        describe_export(&status.export)
    )
}

/// `glassine quota`.
pub fn quota(arguments: &cli::Quota) -> anyhow::Result<()> {
    let client = Client::new(&arguments.target.control)?;
    let body = NewQuota { export: arguments.export.clone(), quota_bytes: arguments.quota.0 };
    let status: Status = client.send(Method::PUT, "/v1/quota", &body)?;
    print(&describe(&status))
}

/// `glassine close`.
pub fn close(arguments: &cli::Close) -> anyhow::Result<()> {
    let client = Client::new(&arguments.target.control)?;
    let body = Close { export: arguments.export.clone() };
    let outcome: Outcome = client.send(Method::POST, "/v1/close", &body)?;
    print(&outcome.state)
}

/// `glassine drain`.
pub fn drain(arguments: &cli::Drain) -> anyhow::Result<()> {
    let client = Client::new(&arguments.target.control)?;
    let outcome: Outcome = client.send(Method::POST, "/v1/drain", &())?;
    print(&outcome.state)
}

/// `glassine snapshot`: begins one, and shows how far it is until it has ended. A signal cancels it.
pub fn snapshot(arguments: &cli::Snapshot) -> anyhow::Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends this command at once.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
            .context("cannot handle signals")?;
    }
    let client = Client::new(&arguments.target.control)?;
    let out = std::path::absolute(&arguments.out).context("cannot make --out absolute")?;
    let body = NewSnapshot {
        export: arguments.export.clone(),
        out,
        flush: arguments.flush,
        compress: arguments.compress.clone(),
    };
    let begun: Snapshot = client.send(Method::POST, "/v1/snapshots", &body)?;
    let snapshot = follow(&client, begun, &interrupted)?;
    if arguments.json {
        print_json(&snapshot)?;
    }
    match snapshot.state {
        JobState::Done if arguments.json => Ok(()),
        JobState::Done => print(&describe_done(&snapshot)),
        JobState::Cancelled => bail!("the snapshot was cancelled; there is no layer"),
        JobState::Failed | JobState::Running => {
            bail!("{}", snapshot.error.as_deref().unwrap_or("the server does not say why"))
        }
    }
}

/// Shows how far a snapshot is until it has ended; cancels it when interrupted. Answers what it came to.
pub(crate) fn follow(
    client: &Client,
    mut snapshot: Snapshot,
    interrupted: &AtomicBool,
) -> anyhow::Result<Snapshot> {
    let path = format!("/v1/snapshots/{}", snapshot.id);
    let mut meter = Meter::new();
    let mut cancelled = false;
    while snapshot.state == JobState::Running {
        meter.show(&snapshot);
        sleep(POLL_TIME);
        let next = if !cancelled && interrupted.load(Ordering::Relaxed) {
            cancelled = true;
            client.delete(&path)
        } else {
            client.get(&path)
        };
        snapshot = next.context("what became of the snapshot is not known")?;
    }
    meter.end();
    Ok(snapshot)
}

fn describe_done(snapshot: &Snapshot) -> String {
    format!(
        "layer {} of export {:?} in {}: {} bytes of data, {} of zeroes, {} bytes of file; \
         {:.1} s, the device stood still for {} µs",
        snapshot.layer_id.as_deref().unwrap_or_default(),
        snapshot.export,
        snapshot.out.display(),
        snapshot.data_bytes.unwrap_or_default(),
        snapshot.zero_bytes.unwrap_or_default(),
        snapshot.file_bytes.unwrap_or_default(),
        snapshot.seconds.unwrap_or_default(),
        snapshot.seal_micros.unwrap_or_default(),
    )
}

/// Shows how far a snapshot is: a bar on a terminal, else a line now and then. On standard error, so that the
/// answer stays alone.
struct Meter {
    bar: Option<ProgressBar>,
    next_line: Instant,
}

impl Meter {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left");
            ProgressBar::new(0).with_style(style.expect("the template is valid"))
        });
        Self { bar, next_line: Instant::now() }
    }

    fn show(&mut self, snapshot: &Snapshot) {
        let Snapshot { done_bytes, total_bytes, .. } = snapshot;
        if let Some(bar) = &self.bar {
            bar.set_length(*total_bytes);
            bar.set_position(*done_bytes);
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_TIME;
            eprintln!("snapshot {}: {done_bytes} of {total_bytes} bytes", snapshot.id);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
