//! What a stalled client costs another: measured alone, so that nothing else disturbs the figures.
//! And a slow template without figures, for `tests/sanitize`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use glassine_tests::client::{Client, READ, TRIM, WRITE};
use glassine_tests::load::{Load, Pattern, make_template};
use glassine_tests::server::{Server, glassine, scratch, tool};

const ROUNDS: usize = 9;
const SPAN: u64 = 64 << 20;

/// Clients that stop reading with much to read, and that stop in the middle of a payload.
fn stall(server: &Server) -> Vec<Client> {
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut client = Client::open(&server.socket());
        for cookie in 0..60 {
            client.request(0, READ, cookie, 0, 4 << 20);
        }
        client.flush();
        stalled.push(client);
        let mut client = Client::open(&server.socket());
        client.request(0, WRITE, 1, SPAN, 4 << 20);
        client.put(&[1; 100_000]);
        client.flush();
        stalled.push(client);
    }
    std::thread::sleep(Duration::from_millis(100));
    stalled
}

/// The tests here measure: they must not run side by side.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn median(mut figures: Vec<u32>) -> u32 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

#[test]
fn stalled_clients_do_not_delay_another() {
    let _alone = alone();
    let directory = scratch();
    let template = directory.path().join("t.img");
    make_template(&template, 2 * SPAN, 1);
    let server = Server::over(&template, &[]);
    let load = Load {
        pattern: Pattern::RandomRead,
        bytes: 4096,
        depth: 1,
        time: Duration::from_millis(700),
        span: SPAN,
        version: 1,
    };
    let warm = Load { pattern: Pattern::SequentialRead, bytes: 1 << 20, ..load };
    let _ = warm.run(&server.socket(), 0);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        without.push(load.run(&server.socket(), round as u64).percentile(99.0));
        let stalled = stall(&server);
        with.push(load.run(&server.socket(), round as u64).percentile(99.0));
        drop(stalled);
        std::thread::sleep(Duration::from_millis(100));
    }
    // Noise is what differs between rounds of the same thing.
    let spread =
        |figures: &[u32]| figures.iter().max().unwrap_or(&0) - figures.iter().min().unwrap_or(&0);
    let noise = spread(&without).max(spread(&with)).max(20);
    println!("p99 in microseconds without stalled clients: {without:?}, with: {with:?}");
    let (without, with) = (median(without), median(with));
    println!("medians: {without} without, {with} with; noise {noise}");
    assert!(with < without + noise, "stalled clients delay another: {without} -> {with}");
    // A server that stalls takes milliseconds at least, whatever the noise is.
    assert!(with < without + 2000, "stalled clients delay another: {without} -> {with}");
    server.stop();
}

/// A file whose every read takes 300 ms: nbdkit's delay behind a FUSE mount.
struct SlowFile {
    mount: Child,
    path: PathBuf,
}

