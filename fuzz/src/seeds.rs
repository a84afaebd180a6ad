//! The seeds: valid conversations and plain sequences of operations, as short as they can be while each
//! shows a fuzzer one more thing there is. They are committed in `fuzz/seeds`; a test compares.

use sim::choice::{Lane, Tape};

use crate::{overlay, session};

/// The seeds of a target, by name.
#[must_use]
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds = match target {
        "handshake" => handshake(),
        "requests" => requests(),
        "session" => sessions(),
        "overlay" => overlays(),
        "world" => worlds(),
        other => panic!("there is no target {other}"),
    };
    seeds.sort();
    seeds.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// An option as a client sends it.
#[must_use]
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [b"IHAVEOPT", &option.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
}

/// A request as a client sends it.
#[must_use]
pub fn request(flags: u16, command: u16, offset: u64, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(0x0102_0304_0000_0000u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn info(name: &str, asks: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.bytes());
    data.extend((asks.len() as u16).to_be_bytes());
    data.extend(asks.iter().flat_map(|ask| ask.to_be_bytes()));
    data
}

fn handshake() -> Seeds {
    // What there is to choose from, where the stream is cut, and the client's flags.
    let talk = |head: [u8; 2], flags: u32, options: &[Vec<u8>]| {
        let mut bytes = head.to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(options.concat());
        bytes
    };
    vec![
        ("empty", vec![]),
        ("export-name", talk([0, 0], 3, &[option(1, b"disk")])),
        ("export-name-padded", talk([0, 3], 1, &[option(1, b"")])),
        ("export-name-unknown", talk([1, 0], 3, &[option(1, b"nobody")])),
        ("go-default", talk([0, 7], 3, &[option(7, &info("", &[]))])),
        ("go-named", talk([1, 0], 3, &[option(7, &info("a", &[0, 1, 2, 3]))])),
        ("go-after-info", {
            let options = [option(6, &info("disk", &[3])), option(7, &info("disk", &[3]))];
            talk([0, 200], 3, &options)
        }),
        ("go-unknown-then-list", {
            let options = [option(7, &info("nobody", &[])), option(3, &[]), option(2, &[])];
            talk([1, 1], 3, &options)
        }),
        ("not-supported", {
            let options = [option(5, &[]), option(8, &[]), option(9, b"data"), option(2, b"bye")];
            talk([2, 0], 3, &options)
        }),
        ("list-deaf", talk([6, 0], 0, &[option(3, &[]), option(3, &[])])),
        ("list-nothing", talk([3, 0], 3, &[option(3, &[]), option(6, &info("", &[1]))])),
    ]
}

fn requests() -> Seeds {
    let talk = |head: [u8; 11], requests: &[Vec<u8>]| [&head[..], &requests.concat()].concat();
    let write = |offset, payload: &[u8]| request(0, 1, offset, payload.len() as u32, payload);
    let read = |offset, length| request(0, 0, offset, length, &[]);
    let plain = [0; 11];
    // A template under all of it; pieces of 100 bytes.
    let over = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 100];
    // Read-only.
    let locked = [0, 0, 0, 7, 0, 0, 0, 0, 0, 2, 0];
    // A quota of three blocks, and everything straight into slots.
    let scarce = [0, 2, 0, 0, 1, 1, 1, 0, 1, 0, 200];
    vec![
        ("empty", plain.to_vec()),
        ("read", talk(plain, &[read(0, 512), request(0, 2, 0, 0, &[])])),
        ("read-template", talk(over, &[read(4000, 200), read(0, 9000)])),
        ("write-and-read", talk(plain, &[write(10, b"some bytes"), read(0, 4096)])),
        ("write-a-block", talk(over, &[write(4096, &[7; 4096]), read(4000, 5000)])),
        ("write-across", talk(over, &[write(4090, &[7; 12]), read(4096, 6), read(0, 9000)])),
        ("write-to-the-end", talk(plain, &[write(20_990, &[1; 10]), read(20_000, 1000)])),
        ("flush-and-cache", talk(plain, &[request(1, 3, 0, 0, &[]), request(0, 5, 0, 4096, &[])])),
        ("zeroes", {
            let all = [write(0, &[9; 100]), request(0, 6, 50, 8200, &[]), read(0, 9000)];
            talk(over, &all)
        }),
        ("zeroes-no-hole", talk(scarce, &[request(2, 6, 0, 8192, &[]), write(5, &[3; 9])])),
        ("zeroes-fast", talk(over, &[request(16, 6, 0, 8192, &[]), request(16, 6, 1, 9, &[])])),
        ("trim", {
            let all = [write(4096, &[9; 4096]), request(0, 4, 4096, 8192, &[]), read(4096, 4096)];
            talk(over, &all)
        }),
        ("read-only", talk(locked, &[read(0, 4096), request(1, 3, 0, 0, &[])])),
        ("quota", talk(scarce, &[write(0, &[1; 300]), write(8192, &[2; 300]), read(0, 100)])),
    ]
}

