//! The seeds: valid conversations and plain sequences of operations, as short as they can be while each
//! shows a fuzzer one more thing there is. They are committed in `fuzz/seeds`; a test compares.

use sim::choice::{Lane, Tape};

use crate::{journal, layer, overlay, session};

/// The seeds of a target, by name.
#[must_use]
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds = match target {
        "handshake" => handshake(),
        "requests" => requests(),
        "session" => sessions(),
        "overlay" => overlays(),
        "journal" => journals(),
        "layer" => layers(),
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
        ("export-name", talk([0, 0], 1, &[option(1, b"disk")])),
        ("export-name-unknown", talk([1, 0], 1, &[option(1, b"nobody")])),
        ("go-default", talk([0, 0], 3, &[option(7, &info("", &[]))])),
        ("go-named", talk([1, 0], 3, &[option(7, &info("a", &[0, 1, 2, 3]))])),
        ("go-after-info", {
            let options = [option(6, &info("disk", &[3])), option(7, &info("disk", &[3]))];
            talk([0, 0], 3, &options)
        }),
        ("go-unknown-then-list", {
            let options = [option(7, &info("nobody", &[])), option(3, &[]), option(2, &[])];
            talk([1, 0], 3, &options)
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
    // A template under half of it, and all bytes in one piece.
    let plain = [0; 11];
    // A template under all of it; pieces of 100 bytes.
    let over = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 100];
    // Read-only.
    let locked = [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    // A quota of three blocks, no template, and everything straight into slots.
    let scarce = [0, 2, 0, 0, 1, 1, 1, 0, 1, 2, 200];
    vec![
        ("empty", plain.to_vec()),
        ("read", talk(plain, &[read(0, 512), request(0, 2, 0, 0, &[])])),
        ("read-template", talk(over, &[read(4000, 200), read(0, 9000)])),
        ("write-and-read", talk(plain, &[write(10, b"some bytes"), read(0, 4096)])),
        ("write-a-block", talk(over, &[write(4096, &[7; 4096]), read(4000, 5000)])),
        ("write-to-the-end", talk(plain, &[write(20_990, &[1; 10]), read(20_000, 1000)])),
        ("flush-and-cache", talk(plain, &[request(0, 3, 0, 0, &[]), request(0, 5, 0, 4096, &[])])),
        ("zeroes", talk(over, &[write(0, &[9; 4096]), request(0, 6, 0, 8192, &[]), read(0, 9000)])),
        ("zeroes-scarce", talk(scarce, &[request(0, 6, 0, 8192, &[]), write(5, &[3; 9])])),
        ("trim", {
            let all = [write(4096, &[9; 4096]), request(0, 4, 4096, 8192, &[]), read(4096, 4096)];
            talk(over, &all)
        }),
        ("read-only", talk(locked, &[read(0, 4096), request(0, 3, 0, 0, &[])])),
        ("quota", talk(scarce, &[write(0, &[1; 300]), write(8192, &[2; 300]), read(0, 100)])),
    ]
}

fn sessions() -> Seeds {
    use session::Op::*;
    let op =
        |op: session::Op| session::Op::ALL.iter().position(|one| *one == op).expect("listed") as u8;
    // Command, flags, offset and length, the last two of two bytes each.
    let ask = |command: u8, offset: u16, length: u16| {
        let [a, b] = offset.to_be_bytes();
        let [c, d] = length.to_be_bytes();
        vec![op(Ask), command, 0, a, b, c, d]
    };
    // A template under half of it; a byte later, whether the handshake is still to come.
    let talk = |steps: &[Vec<u8>]| [&[0; 11][..], &steps.concat()].concat();
    let one = |which: session::Op| vec![op(which)];
    let with = |which: session::Op, byte: u8| vec![op(which), byte];
    let well = vec![op(Finish), 0, 0];
    vec![
        ("empty", vec![]),
        ("handshake", {
            let hello = [vec![0; 10], vec![7], with(Send, 0), with(Receive, 0)];
            [&hello.concat()[..], &with(Send, 0)].concat()
        }),
        ("calm", talk(&[ask(1, 10, 500), ask(0, 0, 4096), with(Calm, 0)])),
        ("read", {
            let steps = [ask(0, 100, 200), with(Receive, 0), one(Advance), well.clone()];
            talk(&[&steps[..], &[one(Advance), with(Send, 9), with(Send, 0)]].concat())
        }),
        ("read-twice", {
            let steps = [ask(0, 0, 20), ask(0, 5000, 20), with(Receive, 0), one(Advance)];
            talk(&[&steps[..], &[well.clone(), well.clone(), one(Advance), with(Send, 0)]].concat())
        }),
        ("write", {
            let steps = [ask(1, 4000, 200), with(Receive, 0), one(Advance), well.clone()];
            let more = [one(Advance), well.clone(), well.clone(), one(Advance)];
            talk(&[&steps[..], &more].concat())
        }),
        ("write-direct", {
            let steps = [ask(1, 4096, 8192), with(Receive, 28), one(Advance), with(Calm, 0)];
            talk(&[&steps[..], &[with(Land, 99), with(Receive, 0), with(Calm, 0)]].concat())
        }),
        ("slow-client", {
            let steps = [ask(1, 0, 4096), with(Calm, 0), ask(0, 0, 4096), with(Receive, 0)];
            let more = [one(Advance), one(Block), well, one(Unblock), with(Send, 0)];
            talk(&[&steps[..], &more].concat())
        }),
        ("neighbour", {
            let steps = [vec![op(Neighbour), 0, 1, 7], ask(0, 0, 5000), with(Calm, 0)];
            talk(&[&steps[..], &[vec![op(Neighbour), 1, 0, 1]]].concat())
        }),
        ("drain", talk(&[ask(3, 0, 100), with(Calm, 0), one(Drain), with(Calm, 0)])),
        ("end", talk(&[ask(6, 4096, 8192), one(End), with(Calm, 0)])),
        ("reset", talk(&[ask(0, 0, 300), with(Receive, 0), one(Reset)])),
        ("late", talk(&[ask(0, 0, 100), with(Tick, 5), with(Calm, 0), with(Tick, 61)])),
        ("garbage", talk(&[ask(4, 0, 8192), with(Garbage, 0), with(Calm, 0)])),
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
    let over = [1, 0, 1, 0, 1];
    let scarce = [0, 0, 0, 1, 0];
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
        ("zeroes", talk(plain, &[grow.clone(), write(0, 3, 3), write(0, 3, 5), read])),
        (
            "set-aside",
            talk(scarce, &[write(0, 3, 4), grow.clone(), write(0, 2, 4), write(0, 1, 0)]),
        ),
        ("no-growth", talk(plain, &[reserve(0, 1, 0), vec![op(Grow), 3], reserve(0, 1, 0)])),
        ("large", talk([2, 0, 0, 0, 2], &[write(0, 1, 0), vec![op(Grow), 0]])),
        ("reclaim", talk(plain, &[grow, write(0, 1, 0), vec![op(Reclaim)], vec![op(Rejoin), 1]])),
    ]
}

fn journals() -> Seeds {
    use journal::Op::*;
    let op =
        |op: journal::Op| journal::Op::ALL.iter().position(|one| *one == op).expect("listed") as u8;
    let talk = |head: [u8; 6], steps: &[Vec<u8>]| [&head[..], &steps.concat()].concat();
    // First block, most blocks, blocks.
    let change = |kind: journal::Op, first: u8, count: u8| vec![op(kind), first, 0, count - 1];
    let (flush, reopen) = (vec![op(Flush)], vec![op(Reopen)]);
    let flushed = |first: u8, count: u8| [change(Write, first, count), flush.clone()].concat();
    // File, page, byte.
    let damage = |file: u8, page: u8, byte: u8| vec![op(Damage), 1, file, page, byte];
    let plain = [0; 6];
    let small = [1, 1, 1, 1, 1, 2];
    let records = [flushed(0, 2), change(Zero, 1, 1), flushed(2, 1)];
    vec![
        ("empty", plain.to_vec()),
        ("records", talk(plain, &[&records[..], &[reopen.clone(), flushed(1, 2)]].concat())),
        ("set-aside", talk(plain, &[change(Provision, 0, 3), flush.clone(), reopen.clone()])),
        ("checkpoints", talk(small, &(0..9).map(|at| flushed(at, 2)).collect::<Vec<_>>())),
        ("unflushed", talk(plain, &[change(Write, 0, 3), change(Zero, 0, 2), reopen.clone()])),
        ("torn", talk(plain, &[&records[..], &[damage(3, 1, 70)]].concat())),
        ("superblock", talk(plain, &[&records[..], &[damage(0, 0, 20)]].concat())),
        ("checkpoint", talk(small, &[flushed(0, 1), damage(1, 0, 70)])),
        ("copied", talk(plain, &[&records[..], &[vec![op(Copy), 3, 0, 0, 3, 2, 0]]].concat())),
        ("cut", talk(plain, &[flushed(0, 1), vec![op(Cut), 3, 0, 9]])),
        (
            "forged",
            talk(plain, &[&records[..], &[damage(3, 1, 64), vec![op(Forge), 3, 1, 0]]].concat()),
        ),
    ]
}

fn layers() -> Seeds {
    use layer::Op::*;
    let op =
        |op: layer::Op| layer::Op::ALL.iter().position(|one| *one == op).expect("listed") as u8;
    let talk = |head: [u8; 2], steps: &[Vec<u8>]| [&head[..], &steps.concat()].concat();
    // How many blocks, and what each is.
    let data = |bytes: &[u8]| [&[op(Data), bytes.len() as u8 - 1], bytes].concat();
    let some = |kind: layer::Op, count: u8| vec![op(kind), count - 1];
    // For each frame whether it is short; then the parent's name, if there is one, the note, the number.
    let seal = |frames: &[u8], rest: &[u8]| [&[op(Seal)], frames, rest].concat();
    let (whole, odd) = ([0, 0], [1, 1]);
    let one = [data(&[1, 2, 3]), some(Zero, 2), some(Skip, 4), data(&[9; 20])];
    let first = [&one[..], &[seal(&[0, 3], &[1, 7])]].concat();
    let broken = |steps: &[Vec<u8>]| [&first[..], steps].concat();
    let apart = [data(&[1, 2, 3]), some(Skip, 4), data(&[9; 5]), seal(&[0], &[1, 7])];
    vec![
        ("empty", whole.to_vec()),
        ("one", talk(whole, &one)),
        ("odd", talk(odd, &[data(&[1, 2]), some(Zero, 1)])),
        ("short-frame", talk(whole, &[data(&[5; 6]), seal(&[3], &[1, 1])])),
        ("two", talk(whole, &[&apart[..], &[some(Skip, 4), data(&[4]), some(Skip, 9)]].concat())),
        ("three", {
            let upper = [some(Zero, 3), seal(&[], &[1, 0, 1]), some(Skip, 5)];
            talk(whole, &[&apart[..], &upper].concat())
        }),
        ("footer", talk(whole, &broken(&[vec![op(DamageEnd), 200, 0, 1]]))),
        ("cut", talk(whole, &broken(&[vec![op(Cut), 100, 0]]))),
        ("extended", talk(whole, &broken(&[vec![op(Extend), 9]]))),
        ("forged", talk(whole, &broken(&[vec![op(DamageEnd), 16, 16, 1], vec![op(Forge)]]))),
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
        ("drawn-1", drawn(1, 40)),
        ("drawn-2", drawn(2, 80)),
        ("drawn-3", drawn(3, 200)),
        ("drawn-4", drawn(4, 400)),
    ]
}
