//! The core's hot path and nothing else: batches of requests through a session and an overlay, with a driver
//! that does no I/O. `tests/instructions` counts what it costs, request by request.
//!
//! `hot_path WORKLOAD BATCHES`, with the workload `template`, `slots`, `overwrite` or `journal`: overwrites of a device
//! with a journal, whose barriers are not counted.

use std::env;

use glassine_core::journal::JournalFile;
use glassine_core::journal::recovery::{Recovery, Step, blank};
use glassine_core::journal::superblock::Identity;
use glassine_core::limits::SEGMENT_BYTES;
use glassine_core::outbox::SendPiece;
use glassine_core::overlay::SessionKey;
use glassine_core::sync::Arc;
use glassine_core::wire::{self, RequestHeader};
use glassine_core::{
    Catalog, Export, Input, Instant, JournalLimits, Limits, Output, Overlay, OverlayConfig,
    Session, SpaceLimits,
};

const BATCH: u64 = 32;
const BLOCK: u64 = 4096;
/// What requests are spread over.
const SPAN_BLOCKS: u64 = 1 << 14;
const DEVICE_BYTES: u64 = 1 << 30;
const NOW: Instant = Instant(1);

struct Driver {
    session: Session,
    overlay: Overlay,
    inputs: Vec<Input>,
    receiving: bool,
    sending: bool,
    bytes_sent: u64,
    pieces_stored: u64,
}

impl Driver {
    fn new(template_bytes: u64, has_journal: bool) -> Self {
        let export = Export {
            name: String::new(),
            description: String::new(),
            size_bytes: DEVICE_BYTES,
            read_only: false,
        };
        let catalog = Arc::new(Catalog::new(vec![export]));
        let mut driver = Self {
            session: Session::new(SessionKey(1), Limits::default(), catalog, NOW),
            overlay: overlay(template_bytes, has_journal),
            inputs: Vec::with_capacity(BATCH as usize),
            receiving: false,
            sending: false,
            bytes_sent: 0,
            pieces_stored: 0,
        };
        driver.work(None);
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(wire::OPTION_MAGIC.to_be_bytes());
        hello.extend(wire::OPT_EXPORT_NAME.to_be_bytes());
        hello.extend(0u32.to_be_bytes());
        driver.receive(&hello);
        driver
    }

    /// Hands bytes to the session as a socket would, and does what follows.
    fn receive(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            assert!(std::mem::take(&mut self.receiving), "the session wants to receive");
            // A payload that does not fit the staging buffer goes to its slots; nobody looks at them here.
            let plan = self.session.receive_plan();
            let direct: u64 = plan.direct.map(|(_, length)| length).sum();
            let (direct, behind) = rest.split_at(rest.len().min(direct as usize));
            let staged = plan.staging.len().min(behind.len());
            plan.staging[..staged].copy_from_slice(&behind[..staged]);
            let count = direct.len() + staged;
            rest = &rest[count..];
            self.work(Some(Input::Received { bytes: count }));
        }
    }

    /// What is counted. As the driver for Linux does it: outputs, then their completions, then one send.
    #[inline(never)]
    fn work(&mut self, input: Option<Input>) {
        if let Some(input) = input {
            self.session.handle(NOW, input);
        }
        loop {
            if self.session.needs_overlay() {
                self.session.advance(&mut self.overlay);
                while self.overlay.poll_growth().is_some() {
                    self.overlay.grown(true);
                    if !self.overlay.take_waiting().is_empty() {
                        self.session.handle(NOW, Input::Wake);
                    }
                }
            }
            if let Some(output) = self.session.poll() {
                self.begin(output);
            } else if !self.inputs.is_empty() {
                for input in self.inputs.drain(..) {
                    self.session.handle(NOW, input);
                }
            } else if std::mem::take(&mut self.sending) {
                let bytes = self.session.send_plan().map(|piece| match piece {
                    SendPiece::Bytes(bytes) => bytes.len() as u64,
                    SendPiece::Segment(segment) => segment.length,
                });
                let bytes = bytes.sum();
                self.bytes_sent += bytes;
                self.session.handle(NOW, Input::Sent { bytes });
            } else {
                return;
            }
        }
    }

    fn begin(&mut self, output: Output) {
        match output {
            Output::Enter { .. } => {
                let cell = self.overlay.attach();
                self.session.entered(cell);
            }
            Output::Receive => self.receiving = true,
            Output::Send => self.sending = true,
            Output::Store { id, staged } => {
                self.pieces_stored += self.session.targets(id, staged.len()).count() as u64;
                self.inputs.push(Input::Stored { id, result: Ok(()) });
            }
            Output::Fetch { id, length, .. } => {
                self.inputs.push(Input::Fetched { id, result: Ok(length) });
            }
            other => panic!("no request here leads to {other:?}"),
        }
    }
}

