//! The real server is killed at random moments under load, restarted, and held against what it acknowledged.
//!
//! `cargo test -p glassine-tests --test crash` kills it 20 times; with `GLASSINE_KILLS=500` as often as that.

mod faults;
mod space;

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use glassine_tests::changes::{load, lock};
use glassine_tests::client::Client;
use glassine_tests::history::{BLOCK, BLOCKS, History};
use glassine_tests::server::{Server, glassine, make_image, scratch, tool};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
    let history = Mutex::new(History::new(image(&server)));
    for kill in 0..kills {
        let mut clients = [(); 2].map(|()| Client::open(&server.socket()));
        let time = Duration::from_micros(rng.random_range(1000..150_000));
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(time);
                server.signal(libc::SIGKILL);
            });
            load(&mut clients, &history, &mut rng)
        })?;
        drop(server);
        if kill % 5 == 0 && arguments.is_empty() {
            // Looking changes nothing.
            tool(glassine().to_str().expect("UTF-8"), &["check", &sheet]);
        }
        server = serve();
        let broken = |broken| format!("after kill {kill} ({time:?}): {broken}\n{}", server.log());
        lock(&history).check(image(&server)).map_err(broken)?;
    }
    server.stop();
    Ok(history.into_inner().expect("nobody panicked"))
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
