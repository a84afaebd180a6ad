//! The loop of a load: fill the queues, wait, take replies, again.
//!
//! With one connection every step is a blocking call: one `sendmsg` for all new requests, one `recv`
//! for all replies that are there. (Sending blocks only as long as the server does not receive; the
//! replies that it may wait to get rid of meanwhile fit in a socket's buffer for all loads there are.)
//! With several, `epoll` says which can be received from.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::lane::{Inbox, Lane};
use super::sys::Poll;
use super::{Load, Outcome};

/// Latencies that are noted without growing, on all connections of a thread.
const NOTED: usize = 1 << 20;

pub(super) fn run(load: &Load, streams: &[&UnixStream], seed: u64) -> io::Result<Outcome> {
    assert!(load.bytes.is_multiple_of(4096) && load.places() > 0 && load.depth > 0, "{load:?}");
    assert!(streams.len() == 1 || !load.is_large(), "large replies need an inbox of their own");
    let mut lanes: Vec<Lane<'_>> = streams
        .iter()
        .zip(0..)
        .map(|(stream, index)| Lane::new(load, stream.as_raw_fd(), seed * 1000 + index))
        .collect();
    let mut inbox = Inbox::new(load);
    // Touched now, and not while the clock runs.
    let mut microseconds = vec![1; NOTED];
    microseconds.clear();
    let began = Instant::now();
    let mut now = began;
    for lane in &mut lanes {
        lane.send(now)?;
    }
    if let [lane] = &mut lanes[..] {
        while !lane.is_idle() {
            step(load, lane, &mut inbox, &mut microseconds, began, &mut now)?;
        }
    } else {
        let poll = Poll::new()?;
        for (stream, index) in streams.iter().zip(0..) {
            poll.add(stream.as_raw_fd(), index)?;
        }
        while lanes.iter().any(|lane| !lane.is_idle()) {
            poll.wait(30_000, |index| {
                let lane = &mut lanes[index as usize];
                step(load, lane, &mut inbox, &mut microseconds, began, &mut now)
            })?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let per_second = microseconds.len() as f64 / seconds;
    microseconds.sort_unstable();
    Ok(Outcome { per_second, microseconds })
}

/// Receives once, and asks for as much again.
fn step(
    load: &Load,
    lane: &mut Lane<'_>,
    inbox: &mut Inbox,
    microseconds: &mut Vec<u32>,
    began: Instant,
    now: &mut Instant,
) -> io::Result<()> {
    let from = microseconds.len();
    // The clock is read once for what came at once, behind the call: until then, an entry is the time
    // of sending.
    lane.receive(inbox, |sent| {
        microseconds.push(u32::try_from((sent - began).as_micros()).unwrap_or(u32::MAX));
    })?;
    *now = Instant::now();
    let at = u32::try_from((*now - began).as_micros()).unwrap_or(u32::MAX);
    for one in &mut microseconds[from..] {
        *one = at - *one;
    }
    if *now - began < load.time { lane.send(*now) } else { Ok(()) }
}
