//! The servers: how each is started, and what it can do.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use glassine_tests::load::Connection;
use glassine_tests::server::{glassine, text};
use serde::Serialize;
use tempfile::TempDir;

use crate::processes;

/// A server that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// What this project makes, ephemeral: no other server makes writes durable that nobody flushes.
    Glassine,
    /// The same with a journal.
    GlassineJournal,
    /// qemu-nbd, qcow2 over the raw template.
    QemuQcow2,
    /// nbdkit, its cow filter over the file plugin.
    NbdkitCow,
    /// nbd-server with copyonwrite.
    NbdServerCow,
    /// qemu-nbd on a raw copy.
    QemuRaw,
    /// nbdkit's file plugin on a copy.
    NbdkitFile,
    /// nbdkit's memory plugin.
    NbdkitMemory,
    /// The least that a server can do.
    Limit,
    /// The same on io_uring. Only measured when it is asked for.
    LimitRing,
}

/// What a server is started on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup<'a> {
    /// Where its files go.
    pub(crate) home: &'a Path,
    /// The image below.
    pub(crate) template: &'a Path,
    /// Size of a device.
    pub(crate) bytes: u64,
    /// How many devices.
    pub(crate) devices: usize,
    /// What servers without copy-on-write find in their files.
    pub(crate) in_place: InPlace,
    /// Whether FLUSH must make writes durable. The others do so by default; nbd-server is told to
    /// (`sync` and `flush`).
    pub(crate) durable: bool,
}

