//! A load of drawn changes and flushes, each noted in a history.

use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::client::{Client, FLUSH, TRIM, WRITE, WRITE_ZEROES};
use crate::history::{BLOCK, BLOCKS, Content, History};
use crate::pattern;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const ENOSPC: u32 = 28;
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
fn ask<S: Read + Write>(
    client: &mut Client<S>,
    history: &mut History,
    rng: &mut ChaCha8Rng,
) -> Vec<(u64, Asked)> {
    let mut busy = vec![false; BLOCKS];
    let mut asked = Vec::new();
    // Many changes come together in a record when there are batches without a barrier.
    let has_barriers = rng.random_range(0..3) == 0;
    for cookie in 0..rng.random_range(1..=DEPTH) {
        if has_barriers && rng.random_range(0..100) < 8 {
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
        let flags = if has_barriers && rng.random_range(0..100) < 12 { FUA } else { 0 };
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

/// A history that others look at as well. Whoever panicked with it in hand has been heard of already.
pub fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a batch of requests and takes the replies to it, as far as they come. Answers the errors among them.
/// What met "no space left" has not happened; of whatever met another error, nobody knows.
pub fn batch<S: Read + Write>(
    client: &mut Client<S>,
    history: &Mutex<History>,
    rng: &mut ChaCha8Rng,
) -> io::Result<Vec<u32>> {
    let mut asked = ask(client, &mut lock(history), rng);
    client.try_flush()?;
    let mut errors = Vec::new();
    while !asked.is_empty() {
        let header = client.try_take(16)?;
        let error = u32::from_be_bytes(header[4..8].try_into().expect("four bytes"));
        let cookie = u64::from_be_bytes(header[8..].try_into().expect("eight bytes"));
        let at = asked.iter().position(|(other, _)| *other == cookie).expect("it was asked");
        match (asked.swap_remove(at).1, error) {
            (Asked::Change(change), 0) => lock(history).answered(change),
            (Asked::Change(change), ENOSPC) => lock(history).refused(change),
            (Asked::Flush(sent), 0) => lock(history).flushed(sent),
            _ => {}
        }
        errors.extend((error != 0).then_some(error));
    }
    Ok(errors)
}

/// Writes of single blocks, each durable before the next is sent, until the server is gone: what wears a journal
/// the fastest. That one fails is an error.
pub fn load_one_by_one<S: Read + Write>(
    client: &mut Client<S>,
    history: &Mutex<History>,
    rng: &mut ChaCha8Rng,
) -> Result<(), String> {
    loop {
        let block = rng.random_range(0..BLOCKS);
        let offset = (block * BLOCK) as u64;
        let mut history_now = lock(history);
        let version = history_now.version();
        let change = history_now.sent(block..block + 1, Content::Payload(version), true);
        drop(history_now);
        client.request(FUA, WRITE, 1, offset, BLOCK as u32);
        let mut payload = [0; BLOCK];
        pattern::fill(&mut payload, version, offset);
        client.put(&payload);
        match client.try_flush().and_then(|()| Ok(client.try_take(16)?[4..8] == [0; 4])) {
            Ok(true) => lock(history).answered(change),
            Ok(false) => return Err("a write failed".to_owned()),
            Err(_) => return Ok(()),
        }
    }
}

/// Two connections in turn, until the server is gone. That a request fails is an error.
pub fn load<S: Read + Write>(
    clients: &mut [Client<S>; 2],
    history: &Mutex<History>,
    rng: &mut ChaCha8Rng,
) -> Result<(), String> {
    loop {
        for client in &mut *clients {
            match batch(client, history, rng) {
                Ok(errors) if errors.is_empty() => {}
                Ok(errors) => return Err(format!("requests failed: {errors:?}")),
                Err(_) => return Ok(()),
            }
        }
    }
}
