//! The bodies of the fuzz targets. `targets/` hands them libFuzzer's bytes, `tests/` bolero's: one
//! body, two engines.
//!
//! Each takes bytes, and panics if something is wrong.

use glassine_core::outbox::SendPiece;
use glassine_core::overlay::SessionKey;
use glassine_core::session::{Input, Output};
use glassine_core::sync::Arc;
use glassine_core::{Catalog, Export, Instant, Limits, Overlay, OverlayConfig, Session, Source};

use sim::choice::Tape;
use sim::scenario;

const SIZE: u64 = 40_000;
const TEMPLATE: u64 = 20_000;

/// Anything a client may send before it has chosen an export.
pub fn handshake(bytes: &[u8]) {
    drive(bytes, &[]);
}

/// Anything a client may send after it has chosen an export, cut into pieces as the first byte says.
pub fn requests(bytes: &[u8]) {
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    drive(&hello, bytes);
}

/// A whole simulated world, its choices taken from the bytes.
pub fn world(bytes: &[u8]) {
    if let Err(failure) = scenario::run(Tape::bytes(bytes.to_vec())) {
        panic!("{failure}");
    }
}

/// Feeds a session, does what it says at once, and checks that it comes to an end with nothing left.
fn drive(first: &[u8], then: &[u8]) {
    let piece = then.first().map_or(usize::MAX, |byte| usize::from(*byte) + 1);
    let stream: Vec<u8> = first.iter().chain(then.get(1..).unwrap_or(&[])).copied().collect();
    let export = Export {
        name: "fuzz".to_owned(),
        description: String::new(),
        size_bytes: SIZE,
        read_only: false,
    };
    let mut overlay = Overlay::new(OverlayConfig {
        size_bytes: SIZE,
        template_bytes: TEMPLATE,
        quota_bytes: SIZE / 2,
        growth_slots_min: 2,
    });
    let limits = Limits { requests_max: 4, staging_bytes: 8208, ..Limits::default() };
    let catalog = Arc::new(Catalog::new(vec![export]));
    let mut session = Session::new(SessionKey(1), limits, catalog, Instant(0));
    let mut world = Direct { data: Vec::new(), stream, at: 0, piece, receiving: false };
    loop {
        if session.needs_overlay() {
            session.advance(&mut overlay);
            while let Some(slots) = overlay.poll_growth() {
                world.data.resize(world.data.len() + slots as usize * 4096, 0xa5);
                overlay.grown(true);
            }
            if !overlay.take_waiting().is_empty() {
                session.handle(Instant(0), Input::Wake);
            }
        }
        session.audit();
        match session.poll() {
            Some(Output::Close { .. }) => break,
            Some(output) => world.perform(&mut session, &mut overlay, output),
            None if world.receiving => world.receive(&mut session),
            None if session.needs_overlay() => {}
            None => panic!("a session that wants nothing is over"),
        }
    }
    if let Some(cell) = session.pin_cell() {
        overlay.detach(cell);
    }
    overlay.reclaim();
    overlay.audit();
    assert_eq!(overlay.counts().filling, 0);
    assert_eq!(overlay.charged(), 0);
}

/// A driver that does everything at once.
struct Direct {
    data: Vec<u8>,
    stream: Vec<u8>,
    at: usize,
    piece: usize,
    receiving: bool,
}

impl Direct {
    fn perform(&mut self, session: &mut Session, overlay: &mut Overlay, output: Output) {
        let now = Instant(0);
        match output {
            Output::Enter { .. } => session.entered(overlay.attach()),
            Output::Receive => self.receiving = true,
            Output::Send => {
                let bytes = session.send_plan().map(|piece| match piece {
                    SendPiece::Bytes(bytes) => bytes.len() as u64,
                    SendPiece::Segment(segment) => {
                        if let Source::Template { offset } = segment.source {
                            assert!(offset + segment.length <= TEMPLATE);
                        }
                        segment.length
                    }
                });
                let bytes = bytes.sum();
                session.handle(now, Input::Sent { bytes });
            }
            Output::Load => session.load(u64::MAX, |_, _| Ok(())),
            Output::Store { id, staged } => {
                let bytes = session.staged(staged.clone()).to_vec();
                let mut rest = &bytes[..];
                for (offset, length) in session.targets(id, bytes.len()) {
                    assert!(overlay.is_private(offset));
                    let (here, after) = rest.split_at(length as usize);
                    self.data[offset as usize..][..here.len()].copy_from_slice(here);
                    rest = after;
                }
                session.handle(now, Input::Stored { id, result: Ok(()) });
            }
            Output::Merge { id, merge } => {
                assert!(overlay.is_private(merge.target) && merge.keep.end <= 4096);
                session.handle(now, Input::Merged { id, result: Ok(()) });
            }
            Output::Fetch { id, offset, length } => {
                assert!(offset + length <= TEMPLATE);
                session.handle(now, Input::Fetched { id, result: Ok(length) });
            }
            Output::CancelFetch { .. } | Output::Prefetch { .. } => {}
            Output::StopReceiving => {
                if std::mem::take(&mut self.receiving) {
                    session.handle(now, Input::EndOfStream);
                }
            }
            Output::Shutdown => {
                if std::mem::take(&mut self.receiving) {
                    session.handle(now, Input::ReceiveFailed);
                }
            }
            Output::Close { .. } => unreachable!("handled where the drive ends"),
        }
    }

    fn receive(&mut self, session: &mut Session) {
        self.receiving = false;
        let rest = &self.stream[self.at..];
        if rest.is_empty() {
            return session.handle(Instant(0), Input::EndOfStream);
        }
        let plan = session.receive_plan();
        let targets: Vec<_> = plan.direct.collect();
        let mut taken = 0;
        for (offset, length) in targets {
            let count = (rest.len() - taken).min(length as usize).min(self.piece);
            self.data[offset as usize..][..count].copy_from_slice(&rest[taken..taken + count]);
            taken += count;
            if (count as u64) < length {
                break;
            }
        }
        if taken == 0 {
            let count = rest.len().min(plan.staging.len()).min(self.piece);
            plan.staging[..count].copy_from_slice(&rest[..count]);
            taken = count;
        }
        self.at += taken;
        session.handle(Instant(0), Input::Received { bytes: taken });
    }
}
