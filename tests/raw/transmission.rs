//! Requests and replies. Ids in comments name the clause of the protocol.

use std::time::Duration;

use glassine_tests::client::{CACHE, Client, DISC, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
use glassine_tests::pattern;
use glassine_tests::server::{Server, make_image, scratch};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const FAST_ZERO: u16 = 16;

fn payload(version: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    pattern::fill(&mut bytes, version, offset);
    bytes
}

#[test]
fn every_command_accepts_fua_and_no_flag_it_does_not_know() {
    let server = Server::blank("1M", &[]);
    let mut client = Client::open(&server.socket());
    // R4
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES] {
        let length = if command == FLUSH { 0 } else { 4096 };
        for flags in [0, FUA] {
            assert_eq!(client.ask(flags, command, 0, length), 0, "command {command}");
            if command == READ {
                client.take(4096);
            }
        }
        for flags in [DF, 8, 32, 0x8000, FUA | DF] {
            assert_eq!(client.ask(flags, command, 0, length), EINVAL, "command {command}");
        }
        let zeroes = command == WRITE_ZEROES;
        for flags in [NO_HOLE, FAST_ZERO] {
            let expected = if zeroes { 0 } else { EINVAL };
            assert_eq!(client.ask(flags, command, 0, length), expected, "command {command}");
        }
    }
    for command in [7, 8, 9, 100, u16::MAX] {
        assert_eq!(client.ask(0, command, 0, 4096), EINVAL, "command {command}");
    }
    assert_eq!(client.read(0, 512), [0; 512]);
    server.stop();
}

#[test]
fn ranges_beyond_the_end_are_refused_and_nothing_is_written() {
    let server = Server::blank("1000000", &[]);
    let mut client = Client::open(&server.socket());
    assert_eq!(client.write(999_000, &payload(1, 999_000, 1000)), 0);
    let too_far = [(999_999, 2), (1_000_000, 1), (u64::MAX, 1), (u64::MAX - 3, 8), (1 << 63, 4096)];
    for (offset, length) in too_far {
        // R7; the sum wraps in two of them.
        for command in [READ, TRIM, CACHE] {
            assert_eq!(client.ask(0, command, offset, length), EINVAL, "{offset} + {length}");
        }
        assert_eq!(client.ask(0, WRITE_ZEROES, offset, length), ENOSPC, "{offset} + {length}");
        // R5: the payload of the refused WRITE is consumed.
        assert_eq!(client.write(offset, &vec![7; length as usize]), ENOSPC);
    }
    // FLUSH covers no range: whatever stands there has no meaning.
    assert_eq!(client.ask(0, FLUSH, u64::MAX, u32::MAX), 0);
    assert_eq!(client.read(999_000, 1000), payload(1, 999_000, 1000));
    server.stop();
}

#[test]
fn requests_of_no_length_do_nothing_and_succeed() {
    let server = Server::blank("1M", &[]);
    let mut client = Client::open(&server.socket());
    // R6
    for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
        for offset in [0, 5, 1 << 20] {
            assert_eq!(client.ask(0, command, offset, 0), 0, "command {command}");
        }
    }
    assert_eq!(client.read(0, 512), [0; 512]);
    server.stop();
}

#[test]
fn a_read_only_export_refuses_changes_and_stays_in_step() {
    let directory = scratch();
    let image = directory.path().join("t.img");
    make_image(&image, 1 << 20, 9);
    let server = Server::over(&image, &["--read-only"]);
    let mut client = Client::open(&server.socket());
    // F1, F13: no TRIM (5), no WRITE_ZEROES (6), no FAST_ZERO (11).
    assert_eq!(client.flags & (1 << 1 | 1 << 5 | 1 << 6 | 1 << 11), 1 << 1);
    let before = client.read(0, 1 << 20);
    for _ in 0..3 {
        // R8
        assert_eq!(client.write(0, &[1; 70_000]), EPERM);
        assert_eq!(client.ask(0, TRIM, 0, 4096), EPERM);
        assert_eq!(client.ask(0, WRITE_ZEROES, 0, 4096), EPERM);
    }
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    assert!(client.read(0, 1 << 20) == before);
    server.stop();
}

#[test]
fn sixty_four_mebibytes_are_served_and_more_is_refused_without_memory() {
    let server = Server::blank("256M", &[]);
    let mut client = Client::open(&server.socket());
    let bytes = payload(5, 1000, 64 << 20);
    assert_eq!(client.write(1000, &bytes), 0);
    assert!(client.read(1000, 64 << 20) == bytes);
    let before = server.memory_kib();
    // Z1
    for length in [(64 << 20) + 1, u32::MAX] {
        assert_eq!(client.ask(0, READ, 0, length), EINVAL);
    }
    // A little too long: refused, its payload consumed, and the next request is in step.
    assert_eq!(client.write(0, &vec![1; (64 << 20) + 1]), EINVAL);
    assert_eq!(client.read(1000, 4096), bytes[..4096]);
    // Four gigabytes: nothing is set aside for them.
    client.request(0, WRITE, 1, 0, u32::MAX);
    client.put(&[0; 1 << 20]);
    client.flush();
    let mut other = Client::open(&server.socket());
    assert_eq!(other.read(1000, 4096), bytes[..4096]);
    let grown = server.memory_kib().saturating_sub(before);
    assert!(grown < 8192, "the server grew by {grown} KiB");
    drop(client);
    server.stop();
}

