//! System calls on the files of a sheet that fail, each in turn, under load: what fails must be as
//! `docs/operations.md` says, and after a restart everything that was acknowledged is there.
//!
//! strace answers for the call. That nothing was done is as bad as any part of it: the record or the slots
//! are then not there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use glassine_tests::changes::{batch, lock};
use glassine_tests::client::{Client, FLUSH, TRIM, WRITE, WRITE_ZEROES};
use glassine_tests::history::{BLOCK, BLOCKS, History};
use glassine_tests::server::{Server, Tmpfs, glassine, scratch, try_tool};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const SIZE: usize = BLOCKS * BLOCK;
const EIO: u32 = 5;
const ENOSPC: u32 = 28;
/// So many batches reach every fault, and some generations of the journal.
const BATCHES: usize = 30_000;
/// A checkpoint is tried again every five seconds.
const PATIENCE: Duration = Duration::from_secs(40);
/// So many meet those that fail again and again.
const FEW: usize = 300;

/// What a fault does to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing that a client notices.
    Nothing,
    /// Requests meet this error, and others go on.
    Requests(u32),
    /// A checkpoint is tried again: no request notices, or some meet ENOSPC.
    Delayed,
    /// The journal has failed: no change and no FLUSH succeeds until the restart.
    Final,
}

use Outcome::{Delayed, Final, Nothing, Requests};

/// File, system call, what strace does to it and at which calls, what comes of it. strace counts by thread: a first
/// write or sync of `superblock` or `journal.0` would be that of the recovery.
#[rustfmt::skip]
const FAULTS: [(&str, &str, &str, Outcome); 19] = [
    ("data", "fdatasync", "error=EIO:when=5", Final),
    ("data", "fdatasync", "error=ENOSPC:when=5", Final),
    ("data", "fdatasync", "error=EDQUOT:when=5", Final),
    ("journal.0", "fdatasync", "error=EIO:when=5", Final),
    ("journal.0", "pwrite64", "error=EIO:when=5", Final),
    ("journal.0", "pwrite64", "error=ENOSPC:when=5", Final),
    ("journal.0", "pwrite64", "retval=0:when=5", Final),
    ("journal.0", "pwrite64", "error=EINTR:when=3+5", Nothing),
    ("journal.1", "pwrite64", "error=EIO:when=1", Final),
    ("journal.1", "fdatasync", "error=EIO:when=2", Final),
    ("checkpoint.1", "pwrite64", "error=EIO:when=1", Final),
    ("checkpoint.1", "pwrite64", "error=ENOSPC:when=1", Delayed),
    ("checkpoint.1", "fdatasync", "error=EIO:when=1", Final),
    ("superblock", "pwrite64", "error=EIO:when=2", Final),
    ("superblock", "fdatasync", "error=EIO:when=2", Final),
    ("data", "pwritev", "error=EIO:when=3", Requests(EIO)),
    ("data", "pwritev", "error=EINTR:when=3+5", Nothing),
    ("data", "fallocate", "error=ENOSPC:when=1..40", Requests(ENOSPC)),
    ("checkpoint.1", "fallocate", "error=ENOSPC:when=1..40", Requests(ENOSPC)),
];

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A sheet, and what happened to it.
struct Subject {
    sheet: String,
    history: Mutex<History>,
    rng: ChaCha8Rng,
}

impl Subject {
    /// A new sheet with something in it.
    fn new(sheet: &Path) -> Self {
        let history = Mutex::new(History::new(vec![0; SIZE]));
        let rng = ChaCha8Rng::seed_from_u64(1);
        let mut subject = Self { sheet: path(sheet).to_owned(), history, rng };
        let server = subject.serve();
        assert_eq!(subject.load(&server, 5), []);
        server.stop();
        subject
    }

    fn serve(&self) -> Server {
        Server::blank(&SIZE.to_string(), &["--sheet", &self.sheet])
    }

    /// A server one of whose calls strace fails; it notes which in `trace`.
    fn serve_with_fault(&self, trace: &Path, file: &str, call: &str, fault: &str) -> Server {
        let directory = scratch();
        let file = Path::new(&self.sheet).join(file);
        let mut command = Command::new("strace");
        // With -D the server is our child, and strace is not.
        command.args(["-D", "-f", "-qq", "-o", path(trace), "-P", path(&file)]);
        command.args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:{fault}")]);
        command.arg(glassine()).args(["serve", "--size", &SIZE.to_string()]);
        command.args(["--sheet", &self.sheet, "--listen"]);
        command.arg(format!("unix:{}", directory.path().join("x.sock").display()));
        Server::spawn(command, directory)
    }

    /// Loads a server until requests fail, with so many batches at most; answers their errors.
    fn load(&mut self, server: &Server, batches: usize) -> Vec<u32> {
        let mut client = Client::open(&server.socket());
        for _ in 0..batches {
            let errors = batch(&mut client, &self.history, &mut self.rng).expect("it answers");
            if !errors.is_empty() {
                return errors;
            }
        }
        Vec::new()
    }

    /// Loads a server until its requests meet this error no more.
    fn wait_out(&mut self, server: &Server, mut met: Vec<u32>, error: u32) {
        let began = Instant::now();
        while !met.is_empty() {
            assert!(met.iter().all(|one| *one == error), "{met:?}");
            assert!(began.elapsed() < PATIENCE, "the fault goes away, its errors do not");
            met = self.load(server, 50);
        }
        assert!(!server.log().contains("the journal failed"), "{}", server.log());
    }

