//! Space of what was trimmed goes back to the file system, also after a crash, and is found again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use glassine_tests::client::Client;
use glassine_tests::server::{Server, Tmpfs, scratch};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
/// What is written: more than a quiet device keeps.
const BLOCKS: u64 = 32 * MIB / BLOCK;
/// A device is quiet after twelve ticks of 5 seconds.
const QUIET: Duration = Duration::from_secs(95);
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ENOSPC: u32 = 28;

/// Bytes that the data file of a sheet takes of the file system.
fn taken(sheet: &Path) -> u64 {
    fs::metadata(sheet.join("data")).expect("it is there").blocks() * 512
}

/// Waits until the data file takes no more than that.
fn shrinks(sheet: &Path, most: u64) {
    let begin = Instant::now();
    while taken(sheet) > most {
        assert!(begin.elapsed() < QUIET, "it still takes {} bytes", taken(sheet));
        thread::sleep(Duration::from_millis(50));
    }
}

fn payload(block: u64, version: u64) -> Vec<u8> {
    let word = (block << 8 | version).to_le_bytes();
    word.repeat(BLOCK as usize / word.len())
}

/// All blocks, in an order in which their slots lie nowhere side by side.
fn write_all(client: &mut Client, version: u64) {
    let mut blocks: Vec<u64> = (0..BLOCKS).collect();
    blocks.shuffle(&mut ChaCha8Rng::seed_from_u64(version));
    for block in blocks {
        assert_eq!(client.write(block * BLOCK, &payload(block, version)), 0);
    }
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
}

/// All blocks are zero but every thousandth, which is as that version has it.
fn holds(client: &mut Client, version: u64) {
    for block in 0..BLOCKS {
        let expected =
            if block % 1000 == 0 { payload(block, version) } else { vec![0; BLOCK as usize] };
        assert!(client.read(block * BLOCK, BLOCK as u32) == expected, "block {block}");
    }
}

/// All blocks but every thousandth are trimmed.
fn trim_most(client: &mut Client) {
    for first in (0..BLOCKS).step_by(1000) {
        let count = (BLOCKS - first).min(1000) - 1;
        assert_eq!(client.ask(0, TRIM, (first + 1) * BLOCK, (count * BLOCK) as u32), 0);
    }
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
}

#[test]
fn what_is_trimmed_goes_back_to_the_file_system_and_comes_again() {
    thread::scope(|scope| {
        scope.spawn(|| comes_and_goes(&[], 2));
        scope.spawn(|| comes_and_goes(&["--ephemeral"], 1));
    });
}

fn comes_and_goes(arguments: &[&str], times: u64) {
    let directory = scratch();
    let sheet = directory.path().join("sheet");
    let all = [&["--sheet", sheet.to_str().expect("UTF-8")], arguments].concat();
    let server = Server::blank("64M", &all);
    let mut client = Client::open(&server.socket());
    for version in 1..=times {
        write_all(&mut client, version);
        assert!(taken(&sheet) >= BLOCKS * BLOCK);
        trim_most(&mut client);
        // A quiet device keeps 2 MiB, and what is no whole group.
        shrinks(&sheet, 5 * MIB);
        holds(&mut client, version);
    }
    server.stop();
}

#[test]
fn what_is_trimmed_before_a_crash_goes_back_after_it() {
    let directory = scratch();
    let sheet = directory.path().join("sheet");
    let arguments = ["--sheet", sheet.to_str().expect("UTF-8")];
    let server = Server::blank("64M", &arguments);
    let mut client = Client::open(&server.socket());
    write_all(&mut client, 1);
    trim_most(&mut client);
    server.signal(libc::SIGKILL);
    drop(server);
    let before = taken(&sheet);
    assert!(before >= BLOCKS * BLOCK, "it had no time for that: {before}");

    let server = Server::blank("64M", &arguments);
    let mut client = Client::open(&server.socket());
    shrinks(&sheet, 5 * MIB);
    holds(&mut client, 1);
    // What is written next gets space that the file has already, and survives.
    let length = fs::metadata(sheet.join("data")).expect("it is there").len();
    write_all(&mut client, 2);
    trim_most(&mut client);
    assert_eq!(fs::metadata(sheet.join("data")).expect("it is there").len(), length);
    server.signal(libc::SIGKILL);
    drop(server);
    let server = Server::blank("64M", &arguments);
    holds(&mut Client::open(&server.socket()), 2);
    server.stop();
}

#[test]
fn space_that_others_took_meanwhile_is_missed_and_nothing_else() {
    let disk = Tmpfs::mount("80M");
    let sheet = disk.path().join("sheet");
    let server = Server::blank("64M", &["--sheet", sheet.to_str().expect("UTF-8")]);
    let mut client = Client::open(&server.socket());
    write_all(&mut client, 1);
    trim_most(&mut client);
    shrinks(&sheet, 5 * MIB);
    let filler = disk.fill();
    let mut refused = 0;
    for block in (1..BLOCKS).filter(|block| block % 1000 != 0) {
        let error = client.write(block * BLOCK, &payload(block, 2));
        assert!(error == 0 || error == ENOSPC, "{error}");
        refused += u64::from(error == ENOSPC);
    }
    assert!(refused > BLOCKS / 2, "the disk was full: {refused}");
    trim_most(&mut client);
    holds(&mut client, 1);
    fs::remove_file(&filler).expect("it is there");
    write_all(&mut client, 3);
    trim_most(&mut client);
    holds(&mut client, 3);
    server.stop();
}