#[test]
fn trim_rounds_inward_and_zeroes_do_not() {
    let directory = scratch();
    let image = directory.path().join("t.img");
    make_image(&image, 1 << 20, 4);
    let server = Server::over(&image, &[]);
    let mut client = Client::open(&server.socket());
    let mut model = client.read(0, 1 << 20);
    assert_eq!(client.ask(0, TRIM, 100, 12_000), 0);
    model[4096..8192].fill(0);
    assert!(client.read(0, 1 << 20) == model, "whole blocks are zero, edges as they were");
    assert_eq!(client.ask(0, WRITE_ZEROES, 20_001, 9_999), 0);
    model[20_001..30_000].fill(0);
    assert_eq!(client.ask(NO_HOLE, WRITE_ZEROES, 40_001, 9_999), 0);
    model[40_001..50_000].fill(0);
    assert!(client.read(0, 1 << 20) == model);
    // z2: a merge is no faster than a write; whole blocks are, and so is what is zero already.
    assert_eq!(client.ask(FAST_ZERO, WRITE_ZEROES, 60_001, 9_999), ENOTSUP);
    assert!(client.read(0, 1 << 20) == model, "a refused fast zero leaves everything as it was");
    assert_eq!(client.ask(FAST_ZERO, WRITE_ZEROES, 61_440, 8192), 0);
    model[61_440..69_632].fill(0);
    assert_eq!(client.ask(FAST_ZERO, WRITE_ZEROES, 61_441, 8190), 0);
    // A partial write into what was trimmed brings nothing back.
    assert_eq!(client.write(5000, &[9; 10]), 0);
    model[5000..5010].fill(9);
    assert!(client.read(0, 1 << 20) == model);
    server.stop();
}

#[test]
fn cookies_are_opaque_and_may_be_used_twice_at_a_time() {
    let server = Server::blank("1M", &[]);
    let mut client = Client::open(&server.socket());
    // R2
    for cookie in [0, 7, 7, 7, u64::MAX, 0] {
        client.request(0, READ, cookie, 0, 16);
    }
    client.flush();
    let mut seen = Vec::new();
    for _ in 0..6 {
        let reply = client.reply();
        assert_eq!(reply.error, 0);
        client.take(16);
        seen.push(reply.cookie);
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 7, 7, 7, u64::MAX]);
    server.stop();
}

