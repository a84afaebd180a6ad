//! Models of everything that the threads of a server share: mailboxes, the pool, devices, counters.
//!
//! They drive the real code. Only what a worker sleeps on is a stand-in, since no model checker looks
//! into epoll: `sync::Waker`.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glassine_core::Limits;
use glassine_core::overlay::{Extent, Reserve, SessionKey};
use glassine_core::request::RequestId;
use glassine_core::session::Input;
use glassine_core::sync::{check, spawn};

use crate::config::DeviceConfig;
use crate::device::Device;
use crate::layer::{About, LayerWriter};
use crate::pool::{Job, Pool};
use crate::router::{ConnectionId, Mail, Router, WORKER_SHIFT};
use crate::shared::{CONNECTIONS_MAX, Exports, Shared};
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock, sleep};

fn server(workers: usize) -> Arc<Shared> {
    let router = Arc::new(Router::new(workers).unwrap());
    Arc::new(Shared {
        exports: Mutex::new(Exports::new(Vec::new())),
        limits: Limits::default(),
        pool: Pool::new(Arc::clone(&router)),
        storage: Pool::new(Arc::clone(&router)),
        router,
        connections: AtomicUsize::new(0),
        spilled: AtomicU64::new(0),
    })
}

/// A device without files.
fn bare_device() -> Arc<Device> {
    let config =
        DeviceConfig { size_bytes: Some(1 << 20), read_only: true, ..DeviceConfig::default() };
    Arc::new(Device::open(&config, None).unwrap())
}

/// A job that sends its completion to worker 0, and needs no file for it.
fn job(device: &Arc<Device>, connection: u64) -> Job {
    Job::Fetch {
        device: Arc::clone(device),
        connection: ConnectionId(connection),
        id: RequestId::default(),
        offset: 0,
        length: 4096,
        cancelled: Arc::new(AtomicBool::new(true)),
    }
}

/// Models with two pool threads and more are too large to be searched without a bound on how often a
/// thread is interrupted. A smaller model of the same, without a bound, stands beside each.
const BOUND: Option<usize> = Some(4);

/// Whose completions have come, in the order of their names.
fn completed(shared: &Shared, worker: usize) -> Vec<u64> {
    let mail = shared.router.take(worker);
    let mut names: Vec<u64> = mail.iter().map(|(id, _)| id.0).collect();
    names.sort_unstable();
    names
}

/// Two threads send; a worker sleeps whenever it has seen everything.
fn mail_against_sleep(name: &str, bound: Option<usize>, counts: [usize; 2]) {
    check(name, bound, move || {
        let router = Arc::new(Router::new(1).unwrap());
        for count in counts {
            let router = Arc::clone(&router);
            spawn(move || (0..count).for_each(|_| router.send_to(0, Mail::Drain)));
        }
        let mut seen = 0;
        while seen < counts[0] + counts[1] {
            router.wait(0);
            seen += router.take(0).len();
        }
        assert_eq!(seen, counts[0] + counts[1]);
        assert!(router.take(0).is_empty());
    });
}

#[test]
fn mail_against_sleep_two() {
    mail_against_sleep("mail_against_sleep_two", None, [1, 1]);
}

#[test]
fn mail_against_sleep_three() {
    mail_against_sleep("mail_against_sleep_three", BOUND, [1, 2]);
}

/// The end of a server against a job: when the pool is finished, the job is done, its completion
/// sent, and its device let go.
#[test]
fn finish_against_work() {
    check("finish_against_work", None, || {
        let (shared, device) = (server(1), bare_device());
        shared.pool.submit(job(&device, 1));
        shared.pool.finish();
        assert_eq!(Arc::strong_count(&device), 1);
        assert_eq!(completed(&shared, 0), [1]);
    });
}

/// A job comes while the one idle thread has waited for long, or is about to.
#[test]
fn submit_against_idle_end() {
    check("submit_against_idle_end", BOUND, || {
        let shared = server(1);
        shared.pool.submit(job(&bare_device(), 1));
        shared.pool.let_time_pass();
        shared.pool.submit(job(&bare_device(), 2));
        let mut seen = 0;
        while seen < 2 {
            shared.router.wait(0);
            seen += completed(&shared, 0).len();
        }
        shared.pool.finish();
        assert!(completed(&shared, 0).is_empty());
    });
}

