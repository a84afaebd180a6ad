//! Models of everything that sessions share: the overlay behind its lock, the pin cells, the slots.
//!
//! Each thread of a model owns clients, as a worker does, and drives the real session and overlay.
//! The bytes of every slot are in a cell of the model checker: two threads that touch a slot, one
//! of them writing, without an order between them that the code enforces, are an error.

#![cfg(loom)]
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::time::Duration;

use glassine_core::outbox::SendPiece;
use glassine_core::overlay::SessionKey;
use glassine_core::session::{Input, Output};
use glassine_core::sync::{Arc, check, spawn};
use glassine_core::wire::{self, RequestHeader};
use glassine_core::{
    Catalog, Export, Instant, Limits, Overlay, OverlayConfig, Segment, Session, Source,
};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;

const BLOCK: usize = 4096;
/// Two leaves of the map, so that one can be dropped as a whole.
const BLOCKS: u64 = 1024;
const SLOTS: usize = 16;

struct Slot(UnsafeCell<[u8; BLOCK]>);

// SAFETY: every access goes through the model checker, which reports those that are not ordered.
unsafe impl Sync for Slot {}

impl Slot {
    fn read(&self, at: usize, bytes: &mut [u8]) {
        // SAFETY: as above; the pointer does not leave the closure.
        self.0.with(|slot| bytes.copy_from_slice(unsafe { &(&*slot)[at..at + bytes.len()] }));
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        // SAFETY: as above; the pointer does not leave the closure.
        self.0
            .with_mut(|slot| unsafe { (&mut *slot)[at..at + bytes.len()].copy_from_slice(bytes) });
    }
}

struct Device {
    overlay: Mutex<Overlay>,
    slots: Vec<Slot>,
}

impl Device {
    fn new() -> Arc<Self> {
        let overlay = Overlay::new(OverlayConfig {
            size_bytes: BLOCKS * BLOCK as u64,
            template_bytes: 0,
            quota_bytes: u64::MAX,
            space: glassine_core::SpaceLimits::growing_by(1),
        });
        let slots = (0..SLOTS).map(|_| Slot(UnsafeCell::new([0; BLOCK]))).collect();
        Arc::new(Self { overlay: Mutex::new(overlay), slots })
    }

