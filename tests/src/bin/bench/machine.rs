//! The machine, the versions, and what else belongs to figures.

use std::fs;
use std::process::Command;

use glassine_tests::server::text;
use serde::Serialize;

use crate::options::Options;
use crate::results::Row;
use crate::servers::Kind;

/// Everything that is reported.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// How it was asked for.
    pub(crate) command: String,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) device_bytes: u64,
    /// How servers were started.
    pub(crate) commands: Vec<(Kind, String)>,
    pub(crate) rows: Vec<Row>,
}

/// Where and when it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    /// The load average of the last minute, before this began: what else the machine had to do.
    pub(crate) load_before: String,
    /// Programs and their versions.
    pub(crate) versions: Vec<(&'static str, String)>,
    /// Where files went, and the file system there.
    pub(crate) storages: Vec<(String, String)>,
}

/// What a program prints first; none of them is needed to measure the others.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        return "not installed".into();
    };
    let out = text(&output.stdout) + &text(&output.stderr);
    out.lines().next().unwrap_or("says nothing").trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let file = fs::read_to_string(path).unwrap_or_default();
    let line = file.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let value = line[name.len().min(line.len())..].trim_start_matches(['\t', ' ', ':', '=']);
    value.trim_matches('"').to_owned()
}

impl Machine {
    fn look(options: &Options) -> Self {
        let directory = |path: &std::path::PathBuf| {
            let path = path.display().to_string();
            let kind = first_line("stat", &["-f", "-c", "%T", &path]);
            (path, kind)
        };
        let kib = field("/proc/meminfo", "MemTotal");
        let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap_or(0);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            date: first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit: first_line("git", &["describe", "--always", "--dirty"]),
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib >> 10,
            kernel: first_line("uname", &["-sr"]),
            system: field("/etc/os-release", "PRETTY_NAME"),
            load_before: load.split(' ').next().unwrap_or_default().to_owned(),
            versions: vec![
                ("qemu-nbd, qemu-img", first_line("qemu-nbd", &["--version"])),
                ("nbdkit", first_line("nbdkit", &["--version"])),
                ("nbd-server", first_line("nbd-server", &["-V"])),
                ("fio", first_line("fio", &["--version"])),
                ("nbdcopy", first_line("nbdcopy", &["--version"])),
                ("rustc", first_line("rustc", &["--version"])),
            ],
            storages: options.directories().iter().map(directory).collect(),
        }
    }

    /// A report without figures.
    pub(crate) fn report(options: &Options) -> Report {
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        Report {
            machine: Self::look(options),
            command: ["tests/bench/run".to_owned()]
                .into_iter()
                .chain(arguments)
                .collect::<Vec<_>>()
                .join(" "),
            rounds: options.rounds(),
            seconds: options.time().as_secs_f64(),
            device_bytes: options.span(),
            commands: vec![],
            rows: vec![],
        }
    }
}