/// The file of a server without copy-on-write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InPlace {
    /// A copy of the template.
    Copy,
    /// A new sparse file.
    Sparse,
    /// The template itself, which is not written.
    ReadOnly,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Glassine,
        Self::GlassineJournal,
        Self::QemuQcow2,
        Self::NbdkitCow,
        Self::NbdServerCow,
        Self::QemuRaw,
        Self::NbdkitFile,
        Self::NbdkitMemory,
        Self::Limit,
        Self::LimitRing,
    ];

    /// Its name in tables.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Glassine => "Glassine",
            Self::GlassineJournal => "with a journal",
            Self::QemuQcow2 => "qemu-nbd qcow2",
            Self::NbdkitCow => "nbdkit cow",
            Self::NbdServerCow => "nbd-server cow",
            Self::QemuRaw => "qemu-nbd raw",
            Self::NbdkitFile => "nbdkit file",
            Self::NbdkitMemory => "nbdkit memory",
            Self::Limit => "the limit",
            Self::LimitRing => "on io_uring",
        }
    }

    /// Whether it is the limit, by whatever calls.
    pub(crate) fn is_limit(self) -> bool {
        matches!(self, Self::Limit | Self::LimitRing)
    }

    /// Whether it is another's server with copy-on-write.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::QemuQcow2 | Self::NbdkitCow | Self::NbdServerCow)
    }

    /// Whether one process of it serves several devices.
    pub(crate) fn serves_many(self) -> bool {
        matches!(self, Self::Glassine | Self::GlassineJournal | Self::NbdServerCow)
            || self.is_limit()
    }

    /// Whether it forgets what was written when the connection ends.
    pub(crate) fn forgets(self) -> bool {
        self == Self::NbdServerCow
    }

    /// Whether a FLUSH is a promise: what is on stable storage then, and not only in memory.
    pub(crate) fn makes_durable(self) -> bool {
        !matches!(self, Self::Glassine | Self::NbdkitMemory) && !self.is_limit()
    }

    /// The commands that start one process of it, for the first of its devices.
    fn commands(self, setup: &Setup<'_>, home: &Path, socket: &Path) -> io::Result<Command> {
        let disk = home.join("disk.img");
        let disk = if setup.in_place == InPlace::ReadOnly { setup.template } else { &disk };
        let in_place = matches!(self, Self::QemuRaw | Self::NbdkitFile) || self.is_limit();
        match setup.in_place {
            InPlace::Copy if in_place => drop(fs::copy(setup.template, disk)?),
            InPlace::Sparse if in_place => File::create(disk)?.set_len(setup.bytes)?,
            _ => {}
        }
        let read_only = setup.in_place == InPlace::ReadOnly;
        let mut command = Command::new(match self {
            Self::Glassine | Self::GlassineJournal => glassine(),
            Self::QemuQcow2 | Self::QemuRaw => "qemu-nbd".into(),
            Self::NbdkitCow | Self::NbdkitFile | Self::NbdkitMemory => "nbdkit".into(),
            Self::NbdServerCow => "nbd-server".into(),
            // This program, even when a build has replaced its file meanwhile.
            Self::Limit | Self::LimitRing => "/proc/self/exe".into(),
        });
        match self {
            Self::Glassine | Self::GlassineJournal if setup.devices == 1 => {
                command.arg("serve").arg("--template").arg(setup.template);
                command.arg("--sheet").arg(home.join("sheet"));
                command.args((self == Self::Glassine).then_some("--ephemeral"));
                command.arg("--listen").arg(format!("unix:{}", socket.display()));
            }
            Self::Glassine | Self::GlassineJournal => {
                let mut config = format!("listen = ['unix:{}']\n", socket.display());
                for device in 0..setup.devices {
                    config += &format!(
                        "[[device]]\nexport = '{device}'\ntemplate = '{}'\nsheet = '{}'\nephemeral = {}\n",
                        setup.template.display(),
                        home.join(format!("sheet-{device}")).display(),
                        self == Self::Glassine
                    );
                }
                fs::write(home.join("glassine.toml"), config)?;
                command.arg("serve").arg("--config").arg(home.join("glassine.toml"));
            }
            Self::QemuQcow2 => {
                let overlay = home.join("overlay.qcow2");
                let mut create = Command::new("qemu-img");
                create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
                let output = create.arg(setup.template).arg(&overlay).output()?;
                if !output.status.success() {
                    return Err(io::Error::other(text(&output.stderr)));
                }
                command.args(["-t", "-e", "32", "-f", "qcow2", "-k"]).arg(socket).arg(overlay);
            }
            Self::QemuRaw => {
                command.args(["-t", "-e", "32", "-f", "raw", "-k"]).arg(socket);
                command.args(read_only.then_some("-r")).arg(disk);
            }
            Self::NbdkitCow => {
                // The overlay is a nameless file there.
                command.env("TMPDIR", home);
                command.args(["-f", "-U"]).arg(socket);
                command.args(["--filter=cow", "file"]).arg(setup.template);
            }
            Self::NbdkitFile => {
                command.args(["-f", "-U"]).arg(socket).args(read_only.then_some("-r"));
                command.arg("file").arg(disk);
            }
            Self::NbdkitMemory => {
                command.args(["-f", "-U"]).arg(socket).args(["memory", &setup.bytes.to_string()]);
            }
            Self::NbdServerCow => {
                let socket = socket.display();
                let mut config = format!("[generic]\n  unixsock = {socket}\n");
                for device in 0..setup.devices {
                    config += &format!(
                        "[{}]\n  exportname = {}\n  copyonwrite = true\n  cowdir = {}\n",
                        self.export(setup, device),
                        setup.template.display(),
                        home.display()
                    );
                    config += if setup.durable { "  sync = true\n  flush = true\n" } else { "" };
                }
                fs::write(home.join("nbd-server.conf"), config)?;
                // It forks, and the parent is gone: its id is in a file.
                command.arg("-C").arg(home.join("nbd-server.conf"));
                command.arg("-p").arg(home.join("pid"));
            }
            Self::Limit | Self::LimitRing => {
                command.arg("limit").arg("--socket").arg(socket).arg("--file").arg(disk);
                command.args((self == Self::LimitRing).then_some("--ring"));
            }
        }
        Ok(command)
    }

    fn export(self, setup: &Setup<'_>, device: usize) -> String {
        match self {
            Self::NbdServerCow => format!("disk{device}"),
            Self::Glassine | Self::GlassineJournal if setup.devices > 1 => device.to_string(),
            _ => String::new(),
        }
    }

    /// Starts it, and waits until it listens.
    pub(crate) fn start(self, setup: &Setup<'_>) -> io::Result<Server> {
        let directory = tempfile::Builder::new().prefix("s").tempdir_in(setup.home)?;
        let (processes, devices) = match self.serves_many() {
            true => (1, setup.devices),
            false => (setup.devices, 1),
        };
        let (home, kind) = (setup.home.to_owned(), self);
        let (children, exports, command) = (vec![], vec![], vec![]);
        let mut server = Server { kind, directory, home, children, daemon: None, exports, command };
        for process in 0..processes {
            let home = server.directory.path().join(process.to_string());
            fs::create_dir(&home)?;
            let socket = home.join("x.sock");
            let mut command = self.commands(&Setup { devices, ..*setup }, &home, &socket)?;
            let log = File::create(home.join("log"))?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let program = match self {
                Self::Limit | Self::LimitRing => OsStr::new("bench"),
                _ => Path::new(command.get_program()).file_name().unwrap_or_default(),
            };
            let words = [program].into_iter().chain(command.get_args());
            let plain =
                |word: &OsStr| word.to_string_lossy().replace(&*home.to_string_lossy(), "DIR");
            server.command = words.map(plain).collect();
            // SAFETY: `prctl` is safe between fork and exec, and takes no memory.
            unsafe {
                command.pre_exec(|| {
                    // A benchmark that is killed leaves no servers behind.
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                    Ok(())
                });
            }
            let mut child = command.spawn()?;
            if self == Self::NbdServerCow {
                child.wait()?;
                server.daemon = Some(Daemon::from_file(&home.join("pid"))?);
            } else {
                server.children.push(child);
            }
            for device in 0..devices {
                server.exports.push((socket.clone(), self.export(setup, device)));
            }
            let deadline = Instant::now() + Duration::from_secs(20);
            // nbd-server writes of a client that leaves at once; nothing else comes of it.
            while UnixStream::connect(&socket).is_err() {
                if Instant::now() > deadline || !server.is_alive() {
                    let log = fs::read_to_string(home.join("log")).unwrap_or_default();
                    let last = log.lines().next().unwrap_or("it says nothing");
                    return Err(io::Error::other(format!("it does not listen: {last}")));
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(server)
    }
}

/// A process that we started, but that is not our child: its id, and when it began.
#[derive(Debug)]
struct Daemon {
    pid: u32,
    began: Option<String>,
}

impl Daemon {
    fn from_file(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if let Ok(pid) = text.trim().parse()
                && let Some(began) = processes::began(pid)
            {
                return Ok(Self { pid, began: Some(began) });
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("it does not start"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_alive(&self) -> bool {
        processes::began(self.pid) == self.began && processes::is_running(self.pid)
    }
}

/// A server that runs; it is ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) kind: Kind,
    children: Vec<Child>,
    daemon: Option<Daemon>,
    exports: Vec<(PathBuf, String)>,
    home: PathBuf,
    directory: TempDir,
    command: Vec<String>,
}

impl Server {
    /// Opens a connection to one of its devices.
    pub(crate) fn open(&self, device: usize) -> io::Result<Connection> {
        let (socket, export) = &self.exports[device];
        Connection::open(socket, export)
    }

    /// How other clients name its first device.
    pub(crate) fn uri(&self) -> String {
        let (socket, export) = &self.exports[0];
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    /// Its processes that were started here.
    pub(crate) fn roots(&self) -> Vec<u32> {
        let daemon = self.daemon.iter().map(|daemon| daemon.pid);
        self.children.iter().map(Child::id).chain(daemon).collect()
    }

    /// CPU time used so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        processes::cpu_seconds(&processes::tree(&self.roots()))
    }

    /// Whether all of its processes run.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.children.iter_mut().all(|child| matches!(child.try_wait(), Ok(None)))
            && self.daemon.iter().all(Daemon::is_alive)
    }

    /// The command line of its last process, with its directories as DIR and STORAGE.
    pub(crate) fn command_line(&self) -> String {
        let line = self.command.join(" ");
        line.replace(self.home.to_str().expect("UTF-8"), "STORAGE")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // With what servers forked: what stays when they are gone is ended by its id.
        let (roots, mut forked) = (self.roots(), Vec::new());
        for pid in processes::tree(&roots) {
            let is_child = self.children.iter().any(|child| child.id() == pid);
            forked.extend((!is_child).then(|| Daemon { pid, began: processes::began(pid) }));
        }
        let signal = |pid: u32, signal| {
            // SAFETY: takes no memory; the process is our child, or descends from one of ours.
            let _ = unsafe { libc::kill(pid.cast_signed(), signal) };
        };
        for child in &self.children {
            signal(child.id(), libc::SIGTERM);
        }
        for daemon in self.daemon.iter().filter(|daemon| daemon.is_alive()) {
            signal(daemon.pid, libc::SIGTERM);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline
            && (self.children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None)))
                || forked.iter().any(Daemon::is_alive))
        {
            thread::sleep(Duration::from_millis(2));
        }
        for child in &mut self.children {
            // Waited for already, or stuck: either way it is our own child.
            let _ = child.kill();
            let _ = child.wait();
        }
        for daemon in forked.iter().filter(|daemon| daemon.is_alive()) {
            signal(daemon.pid, libc::SIGKILL);
        }
    }
}
