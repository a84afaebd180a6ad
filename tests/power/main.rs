//! Power cuts of the real server on a real file system: what FLUSH or FUA acknowledged must survive.
//!
//! A QEMU guest with Debian's kernel serves a sheet from ext4. Its disk is in this process (`disk`), with a cache
//! whose content only a FLUSH makes durable; so is the client that writes, flushes and notes what was
//! acknowledged (`glassine_tests::history`). Hence it is certain what had been acknowledged and what had been
//! written at any one moment: before a request of the disk is served, everything stands still.
//!
//! At drawn moments of that kind the power is cut. What was flushed to the disk stays; of the writes in its cache
//! none, some or most survive, in whole writes or in sectors of 512 bytes.
//!
//! - Most cuts are made on a copy of disk and history, while the guest goes on. e2fsck replays ext4's journal
//!   and finds no damage, debugfs takes the sheet out, and a server on this machine recovers it.
//! - The last cut of a boot is real: QEMU is killed, and the next boot gets the disk. There the kernel
//!   replays ext4's journal and the guest's own server recovers the sheet, on whose outcome the next load builds.
//!   Some cuts hit that recovery.
//!
//! That QEMU is killed loses nothing by itself: whatever is lost, the disk loses.
//!
//! Planted failures prove that a cut is noticed: with syncs that only seem to happen, and with ext4 told
//! not to flush its disk, the same harness must fail.
//!
//! `cargo test -p glassine-tests --test power -- --nocapture` makes 12 cuts in two boots, and plants one failure; with
//! `GLASSINE_CUTS=100` it makes as many, and plants all.

mod disk;
mod guest;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use disk::Disk;
use glassine_tests::changes::{load, load_one_by_one, lock};
use glassine_tests::client::Client;
use glassine_tests::history::{BLOCK, BLOCKS, History};
use glassine_tests::server::{Server, glassine, make_image, scratch, text, tool, try_tool};
use guest::{Boot, Guest, Syncs};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

const SIZE: usize = BLOCKS * BLOCK;
/// The disk: room for a journal of 16 MiB and the sheet's data, twice.
const DISK: u64 = 96 << 20;
/// One boot serves so many cuts; the last of them ends it.
const CUTS_OF_A_BOOT: u64 = 10;

/// What is tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    cuts: u64,
    /// So many writes and flushes of the disk lie between two cuts, at most.
    gap: u64,
    /// In so many boots at first, every write is a barrier, so that the later ones find a worn journal, whose
    /// segments are used again.
    wearing: u64,
    /// How ext4 is mounted.
    mount: &'static str,
    syncs: Syncs,
}

/// What a trial met.
#[derive(Debug, Default)]
struct Report {
    cuts: u64,
    boots: u64,
    /// Boots whose server was looked at before the power went again.
    looks: u64,
    /// Cuts that lost something.
    losses: u64,
    /// Sectors they lost.
    sectors: u64,
    /// Changes that had to survive and did, and others that did.
    promised: u64,
    spared: u64,
    /// The highest generation of a journal that was recovered.
    generation: u64,
    /// Journals with a torn end, which was cut.
    torn: u64,
}

/// Disk and history at one moment.
#[derive(Debug)]
struct Moment {
    disk: Disk,
    history: History,
}

/// A trial under way.
struct Power {
    trial: Trial,
    scratch: TempDir,
    /// Where the guest's kernel and its file system are.
    cache: PathBuf,
    template: PathBuf,
    report: Report,
    rng: ChaCha8Rng,
}

