//! No allocation per request: a counting allocator around a whole server in this process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use glassine::config::{Config, DeviceConfig, Listen};
use glassine::server::Server;
use glassine_tests::load::{Load, Pattern, make_template};
use glassine_tests::server::scratch;

/// Counts what the threads of the server allocate; the client's thread is left out.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static CLIENT: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !CLIENT.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SPAN: u64 = 64 << 20;

fn serve(template: &Path, socket: &Path) -> Server {
    let device = DeviceConfig { template: Some(template.to_owned()), ..DeviceConfig::default() };
    let config = Config {
        verify_templates: false,
        listen: vec![Listen::Unix(socket.to_owned())],
        control: None,
        workers: Some(1),
        detect_zeroes: true,
        layer_dirs: Vec::new(),
        devices: vec![device],
    };
    Server::start(&config).expect("it starts")
}

#[test]
fn requests_allocate_nothing_once_the_server_is_warm() {
    CLIENT.set(true);
    let directory = scratch();
    let (template, socket) = (directory.path().join("t.img"), directory.path().join("x.sock"));
    make_template(&template, SPAN, 1);
    let server = serve(&template, &socket);
    let mut client = glassine_tests::client::Client::open(&socket);
    let kinds = [
        ("READ, 4 KiB of the template", Pattern::RandomRead, 4096, 32),
        ("READ, 1 MiB of the template", Pattern::SequentialRead, 1 << 20, 8),
        ("WRITE, 1 MiB", Pattern::SequentialWrite, 1 << 20, 8),
        ("WRITE, 4 KiB", Pattern::RandomWrite, 4096, 32),
        ("READ, 4 KiB of slots", Pattern::RandomRead, 4096, 32),
        ("READ, 1 MiB of slots", Pattern::SequentialRead, 1 << 20, 8),
    ];
    for (name, pattern, bytes, depth) in kinds {
        let time = Duration::from_millis(700);
        let load = Load { pattern, bytes, depth, time, span: SPAN, version: 1 };
        // Warm: buffers reach their size, the map its leaves, the data file its extents. A stalled
        // machine makes the client slow, and a slow client's buffers grow once more; what is paid per
        // request would show in every round.
        for round in 0..2 {
            let _ = load.run_on(&mut client, round);
        }
        let mut rounds = Vec::new();
        while rounds.len() < 5 && !rounds.contains(&0) {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let outcome = load.run_on(&mut client, 9);
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            let requests = outcome.microseconds.len();
            println!("{name}: {allocations} allocations in {requests} requests");
            assert!(requests > 100, "{name}: the load is a load");
            assert!(allocations < 10, "{name}: growth is rare");
            rounds.push(allocations);
        }
        assert!(rounds.contains(&0), "{name}: allocations in every round: {rounds:?}");
    }
    drop(client);
    server.drain();
    server.join();
    // The counter counts: starting the server allocated.
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0);
}
