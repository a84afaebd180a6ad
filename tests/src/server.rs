//! Starts the server under test, and tools that are run against it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::pattern;

/// The binary under test: `GLASSINE_BIN`, or the one that was built.
#[must_use]
pub fn glassine() -> PathBuf {
    if let Some(path) = std::env::var_os("GLASSINE_BIN") {
        return path.into();
    }
    let this = std::env::current_exe().expect("a test knows where it is");
    for directory in this.ancestors() {
        for profile in ["release", "debug"] {
            let path = directory.join(profile).join("glassine");
            if path.is_file() {
                return path;
            }
        }
    }
    panic!("no glassine binary; run `cargo build --release -p glassine`, or set GLASSINE_BIN");
}

/// Whether the server is one with a sanitizer (`tests/sanitize`), which is slow and needs memory of its own.
#[must_use]
pub fn is_sanitized() -> bool {
    std::env::var_os("GLASSINE_SANITIZED").is_some()
}

/// A directory in memory, so that disks do not slow the tests down.
#[must_use]
pub fn scratch() -> TempDir {
    let make = |base: &str| tempfile::Builder::new().prefix("glassine-test-").tempdir_in(base);
    make("/dev/shm").or_else(|_| make("/tmp")).expect("a scratch directory can be made")
}

/// A small file system of its own, in memory. It is unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs {
    directory: TempDir,
}

impl Tmpfs {
    /// Mounts one of so many bytes, as `mount` takes them. Only root can.
    #[must_use]
    pub fn mount(size: &str) -> Self {
        let directory = scratch();
        let options = format!("size={size}");
        let path = directory.path();
        let path = path.to_str().expect("UTF-8");
        tool("mount", &["-t", "tmpfs", "-o", &options, "none", path]);
        Self { directory }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fills it up with a file, whose path this is.
    #[must_use]
    pub fn fill(&self) -> PathBuf {
        let filler = self.path().join("filler");
        let fill = format!("cat /dev/zero > {} 2>/dev/null; true", filler.display());
        tool("sh", &["-c", &fill]);
        filler
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily, for it may be dropped before a server that uses it when a test fails.
        let _ = try_tool("umount", &["--lazy".as_ref(), self.path().as_os_str()]);
    }
}

/// A running server. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    directory: TempDir,
    template: Option<(PathBuf, String)>,
}

impl Server {
    /// Serves a template.
    #[must_use]
    pub fn over(template: &Path, arguments: &[&str]) -> Self {
        let mut all = vec!["--template", template.to_str().expect("paths here are UTF-8")];
        all.extend(arguments);
        let mut server = Self::start(&all);
        server.template = Some((template.to_owned(), sha256(template)));
        server
    }

    /// Serves a blank device.
    #[must_use]
    pub fn blank(size: &str, arguments: &[&str]) -> Self {
        let mut all = vec!["--size", size];
        all.extend(arguments);
        Self::start(&all)
    }

    fn start(arguments: &[&str]) -> Self {
        let directory = scratch();
        let listen = format!("unix:{}", directory.path().join("x.sock").display());
        let mut command = Command::new(glassine());
        command.arg("serve").args(arguments).args(["--listen", &listen]);
        Self::spawn(command, directory)
    }

    /// Runs a command that is to listen at `x.sock` in the directory.
    #[must_use]
    pub fn spawn(mut command: Command, directory: TempDir) -> Self {
        let log = File::create(directory.path().join("log")).expect("scratch is writable");
        command.env("TMPDIR", directory.path()).stdin(Stdio::null()).stderr(log);
        let child = command.spawn().expect("the server can be started");
        let mut server = Self { child, directory, template: None };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(server.socket()).is_err() {
            let ended = server.child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the server ended with {ended:?}: {}", server.log());
            assert!(Instant::now() < deadline, "the server does not listen: {}", server.log());
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Its unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("x.sock")
    }

    /// Its scratch directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How NBD tools name its default export.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Descriptors it has open.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the server runs").count()
    }

    /// Private memory it uses, in KiB: pages of its files do not count. Under a sanitizer most of it
    /// is the sanitizer's, and none is counted.
    #[must_use]
    pub fn memory_kib(&self) -> u64 {
        if is_sanitized() {
            return 0;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the server runs");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux says");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        // SAFETY: takes no memory; the process is our child and not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits until it ends.
    #[must_use]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it by SIGTERM; it must drain, exit with 0, and have left its template as it was.
    pub fn stop(self) {
        self.signal(libc::SIGTERM);
        self.stop_after_signal();
    }

    /// The same, when the signal has been sent.
    pub fn stop_after_signal(mut self) {
        let status = self.wait(Duration::from_secs(15));
        assert!(status.success(), "the server ended with {status}: {}", self.log());
        let log = self.log();
        assert!(!log.contains("panicked"), "the server panicked: {log}");
        assert!(!self.socket().exists(), "the socket goes with the server");
        if let Some((path, before)) = &self.template {
            assert_eq!(*before, sha256(path), "the template was changed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already waited for, or to be killed: either way it is our own child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool to its end; it must succeed, within three minutes. Answers what it printed.
pub fn tool<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> String {
    let output = try_tool(name, arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let shown: Vec<_> = arguments.iter().map(|one| one.as_ref().to_string_lossy()).collect();
    let line = shown.join(" ");
    assert!(output.status.success(), "{name} {line}: {}\n{out}\n{err}", output.status);
    out
}

/// Runs a tool to its end, however that is, within three minutes.
pub fn try_tool<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["180", name]).args(arguments).stdin(Stdio::null());
    let output = command.output().expect("coreutils are installed");
    assert!(output.status.code() != Some(127), "{name} is not installed: run tests/setup");
    assert!(output.status.code() != Some(124), "{name} did not end within three minutes");
    output
}

/// Bytes as text.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The SHA-256 of a file.
#[must_use]
pub fn sha256(path: &Path) -> String {
    let mut file = File::open(path).expect("the file is there");
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).expect("the file can be read") {
            0 => return format!("{:x}", digest.finalize()),
            count => digest.update(&buffer[..count]),
        }
    }
}

/// Makes an image that is random in most places and zero in some.
pub fn make_image(path: &Path, bytes: u64, seed: u64) {
    let mut file = File::create(path).expect("scratch is writable");
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let count = (bytes - at).min(buffer.len() as u64) as usize;
        if (at >> 20) % 7 == 3 {
            buffer.fill(0);
        } else {
            pattern::fill(&mut buffer, seed, at);
        }
        file.write_all(&buffer[..count]).expect("scratch has room");
        at += count as u64;
    }
}