/// The one idle thread has waited for long, or is about to, when the server ends.
#[test]
fn finish_against_idle_end() {
    check("finish_against_idle_end", None, || {
        let shared = server(1);
        shared.pool.submit(job(&bare_device(), 1));
        shared.pool.let_time_pass();
        shared.pool.finish();
        assert_eq!(completed(&shared, 0), [1]);
    });
}

/// Two threads submit: every job is done once, though one thread may do both.
#[test]
fn submit_against_submit() {
    check("submit_against_submit", BOUND, || {
        let shared = server(1);
        let other = {
            let shared = Arc::clone(&shared);
            spawn(move || shared.pool.submit(job(&bare_device(), 1)))
        };
        shared.pool.submit(job(&bare_device(), 2));
        other.join().unwrap();
        shared.pool.finish();
        assert_eq!(completed(&shared, 0), [1, 2]);
    });
}

/// A request is abandoned while its template read is under way: it is completed once, either way.
#[test]
fn cancel_against_fetch() {
    let template = Scratch::new("template");
    fs::write(template.path(), [7; 4096]).unwrap();
    let path = template.path().to_owned();
    check("cancel_against_fetch", None, move || {
        let template = Arc::new(crate::template::Template::open(&path, &[]).unwrap());
        let config = DeviceConfig { read_only: true, ..DeviceConfig::default() };
        let device = Arc::new(Device::open(&config, Some(template)).unwrap());
        let shared = server(1);
        let mut job = job(&device, 1);
        let Job::Fetch { cancelled, .. } = &mut job else { unreachable!() };
        *cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(cancelled);
        shared.pool.submit(job);
        flag.store(true, Ordering::Relaxed);
        shared.router.wait(0);
        let mail = shared.router.take(0);
        assert!(matches!(
            mail[0].1,
            Mail::Completed(Input::Fetched { result: Ok(4096) | Err(_), .. })
        ));
        shared.pool.finish();
        assert!(shared.router.take(0).is_empty());
    });
}

/// Two threads compose one window of a layer, and a third sends it if it counts as ready: its bytes are there then.
#[test]
fn compose_against_read() {
    let layer = Scratch::new("layer");
    let about = About { virtual_bytes: 4096, parent: None, compress: None };
    let mut writer = LayerWriter::create(layer.path(), &about).unwrap();
    writer.data(0, &[7; 4096]).unwrap();
    writer.finish().unwrap();
    let path = layer.path().to_owned();
    check("compose_against_read", None, move || {
        let template = Arc::new(crate::template::Template::open(&path, &[]).unwrap());
        let is_whole = |template: &crate::template::Template| {
            let (here, mut there) = UnixStream::pair().unwrap();
            assert_eq!(template.send(here.as_fd(), 0, 4096).unwrap(), 4096);
            let mut bytes = [0; 4096];
            there.read_exact(&mut bytes).unwrap();
            bytes == [7; 4096]
        };
        let other = {
            let template = Arc::clone(&template);
            spawn(move || template.fetch(0, 4096).unwrap())
        };
        let reader = {
            let template = Arc::clone(&template);
            spawn(move || {
                // Not whether it is in the page cache as well: that would hide a bit that is set too early.
                let counts_as_there = template.composed().unwrap().is_ready(0..4096);
                assert!(!counts_as_there || is_whole(&template));
            })
        };
        template.fetch(0, 4096).unwrap();
        other.join().unwrap();
        reader.join().unwrap();
        assert!(template.composed().unwrap().is_ready(0..4096) && is_whole(&template));
    });
}

/// Workers write to a device without slots. The first to come has the pool grow the data file;
/// whoever has to wait is woken, and finds its slots there, and mapped.
fn growth_against_waiting(name: &str, bound: Option<usize>, workers: usize) {
    check(name, bound, move || {
        let config = DeviceConfig { size_bytes: Some(1 << 20), ..DeviceConfig::default() };
        let device = Arc::new(Device::open(&config, None).unwrap());
        let shared = server(workers);
        let others = (1..workers).map(|worker| {
            let (shared, device) = (Arc::clone(&shared), Arc::clone(&device));
            spawn(move || write(&shared, &device, worker))
        });
        let others: Vec<_> = others.collect();
        write(&shared, &device, 0);
        others.into_iter().for_each(|other| other.join().unwrap());
        shared.storage.finish();
        assert!((0..workers).all(|worker| completed(&shared, worker).is_empty()));
        let overlay = lock(&device.overlay);
        overlay.audit();
        assert_eq!(overlay.counts().live as usize, workers);
    });
}

#[test]
fn growth_against_waiting_one() {
    growth_against_waiting("growth_against_waiting_one", None, 1);
}