#[test]
fn headers_and_payloads_may_be_split_anywhere_and_sent_together() {
    let server = Server::blank("4M", &[]);
    let mut client = Client::open(&server.socket());
    let bytes = payload(1, 77, 5000);
    let mut all = Client::connect(&server.socket());
    all.greet(3);
    all.go("");
    client.request(0, WRITE, 1, 77, 5000);
    client.put(&bytes);
    client.request(0, READ, 2, 77, 5000);
    // One request, in pieces of 1 to 300 bytes.
    let mut stream = Vec::new();
    stream.extend(0x2560_9513u32.to_be_bytes());
    stream.extend([0, 0, 0, 1]);
    stream.extend(9u64.to_be_bytes());
    stream.extend(100_000u64.to_be_bytes());
    stream.extend(5000u32.to_be_bytes());
    stream.extend(&bytes);
    for (index, piece) in stream[..28].chunks(1).chain(stream[28..].chunks(300)).enumerate() {
        all.put(piece);
        all.flush();
        if index % 8 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(all.reply().error, 0);
    assert!(all.read(100_000, 5000) == bytes);
    // Three hundred at once.
    for index in 0..300u64 {
        client.write_with(index + 10, index * 4096, 4096, |bytes| {
            pattern::fill(bytes, index, index * 4096);
        });
    }
    client.flush();
    for _ in 0..302 {
        let reply = client.reply();
        assert_eq!(reply.error, 0);
        if reply.cookie == 2 {
            client.take(5000);
        }
    }
    for index in 0..300 {
        assert_eq!(client.read(index * 4096, 4096), payload(index, index * 4096, 4096));
    }
    server.stop();
}

#[test]
fn disconnect_waits_for_everything_asked_before() {
    let server = Server::blank("64M", &[]);
    let mut client = Client::open(&server.socket());
    for index in 0..100 {
        client.request(0, READ, index, 0, 65_536);
    }
    client.request(0, DISC, 0, 0, 0);
    client.flush();
    for _ in 0..100 {
        assert_eq!(client.reply().error, 0);
        client.take(65_536);
    }
    assert!(client.is_closed());
    server.stop();
}

#[test]
fn the_quota_is_exact_and_trim_gives_back() {
    let server = Server::blank("16M", &["--quota", "1M"]);
    let mut client = Client::open(&server.socket());
    for block in 0..256u64 {
        assert_eq!(client.write(block * 4096, &payload(1, block * 4096, 4096)), 0);
    }
    assert_eq!(client.write(256 * 4096, &[1; 4096]), ENOSPC);
    assert_eq!(client.ask(NO_HOLE, WRITE_ZEROES, 256 * 4096, 4096), ENOSPC);
    // What needs no more space is served: overwrites, zeroes, trims, reads.
    for round in 2..20 {
        assert_eq!(client.write(0, &payload(round, 0, 1 << 20)), 0, "overwriting, round {round}");
    }
    assert_eq!(client.ask(0, WRITE_ZEROES, 1 << 20, 1 << 20), 0);
    assert_eq!(client.ask(0, TRIM, 0, 4096), 0);
    assert_eq!(client.write(256 * 4096, &[1; 4096]), 0, "space was given back");
    assert_eq!(client.write(0, &[1; 1]), ENOSPC);
    // Provisioned zeroes count, and a later write to them finds room.
    assert_eq!(client.ask(0, TRIM, 4096, 8192), 0);
    assert_eq!(client.ask(NO_HOLE, WRITE_ZEROES, 8 << 20, 8192), 0);
    assert_eq!(client.write(0, &[1; 1]), ENOSPC);
    assert_eq!(client.write(8 << 20, &payload(3, 8 << 20, 8192)), 0);
    assert_eq!(client.read(8 << 20, 8192), payload(3, 8 << 20, 8192));
    server.stop();
}

#[test]
fn a_write_of_zeroes_gives_space_back_unless_told_not_to() {
    for (arguments, after) in
        [(&["--quota", "1M"][..], 0), (&["--quota", "1M", "--detect-zeroes", "off"], ENOSPC)]
    {
        let server = Server::blank("16M", arguments);
        let mut client = Client::open(&server.socket());
        assert_eq!(client.write(0, &payload(1, 0, 1 << 20)), 0);
        // The ragged ends are zero as well, but their blocks keep their other bytes.
        assert_eq!(client.write(1000, &[0; 9000]), 0);
        let mut expected = payload(1, 0, 16 << 10);
        expected[1000..10_000].fill(0);
        assert_eq!(client.read(0, 16 << 10), expected);
        assert_eq!(client.write(1 << 20, &payload(2, 1 << 20, 4096)), after, "{arguments:?}");
        assert_eq!(client.write((1 << 20) + 4096, &[1; 4096]), ENOSPC);
        server.stop();
    }
}

#[test]
fn two_writers_of_one_block_both_win() {
    let server = Server::blank("1M", &[]);
    let rounds = 2000u64;
    let write = |half: u64| {
        let mut client = Client::open(&server.socket());
        for round in 0..rounds {
            let offset = (round % 16) * 4096 + half * 2048;
            assert_eq!(client.write(offset, &payload(round, offset, 2048)), 0);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write(0));
        scope.spawn(|| write(1));
    });
    let mut client = Client::open(&server.socket());
    for block in 0..16 {
        let last = rounds - 16 + block;
        let expected = payload(last, block * 4096, 4096);
        assert!(client.read(block * 4096, 4096) == expected, "block {block}");
    }
    server.stop();
}

#[test]
fn a_reply_is_one_point_in_time_while_others_overwrite() {
    const LENGTH: usize = 256 << 10;
    let server = Server::blank("1M", &[]);
    let done = std::sync::atomic::AtomicBool::new(false);
    let torn = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::open(&server.socket());
            for version in 1..1500u64 {
                client.write_with(1, 0, LENGTH as u32, |bytes| bytes.fill(version as u8));
                client.flush();
                assert_eq!(client.reply().error, 0);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let read = || {
            let mut client = Client::open(&server.socket());
            let (mut torn, mut last, mut changes) = (0, 0, 0);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let bytes = client.read(0, LENGTH as u32);
                torn += usize::from(bytes.iter().any(|byte| *byte != bytes[0]));
                changes += usize::from(bytes[0] != last);
                last = bytes[0];
            }
            assert!(changes > 10, "the reader saw the writer at work: {changes}");
            torn
        };
        let readers = [scope.spawn(read), scope.spawn(read)];
        readers.into_iter().map(|reader| reader.join().expect("no panic")).sum::<usize>()
    });
    assert_eq!(torn, 0);
    server.stop();
}