fn sessions() -> Seeds {
    use session::Op::*;
    let op =
        |op: session::Op| session::Op::ALL.iter().position(|one| *one == op).expect("listed") as u8;
    // Command, place, and length; offsets and lengths are drawn of two bytes.
    let ask = |command: u8, offset: u16, length: u16| {
        let [a, b] = offset.to_be_bytes();
        let [c, d] = length.to_be_bytes();
        vec![op(Ask), command, 0, a, b, c, d]
    };
    let talk = |head: [u8; 10], steps: &[Vec<u8>]| [&head[..], &steps.concat()].concat();
    let plain = [0; 10];
    let over = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let one = |which: session::Op| vec![op(which)];
    let with = |which: session::Op, byte: u8| vec![op(which), byte];
    let well = vec![op(Finish), 0, 0];
    vec![
        ("empty", plain.to_vec()),
        ("calm", talk(plain, &[ask(1, 10, 500), ask(0, 0, 4096), with(Calm, 0)])),
        ("read-step-by-step", {
            let hello = [with(Send, 0), with(Receive, 0)].concat();
            let steps = [hello, ask(0, 100, 200), with(Receive, 0), one(Advance), well.clone()];
            talk(over, &[&steps[..], &[one(Advance), with(Send, 9), with(Send, 0)]].concat())
        }),
        ("write-step-by-step", {
            let steps = [with(Calm, 0), ask(1, 4000, 200), with(Receive, 0), one(Advance)];
            talk(plain, &[&steps[..], &[well.clone(), one(Advance), well.clone(), well]].concat())
        }),
        ("write-direct", {
            let steps = [with(Calm, 0), ask(1, 4096, 8192), with(Receive, 28), one(Advance)];
            let more = [with(Calm, 0), with(Land, 99), with(Receive, 0), with(Calm, 0)];
            talk(plain, &[&steps[..], &more].concat())
        }),
        ("slow-client", {
            let steps = [ask(1, 0, 4096), with(Calm, 0), ask(0, 0, 4096), with(Receive, 0)];
            let more = [one(Advance), one(Block), with(Calm, 0), one(Unblock)];
            talk(plain, &[&steps[..], &more].concat())
        }),
        ("neighbour", {
            let steps = [with(Calm, 0), vec![op(Neighbour), 0, 1, 7], ask(0, 0, 5000)];
            talk(over, &[&steps[..], &[with(Calm, 0), vec![op(Neighbour), 1, 0, 1]]].concat())
        }),
        ("drain", talk(over, &[ask(0, 0, 100), with(Calm, 50), one(Drain), with(Calm, 0)])),
        ("end", talk(over, &[ask(6, 100, 8000), one(End), with(Calm, 50)])),
        ("reset", talk(over, &[with(Calm, 0), ask(1, 0, 300), with(Receive, 90), one(Reset)])),
        ("late", talk(over, &[ask(0, 0, 100), with(Tick, 5), with(Calm, 0), with(Tick, 61)])),
        ("garbage", talk(plain, &[ask(4, 0, 8192), with(Garbage, 0), with(Calm, 0)])),
    ]
}

fn overlays() -> Seeds {
    use overlay::Op::*;
    let op =
        |op: overlay::Op| overlay::Op::ALL.iter().position(|one| *one == op).expect("listed") as u8;
    let talk = |head: [u8; 5], steps: &[Vec<u8>]| [&head[..], &steps.concat()].concat();
    // First block, most blocks, blocks, kind (and who asks).
    let reserve = |first: u8, count: u8, kind: u8| vec![op(Reserve), first, 0, count - 1, kind, 0];
    let write = |first: u8, count: u8, kind: u8| vec![op(Write), first, 0, count - 1, kind];
    let grow = vec![op(Grow), 0];
    let read = vec![op(Read), 0, 0, 0, 2, 0, 0, 0, 0];
    let plain = [0; 5];
    let over = [1, 1, 2, 0, 1];
    let scarce = [0, 0, 1, 1, 0];
    vec![
        ("empty", plain.to_vec()),
        ("write", talk(plain, &[write(0, 1, 0), grow.clone(), write(0, 1, 0), read.clone()])),
        ("overwrite-pinned", {
            let steps = [write(0, 3, 0), grow.clone(), write(0, 3, 0), read.clone()];
            talk(over, &[&steps[..], &[write(1, 2, 0), vec![op(Unpin), 0]]].concat())
        }),
        ("publish-and-release", {
            let steps = [reserve(0, 2, 0), grow.clone(), reserve(0, 2, 0), reserve(1, 2, 0)];
            talk(over, &[&steps[..], &[vec![op(Publish), 0], vec![op(Release), 0]]].concat())
        }),
        ("zeroes", talk(over, &[grow.clone(), write(0, 3, 3), write(0, 3, 5), read.clone()])),
        (
            "set-aside",
            talk(scarce, &[write(0, 3, 4), grow.clone(), write(0, 2, 4), write(0, 1, 0)]),
        ),
        ("no-growth", talk(plain, &[reserve(0, 1, 0), vec![op(Grow), 3], reserve(0, 1, 0)])),
        ("large", talk([2, 0, 2, 0, 2], &[vec![op(Write), 0, 1, 3, 2, 87, 3], read])),
        ("reclaim", talk(plain, &[grow, write(0, 1, 0), vec![op(Reclaim)], vec![op(Rejoin), 1]])),
    ]
}

fn worlds() -> Seeds {
    // Tapes of many lengths: behind its end a tape goes on with the plainest choices.
    let drawn = |seed: u64, length: usize| {
        let mut tape = Tape::seeded(seed);
        (0..length).map(|_| tape.draw(Lane::Net, 256) as u8).collect::<Vec<u8>>()
    };
    vec![
        ("empty", vec![]),
        ("drawn-1", drawn(1, 60)),
        ("drawn-2", drawn(2, 120)),
        ("drawn-3", drawn(3, 400)),
        ("drawn-4", drawn(4, 1200)),
        ("drawn-5", drawn(5, 1500)),
        ("drawn-6", drawn(6, 2500)),
    ]
}