impl Power {
    fn new(trial: Trial) -> Self {
        let scratch = scratch();
        let cache = std::env::var_os("GLASSINE_GUEST_CACHE").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest"),
            PathBuf::from,
        );
        let template = scratch.path().join("template");
        make_image(&template, SIZE as u64 / 2, 7);
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("power/build");
        tool(build.to_str().expect("UTF-8"), &[cache.as_path(), &glassine(), &template]);
        let rng = ChaCha8Rng::seed_from_u64(trial.cuts);
        Self { trial, scratch, cache, template, report: Report::default(), rng }
    }

    /// Cuts until there were enough; fails where a server shows what it must not.
    fn run(mut self) -> Result<Report, String> {
        let mut base = fs::read(&self.template).expect("just made");
        base.resize(SIZE, 0);
        let history = Mutex::new(History::new(base));
        let mut disk = self.blank_disk();
        while self.report.cuts < self.trial.cuts {
            let cuts = CUTS_OF_A_BOOT.min(self.trial.cuts - self.report.cuts);
            disk = self.boot(disk, &history, cuts)?;
        }
        let history = history.into_inner().expect("nobody panicked");
        self.report.promised += history.promised;
        self.report.spared += history.spared;
        Ok(self.report)
    }

    /// A disk with an empty ext4.
    fn blank_disk(&self) -> Vec<u8> {
        let path = self.scratch.path().join("blank");
        let file = fs::File::create(&path).expect("scratch is writable");
        file.set_len(DISK).expect("scratch has room");
        let lazy = "lazy_itable_init=0,lazy_journal_init=0";
        tool("mkfs.ext4", &["-q", "-F", "-E", lazy, path.to_str().expect("UTF-8")]);
        let disk = fs::read(&path).expect("just made");
        fs::remove_file(&path).expect("just made");
        disk
    }

    /// Boots a guest on a disk, and cuts its power so often; answers what the last cut left of the disk.
    fn boot(
        &mut self,
        disk: Vec<u8>,
        history: &Mutex<History>,
        cuts: u64,
    ) -> Result<Vec<u8>, String> {
        self.report.boots += 1;
        let socket = self.scratch.path().join("disk");
        // That of the boot before.
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("scratch is writable");
        let guest = Guest::boot(&Boot {
            cache: &self.cache,
            scratch: self.scratch.path(),
            disk: &socket,
            size: SIZE,
            mount: self.trial.mount,
            syncs: self.trial.syncs,
        });
        let mut gaps: Vec<_> =
            (0..cuts).map(|_| self.rng.random_range(1..=self.trial.gap)).collect();
        // The first may hit the mount, and the making of the sheet or its recovery.
        gaps[0] = self.rng.random_range(1..=self.trial.gap / 10);
        let wears = self.report.boots <= self.trial.wearing;
        let mut load_rng = ChaCha8Rng::seed_from_u64(self.rng.random());
        // No moment waits here, so that they do not fill the memory.
        let (moments, taken) = mpsc::sync_channel(0);
        thread::scope(|scope| {
            let guest = &guest;
            scope.spawn(move || {
                let Some(mut stream) = accept(&listener, guest) else { return };
                // An error is that QEMU is gone: then there were not as many moments as there should be.
                let _ = Disk::new(disk).serve(&mut stream, stand_still(gaps, history, &moments));
                // Before the stream ends: a disk that fails is another matter.
                guest.cut();
            });
            let client = scope.spawn(move || {
                let outcome = use_device(guest, history, wears, &mut load_rng);
                guest.cut();
                outcome
            });
            let (mut left, mut count) = (Ok(None), 0);
            while left.is_ok()
                && let Ok(moment) = taken.recv()
            {
                left = self.check(moment).map(Some);
                count += 1;
            }
            // Whoever waits with a moment is let go.
            drop(taken);
            let used = client.join().expect("the client does not panic");
            let left = left?;
            self.report.looks += u64::from(used?);
            left.filter(|_| count == cuts).ok_or_else(|| "the guest ended by itself".to_owned())
        })
        .map_err(|error| format!("{error}; the guest's console:\n{}", guest.console()))
    }

    /// Cuts the power at a moment, on a copy: what is left must be as the history allows. Answers it.
    fn check(&mut self, moment: Moment) -> Result<Vec<u8>, String> {
        let Moment { disk, mut history } = moment;
        let cached = disk.cached();
        let (left, lost) = disk.cut(&mut self.rng);
        self.report.cuts += 1;
        self.report.losses += u64::from(lost > 0);
        self.report.sectors += lost as u64;
        (history.promised, history.spared) = (0, 0);
        self.recover(&left).and_then(|image| history.check(image)).map_err(|error| {
            let (cut, kept) = (self.report.cuts, self.cache.join("failed-disk.img"));
            fs::write(&kept, &left).expect("the disk can be kept");
            let kept = kept.display();
            format!(
                "cut {cut}, which lost {lost} sectors of {cached} writes and left {kept}: {error}"
            )
        })?;
        self.report.promised += history.promised;
        self.report.spared += history.spared;
        Ok(left)
    }

    /// What the device shows after recovery from what is left of a disk.
    fn recover(&mut self, left: &[u8]) -> Result<Vec<u8>, String> {
        let directory = tempfile::tempdir_in(self.scratch.path()).expect("scratch is writable");
        let disk = directory.path().join("disk");
        fs::write(&disk, left).expect("scratch has room");
        // Replays ext4's journal. What a power cut must not do to ext4, this does not mend.
        let mended = try_tool("e2fsck", &["-f", "-p", path(&disk)]);
        if !matches!(mended.status.code(), Some(0 | 1)) {
            return Err(format!("ext4 is damaged: {}", text(&mended.stdout)));
        }
        tool("debugfs", &["-R", &format!("rdump /sheet {}", path(directory.path())), path(&disk)]);
        let sheet = directory.path().join("sheet");
        // Without it the sheet was still being made.
        if sheet.join("superblock").exists() {
            let checked = try_tool(path(&glassine()), &["check", path(&sheet)]);
            if !checked.status.success() {
                return Err(format!("no recovery: {}", text(&checked.stderr)));
            }
        }
        let size = SIZE.to_string();
        let server =
            Server::blank(&size, &["--template", path(&self.template), "--sheet", path(&sheet)]);
        let image = Client::open(&server.socket()).read(0, SIZE as u32);
        let log = server.log();
        server.stop();
        if let Some((_, recovered)) = log.split_once("generation=") {
            let digits = recovered.split(|one: char| !one.is_ascii_digit()).next();
            let generation = digits.and_then(|digits| digits.parse().ok()).unwrap_or_default();
            self.report.generation = self.report.generation.max(generation);
            self.report.torn += u64::from(recovered.contains("cut=true"));
        }
        Ok(image)
    }
}

