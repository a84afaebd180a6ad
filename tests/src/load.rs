//! Load: one connection that keeps its queue full, batches its requests, and checks what it reads.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::client::{Client, READ};
use crate::pattern;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// READs at random places.
    RandomRead,
    /// WRITEs at random places.
    RandomWrite,
    /// READs one behind the other.
    SequentialRead,
    /// WRITEs one behind the other.
    SequentialWrite,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// What is asked for.
    pub pattern: Pattern,
    /// Bytes a request.
    pub bytes: u32,
    /// Requests in flight.
    pub depth: u64,
    /// How long.
    pub time: Duration,
    /// The part of the device that is used, from its start.
    pub span: u64,
    /// Payloads of this version are written, and expected where something is read.
    pub version: u64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Requests answered in a second.
    pub per_second: f64,
    /// How long each took, in microseconds, sorted.
    pub microseconds: Vec<u32>,
}

impl Outcome {
    /// A percentile of the latency, in microseconds.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> u32 {
        let last = self.microseconds.len().saturating_sub(1) as f64;
        self.microseconds.get((last * percent / 100.0) as usize).copied().unwrap_or(0)
    }
}

impl Load {
    fn is_write(&self) -> bool {
        matches!(self.pattern, Pattern::RandomWrite | Pattern::SequentialWrite)
    }

    fn offset(&self, index: u64, rng: &mut ChaCha8Rng) -> u64 {
        let places = self.span / u64::from(self.bytes);
        let place = match self.pattern {
            Pattern::RandomRead | Pattern::RandomWrite => rng.random_range(0..places),
            Pattern::SequentialRead | Pattern::SequentialWrite => index % places,
        };
        place * u64::from(self.bytes)
    }

    /// Puts the load on a server.
    #[must_use]
    pub fn run(&self, socket: &Path, seed: u64) -> Outcome {
        self.run_on(&mut Client::open(socket), seed)
    }

    /// Puts the load on a connection.
    #[must_use]
    pub fn run_on(&self, client: &mut Client, seed: u64) -> Outcome {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // By cookie: where the request is, and when it was sent.
        let mut slots = vec![(0u64, Instant::now()); self.depth as usize];
        let mut idle: Vec<u64> = (0..self.depth).rev().collect();
        let mut microseconds = Vec::with_capacity(1 << 20);
        let mut payload = vec![0; self.bytes as usize];
        let (mut sent, began) = (0u64, Instant::now());
        let mut now = began;
        loop {
            let go_on = now.duration_since(began) < self.time;
            while go_on && let Some(cookie) = idle.pop() {
                let offset = self.offset(sent, &mut rng);
                slots[cookie as usize] = (offset, now);
                if self.is_write() {
                    client.write_with(cookie, offset, self.bytes, |bytes| {
                        stamp(bytes, self.version, offset);
                    });
                } else {
                    client.request(0, READ, cookie, offset, self.bytes);
                }
                sent += 1;
            }
            if idle.len() == slots.len() {
                break;
            }
            client.flush();
            // One reply has to come; all that came with it are taken too.
            loop {
                let reply = client.reply();
                assert_eq!(reply.error, 0, "a request failed");
                let (offset, sent_at) = slots[reply.cookie as usize];
                if !self.is_write() {
                    let bytes = client.take(self.bytes as usize);
                    check(bytes, self.version, offset, sent % 64 == 0, &mut payload);
                }
                now = Instant::now();
                microseconds.push(now.duration_since(sent_at).as_micros() as u32);
                idle.push(reply.cookie);
                if !client.has_reply() || idle.len() == slots.len() {
                    break;
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let per_second = microseconds.len() as f64 / seconds;
        microseconds.sort_unstable();
        Outcome { per_second, microseconds }
    }
}

/// Every sector begins with eight bytes of the pattern; the rest of a payload costs nothing to make,
/// so that the client is not what is measured.
fn stamp(bytes: &mut [u8], version: u64, offset: u64) {
    for (sector, at) in bytes.chunks_exact_mut(512).zip((offset..).step_by(512)) {
        sector[..8].copy_from_slice(&pattern::word(version, at).to_le_bytes());
    }
}

fn check(bytes: &[u8], version: u64, offset: u64, whole: bool, scratch: &mut [u8]) {
    for (sector, at) in bytes.chunks_exact(512).zip((offset..).step_by(512)) {
        let word = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        assert_eq!(word, pattern::word(version, at), "wrong bytes at {at}");
    }
    if whole {
        // The rest of a sector is what the template or a payload has there: its first word, or zero.
        scratch.fill(0);
        stamp(scratch, version, offset);
        assert!(
            bytes == scratch,
            "wrong bytes between {offset} and {}",
            offset + bytes.len() as u64
        );
    }
}

/// Writes the content that a load of this version expects to read.
pub fn make_template(path: &Path, bytes: u64, version: u64) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("the directory is writable");
    let mut buffer = vec![0; 1 << 20];
    for offset in (0..bytes).step_by(buffer.len()) {
        stamp(&mut buffer, version, offset);
        file.write_all(&buffer).expect("the directory has room");
    }
}