impl SlowFile {
    fn new(directory: &Path) -> Self {
        let path = directory.join("slow.img");
        fs::write(&path, b"").expect("scratch is writable");
        let nbdkit = [
            "nbdkit",
            "--exit-with-parent",
            "-f",
            "--filter=delay",
            "pattern",
            "64M",
            "rdelay=300ms",
        ];
        let mut command = Command::new("nbdfuse");
        command.arg(&path).arg("[").args(nbdkit).arg("]").stdin(Stdio::null());
        let mount = command.spawn().expect("nbdfuse is installed by tests/setup");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
            assert!(Instant::now() < deadline, "nbdfuse does not mount {}", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { mount, path }
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status();
        let _ = self.mount.kill();
        let _ = self.mount.wait();
    }
}

#[test]
fn a_cold_template_delays_only_who_reads_it() {
    let _alone = alone();
    let directory = scratch();
    let slow = SlowFile::new(directory.path());
    let home = scratch();
    let config = home.path().join("glassine.toml");
    let text = format!(
        "listen = ['unix:{}']\nworkers = 1\n[[device]]\nexport = 'slow'\ntemplate = '{}'\n\
         [[device]]\nexport = 'quick'\nsize = '64M'\n",
        home.path().join("x.sock").display(),
        slow.path.display()
    );
    fs::write(&config, text).expect("scratch is writable");
    let mut command = Command::new(glassine());
    command.arg("serve").arg("--config").arg(&config);
    let server = Server::spawn(command, home);
    let open = |name: &str| {
        let mut client = Client::connect(&server.socket());
        client.greet(3);
        client.go(name);
        client
    };
    // One worker serves them all: what blocks it, blocks everybody.
    let (mut cold, mut partial, mut quick) = (open("slow"), open("slow"), open("quick"));
    let worst = |quick: &mut Client, time: Duration| {
        let (began, mut worst, mut count) = (Instant::now(), Duration::ZERO, 0u32);
        while began.elapsed() < time {
            let sent = Instant::now();
            quick.read(0, 4096);
            worst = worst.max(sent.elapsed());
            count += 1;
        }
        assert!(count > 100, "the quick device was read {count} times");
        worst
    };
    let without = worst(&mut quick, Duration::from_millis(500));
    let began = Instant::now();
    for cookie in 0..3 {
        // Far apart, so that readahead does not help.
        cold.request(0, READ, cookie, cookie * (20 << 20) + (1 << 20), 4096);
    }
    cold.flush();
    // A write of half a block has to read the other half.
    partial.write_with(1, 50 << 20, 100, |bytes| bytes.fill(7));
    partial.flush();
    let with = worst(&mut quick, Duration::from_millis(250));
    for _ in 0..3 {
        let reply = cold.reply();
        assert_eq!(reply.error, 0);
        let bytes = cold.take(4096).to_vec();
        // nbdkit's pattern: every eight bytes are their own offset.
        let offset = reply.cookie * (20 << 20) + (1 << 20);
        assert_eq!(bytes[..8], offset.to_be_bytes());
    }
    assert!(began.elapsed() >= Duration::from_millis(300), "the template was cold");
    assert_eq!(partial.reply().error, 0);
    assert_eq!(partial.read(50 << 20, 100), [7; 100]);
    assert_eq!(partial.read((50 << 20) + 104, 8), ((50u64 << 20) + 104).to_be_bytes());
    println!("slowest reply without a cold template {without:?}, with one {with:?}");
    assert!(with < Duration::from_millis(150), "a cold template stalls others: {with:?}");
    server.stop();
    tool("umount", &[&slow.path]);
}

#[test]
fn a_cold_template_is_read_by_many_and_left_by_some() {
    let _alone = alone();
    let directory = scratch();
    let slow = SlowFile::new(directory.path());
    let server = Server::blank("64M", &["--template", slow.path.to_str().expect("UTF-8")]);
    // Everybody's requests are megabytes apart, so that readahead does not help.
    let place = |client: u64, cookie: u64| (client * 4 + cookie) << 20;
    let ask = |client: u64| {
        let mut connection = Client::open(&server.socket());
        for cookie in 0..2 {
            connection.request(0, READ, cookie, place(client, cookie), 4096);
        }
        // Half a block: the other half is merged from the template.
        connection.write_with(2, place(client, 2), 100, |bytes| bytes.fill(7));
        connection.request(0, TRIM, 3, place(client, 3), 4096);
        connection.flush();
        connection
    };
    let check = |client: u64, connection: &mut Client, replies: u32| {
        for _ in 0..replies {
            let reply = connection.reply();
            assert_eq!(reply.error, 0);
            if reply.cookie < 2 {
                let bytes = connection.take(4096).to_vec();
                // nbdkit's pattern: every eight bytes are their own offset.
                assert_eq!(bytes[..8], place(client, reply.cookie).to_be_bytes());
            }
        }
    };
    let leaving: Vec<_> = (0..4).map(ask).collect();
    let mut staying: Vec<_> = (4..8).map(ask).collect();
    // While the pool reads for them.
    drop(leaving);
    for (client, connection) in (4..8).zip(&mut staying) {
        check(client, connection, 4);
        let (written, trimmed) = (place(client, 2), place(client, 3));
        assert_eq!(connection.read(written, 100), [7; 100]);
        assert_eq!(connection.read(written + 104, 8), (written + 104).to_be_bytes());
        assert_eq!(connection.read(trimmed, 4096), [0; 4096]);
    }
    // The server is told to end while the pool reads. It has all four requests when it has answered
    // the quickest, the TRIM.
    let mut last = ask(9);
    check(9, &mut last, 1);
    server.signal(libc::SIGTERM);
    check(9, &mut last, 3);
    assert!(last.is_closed());
    server.stop_after_signal();
    tool("umount", &[&slow.path]);
}
