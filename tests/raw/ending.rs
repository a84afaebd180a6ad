//! Clients that break off, stall, or never read: nobody else notices, and nothing is left behind.

use std::time::{Duration, Instant};

use glassine_tests::client::{Client, READ, TRIM, WRITE, WRITE_ZEROES, info};
use glassine_tests::pattern;
use glassine_tests::server::{Server, is_sanitized};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[test]
fn garbage_ends_its_own_connection_only() {
    let server = Server::blank("1M", &[]);
    let mut steady = Client::open(&server.socket());
    for magic in [0u32, 0x2560_9512, u32::MAX, 0x1395_6025] {
        let mut client = Client::open(&server.socket());
        client.put(&magic.to_be_bytes());
        client.put(&[0; 24]);
        client.flush();
        assert!(client.is_closed());
        assert_eq!(steady.read(0, 512), [0; 512]);
    }
    server.stop();
}

#[test]
fn half_a_payload_changes_nothing() {
    let server = Server::blank("4M", &[]);
    let mut steady = Client::open(&server.socket());
    let mut before = vec![0; 1 << 20];
    pattern::fill(&mut before, 1, 0);
    assert_eq!(steady.write(0, &before), 0);
    for sent in [0usize, 1, 4095, 4096, 100_000, (1 << 20) - 1] {
        let mut client = Client::open(&server.socket());
        client.request(0, WRITE, 1, 0, 1 << 20);
        client.put(&vec![0xee; sent]);
        client.flush();
        // While it stalls, and after it is gone, the old content shows.
        assert!(steady.read(0, 1 << 20) == before);
        drop(client);
        assert!(steady.read(0, 1 << 20) == before);
    }
    server.stop();
}

#[test]
fn half_a_header_and_silence_disturb_nobody() {
    let server = Server::blank("1M", &[]);
    let mut silent: Vec<_> = (0..20).map(|_| Client::open(&server.socket())).collect();
    for client in &mut silent {
        client.put(&[0x25, 0x60, 0x95]);
        client.flush();
    }
    let mut steady = Client::open(&server.socket());
    for _ in 0..100 {
        assert_eq!(steady.read(0, 4096), [0; 4096]);
    }
    drop(silent);
    server.stop();
}

#[test]
fn a_client_that_never_reads_is_held_up_alone() {
    let server = Server::blank("64M", &[]);
    let mut steady = Client::open(&server.socket());
    assert_eq!(steady.write(0, &vec![3; 8 << 20]), 0);
    let before = server.memory_kib();
    let mut deaf: Vec<_> = (0..4).map(|_| Client::open(&server.socket())).collect();
    for client in &mut deaf {
        // Far more than any socket holds, and zeroes behind it: nothing of that may block.
        for cookie in 0..60 {
            client.request(0, READ, cookie, 0, 4 << 20);
        }
        for cookie in 100..1100 {
            client.request(0, WRITE_ZEROES, cookie, 32 << 20, 4096);
        }
        client.flush();
    }
    // The slots under the unsent replies are overwritten many times.
    for round in 0..50u8 {
        assert_eq!(steady.write(0, &vec![round; 8 << 20]), 0);
        assert!(steady.read(0, 1 << 20).iter().all(|byte| *byte == round));
    }
    let grown = server.memory_kib().saturating_sub(before);
    // One reply of 4 MiB, and the next one begun, for each: what had to be copied for them.
    assert!(grown < 4 * 10 * 1024, "the server grew by {grown} KiB");
    // And when such a client reads at last, every reply is one point in time.
    for client in &mut deaf {
        for _ in 0..60 {
            let mut reply = client.reply();
            while reply.cookie >= 60 {
                reply = client.reply();
            }
            assert_eq!(reply.error, 0);
            let bytes = client.take(4 << 20);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn reply");
        }
    }
    drop(deaf);
    server.stop();
}

