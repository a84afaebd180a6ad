//! What a stalled client costs another: measured alone, so that nothing else disturbs the figures.

use std::time::Duration;

use glassine_tests::client::{Client, READ, WRITE};
use glassine_tests::load::{Load, Pattern, make_template};
use glassine_tests::server::{Server, scratch};

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

fn median(mut figures: Vec<u32>) -> u32 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

#[test]
fn stalled_clients_do_not_delay_another() {
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
    let spread = |figures: &[u32]| figures.iter().max().unwrap_or(&0) - figures.iter().min().unwrap_or(&0);
    let noise = spread(&without).max(spread(&with)).max(20);
    println!("p99 in microseconds without stalled clients: {without:?}, with: {with:?}");
    let (without, with) = (median(without), median(with));
    println!("medians: {without} without, {with} with; noise {noise}");
    assert!(with < without + noise, "stalled clients delay another: {without} -> {with}");
    // A server that stalls takes milliseconds at least, whatever the noise is.
    assert!(with < without + 2000, "stalled clients delay another: {without} -> {with}");
    server.stop();
}