/// A device that nobody has written to.
fn overlay(template_bytes: u64, has_journal: bool) -> Overlay {
    let config = OverlayConfig {
        size_bytes: DEVICE_BYTES,
        template_bytes,
        quota_bytes: u64::MAX,
        space: SpaceLimits::default(),
    };
    if !has_journal {
        return Overlay::new(config);
    }
    let (sheet, size_bytes, template_id, segment_bytes) = (1, DEVICE_BYTES, [0; 32], SEGMENT_BYTES);
    let blank = blank(&Identity { sheet, size_bytes, template_bytes, template_id, segment_bytes });
    let segment = vec![0; segment_bytes as usize];
    let mut recovery = Recovery::new(config, template_id, 0, JournalLimits::default());
    while let Some(step) = recovery.poll() {
        let read = match step {
            Step::Read { file, offset, length } => {
                let bytes = match file {
                    JournalFile::Superblock => &blank.superblock,
                    JournalFile::Checkpoint(_) => &blank.checkpoint,
                    JournalFile::Segment(_) => &segment,
                };
                let start = bytes.len().min(offset as usize);
                &bytes[start..bytes.len().min(start + length as usize)]
            }
            _ => &[],
        };
        recovery.handle(Ok(read)).expect("it is blank");
    }
    recovery.finish().0
}

/// Where request number `index` goes: all over the span, and never twice in a row.
fn block(index: u64) -> u64 {
    index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (SPAN_BLOCKS - 1)
}

fn batch(bytes: &mut Vec<u8>, command: u16, first: u64, block: impl Fn(u64) -> u64) {
    bytes.clear();
    for index in first..first + BATCH {
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC,
            flags: 0,
            command,
            cookie: index,
            offset: block(index) * BLOCK,
            length: BLOCK as u32,
        };
        bytes.extend(header.encode());
        if command == wire::CMD_WRITE {
            bytes.resize(bytes.len() + BLOCK as usize, 1);
        }
    }
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, workload, batches] = &arguments[..] else {
        panic!("usage: hot_path template|slots|overwrite|journal BATCHES");
    };
    let batches: u64 = batches.parse().expect("a number of batches");
    let (template_bytes, command) = match workload.as_str() {
        "template" => (DEVICE_BYTES, wire::CMD_READ),
        "slots" => (0, wire::CMD_READ),
        "overwrite" | "journal" => (0, wire::CMD_WRITE),
        other => panic!("no workload {other:?}"),
    };
    let mut driver = Driver::new(template_bytes, workload == "journal");
    let mut bytes = Vec::new();
    if workload != "template" {
        for first in (0..SPAN_BLOCKS).step_by(BATCH as usize) {
            batch(&mut bytes, wire::CMD_WRITE, first, |index| index);
            driver.receive(&bytes);
        }
    }
    let (sent_before, stored_before) = (driver.bytes_sent, driver.pieces_stored);
    for number in 0..batches {
        batch(&mut bytes, command, number * BATCH, block);
        driver.receive(&bytes);
    }
    // Everything was answered, in full.
    let requests = batches * BATCH;
    let reply = wire::SIMPLE_REPLY_BYTES as u64 + if command == wire::CMD_READ { BLOCK } else { 0 };
    assert_eq!(driver.bytes_sent - sent_before, requests * reply);
    let stored = if command == wire::CMD_WRITE { requests } else { 0 };
    assert_eq!(driver.pieces_stored - stored_before, stored);
    assert_eq!(driver.session.in_flight(), 0);
}