#[test]
fn no_number_of_slow_clients_uses_up_the_memory() {
    let server = Server::blank("64M", &[]);
    let mut steady = Client::open(&server.socket());
    assert_eq!(steady.write(0, &vec![3; 64 << 20]), 0);
    // Each wants 64 MiB that may change, takes nothing, and there are more than a GiB holds.
    let mut deaf: Vec<_> = (0..20).map(|_| Client::open(&server.socket())).collect();
    for client in &mut deaf {
        client.request(0, READ, 1, 0, 64 << 20);
        client.flush();
    }
    // A sanitizer has memory of its own to fill, several times the GiB of the server.
    let seconds = if is_sanitized() { 300 } else { 60 };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !server.log().contains("no memory is left") {
        assert!(Instant::now() < deadline, "nobody is given up: {} KiB", server.memory_kib());
        assert!(server.memory_kib() < 1200 << 10, "the server uses {} KiB", server.memory_kib());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(steady.read(0, 4096), [3; 4096], "the others are served");
    drop(deaf);
    let mut late = Client::open(&server.socket());
    assert!(late.read(0, 64 << 20).iter().all(|byte| *byte == 3));
    server.stop();
}

#[test]
fn a_thousand_clients_that_break_off_leave_nothing_behind() {
    const QUOTA: u64 = 64 << 20;
    let server = Server::blank("64M", &["--quota", "64M"]);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    // A server answers before all of it has started, but not a request.
    drop(Client::open(&server.socket()));
    std::thread::sleep(Duration::from_millis(300));
    let descriptors = server.descriptors();
    // Once through, so that what is allocated once is there.
    for _ in 0..100 {
        break_off(&server, &mut rng);
    }
    settle(&server, descriptors);
    let memory = server.memory_kib();
    for _ in 0..1000 {
        break_off(&server, &mut rng);
    }
    settle(&server, descriptors);
    let grown = server.memory_kib().saturating_sub(memory);
    assert!(grown < 4096, "the server grew by {grown} KiB");
    // No slot and no part of the quota is lost: the whole of it can be written, twice.
    let mut client = Client::open(&server.socket());
    for version in [1, 2] {
        let mut bytes = vec![0; 1 << 20];
        for offset in (0..QUOTA).step_by(1 << 20) {
            pattern::fill(&mut bytes, version, offset);
            assert_eq!(client.write(offset, &bytes), 0, "at {offset}");
        }
    }
    let mut expected = vec![0; 1 << 20];
    for offset in (0..QUOTA).step_by(1 << 20) {
        pattern::fill(&mut expected, 2, offset);
        assert!(client.read(offset, 1 << 20) == expected, "at {offset}");
    }
    server.stop();
}

/// A client that ends somewhere between the greeting and its replies.
fn break_off(server: &Server, rng: &mut ChaCha8Rng) {
    let mut client = Client::connect(&server.socket());
    if rng.random_bool(0.1) {
        let noise: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
        client.put(&noise);
        let _ = client.try_flush();
        return;
    }
    client.greet(3);
    if rng.random_bool(0.1) {
        client.put(&b"IHAVEOPT\0\0\0\x07\0\0\0\x08"[..rng.random_range(0..16)]);
        client.flush();
        return;
    }
    if rng.random_bool(0.1) {
        let _ = client.ask_option(6, &info(b"nobody", &[]));
        return;
    }
    client.go("");
    for cookie in 0..rng.random_range(0..30) {
        let offset = rng.random_range(0..48u64 << 20);
        let length = rng.random_range(0..300_000);
        match rng.random_range(0..4) {
            0 => client.request(0, READ, cookie, offset, length),
            1 => client.request(0, TRIM, cookie, offset, length),
            _ => client.write_with(cookie, offset, length, |bytes| bytes.fill(1)),
        }
    }
    // The last one is a payload that is cut.
    let length = rng.random_range(1..2_000_000u32);
    client.request(0, WRITE, 99, 0, length);
    client.put(&vec![5; rng.random_range(0..length as usize)]);
    let _ = client.try_flush();
}

/// Waits until the server has noticed that its clients are gone.
fn settle(server: &Server, descriptors: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.descriptors() > descriptors {
        let (now, log) = (server.descriptors(), server.log());
        assert!(Instant::now() < deadline, "{now} descriptors, not {descriptors}: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