    fn read(&self, source: Source, bytes: &mut [u8]) {
        let Source::Data { offset } = source else {
            return bytes.fill(0);
        };
        let mut offset = offset as usize;
        for piece in bytes.chunks_mut(BLOCK) {
            self.slots[offset / BLOCK].read(offset % BLOCK, piece);
            offset += piece.len();
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let offset = offset as usize;
        assert!(offset % BLOCK + bytes.len() <= BLOCK, "the models write within a block");
        self.slots[offset / BLOCK].write(offset % BLOCK, bytes);
    }

    fn audit(&self) {
        self.overlay.lock().unwrap().audit();
    }
}

/// A client, its session, and the part of a driver between them.
struct Client {
    device: Arc<Device>,
    session: Session,
    key: SessionKey,
    input: VecDeque<u8>,
    output: Vec<u8>,
    receiving: bool,
    sending: bool,
    /// Replies are not sent for now: what they refer to stays pinned.
    holds_replies: bool,
    closed: bool,
}

impl Client {
    fn new(device: &Arc<Device>, key: u64) -> Self {
        let limits = Limits {
            requests_max: 4,
            staging_bytes: 12 << 10,
            direct_bytes_min: u32::MAX,
            payload_bytes_max: 8 << 10,
            unsent_bytes_max: 1 << 20,
            detect_zeroes: false,
            handshake_time_max: Duration::from_secs(1),
            stall_time_max: Duration::from_secs(1),
            drain_time_max: Duration::from_secs(1),
        };
        let export = Export {
            name: String::new(),
            description: String::new(),
            size_bytes: BLOCKS * BLOCK as u64,
            read_only: false,
        };
        let (key, catalog) = (SessionKey(key), Arc::new(Catalog::new(vec![export])));
        let mut client = Self {
            device: Arc::clone(device),
            session: Session::new(key, limits, catalog, Instant(0)),
            key,
            input: VecDeque::new(),
            output: Vec::new(),
            receiving: false,
            sending: false,
            holds_replies: false,
            closed: false,
        };
        let mut hello = vec![0, 0, 0, 3];
        hello.extend(wire::OPTION_MAGIC.to_be_bytes());
        hello.extend(wire::OPT_GO.to_be_bytes());
        hello.extend([0, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
        client.say(&hello);
        assert!(client.session.pin_cell().is_some(), "the handshake is done");
        client
    }

    fn request(&mut self, command: u16, offset: u64, length: usize, payload: &[u8]) {
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC,
            flags: 0,
            command,
            cookie: 7,
            offset,
            length: length as u32,
        };
        self.output.clear();
        let mut bytes = header.encode().to_vec();
        bytes.extend(payload);
        self.say(&bytes);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.request(wire::CMD_WRITE, offset, bytes.len(), bytes);
        assert!(self.holds_replies || self.output.len() == wire::SIMPLE_REPLY_BYTES);
    }

    fn fill(&mut self, block: u64, value: u8) {
        self.write(block * BLOCK as u64, &[value; BLOCK]);
    }

    fn trim(&mut self, blocks: u64) {
        self.request(wire::CMD_TRIM, 0, blocks as usize * BLOCK, &[]);
    }

    /// Asks for a block. The reply is for [`Self::answer`] to take.
    fn ask(&mut self, block: u64) {
        self.request(wire::CMD_READ, block * BLOCK as u64, BLOCK, &[]);
    }

    fn answer(&mut self) -> Vec<u8> {
        self.holds_replies = false;
        self.run();
        assert_eq!(self.output.len(), wire::SIMPLE_REPLY_BYTES + BLOCK);
        self.output.split_off(wire::SIMPLE_REPLY_BYTES)
    }

    /// Reads a block, all of which has one value.
    fn value(&mut self, block: u64) -> u8 {
        self.ask(block);
        uniform(&self.answer())
    }

    fn disconnect(mut self) {
        self.request(wire::CMD_DISC, 0, 0, &[]);
        assert!(self.closed);
    }

    fn say(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        self.run();
    }

    fn tell(&mut self, input: Input) {
        self.session.handle(Instant(0), input);
    }

    /// Does everything that can be done now, in the order in which the production driver does.
    fn run(&mut self) {
        while !self.closed {
            if self.session.needs_overlay() {
                self.advance();
            }
            match self.session.poll() {
                Some(Output::Enter { .. }) => {
                    let cell = self.device.overlay.lock().unwrap().attach();
                    self.session.entered(cell);
                }
                Some(Output::Receive) => self.receiving = true,
                Some(Output::Send) => self.sending = true,
                Some(Output::Store { id, staged }) => {
                    let mut bytes = self.session.staged(staged);
                    for (offset, length) in self.session.targets(id, bytes.len()) {
                        let (here, rest) = bytes.split_at(length as usize);
                        self.device.write(offset, here);
                        bytes = rest;
                    }
                    self.tell(Input::Stored { id, result: Ok(()) });
                }
                Some(Output::Merge { id, merge }) => {
                    let mut block = [0; BLOCK];
                    self.device.read(merge.source, &mut block[..merge.source_bytes as usize]);
                    assert!(!merge.zero_keep, "the models trim whole blocks");
                    let (start, end) = (merge.keep.start as usize, merge.keep.end as usize);
                    self.device.write(merge.target, &block[..start]);
                    self.device.write(merge.target + end as u64, &block[end..]);
                    self.tell(Input::Merged { id, result: Ok(()) });
                }
                Some(Output::StopReceiving) => {
                    if std::mem::take(&mut self.receiving) {
                        self.tell(Input::EndOfStream);
                    }
                }
                Some(Output::Close { .. }) => {
                    let cell = self.session.pin_cell().expect("it was attached");
                    let mut overlay = self.device.overlay.lock().unwrap();
                    overlay.detach(cell);
                    overlay.reclaim();
                    self.closed = true;
                }
                Some(other) => unreachable!("{other:?}"),
                None if self.sending && !self.holds_replies => self.send(),
                None if self.receiving && !self.input.is_empty() => self.receive(),
                None => return,
            }
        }
    }

    /// In these models the data file grows at once.
    fn advance(&mut self) {
        let woken = {
            let mut overlay = self.device.overlay.lock().unwrap();
            self.session.advance(&mut overlay);
            while overlay.poll_growth().is_some() {
                overlay.grown(true);
            }
            assert!(overlay.counts().total as usize <= SLOTS);
            overlay.take_waiting()
        };
        for key in woken {
            assert_eq!(key, self.key, "nobody else waits, since growth is immediate");
            self.tell(Input::Wake);
        }
    }

    fn send(&mut self) {
        self.sending = false;
        let before = self.output.len();
        for piece in self.session.send_plan() {
            match piece {
                SendPiece::Bytes(bytes) => self.output.extend(bytes),
                SendPiece::Segment(Segment { source, length }) => {
                    let mut bytes = vec![0; length as usize];
                    self.device.read(source, &mut bytes);
                    self.output.extend(bytes);
                }
            }
        }
        let bytes = (self.output.len() - before) as u64;
        self.tell(Input::Sent { bytes });
    }

    fn receive(&mut self) {
        self.receiving = false;
        let plan = self.session.receive_plan();
        let count = plan.staging.len().min(self.input.len());
        for byte in &mut plan.staging[..count] {
            *byte = self.input.pop_front().expect("counted");
        }
        self.tell(Input::Received { bytes: count });
    }
}

fn uniform(bytes: &[u8]) -> u8 {
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a read is never torn");
    bytes[0]
}

/// A reader of a block against a writer who replaces it, and then reuses what it was in.
#[test]
fn publish_against_resolve() {
    check("publish_against_resolve", None, || {
        let device = Device::new();
        let (mut reader, mut writer) = (Client::new(&device, 1), Client::new(&device, 2));
        writer.fill(0, 1);
        let other = spawn(move || {
            let value = reader.value(0);
            assert!((1..=3).contains(&value), "one of the values there were");
        });
        writer.fill(0, 2);
        writer.fill(0, 3);
        other.join().unwrap();
        assert_eq!(writer.value(0), 3);
        device.audit();
    });
}

/// The same with a trim, which drops a part of the map and displaces its slots in one step.
#[test]
fn trim_against_resolve() {
    check("trim_against_resolve", None, || {
        let device = Device::new();
        let (mut reader, mut writer) = (Client::new(&device, 1), Client::new(&device, 2));
        writer.fill(0, 1);
        let other = spawn(move || {
            let value = reader.value(0);
            assert!(value <= 1, "before the trim, or behind it");
        });
        writer.trim(512);
        writer.fill(600, 2);
        other.join().unwrap();
        assert_eq!((writer.value(0), writer.value(600)), (0, 2));
        device.audit();
    });
}

/// A slot that is displaced but pinned: its reader lets go while two writers look for slots.
#[test]
fn unpin_against_reclaim() {
    check("unpin_against_reclaim", None, || {
        let device = Device::new();
        let mut reader = Client::new(&device, 1);
        let (mut writer, mut third) = (Client::new(&device, 2), Client::new(&device, 3));
        writer.fill(0, 1);
        reader.holds_replies = true;
        reader.ask(0);
        writer.fill(0, 2);
        let reader = spawn(move || assert_eq!(uniform(&reader.answer()), 1));
        let third = spawn(move || third.fill(1, 3));
        writer.fill(2, 4);
        reader.join().unwrap();
        third.join().unwrap();
        assert_eq!((writer.value(0), writer.value(1), writer.value(2)), (2, 3, 4));
        device.audit();
    });
}

/// One session with two pins of different moments, let go in either order, while both slots are
/// displaced and wanted.
fn two_pins(name: &str, oldest_first: bool) {
    check(name, None, move || {
        let device = Device::new();
        let (mut reader, mut writer) = (Client::new(&device, 1), Client::new(&device, 2));
        writer.fill(0, 1);
        writer.fill(1, 1);
        // A reply pins block 0; then time moves on, and half a write will pin block 1.
        reader.holds_replies = true;
        reader.ask(0);
        writer.fill(2, 1);
        let other = spawn(move || {
            if oldest_first {
                assert_eq!(uniform(&reader.answer()), 1);
            }
            // The merge pins block 1, reads it, and lets go as it publishes.
            reader.write(BLOCK as u64, &[9; BLOCK / 2]);
            if !oldest_first {
                reader.output.clear();
                reader.holds_replies = false;
                reader.run();
                assert_eq!(uniform(&reader.output[16..16 + BLOCK]), 1);
            }
        });
        writer.fill(0, 2);
        writer.fill(1, 2);
        writer.fill(3, 2);
        other.join().unwrap();
        writer.ask(1);
        let merged = writer.answer();
        assert!([2, 9].contains(&uniform(&merged[..BLOCK / 2])), "the whole, or the half over it");
        assert_eq!(uniform(&merged[BLOCK / 2..]), 2);
        assert_eq!((writer.value(0), writer.value(3)), (2, 2));
        device.audit();
    });
}

#[test]
fn two_pins_oldest_first() {
    two_pins("two_pins_oldest_first", true);
}

#[test]
fn two_pins_newest_first() {
    two_pins("two_pins_newest_first", false);
}

/// Two clients write a half of one block each. Both must win.
#[test]
fn two_halves() {
    check("two_halves", None, || {
        let device = Device::new();
        let (mut one, mut two) = (Client::new(&device, 1), Client::new(&device, 2));
        one.fill(0, 1);
        let other = spawn(move || two.write(BLOCK as u64 / 2, &[3; BLOCK / 2]));
        one.write(0, &[2; BLOCK / 2]);
        other.join().unwrap();
        one.ask(0);
        let bytes = one.answer();
        assert_eq!((uniform(&bytes[..BLOCK / 2]), uniform(&bytes[BLOCK / 2..])), (2, 3));
        device.audit();
    });
}

/// A session ends, and its pin cell goes, while others look at all cells, or bring one of their own.
#[test]
fn attach_and_detach() {
    check("attach_and_detach", None, || {
        let device = Device::new();
        let (mut one, mut two) = (Client::new(&device, 1), Client::new(&device, 2));
        one.fill(0, 1);
        let other = spawn(move || {
            assert!((1..=3).contains(&two.value(0)));
            two.disconnect();
        });
        one.fill(0, 2);
        let mut third = Client::new(&device, 3);
        third.fill(0, 3);
        third.disconnect();
        other.join().unwrap();
        assert_eq!(one.value(0), 3);
        one.disconnect();
        let overlay = device.overlay.lock().unwrap();
        assert_eq!((overlay.sessions(), overlay.counts().displaced), (0, 0));
        overlay.audit();
    });
}

/// All at once: a reader, a writer of a half, and a writer of the whole.
#[test]
fn reader_half_and_whole() {
    check("reader_half_and_whole", None, || {
        let device = Device::new();
        let mut reader = Client::new(&device, 1);
        let (mut half, mut whole) = (Client::new(&device, 2), Client::new(&device, 3));
        whole.fill(0, 1);
        let reader = spawn(move || {
            reader.ask(0);
            let bytes = reader.answer();
            uniform(&bytes[..BLOCK / 2]);
            uniform(&bytes[BLOCK / 2..]);
        });
        let half = spawn(move || half.write(0, &[2; BLOCK / 2]));
        whole.fill(0, 3);
        reader.join().unwrap();
        half.join().unwrap();
        whole.ask(0);
        let bytes = whole.answer();
        assert_eq!(uniform(&bytes[BLOCK / 2..]), 3);
        assert!((2..=3).contains(&uniform(&bytes[..BLOCK / 2])));
        device.audit();
    });
}

/// A device is sealed, and the seal read without the lock, while a writer replaces what it names, and looks
/// for slots.
#[test]
fn seal_against_publish() {
    check("seal_against_publish", None, || {
        let device = Device::new();
        let mut writer = Client::new(&device, 1);
        writer.fill(0, 1);
        writer.fill(600, 1);
        let sealed = Arc::clone(&device);
        let other = spawn(move || {
            let seal = sealed.overlay.lock().unwrap().seal();
            let values = [0, 600].map(|block| {
                let mut bytes = [0; BLOCK];
                sealed.read(seal.run_at(block).1, &mut bytes);
                uniform(&bytes)
            });
            assert!([[1, 1], [2, 1], [2, 2], [3, 2]].contains(&values), "one moment: {values:?}");
            drop(sealed.overlay.lock().unwrap().unseal(seal));
        });
        writer.fill(0, 2);
        writer.fill(600, 2);
        writer.fill(0, 3);
        other.join().unwrap();
        assert_eq!((writer.value(0), writer.value(600)), (3, 2));
        let mut overlay = device.overlay.lock().unwrap();
        overlay.reclaim();
        assert_eq!((overlay.counts().sealed, overlay.counts().displaced), (0, 0));
        overlay.audit();
    });
}