#[test]
fn growth_against_waiting_two() {
    growth_against_waiting("growth_against_waiting_two", BOUND, 2);
}

/// What a session does for a write, and its worker when the session has to wait.
fn write(shared: &Shared, device: &Arc<Device>, worker: usize) {
    let block = worker as u64;
    let extent = Extent { blocks: block..block + 1, zero: 0..0, provision: false };
    let key = SessionKey((worker as u64) << WORKER_SHIFT | 1);
    let mut runs = Vec::new();
    let grant = loop {
        let mut outcome = None;
        shared.with_overlay(device, |overlay| {
            outcome = Some(overlay.reserve(&extent, key, &mut runs));
        });
        match outcome {
            Some(Ok(Reserve::Granted(grant))) => break grant,
            Some(Ok(Reserve::Wait)) => {}
            other => unreachable!("there is room: {other:?}"),
        }
        shared.router.wait(worker);
        let mail = shared.router.take(worker);
        assert_eq!(mail.len(), 1);
        assert!(matches!(mail[0], (id, Mail::Completed(Input::Wake)) if id.0 == key.0));
    };
    let offset = runs[0].first.offset();
    // What `point` and `receive` do: the slot's window must be there by now.
    device.data().pieces(offset, 4096, &mut |_| {});
    device.data().write_bytes(&[7; 4096], offset).unwrap();
    shared.with_overlay(device, |overlay| {
        assert!(overlay.publish(&extent, &mut runs, grant, [].into_iter()).is_ok());
    });
}

/// Handles of one device are dropped by several threads: the last one cleans up.
#[test]
fn last_handle_cleans_up() {
    let scratch = Scratch::new("sheet");
    let sheet = scratch.path().to_owned();
    check("last_handle_cleans_up", None, move || {
        let config = DeviceConfig {
            size_bytes: Some(1 << 20),
            sheet: Some(sheet.clone()),
            ephemeral: true,
            ..DeviceConfig::default()
        };
        let data = sheet.join("data");
        let device = Arc::new(Device::open(&config, None).unwrap());
        let shared = server(1);
        shared.pool.submit(job(&device, 1));
        let other = {
            let device = Arc::clone(&device);
            spawn(move || drop(device))
        };
        assert!(data.exists());
        shared.pool.finish();
        other.join().unwrap();
        assert!(data.exists(), "a handle is left");
        drop(device);
        assert!(!data.exists());
    });
}

/// The last free place for a connection: two listeners want it, and a third connection ends.
#[test]
fn admit_against_leave() {
    check("admit_against_leave", None, || {
        let shared = server(1);
        shared.connections.store(CONNECTIONS_MAX - 1, Ordering::Relaxed);
        let admit = |shared: &Arc<Shared>| {
            let shared = Arc::clone(shared);
            spawn(move || shared.admit())
        };
        let (one, two) = (admit(&shared), admit(&shared));
        shared.leave();
        let admitted = usize::from(one.join().unwrap()) + usize::from(two.join().unwrap());
        assert!((1..=2).contains(&admitted));
        let connections = shared.connections.load(Ordering::Relaxed);
        assert_eq!(connections, CONNECTIONS_MAX - 2 + admitted);
    });
}

/// An export is closed while a connection is about to use it: either the connection does not find the device, or
/// it hears of the close, and the device is closed only once it has let go.
#[test]
fn close_against_enter() {
    check("close_against_enter", None, || {
        let shared = server(1);
        *lock(&shared.exports) = Exports::new(vec![bare_device()]);
        let worker = {
            let shared = Arc::clone(&shared);
            spawn(move || {
                let device = shared.device("");
                let cell = device.as_ref().map(|device| lock(&device.overlay).attach());
                shared.router.wait(0);
                let mail = shared.router.take(0);
                assert!(matches!(&mail[0].1, Mail::Close { export } if export.is_empty()));
                if let (Some(device), Some(cell)) = (device, cell) {
                    lock(&device.overlay).detach(&cell);
                }
            })
        };
        let mut device = shared.withdraw("").unwrap();
        assert!(shared.device("").is_none() && shared.catalog().exports().is_empty());
        while Arc::get_mut(&mut device).is_none() {
            sleep(Duration::ZERO);
        }
        assert_eq!(lock(&device.overlay).sessions(), 0);
        assert!(shared.close(device));
        worker.join().unwrap();
    });
}

/// A path in the directory for temporary files, that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("glassine-loom-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}
