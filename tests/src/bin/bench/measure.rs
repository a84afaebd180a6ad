//! How everything is measured: on which storage, how warm, in which order.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glassine_tests::load::{Connection, Load, Pattern, make_template};
use tempfile::TempDir;

use crate::processes;
use crate::results::{Entry, Round, Row, Unit};
use crate::servers::{InPlace, Kind, Server, Setup};
use crate::workloads::{Stage, What, Workload};

const TEMPLATE: u64 = 1;
const WRITTEN: u64 = 2;
/// Behind the part of a device that loads use; stalled clients write there.
pub(crate) const TAIL: u64 = 1 << 20;

/// One kind of storage, and all that measurements on it share.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) title: String,
    pub(crate) home: TempDir,
    pub(crate) template: PathBuf,
    /// The part of a device that is used.
    pub(crate) span: u64,
    pub(crate) time: Duration,
    pub(crate) rounds: usize,
    pub(crate) kinds: Vec<Kind>,
}

impl Storage {
    pub(crate) fn new(
        directory: &Path,
        span: u64,
        time: Duration,
        rounds: usize,
        kinds: Vec<Kind>,
    ) -> io::Result<Self> {
        let home = tempfile::Builder::new().prefix("glassine-bench-").tempdir_in(directory)?;
        let template = home.path().join("template.img");
        make_template(&template, span + TAIL, TEMPLATE);
        let title = directory.display().to_string();
        Ok(Self { title, home, template, span, time, rounds, kinds })
    }

    pub(crate) fn setup(&self, devices: usize, in_place: InPlace) -> Setup<'_> {
        let (home, template) = (self.home.path(), &self.template);
        Setup { home, template, bytes: self.span + TAIL, devices, in_place, durable: false }
    }

    /// A load on one connection.
    pub(crate) fn load(&self, stage: Stage, pattern: Pattern, bytes: u32, depth: u64) -> Load {
        let version = match stage {
            Stage::Template => TEMPLATE,
            Stage::Written => WRITTEN,
        };
        Load { pattern, bytes, depth, time: self.time, span: self.span, version }
    }

    /// Reads, or writes, every block through a connection, in requests of 1 MiB.
    pub(crate) fn touch(
        &self,
        connection: &Connection,
        stage: Stage,
        pattern: Pattern,
    ) -> io::Result<()> {
        let load = self.load(stage, pattern, 1 << 20, 4);
        let load = Load { time: Duration::from_secs(60), ..load };
        load.try_run(std::slice::from_ref(connection), 0).map(drop)
    }

    /// Writes every block twice, made durable in between: what a server keeps of durable blocks until it knows that it
    /// can do without, and what it then takes in turn with them, has all been written to before.
    pub(crate) fn fill(&self, connection: &Connection) -> io::Result<()> {
        self.touch(connection, Stage::Written, Pattern::EachWrite)?;
        connection.flush()?;
        self.touch(connection, Stage::Written, Pattern::EachWrite)
    }

    /// Brings a new server to a stage. Returns the connection that did it.
    pub(crate) fn warm(&self, server: &Server, stage: Stage) -> io::Result<Connection> {
        let connection = server.open(0)?;
        if connection.size != self.span + TAIL {
            return Err(io::Error::other(format!("the export has {} bytes", connection.size)));
        }
        if server.kind == Kind::NbdkitMemory {
            self.touch(&connection, Stage::Template, Pattern::EachWrite)?;
        }
        self.touch(&connection, Stage::Template, Pattern::EachRead)?;
        if stage == Stage::Written {
            self.fill(&connection)?;
        }
        Ok(connection)
    }

    /// An empty row for a workload.
    pub(crate) fn row(&self, workload: &Workload) -> Row {
        let entries = self.kinds.iter().map(|kind| Entry::new(*kind)).collect();
        let (title, storage) = (workload.title.to_owned(), self.title.clone());
        Row { workload: workload.name, title, unit: workload.unit, storage, entries }
    }

    /// Measures one server after the other, and again, round by round. A server that fails is not
    /// asked again.
    pub(crate) fn interleave(
        &self,
        row: &mut Row,
        mut measure: impl FnMut(&mut Entry, usize) -> io::Result<Round>,
    ) {
        for round in 0..self.rounds {
            for entry in row.entries.iter_mut().filter(|entry| entry.failure.is_none()) {
                match measure(entry, round) {
                    Ok(figure) => entry.rounds.push(figure),
                    Err(error) => entry.failure = Some(explain(&error)),
                }
            }
        }
    }
}