    /// Restarts without faults: what was acknowledged is there, and the device does all it should.
    fn restart(&mut self) {
        let server = self.serve();
        let image = Client::open(&server.socket()).read(0, SIZE as u32);
        lock(&self.history).check(image).unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!(self.load(&server, 20), []);
        server.stop();
    }
}

#[test]
fn calls_that_fail_cost_what_they_must_and_nothing_that_was_acknowledged() {
    for (file, call, fault, outcome) in FAULTS {
        println!("{call} of {file}: {fault}: {outcome:?}");
        let directory = scratch();
        let trace = directory.path().join("trace");
        let mut subject = Subject::new(&directory.path().join("sheet"));
        let server = subject.serve_with_fault(&trace, file, call, fault);
        let batches = if outcome == Nothing { FEW } else { BATCHES };
        let met = subject.load(&server, batches);
        match outcome {
            Nothing => assert_eq!(met, []),
            Requests(error) => {
                assert!(!met.is_empty(), "somebody notices");
                subject.wait_out(&server, met, error);
            }
            Delayed => {
                subject.wait_out(&server, met, ENOSPC);
                let log = server.log();
                assert!(log.contains("a checkpoint waits for space"), "{log}");
            }
            Final => {
                assert!(!met.is_empty() && met.iter().all(|one| *one == EIO), "{met:?}");
                has_failed(&server);
            }
        }
        let injected = fs::read_to_string(&trace).expect("strace notes what it does");
        assert!(injected.contains("(INJECTED)"), "the call was made: {injected}");
        // Killed, so that nothing is made durable by the way.
        drop(server);
        subject.restart();
    }
}

/// A device whose journal failed reads, and does nothing else.
fn has_failed(server: &Server) {
    let mut client = Client::open(&server.socket());
    for (command, length) in [(FLUSH, 0), (TRIM, 4096), (WRITE_ZEROES, 4096), (FLUSH, 0)] {
        assert_eq!(client.ask(0, command, 0, length), EIO, "{command}");
    }
    let before = client.read(0, SIZE as u32);
    client.write_with(1, 0, 4096, |payload| payload.fill(7));
    client.flush();
    assert_eq!(client.reply().error, EIO, "{WRITE}");
    assert!(client.read(0, SIZE as u32) == before, "what is refused is not seen");
    assert!(server.log().contains("the journal failed"), "{}", server.log());
}

#[test]
fn a_recovery_that_fails_is_refused_and_can_be_repeated() {
    for (file, call) in [
        ("superblock", "pwrite64"),
        ("superblock", "fdatasync"),
        ("journal.0", "pwrite64"),
        ("journal.0", "fdatasync"),
    ] {
        let directory = scratch();
        let mut subject = Subject::new(&directory.path().join("sheet"));
        let failing = Path::new(&subject.sheet).join(file);
        let inject = format!("inject={call}:error=EIO:when=1");
        let listen = format!("unix:{}", directory.path().join("x").display());
        let size = SIZE.to_string();
        let output = try_tool(
            "strace",
            &[
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-P",
                path(&failing),
                "-e",
                &inject,
                path(&glassine()),
                "serve",
                "--size",
                &size,
                "--sheet",
                &subject.sheet,
                "--listen",
                &listen,
            ],
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(file) && !said.contains("panicked"), "{said}");
        subject.restart();
    }
}

#[test]
fn a_full_disk_serves_what_needs_no_space_and_everything_once_there_is_some() {
    let disk = Tmpfs::mount("24M");
    let mut subject = Subject::new(&disk.path().join("sheet"));
    let server = subject.serve();
    let filler = disk.fill();
    let mut full = 0;
    for _ in 0..300 {
        let errors = subject.load(&server, 1);
        assert!(errors.iter().all(|error| *error == ENOSPC), "{errors:?}");
        full += errors.len();
        // Neither needs space, and after both of them there is some for an overwrite.
        let mut client = Client::open(&server.socket());
        assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    }
    assert!(full > 100, "the disk was full: {full}");
    fs::remove_file(&filler).expect("it is there");
    assert_eq!(subject.load(&server, 100), []);
    drop(server);
    subject.restart();
}

#[test]
fn a_limit_for_the_size_of_files_is_a_full_disk_and_no_end() {
    let directory = scratch();
    let mut subject = Subject::new(&directory.path().join("sheet"));
    let server_directory = scratch();
    let mut command = Command::new("prlimit");
    // More than a segment of the journal, and less than what is written.
    command.arg(format!("--fsize={}", 5 << 20)).arg(glassine());
    command.args(["serve", "--size", &SIZE.to_string(), "--sheet", &subject.sheet, "--listen"]);
    command.arg(format!("unix:{}", server_directory.path().join("x.sock").display()));
    let server = Server::spawn(command, server_directory);
    let mut full = 0;
    for _ in 0..FEW {
        let errors = subject.load(&server, 1);
        assert!(errors.iter().all(|error| *error == ENOSPC), "{errors:?}");
        full += errors.len();
    }
    assert!(full > 0, "the limit was met");
    drop(server);
    subject.restart();
}
