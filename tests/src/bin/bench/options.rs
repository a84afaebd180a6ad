//! The command line.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::servers::Kind;
use crate::workloads::{ALL, PROMISED, Workload};

/// Measures Glassine, other NBD servers, and the least that a server can do, in one run.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Which servers; all, unless given.
    #[arg(long, value_enum, value_delimiter = ',')]
    servers: Vec<Kind>,
    /// Which workloads, by name or by the beginning of names; all, unless given. One that is not there
    /// lists them.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// How often each server is measured in each workload [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// How long a measurement takes [default: 0.5].
    #[arg(long)]
    seconds: Option<f64>,
    /// Size of the devices [default: 256M].
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Where images, overlays and sockets go; may be repeated [default: /dev/shm and /var/tmp].
    #[arg(long = "dir")]
    directories: Vec<PathBuf>,
    /// Few and short rounds on a small device: to see that everything works, not for figures.
    #[arg(long)]
    quick: bool,
    /// Write every figure to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw plots into this directory.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// Put tables into this file, between its markers.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Make all that docs/ has of it: the same as `--json docs/benchmarks/figures.json --plots
    /// docs/benchmarks --markdown docs/benchmarks.md`.
    #[arg(long)]
    publish: bool,
    /// Measure only what is promised, on /dev/shm, and fail unless Glassine is so many times as fast
    /// as the best peer.
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "2")]
    pub(crate) check: Option<f64>,
}

/// What else this program is.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Be the limit: serve a file, the least a server can do.
    Limit {
        /// The unix socket to listen on.
        #[arg(long)]
        socket: PathBuf,
        /// The file to serve.
        #[arg(long)]
        file: PathBuf,
        /// Use io_uring.
        #[arg(long)]
        ring: bool,
    },
}

fn parse_size(text: &str) -> Result<u64, String> {
    let size = parse_size::Config::new().with_binary().parse_size(text);
    let size = size.map_err(|error| error.to_string())?;
    // Loads use 1 MiB at a time, and the slow template needs room behind its warm part.
    if size < 16 << 20 || size % (1 << 20) != 0 {
        return Err("at least 16M, in whole M".into());
    }
    Ok(size)
}

impl Options {
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let wanted = |kind: &Kind| match (self.check, &self.servers[..]) {
            (Some(_), []) => *kind == Kind::Glassine || kind.is_peer(),
            (None, []) => *kind != Kind::LimitRing,
            (_, some) => some.contains(kind),
        };
        Kind::ALL.into_iter().filter(wanted).collect()
    }

    pub(crate) fn workloads(&self) -> io::Result<Vec<&'static Workload>> {
        let promised = PROMISED.map(str::to_owned);
        let wanted = if self.check.is_some() { &promised[..] } else { &self.workloads[..] };
        // A whole name means one; the beginning of names means all of them.
        let mut chosen: Vec<&Workload> = Vec::new();
        for name in wanted {
            let exact = ALL.iter().filter(|one| one.name == name);
            let longer = ALL.iter().filter(|one| one.name.starts_with(name.as_str()));
            let before = chosen.len();
            chosen.extend(exact);
            if chosen.len() == before {
                chosen.extend(longer);
            }
            if chosen.len() == before {
                let names: Vec<_> = ALL.iter().map(|one| one.name).collect();
                let names = names.join(", ");
                return Err(io::Error::other(format!("no workload {name}; there are: {names}")));
            }
        }
        let is_wanted = |one: &&Workload| {
            wanted.is_empty() || chosen.iter().any(|other| other.name == one.name)
        };
        Ok(ALL.iter().filter(is_wanted).collect())
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.map_or(if self.quick { 2 } else { 5 }, usize::from)
    }

    pub(crate) fn time(&self) -> Duration {
        let preset = if self.quick {
            0.15
        } else if self.check.is_some() {
            0.3
        } else {
            0.5
        };
        Duration::from_secs_f64(self.seconds.unwrap_or(preset).clamp(0.01, 60.0))
    }

    pub(crate) fn span(&self) -> u64 {
        self.size.unwrap_or(if self.quick { 32 << 20 } else { 256 << 20 })
    }

    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        match (&self.directories[..], self.check) {
            ([], Some(_)) => vec!["/dev/shm".into()],
            ([], None) => vec!["/dev/shm".into(), "/var/tmp".into()],
            (some, _) => some.to_vec(),
        }
    }

    fn published(&self, given: Option<&PathBuf>, path: &str) -> Option<PathBuf> {
        given.cloned().or_else(|| self.publish.then(|| path.into()))
    }

    pub(crate) fn json(&self) -> Option<PathBuf> {
        self.published(self.json.as_ref(), "docs/benchmarks/figures.json")
    }

    pub(crate) fn plots(&self) -> Option<PathBuf> {
        self.published(self.plots.as_ref(), "docs/benchmarks")
    }

    pub(crate) fn markdown(&self) -> Option<PathBuf> {
        self.published(self.markdown.as_ref(), "docs/benchmarks.md")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Options {
        Options::parse_from(line.split(' '))
    }

    #[test]
    fn filters_choose_servers_and_workloads() {
        let all = options("bench");
        let kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| *kind != Kind::LimitRing).collect();
        assert_eq!((all.kinds(), all.workloads().expect("all").len()), (kinds, ALL.len()));
        let asked = options("bench --servers limit,limit-ring");
        assert_eq!(asked.kinds(), [Kind::Limit, Kind::LimitRing]);
        let some = options("bench --servers limit,glassine --workloads devices,fio-read");
        assert_eq!(some.kinds(), [Kind::Glassine, Kind::Limit]);
        let names: Vec<_> = some.workloads().expect("some").iter().map(|one| one.name).collect();
        assert_eq!(names, ["devices-1", "devices-16", "devices-200", "fio-read"]);
        let one = options("bench --workloads connections-1").workloads().expect("one");
        assert_eq!(one.len(), 1);
        assert!(options("bench --workloads nonsense").workloads().is_err());
    }

    #[test]
    fn a_check_is_of_what_is_promised_against_peers() {
        let check = options("bench --check");
        assert_eq!((check.check, check.kinds().len()), (Some(2.0), 4));
        assert_eq!(check.workloads().expect("two").len(), 2);
        assert_eq!(options("bench --check 1.5").check, Some(1.5));
    }
}