/// An error of a server in words.
pub(crate) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no reply in 30 s".into(),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "it closed the connection".into(),
        _ => error.to_string(),
    }
}

/// Puts a load on a server, and takes the time, and the CPU time.
pub(crate) fn measure(
    server: &Server,
    connections: &[Connection],
    load: &Load,
    unit: Unit,
    seed: usize,
) -> io::Result<Round> {
    let this = [std::process::id()];
    let before = (server.cpu_seconds(), processes::cpu_seconds(&this));
    let outcome = load.try_run(connections, seed as u64)?;
    let after = (server.cpu_seconds(), processes::cpu_seconds(&this));
    let scale = if unit == Unit::MiB { f64::from(load.bytes) / f64::from(1 << 20) } else { 1.0 };
    Ok(Round {
        figure: outcome.per_second * scale,
        p50_microseconds: Some(outcome.percentile(50.0)),
        p99_microseconds: Some(outcome.percentile(99.0)),
        operations: Some(outcome.microseconds.len()),
        server_cpu_seconds: Some(after.0 - before.0),
        client_cpu_seconds: Some(after.1 - before.1),
        details: vec![],
    })
}

/// A server that stays from workload to workload.
pub(crate) struct Standing<'a> {
    storage: &'a Storage,
    kind: Kind,
    /// The connection first: a server may wait for its clients when it ends.
    now: Option<(Connection, Server, Stage)>,
}

impl<'a> Standing<'a> {
    pub(crate) fn all(storage: &'a Storage) -> Vec<Self> {
        storage.kinds.iter().map(|kind| Self { storage, kind: *kind, now: None }).collect()
    }

    /// Sees that it runs, and is at this stage; starts it anew where it is not.
    pub(crate) fn ready(&mut self, stage: Stage) -> io::Result<(&Server, &Connection)> {
        let now = self.now.take_if(|(_, server, at)| server.is_alive() && *at <= stage);
        // What is not kept is ended before another is started.
        self.now = None;
        let (connection, server, at) = match now {
            Some(now) => now,
            None => {
                let server = self.kind.start(&self.storage.setup(1, InPlace::Copy))?;
                let connection = self.storage.warm(&server, Stage::Template)?;
                (connection, server, Stage::Template)
            }
        };
        if at < stage {
            self.storage.fill(&connection)?;
        }
        let (connection, server, _) = self.now.insert((connection, server, stage));
        Ok((server, connection))
    }

    /// Ends it, because it failed or its content is no longer known.
    pub(crate) fn end(&mut self) {
        self.now = None;
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.now.as_mut().is_some_and(|(_, server, _)| server.is_alive())
    }

    /// The command line that started it.
    pub(crate) fn command_line(&self) -> Option<(Kind, String)> {
        let (_, server, _) = self.now.as_ref()?;
        Some((self.kind, server.command_line()))
    }
}

/// Measures a workload on servers that stay, after a short run that does not count.
pub(crate) fn steady(storage: &Storage, standing: &mut [Standing<'_>], workload: &Workload) -> Row {
    let mut row = storage.row(workload);
    let (stage, load, connections) = match workload.what {
        What::Steady(stage, pattern, bytes, depth) => {
            (stage, storage.load(stage, pattern, bytes, depth), None)
        }
        What::Connections(count) => {
            let depth = crate::workloads::CONNECTION_DEPTH;
            let stage = Stage::Template;
            (stage, storage.load(stage, Pattern::RandomRead, 4096, depth), Some(count))
        }
        other => unreachable!("{other:?} is no load on servers that stay"),
    };
    let short = Load { time: storage.time / 4, ..load };
    storage.interleave(&mut row, |entry, round| {
        let at = storage.kinds.iter().position(|kind| *kind == entry.server);
        let standing = &mut standing[at.expect("rows have an entry for every kind")];
        let mut once = || {
            let (server, connection) = standing.ready(stage)?;
            let many: Vec<_> =
                (0..connections.unwrap_or(0)).map(|_| server.open(0)).collect::<io::Result<_>>()?;
            let used = connections.map_or(std::slice::from_ref(connection), |_| &many);
            if round == 0 || connections.is_some() {
                let _ = short.try_run(used, 0)?;
            }
            measure(server, used, &load, workload.unit, round + 1)
        };
        let result = once();
        if result.is_err() {
            standing.end();
        }
        result
    });
    row
}