/// Waits for QEMU, if it lives to connect.
fn accept(listener: &UnixListener, guest: &Guest) -> Option<UnixStream> {
    listener.set_nonblocking(true).expect("a listener can be asked");
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a stream can be waited for");
                return Some(stream);
            }
            Err(_) if guest.is_off() => return None,
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Hands over the moments of the cuts, one after so many requests each, and breaks off after the last, or when
/// nobody takes them any more. Every other cut comes just before a FLUSH, when there is the most
/// to lose.
fn stand_still(
    gaps: Vec<u64>,
    history: &Mutex<History>,
    moments: &mpsc::SyncSender<Moment>,
) -> impl FnMut(&Disk, bool) -> ControlFlow<()> {
    // Without barriers no FLUSH may ever come.
    const PATIENCE: u64 = 500;
    let mut gaps = gaps.into_iter();
    let (mut left, mut late) = (gaps.next(), 0);
    move |disk, is_flush| {
        let Some(requests) = &mut left else { return ControlFlow::Break(()) };
        *requests = requests.saturating_sub(1);
        late = if *requests > 0 { 0 } else { late + 1 };
        let waits = gaps.len().is_multiple_of(2) && late < PATIENCE;
        if *requests > 0 || (waits && !(is_flush && disk.cached() > 0)) {
            return ControlFlow::Continue(());
        }
        let moment = Moment { disk: disk.clone(), history: lock(history).clone() };
        left = gaps.next();
        match moments.send(moment) {
            Ok(()) if left.is_some() => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

/// Looks at the device of a guest once it is ready, and then changes it, until the power goes. Whether it came to that.
fn use_device(
    guest: &Guest,
    history: &Mutex<History>,
    wears: bool,
    rng: &mut ChaCha8Rng,
) -> Result<bool, String> {
    if !guest.wait()? {
        return Ok(false);
    }
    let open = || Client::try_open(guest.address);
    let look = || -> io::Result<_> {
        let mut clients = [open()?, open()?];
        let image = clients[0].try_read(0, SIZE as u32)?;
        Ok((clients, image))
    };
    let Ok((mut clients, image)) = look() else { return Ok(false) };
    lock(history).check(image).map_err(|error| format!("after a boot: {error}"))?;
    match wears {
        true => load_one_by_one(&mut clients[0], history, rng)?,
        false => load(&mut clients, history, rng)?,
    }
    Ok(true)
}

/// Two guests at a time would only be slower.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static GUEST: Mutex<()> = Mutex::new(());
    // Whoever panicked with it is gone.
    GUEST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

const SOUND: Trial =
    Trial { cuts: 12, gap: 1000, wearing: 0, mount: "defaults", syncs: Syncs::All };
/// Without syncs little gets to the disk at a time.
const PLANTED: Trial = Trial { gap: 100, ..SOUND };

fn cuts() -> Option<u64> {
    let cuts = std::env::var("GLASSINE_CUTS").ok()?;
    Some(cuts.parse().expect("GLASSINE_CUTS is a number"))
}

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    let _guard = one_at_a_time();
    let trial = cuts().map_or(SOUND, |cuts| Trial { cuts, wearing: 2, ..SOUND });
    let report = Power::new(trial).run().unwrap_or_else(|broken| panic!("{broken}"));
    println!("{report:?}");
    assert!(report.losses > trial.cuts / 20, "the cuts lost something: {report:?}");
    assert!(report.promised > 10 * trial.cuts, "there was something to lose: {report:?}");
}

#[test]
fn what_is_not_synced_would_be_missed() {
    let _guard = one_at_a_time();
    let planted = [
        // The most like what could go wrong: a journal that is sound, of bytes that are not there.
        Trial { syncs: Syncs::Journal, ..PLANTED },
        Trial { syncs: Syncs::None, ..PLANTED },
        Trial { mount: "nobarrier", ..PLANTED },
    ];
    for trial in &planted[..if cuts().is_some() { planted.len() } else { 1 }] {
        let broken = Power::new(*trial).run().expect_err("what was acknowledged is lost");
        println!("{trial:?}: {}", broken.lines().next().unwrap_or_default());
        assert!(broken.starts_with("cut "), "it fails for what a cut took: {broken}");
    }
}
