//! Random reads and changes at any offset and length, through the real binary, against a model.
//!
//! Four connections share one device, each with 32 requests in flight. Every connection owns stripes
//! that begin and end in the middle of blocks, so that neighbours keep merging into each other's
//! blocks, while what each byte must be is known exactly. Within its stripes a connection keeps
//! ranges under change apart from all others in flight.

use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::Instant;

use glassine_tests::client::{Client, READ, TRIM, WRITE_ZEROES};
use glassine_tests::pattern;
use glassine_tests::server::{Server, make_image, scratch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DEVICE_BYTES: u64 = (96 << 20) + 1234;
const TEMPLATE_BYTES: u64 = (64 << 20) + 77;
const CONNECTIONS: u64 = 4;
const DEPTH: u64 = 32;
const BLOCK: u64 = 4096;

struct Flight {
    bytes: Range<u64>,
    read: bool,
    expected: Vec<u8>,
}

struct Worker {
    client: Client,
    rng: ChaCha8Rng,
    stripes: Vec<Range<u64>>,
    /// The whole device as this connection knows it; only its stripes are looked at.
    model: Vec<u8>,
    flights: Vec<Option<Flight>>,
    version: u64,
    blocks: u64,
}

impl Worker {
    fn is_free(&self, bytes: &Range<u64>, read: bool) -> bool {
        self.flights.iter().flatten().all(|other| {
            (read && other.read) || other.bytes.end <= bytes.start || bytes.end <= other.bytes.start
        })
    }

    /// A range of one stripe: mostly short, sometimes long, whole blocks now and then.
    fn draw_range(&mut self) -> Range<u64> {
        let stripe = self.stripes[self.rng.random_range(0..self.stripes.len())].clone();
        let most = [300, 4096, 20_000, 200_000, 1 << 20][self.rng.random_range(0..5)];
        let length = self.rng.random_range(1..=most).min(stripe.end - stripe.start);
        let start = self.rng.random_range(stripe.start..=stripe.end - length);
        if self.rng.random_bool(0.4) {
            let whole = start.next_multiple_of(BLOCK)..(start + length) / BLOCK * BLOCK;
            if whole.start < whole.end {
                return whole;
            }
        }
        start..start + length
    }

    fn ask(&mut self, cookie: u64) {
        let (bytes, read) = loop {
            let (bytes, read) = (self.draw_range(), self.rng.random_bool(0.45));
            if self.is_free(&bytes, read) {
                break (bytes, read);
            }
        };
        let length = bytes.end - bytes.start;
        self.blocks += bytes.end.div_ceil(BLOCK) - bytes.start / BLOCK;
        let known = bytes.start as usize..bytes.end as usize;
        let mut expected = Vec::new();
        let flags = u16::from(self.rng.random_bool(0.1));
        if read {
            expected = self.model[known].to_vec();
            self.client.request(flags, READ, cookie, bytes.start, length as u32);
        } else {
            match self.rng.random_range(0..10) {
                0 => {
                    let flags = flags | if self.rng.random_bool(0.3) { 2 } else { 0 };
                    self.client.request(flags, WRITE_ZEROES, cookie, bytes.start, length as u32);
                    self.model[known].fill(0);
                }
                1 => {
                    self.client.request(flags, TRIM, cookie, bytes.start, length as u32);
                    let start = bytes.start.next_multiple_of(BLOCK);
                    let whole = if bytes.end == DEVICE_BYTES {
                        bytes.end
                    } else {
                        bytes.end / BLOCK * BLOCK
                    };
                    if start < whole {
                        self.model[start as usize..whole as usize].fill(0);
                    }
                }
                _ => {
                    self.version += CONNECTIONS;
                    let (version, model) = (self.version, &mut self.model[known]);
                    self.client.write_with(cookie, bytes.start, length as u32, |payload| {
                        pattern::fill(payload, version, bytes.start);
                        model.copy_from_slice(payload);
                    });
                }
            }
        }
        self.flights[cookie as usize] = Some(Flight { bytes, read, expected });
    }

    fn take_reply(&mut self) -> u64 {
        let reply = self.client.reply();
        assert_eq!(reply.error, 0);
        let flight = self.flights[reply.cookie as usize].take().expect("one reply a request");
        if flight.read {
            let bytes = self.client.take(flight.expected.len());
            if bytes != flight.expected {
                let at = bytes.iter().zip(&flight.expected).position(|(a, b)| a != b);
                panic!("byte {} of a READ of {:?} is wrong", at.unwrap_or(0), flight.bytes);
            }
        }
        reply.cookie
    }

    fn run(&mut self, blocks: u64) {
        let mut idle: Vec<u64> = (0..DEPTH).collect();
        loop {
            while self.blocks < blocks
                && let Some(cookie) = idle.pop()
            {
                self.ask(cookie);
                // Long payloads leave at once, so that client and server work side by side.
                if self.rng.random_bool(0.3) {
                    self.client.flush();
                }
            }
            self.client.flush();
            if idle.len() as u64 == DEPTH {
                break;
            }
            idle.push(self.take_reply());
            while self.client.has_reply() && (idle.len() as u64) < DEPTH {
                idle.push(self.take_reply());
            }
        }
        // At the end, everything once more.
        for stripe in self.stripes.clone() {
            for start in stripe.clone().step_by(1 << 20) {
                let end = stripe.end.min(start + (1 << 20));
                let bytes = self.client.read(start, (end - start) as u32);
                let expected = &self.model[start as usize..end as usize];
                assert!(bytes == expected, "the end state between {start} and {end} is wrong");
            }
        }
    }
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// So many blocks are changed and looked at by all connections of a new device.
fn check(blocks: u64, sheet: Option<&Path>) {
    let seed = number("GLASSINE_MODEL_SEED", 1);
    println!("GLASSINE_MODEL_SEED={seed} cargo test -p glassine-tests --test model");
    let directory = scratch();
    let template = directory.path().join("t.img");
    make_image(&template, TEMPLATE_BYTES, 99);
    let mut content = std::fs::read(&template).expect("just made");
    content.resize(DEVICE_BYTES as usize, 0);
    let size = DEVICE_BYTES.to_string();
    let mut arguments = vec!["--size", &size];
    if let Some(sheet) = sheet {
        arguments.extend(["--sheet", sheet.to_str().expect("UTF-8")]);
    }
    let server = Server::over(&template, &arguments);
    // Stripes of 3 KB to 3 MB, dealt out in turn.
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut stripes = vec![Vec::new(); CONNECTIONS as usize];
    let mut start = 0;
    while start < DEVICE_BYTES {
        let most = [3_000, 40_000, 3 << 20][rng.random_range(0..3)];
        let end = (start + rng.random_range(2_000..=most)).min(DEVICE_BYTES);
        stripes[rng.random_range(0..CONNECTIONS) as usize].push(start..end);
        start = end;
    }
    let began = Instant::now();
    let done: u64 = thread::scope(|scope| {
        let workers = stripes.into_iter().enumerate().map(|(index, stripes)| {
            let mut worker = Worker {
                client: Client::open(&server.socket()),
                rng: ChaCha8Rng::seed_from_u64(seed << 8 | index as u64),
                stripes,
                model: content.clone(),
                flights: (0..DEPTH).map(|_| None).collect(),
                version: index as u64,
                blocks: 0,
            };
            scope.spawn(move || {
                worker.run(blocks / CONNECTIONS);
                worker.blocks
            })
        });
        let workers: Vec<_> = workers.collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
    });
    println!("{done} blocks in {:.1} s", began.elapsed().as_secs_f64());
    assert!(done >= blocks);
    server.stop();
}

#[test]
fn ten_million_blocks_read_as_a_model_says() {
    check(number("GLASSINE_MODEL_BLOCKS", 10_000_000), None);
}

/// FUA is asked for now and then: bytes reach a sheet on a disk in other ways than one in memory.
#[test]
fn so_do_those_of_a_durable_sheet_on_a_disk() {
    let disk =
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("there is a target directory");
    check(number("GLASSINE_MODEL_BLOCKS", 10_000_000) / 20, Some(&disk.path().join("sheet")));
}
