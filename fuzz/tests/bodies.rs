//! The fuzz bodies on the stable toolchain: every seed, every file of the corpus, and a bounded search
//! by bolero in every test run.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glassine_core::judge::{self, Bug};
use glassine_fuzz::{TARGETS, handshake, journal, layer, overlay, requests, seeds, session, world};
use sim::choice::{Lane, Tape};

fn directory(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target)
}

/// Every file of a directory, by name.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("a readable directory");
            let bytes = fs::read(entry.path()).expect("a readable file");
            (entry.file_name().into_string().expect("a plain name"), bytes)
        })
        .collect();
    files.sort();
    files
}

/// To write them anew: `GLASSINE_WRITE_SEEDS=1 cargo test -p glassine-fuzz seeds`.
#[test]
fn the_seeds_are_as_they_are_made() {
    for (target, _) in TARGETS {
        let directory = directory("seeds", target);
        if std::env::var_os("GLASSINE_WRITE_SEEDS").is_some() {
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).expect("a place for seeds");
            for (name, bytes) in seeds::of(target) {
                fs::write(directory.join(name), bytes).expect("a place for seeds");
            }
        }
        assert!(files(&directory) == seeds::of(target), "the seeds of {target} differ");
    }
}

#[test]
fn every_seed_and_every_file_of_the_corpus_holds() {
    for (target, body) in TARGETS {
        for kind in ["seeds", "corpus"] {
            for (name, bytes) in files(&directory(kind, target)) {
                println!("{kind}/{target}/{name}");
                body(&bytes);
            }
        }
    }
}

macro_rules! search {
    ($name:ident, $body:expr, $seconds:expr) => {
        #[test]
        fn $name() {
            let time = Duration::from_secs($seconds);
            bolero::check!().with_test_time(time).for_each($body);
        }
    };
}

search!(nothing_a_client_sends_in_the_handshake_breaks_a_session, handshake::handshake, 4);
search!(nothing_a_client_sends_as_requests_breaks_a_session, requests::requests, 4);
search!(no_sequence_of_operations_breaks_a_session, session::session, 6);
search!(no_sequence_of_operations_breaks_an_overlay, overlay::overlay, 6);
search!(no_damage_breaks_a_recovery, journal::journal, 6);
search!(no_damage_makes_a_layer_lie, layer::layer, 4);
search!(no_tape_breaks_a_world, world, 6);

