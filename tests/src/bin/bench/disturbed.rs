//! Loads beside others that are stalled, or slow: what a healthy client keeps of its throughput.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use glassine_tests::client::{READ, WRITE};
use glassine_tests::load::{Connection, Load, Pattern};

use crate::measure::{Standing, Storage, TAIL, measure};
use crate::results::{Entry, Round, Row, Unit};
use crate::servers::{InPlace, Kind, Server, Setup};
use crate::workloads::{Stage, Workload};

/// A ratio, and what it is made of.
fn ratio(without: &Round, with: Round) -> Round {
    let p99 = |round: &Round| f64::from(round.p99_microseconds.unwrap_or(0));
    let details = vec![
        ("operations/s without".into(), without.figure),
        ("operations/s with".into(), with.figure),
        ("p99 microseconds without".into(), p99(without)),
        ("p99 microseconds with".into(), p99(&with)),
    ];
    Round { figure: with.figure / without.figure, details, ..with }
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// One client that stops in the middle of a payload, and one that asks for much and reads nothing.
fn stall(server: &Server, storage: &Storage) -> io::Result<[Connection; 2]> {
    let (mut half, mut deaf) = (server.open(0)?, server.open(0)?);
    // Where no load looks.
    half.stream.write_all(&request(WRITE, 1, storage.span, TAIL as u32))?;
    half.stream.write_all(&[1; 100_000])?;
    for cookie in 0..64 {
        deaf.stream.write_all(&request(READ, cookie, 0, 1 << 20))?;
    }
    thread::sleep(Duration::from_millis(100));
    Ok([half, deaf])
}

/// A healthy connection alone, then beside stalled ones, on servers that stay.
pub(crate) fn stalled(
    storage: &Storage,
    standing: &mut [Standing<'_>],
    workload: &Workload,
) -> Row {
    let mut row = storage.row(workload);
    let load = storage.load(Stage::Template, Pattern::RandomRead, 4096, 32);
    storage.interleave(&mut row, |entry, round| {
        let at = storage.kinds.iter().position(|kind| *kind == entry.server);
        let standing = &mut standing[at.expect("rows have an entry for every kind")];
        let mut once = || {
            let (server, connection) = standing.ready(Stage::Template)?;
            let connection = std::slice::from_ref(connection);
            let _ = Load { time: storage.time / 4, ..load }.try_run(connection, 0)?;
            let without = measure(server, connection, &load, Unit::Operations, round)?;
            let stalled = stall(server, storage)?;
            let with = measure(server, connection, &load, Unit::Operations, round)?;
            drop(stalled);
            Ok(ratio(&without, with))
        };
        let result = once();
        thread::sleep(Duration::from_millis(100));
        if !standing.is_alive() {
            entry.note = Some("the server ended when a stalled client left".into());
        }
        if result.is_err() {
            standing.end();
        }
        result
    });
    row
}

/// A client with one request at a time on one device, alone, then beside two clients that keep 32 overwrites
/// each in flight on another. There are two cores: the busy clients take time from the quiet one as well.
pub(crate) fn quiet_device(storage: &Storage, workload: &Workload) -> Row {
    let mut row = storage.row(workload);
    let quiet = storage.load(Stage::Template, Pattern::RandomRead, 4096, 1);
    let busy = storage.load(Stage::Written, Pattern::RandomWrite, 4096, 32);
    storage.interleave(&mut row, |entry, round| {
        if entry.server.is_limit() {
            return Err(io::Error::other("not measured: it serves one file under all names"));
        }
        let server = entry.server.start(&storage.setup(2, InPlace::Copy))?;
        let (one, others) = ([server.open(0)?], [server.open(1)?, server.open(1)?]);
        for connection in [&one[0], &others[0]] {
            storage.touch(connection, Stage::Template, Pattern::EachRead)?;
        }
        storage.fill(&others[0])?;
        let _ = Load { time: storage.time / 4, ..quiet }.try_run(&one, 0)?;
        let without = measure(&server, &one, &quiet, Unit::Operations, round)?;
        // Busy before and behind what is measured.
        let busy = Load { time: storage.time + storage.time / 2, ..busy };
        let (with, busy) = thread::scope(|scope| {
            let busy = scope.spawn(|| busy.try_run(&others, round as u64));
            thread::sleep(storage.time / 4);
            let with = measure(&server, &one, &quiet, Unit::Operations, round);
            (with, busy.join().expect("a load does not panic"))
        });
        let mut figure = ratio(&without, with?);
        figure.details.push(("operations/s of the busy device".into(), busy?.per_second));
        Ok(figure)
    });
    row
}

/// The template behind a FUSE mount: every read that is not in the page cache takes 100 ms.
struct SlowFile {
    mount: Child,
    path: PathBuf,
}

impl SlowFile {
    fn new(template: &Path, directory: &Path) -> io::Result<Self> {
        let path = directory.join("slow.img");
        File::create(&path)?;
        let mut command = Command::new("nbdfuse");
        command.args(["-r", "-o", "kernel_cache"]).arg(&path).args([
            "[",
            "nbdkit",
            "--exit-with-parent",
            "-f",
            "-r",
        ]);
        command.args(["--filter=delay", "file"]).arg(template).args(["rdelay=100ms", "]"]);
        let mount = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let slow = Self { mount, path };
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::metadata(&slow.path)?.len() == 0 {
            if Instant::now() > deadline {
                return Err(io::Error::other("nbdfuse does not mount"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(slow)
    }

    /// Sees that everything behind `from` is cold.
    fn cool(&self, from: u64) -> io::Result<()> {
        let file = File::open(&self.path)?;
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: takes no memory. Advice: where it is not taken, the loads find the template warm and
        // the figures near 1; the details tell how many cold reads there were.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), from, 0, libc::POSIX_FADV_DONTNEED) };
        // Servers may remember for a while what was warm.
        thread::sleep(Duration::from_millis(1100));
        Ok(())
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status();
        let _ = self.mount.kill();
        let _ = self.mount.wait();
    }
}

/// The warm part of the slow template.
const WARM: u64 = 4 << 20;
/// Cold reads are that far from each other, so that readahead does not help.
const APART: u64 = 512 << 10;

/// A healthy connection on the warm part of a slow template, without and with cold reads on another.
pub(crate) fn slow_template(storage: &Storage, workload: &Workload) -> io::Result<Row> {
    let slow = SlowFile::new(&storage.template, storage.home.path())?;
    let mut row = storage.row(workload);
    let load = storage.load(Stage::Template, Pattern::RandomRead, 4096, 32);
    let load = Load { span: WARM, ..load };
    let places = (storage.span - WARM) / APART;
    let next = AtomicU64::new(0);
    let cold = |connection: &Connection, stop: &AtomicBool| -> io::Result<(u64, u64)> {
        let (mut reads, mut slowest) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let place = next.fetch_add(1, Ordering::Relaxed) % places;
            let began = Instant::now();
            cold_read(connection, WARM + place * APART)?;
            slowest = slowest.max(began.elapsed().as_millis() as u64);
            reads += 1;
        }
        Ok((reads, slowest))
    };
    storage.interleave(&mut row, |entry, round| {
        let Some(server) = start_over(storage, &slow, entry)? else {
            return Err(io::Error::other("not measured: it has no template"));
        };
        let healthy = [server.open(0)?];
        let others = [server.open(0)?, server.open(0)?];
        let whole = Load { pattern: Pattern::EachRead, bytes: 128 << 10, depth: 8, ..load };
        let _ = Load { time: Duration::from_secs(60), ..whole }.try_run(&healthy, 0)?;
        slow.cool(WARM)?;
        let _ = Load { time: storage.time / 2, ..load }.try_run(&healthy, 0)?;
        let without = measure(&server, &healthy, &load, Unit::Operations, round)?;
        let stop = AtomicBool::new(false);
        let (with, colds) = thread::scope(|scope| {
            let threads = others.each_ref().map(|other| scope.spawn(|| cold(other, &stop)));
            let with = measure(&server, &healthy, &load, Unit::Operations, round);
            stop.store(true, Ordering::Relaxed);
            let colds = threads.map(|thread| thread.join().expect("cold reads do not panic"));
            (with, colds)
        });
        let mut figure = ratio(&without, with?);
        let (mut reads, mut slowest) = (0, 0);
        for cold in colds {
            let (some, worst) = cold?;
            (reads, slowest) = (reads + some, slowest.max(worst));
        }
        if slowest < 80 {
            return Err(io::Error::other("not measured: the template was not cold"));
        }
        figure.details.push(("cold reads".into(), reads as f64));
        Ok(figure)
    });
    Ok(row)
}

/// Starts a server over the slow file, if it has a template.
fn start_over(storage: &Storage, slow: &SlowFile, entry: &Entry) -> io::Result<Option<Server>> {
    if entry.server == Kind::NbdkitMemory || entry.server.is_limit() {
        return Ok(None);
    }
    let setup = storage.setup(1, InPlace::ReadOnly);
    entry.server.start(&Setup { template: &slow.path, ..setup }).map(Some)
}

/// One read of 4 KiB, whose time matters and whose bytes the healthy client checks elsewhere.
fn cold_read(connection: &Connection, offset: u64) -> io::Result<()> {
    use std::io::Read;
    let mut reply = [0; 16 + 4096];
    (&connection.stream).write_all(&request(READ, 7, offset, 4096))?;
    (&connection.stream).read_exact(&mut reply)?;
    if reply[4..8] != [0; 4] {
        return Err(io::Error::other("a cold read failed"));
    }
    Ok(())
}
