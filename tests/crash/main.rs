//! The real server is killed at random moments under load, restarted, and held against what it acknowledged.
//!
//! `cargo test -p glassine-tests --test crash` kills it 20 times; with `GLASSINE_KILLS=500` as often as that.

mod history;

use std::io;
use std::thread;
use std::time::Duration;

use glassine_tests::client::{Client, FLUSH, TRIM, WRITE, WRITE_ZEROES};
use glassine_tests::pattern;
use glassine_tests::server::{Server, glassine, make_image, scratch, tool};
use history::{BLOCK, BLOCKS, Content, History};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
/// The most requests that one connection has in flight.
const DEPTH: u64 = 16;

/// A request, by what its reply means.
#[derive(Debug)]
enum Asked {
    Change(usize),
    /// A FLUSH, and when it was sent.
    Flush(u64),
}

/// Queues a batch of requests that touch no block twice; answers them with their cookies.
fn ask(client: &mut Client, history: &mut History, rng: &mut ChaCha8Rng) -> Vec<(u64, Asked)> {
    let mut busy = vec![false; BLOCKS];
    let mut asked = Vec::new();
    for cookie in 0..rng.random_range(1..=DEPTH) {
        if rng.random_range(0..100) < 4 {
            client.request(0, FLUSH, cookie, 0, 0);
            asked.push((cookie, Asked::Flush(history.now())));
            continue;
        }
        // Some blocks are hot: they are written again and again between two flushes.
        let span = if rng.random_range(0..100) < 70 { 64 } else { BLOCKS };
        let count = [1, 1, 1, 2, 8, 40][rng.random_range(0..6usize)];
        let first = rng.random_range(0..=span - count);
        let blocks = first..first + count;
        if busy[blocks.clone()].contains(&true) {
            continue;
        }
        busy[blocks.clone()].fill(true);
        let (offset, length) = ((first * BLOCK) as u64, (count * BLOCK) as u32);
        let flags = if rng.random_range(0..100) < 8 { FUA } else { 0 };
        let (command, more_flags, content) = match rng.random_range(0..100) {
            0..6 => (TRIM, 0, Content::Zero),
            6..9 => (WRITE_ZEROES, 0, Content::Zero),
            9..12 => (WRITE_ZEROES, NO_HOLE, Content::Zero),
            _ => (WRITE, 0, Content::Payload(history.version())),
        };
        client.request(flags | more_flags, command, cookie, offset, length);
        if let Content::Payload(version) = content {
            let mut payload = vec![0; length as usize];
            pattern::fill(&mut payload, version, offset);
            client.put(&payload);
        }
        asked.push((cookie, Asked::Change(history.sent(blocks, content, flags == FUA))));
    }
    asked
}

/// Takes the replies to a batch, as far as they come.
fn take_replies(
    client: &mut Client,
    mut asked: Vec<(u64, Asked)>,
    history: &mut History,
) -> io::Result<()> {
    while !asked.is_empty() {
        let header = client.try_take(16)?;
        assert_eq!(header[4..8], [0; 4], "a request failed");
        let cookie = u64::from_be_bytes(header[8..].try_into().expect("eight bytes"));
        let at = asked.iter().position(|(other, _)| *other == cookie).expect("it was asked");
        match asked.swap_remove(at).1 {
            Asked::Change(change) => history.answered(change),
            Asked::Flush(sent) => history.flushed(sent),
        }
    }
    Ok(())
}

/// Two connections in turn, until the server is gone.
fn load(clients: &mut [Client; 2], history: &mut History, rng: &mut ChaCha8Rng) {
    loop {
        for client in &mut *clients {
            let asked = ask(client, history, rng);
            if client.try_flush().is_err() || take_replies(client, asked, history).is_err() {
                return;
            }
        }
    }
}

/// Kills and restarts a server again and again; fails where it shows what it must not.
fn kill(kills: u64, arguments: &[&str]) -> Result<History, String> {
    let directory = scratch();
    let template = directory.path().join("t.img");
    let sheet = directory.path().join("sheet").to_str().expect("UTF-8").to_owned();
    make_image(&template, (BLOCKS * BLOCK) as u64 / 2, 7);
    let size = (BLOCKS * BLOCK).to_string();
    let mut all = vec!["--template", template.to_str().expect("UTF-8"), "--sheet", &sheet];
    all.extend(arguments);
    let serve = || Server::blank(&size, &all);
    let image = |server: &Server| Client::open(&server.socket()).read(0, (BLOCKS * BLOCK) as u32);

    let mut rng = ChaCha8Rng::seed_from_u64(kills);
    let mut server = serve();
    let mut history = History::new(image(&server));
    for kill in 0..kills {
        let mut clients = [(); 2].map(|()| Client::open(&server.socket()));
        let time = Duration::from_micros(rng.random_range(1000..150_000));
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(time);
                server.signal(libc::SIGKILL);
            });
            load(&mut clients, &mut history, &mut rng);
        });
        drop(server);
        if kill % 5 == 0 && arguments.is_empty() {
            // Looking changes nothing.
            tool(glassine().to_str().expect("UTF-8"), &["check", &sheet]);
        }
        server = serve();
        let broken = |broken| format!("after kill {kill} ({time:?}): {broken}\n{}", server.log());
        history.check(image(&server)).map_err(broken)?;
    }
    server.stop();
    Ok(history)
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let kills =
        std::env::var("GLASSINE_KILLS").map_or(20, |count| count.parse().expect("a number"));
    let history = kill(kills, &[]).unwrap_or_else(|broken| panic!("{broken}"));
    println!(
        "{kills} kills: {} changes had to survive and did, {} more were spared",
        history.promised, history.spared
    );
    assert!(history.promised > 50 * kills, "there was something to lose");
}

#[test]
fn what_an_ephemeral_sheet_loses_would_be_noticed() {
    let broken = kill(3, &["--ephemeral"]).expect_err("everything is lost");
    assert!(broken.contains("acknowledged as durable, and is lost"), "{broken}");
}