/// Random bytes seldom begin with a magic: this one builds options with arbitrary fields.
#[test]
fn no_fields_of_options_break_a_handshake() {
    let time = Duration::from_secs(4);
    let check = bolero::check!().with_type::<([u8; 2], u8, Vec<(u8, u8, Vec<u8>)>)>();
    check.with_test_time(time).for_each(|(how, flags, options)| {
        let mut bytes = how.to_vec();
        bytes.extend(u32::from(flags % 5).to_be_bytes());
        for (option, lie, data) in options {
            // Most lengths are right.
            let length = data.len() as u32 + u32::from(lie.saturating_sub(250)) * 3000;
            bytes.extend(b"IHAVEOPT");
            bytes.extend(u32::from(option % 12).to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes.extend(data);
        }
        handshake::handshake(&bytes);
    });
}

/// The same with requests.
#[test]
fn no_fields_of_requests_break_a_session() {
    type Fields = (u16, u8, u64, u32, u8);
    let time = Duration::from_secs(6);
    let check = bolero::check!().with_type::<([u8; 11], Vec<Fields>)>();
    check.with_test_time(time).for_each(|(how, fields)| {
        let mut bytes = how.to_vec();
        for (flags, command, offset, length, near) in fields {
            // Most offsets and lengths near the device, so that something happens.
            let (offset, length) = match near % 4 {
                0 => (*offset, *length),
                1 => (offset % 22_000, *length),
                _ => (offset % 22_000, length % 10_000),
            };
            let payload = if command % 9 == 1 { length as usize % 30_000 } else { 0 };
            let payload = vec![*near; payload];
            let command = u16::from(command % 9);
            bytes.extend(seeds::request(flags & 0x13, command, offset, length, &payload));
        }
        requests::requests(&bytes);
    });
}

/// A FLUSH whose offset and length wrap: libFuzzer found the sum being made all the same.
#[test]
fn a_flush_with_a_wrapping_range_is_answered() {
    let mut bytes = vec![0; 11];
    bytes.extend(seeds::request(0, 3, u64::MAX, u32::MAX, &[]));
    requests::requests(&bytes);
}

/// An option longer than any is skipped, and the next one understood: too long for a seed.
#[test]
fn an_option_that_is_too_long_is_refused_and_skipped() {
    for cuts in [0, 100, 200] {
        let mut bytes = vec![0, cuts, 0, 0, 0, 3];
        for option in [3, 6, 7, 9, 77] {
            bytes.extend(seeds::option(option, &[1; 8193]));
        }
        bytes.extend(seeds::option(3, &[]));
        handshake::handshake(&bytes);
    }
}

/// A client whose replies wait is given up before anybody looks at what it says next.
#[test]
fn a_deaf_client_is_given_up_whatever_it_says_next() {
    let mut bytes = vec![6, 0, 0, 0, 0, 3];
    for _ in 0..40 {
        bytes.extend(seeds::option(3, &[]));
    }
    for next in [&b""[..], b"no option at all", b"IHAVE"] {
        handshake::handshake(&[&bytes, next].concat());
    }
}

/// While a read is pinned, more parts of the map are cut off than one reclaim looks at: several look at
/// all of them. It was the body that had to learn this.
#[test]
fn many_dropped_parts_of_a_map_are_freed_in_several_steps() {
    // A device of one block; a neighbour writes to it, and the data file grows.
    let mut bytes = vec![2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([9, 7, 8, 0, 9, 7]);
    // A read is resolved, and waits to be sent.
    bytes.extend([0, 0, 0, 0, 0, 1, 0, 1, 0, 2]);
    for _ in 0..10 {
        bytes.extend([9, 7, 9, 0]);
    }
    session::session(&bytes);
}

/// Space for zeroes was set aside that a trim had freed and others had taken since it was found.
#[test]
fn no_more_space_is_set_aside_than_there_is() {
    let text = "00000801000800000000000004ffffff040607ffffffffffffff0008a300000004caff004000000000ff0404\
        06005d010008006000004400000431ff00c7ff000000ff04040600000004caff004000000000ff0404060008\
        0044ffffff00990000000000900001280a0000ffffffffff00990000005d0100080000000104080000002001\
        000800000000000004feffff04040607fffffffff7ffff0008000001040800";
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("two digits");
    overlay::overlay(&(0..text.len()).step_by(2).map(byte).collect::<Vec<u8>>());
}

/// A checkpoint saw a block whose space a write under way was using, and took it for plain zero.
#[test]
fn a_checkpoint_remembers_space_that_a_write_under_way_uses() {
    journal::journal(&[1, 0, 1, 0, 0, 2, 5, 1, 1, 1, 0, 0, 0, 0, 0, 0, 2, 4]);
}

/// Without coverage to guide it, and with few inputs, a body still finds what it is there to find.
fn find_in_random_operations(bugs: &[Bug], body: fn(&[u8])) {
    let found: Vec<_> = bugs
        .iter()
        .map(|bug| {
            judge::plant(Some(*bug));
            let found = (0..400_000).find(|seed| {
                let mut tape = Tape::seeded(*seed);
                let length = tape.draw(Lane::Net, 300);
                let bytes: Vec<u8> = (0..length).map(|_| tape.draw(Lane::Net, 256) as u8).collect();
                panic::catch_unwind(|| body(&bytes)).is_err()
            });
            judge::plant(None);
            (bug.id(), found)
        })
        .collect();
    println!("{found:?}");
    assert!(found.iter().all(|(_, inputs)| inputs.is_some()), "not found: {found:?}");
}

#[test]
fn planted_mistakes_of_recovery_are_found_in_random_operations() {
    let bugs = [
        Bug::TornTailAccepted,
        Bug::HoleSkipped,
        Bug::StaleSegment,
        Bug::TrimForgotten,
        Bug::OrderSwapped,
        Bug::ReplayTwice,
        Bug::ClaimForgotten,
        Bug::CarriedLost,
        Bug::CarriedOutlives,
        Bug::CarriedBeyondLength,
        Bug::CarriedNotRestored,
        Bug::RepairForgets,
    ];
    find_in_random_operations(&bugs, journal::journal);
}

#[test]
fn planted_mistakes_of_overlays_are_found_in_random_operations() {
    let bugs = [
        Bug::ClaimsMixedUp,
        Bug::SealMissesAnswered,
        Bug::SealedSlotFreed,
        Bug::DroppedSealFreed,
        Bug::OlderSealForgotten,
        Bug::OrphanFreedAtOnce,
    ];
    find_in_random_operations(&bugs, overlay::overlay);
}

#[test]
fn planted_mistakes_of_layers_are_found_in_random_operations() {
    let bugs = [Bug::LayerTail, Bug::StorageMerge, Bug::ChecksumSkipped];
    find_in_random_operations(&bugs, layer::layer);
}
