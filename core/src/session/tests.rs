//! What a session says to its driver, step by step. Whatever takes many steps or several clients is
//! the simulator's to judge.

use std::time::Duration;
use std::{vec, vec::Vec};

use super::*;
use crate::export::Export;
use crate::overlay::OverlayConfig;

const BLOCK: u64 = 4096;
const COOKIE: u64 = 0x1122_3344_5566_7788;

/// A session with a client that has entered a device of 1 MiB over a template as large.
struct Tester {
    session: Session,
    overlay: Overlay,
    now: Instant,
}

impl Tester {
    fn new(limits: Limits) -> Self {
        let size_bytes = 1 << 20;
        let overlay = Overlay::new(OverlayConfig {
            size_bytes,
            template_bytes: size_bytes,
            quota_bytes: u64::MAX,
            space: crate::SpaceLimits::growing_by(64),
        });
        Self::over(limits, overlay, size_bytes)
    }

    fn over(limits: Limits, overlay: Overlay, size_bytes: u64) -> Self {
        let name = alloc::string::String::new();
        let export = Export { name: name.clone(), description: name, size_bytes, read_only: false };
        let catalog = Arc::new(Catalog::new(vec![export]));
        let session = Session::new(SessionKey(1), limits, catalog, Instant::default());
        let mut tester = Self { session, overlay, now: Instant::default() };
        assert_eq!(tester.outputs(), [Output::Send, Output::Receive]);
        tester.send_all();
        tester.receive(&3u32.to_be_bytes());
        assert_eq!(tester.outputs(), [Output::Receive]);
        let mut option = wire::OPTION_MAGIC.to_be_bytes().to_vec();
        option.extend(wire::OPT_EXPORT_NAME.to_be_bytes());
        option.extend(0u32.to_be_bytes());
        tester.receive(&option);
        assert!(tester.session.pin_cell().is_none());
        assert_eq!(tester.outputs(), [Output::Enter { export: 0 }, Output::Send]);
        tester.session.entered(tester.overlay.attach());
        tester.send_all();
        assert_eq!(tester.outputs(), [Output::Receive]);
        tester
    }

    /// Everything the session wants next; the data file grows whenever it has to.
    fn outputs(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        loop {
            outputs.extend(core::iter::from_fn(|| self.session.poll()));
            if !self.session.needs_overlay() {
                return outputs;
            }
            self.session.advance(&mut self.overlay);
            while self.overlay.poll_growth().is_some() {
                self.overlay.grown(true);
            }
            if !self.overlay.take_waiting().is_empty() {
                self.handle(Input::Wake);
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.session.handle(self.now, input);
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.session.receive_plan().staging[..bytes.len()].copy_from_slice(bytes);
        self.handle(Input::Received { bytes: bytes.len() });
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) {
        self.request_with(0, command, offset, length);
    }

    fn request_with(&mut self, flags: u16, command: u16, offset: u64, length: u32) {
        let payload = vec![7; if command == wire::CMD_WRITE { length as usize } else { 0 }];
        self.request_bytes(flags, command, offset, length, &payload);
    }

    /// As much of the payload as comes with the header.
    fn request_bytes(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) {
        let magic = wire::REQUEST_MAGIC;
        let header = RequestHeader { magic, flags, command, cookie: COOKIE, offset, length };
        self.receive(&[&header.encode(), payload].concat());
    }

    /// What the `Send` under way is to send: bytes and segments.
    fn plan(&self) -> (u64, Vec<Source>) {
        let mut sources = Vec::new();
        let bytes = self.session.send_plan().map(|piece| match piece {
            SendPiece::Bytes(bytes) => bytes.len() as u64,
            SendPiece::Segment(segment) => {
                sources.push(segment.source);
                segment.length
            }
        });
        (bytes.sum(), sources)
    }

    fn send_all(&mut self) {
        let (bytes, _) = self.plan();
        self.handle(Input::Sent { bytes });
    }

    /// Writes the first block, as far as a reply that waits to be sent.
    fn write_first_block(&mut self) {
        self.request(wire::CMD_WRITE, 0, 4096);
        let outputs = self.outputs();
        let Some(Output::Store { id, .. }) =
            outputs.iter().find(|output| matches!(output, Output::Store { .. }))
        else {
            panic!("no store in {outputs:?}");
        };
        assert_eq!(self.session.cookie(*id), COOKIE);
        self.handle(Input::Stored { id: *id, result: Ok(()) });
        assert_eq!(self.outputs(), [Output::Send]);
    }

    /// Asks for a part of the template; answers the fetch.
    fn read_template(&mut self) -> RequestId {
        self.request(wire::CMD_READ, 8 * BLOCK, 4096);
        let outputs = self.outputs();
        let [Output::Receive, Output::Fetch { id, offset: 32_768, length: 4096 }] = outputs[..]
        else {
            panic!("{outputs:?}");
        };
        id
    }

    /// The errors of the replies that wait to be sent: none of them has payload.
    fn errors(&self) -> Vec<u32> {
        let error = |piece: SendPiece<'_>| match piece {
            SendPiece::Bytes(bytes) => u32::from_be_bytes(bytes[4..8].try_into().unwrap()),
            SendPiece::Segment(segment) => panic!("{segment:?}"),
        };
        self.session.send_plan().map(error).collect()
    }

    fn close_reason(&mut self) -> Option<CloseReason> {
        match self.outputs().pop() {
            Some(Output::Close { reason }) => Some(reason),
            _ => None,
        }
    }
}

#[test]
fn requests_are_in_flight_until_their_reply_is_with_the_kernel() {
    let mut tester = Tester::new(Limits::default());
    assert_eq!(tester.session.in_flight(), 0);
    tester.write_first_block();
    assert_eq!(tester.session.in_flight(), 1);
    tester.read_template();
    assert_eq!(tester.session.in_flight(), 2);
    tester.send_all();
    assert_eq!(tester.session.in_flight(), 1);
}

#[test]
fn a_session_shows_the_pin_cell_it_was_given() {
    let mut tester = Tester::new(Limits::default());
    let cell = tester.session.pin_cell().expect("it has entered").clone();
    assert_eq!(tester.overlay.sessions(), 1);
    tester.overlay.detach(&cell);
    assert_eq!(tester.overlay.sessions(), 0);
}

#[test]
fn a_slow_clients_segments_are_copied_and_the_copies_counted() {
    let mut tester = Tester::new(Limits::default());
    tester.write_first_block();
    tester.send_all();
    assert_eq!(tester.session.spill_bytes(), 0);
    tester.request(wire::CMD_READ, 0, 4096);
    assert_eq!(tester.outputs(), [Output::Receive, Output::Send]);
    assert_eq!(tester.plan(), (16 + 4096, vec![Source::Data { offset: 0 }]));
    tester.handle(Input::SendBlocked);
    assert_eq!(tester.outputs(), [Output::Load]);
    tester.session.load(u64::MAX, |_, bytes| {
        bytes.fill(7);
        Ok(())
    });
    assert_eq!(tester.session.spill_bytes(), 4096);
    assert_eq!(tester.session.pin_cell().expect("it has entered").oldest(), None);
    tester.handle(Input::SendReady);
    assert_eq!(tester.outputs(), [Output::Send]);
    assert_eq!(tester.plan(), (16 + 4096, vec![]));
}

#[test]
fn what_could_not_be_sent_is_copied_even_if_it_cannot_change() {
    let mut tester = Tester::new(Limits::default());
    let id = tester.read_template();
    tester.handle(Input::Fetched { id, result: Ok(4096) });
    assert_eq!(tester.outputs(), [Output::Send]);
    // Waiting for the client is no reason to copy what cannot change.
    tester.handle(Input::SendBlocked);
    assert_eq!(tester.outputs(), []);
    tester.handle(Input::SendReady);
    assert_eq!(tester.outputs(), [Output::Send]);
    tester.handle(Input::SendFault);
    assert_eq!(tester.outputs(), [Output::Load]);
    let mut read = Vec::new();
    tester.session.load(u64::MAX, |source, _| {
        read.push(source);
        Err(Errno::Io)
    });
    assert_eq!(read, [Source::Template { offset: 8 * BLOCK }]);
    assert_eq!(tester.outputs(), [Output::Send]);
    assert_eq!(tester.plan(), (16, vec![]), "the reply is an error now");
}

#[test]
fn a_fetch_that_nobody_waits_for_any_more_is_cancelled_and_nothing_else() {
    let mut tester = Tester::new(Limits { unsent_bytes_max: 1, ..Limits::default() });
    tester.write_first_block();
    tester.send_all();
    let fetch = tester.read_template();
    tester.request(wire::CMD_WRITE, 4 * BLOCK, 4096);
    let outputs = tester.outputs();
    let [Output::Receive, Output::Store { id: store, .. }] = outputs[..] else {
        panic!("{outputs:?}");
    };
    // One READ is being sent, and the next has to wait until it is out: there is nothing to cancel.
    tester.request(wire::CMD_READ, 0, 4096);
    assert_eq!(tester.outputs(), [Output::Receive, Output::Send]);
    tester.request(wire::CMD_READ, 0, 4096);
    assert_eq!(tester.outputs(), [Output::Receive]);
    tester.handle(Input::SendFailed);
    assert_eq!(tester.outputs(), [Output::Shutdown, Output::CancelFetch { id: fetch }]);
    tester.handle(Input::ReceiveFailed);
    tester.handle(Input::Stored { id: store, result: Ok(()) });
    assert_eq!(tester.close_reason(), None);
    tester.handle(Input::Fetched { id: fetch, result: Err(Errno::Io) });
    assert_eq!(tester.close_reason(), Some(CloseReason::ConnectionLost));
    tester.overlay.audit();
    assert_eq!(tester.overlay.counts().filling, 0);
}

#[test]
fn a_client_that_said_goodbye_and_is_gone_has_said_goodbye() {
    let mut tester = Tester::new(Limits::default());
    tester.write_first_block();
    tester.request(wire::CMD_DISC, 0, 0);
    assert_eq!(tester.outputs(), []);
    tester.handle(Input::SendFailed);
    assert_eq!(tester.close_reason(), Some(CloseReason::Disconnected));
}

#[test]
fn a_drain_ends_when_its_time_is_up() {
    let limits = Limits { drain_time_max: Duration::from_secs(5), ..Limits::default() };
    let mut tester = Tester::new(limits);
    tester.write_first_block();
    tester.handle(Input::SendBlocked);
    tester.handle(Input::Drain);
    assert_eq!(tester.outputs(), [Output::StopReceiving]);
    tester.handle(Input::EndOfStream);
    let deadline = Instant::default().after(Duration::from_secs(5));
    assert_eq!(tester.session.deadline(), Some(deadline));
    tester.now = Instant(deadline.0 - 1);
    tester.handle(Input::Tick);
    assert_eq!(tester.close_reason(), None);
    tester.now = deadline;
    tester.handle(Input::Tick);
    assert_eq!(tester.close_reason(), Some(CloseReason::DrainTimedOut));
    assert_eq!(tester.session.deadline(), None);
}

#[test]
fn a_client_that_is_not_in_the_middle_of_anything_has_all_the_time_it_wants() {
    let mut tester = Tester::new(Limits { requests_max: 1, ..Limits::default() });
    assert_eq!(tester.session.deadline(), None);
    tester.receive(&wire::REQUEST_MAGIC.to_be_bytes());
    assert_eq!(tester.outputs(), [Output::Receive]);
    let limit = Instant::default().after(Limits::default().stall_time_max);
    assert_eq!(tester.session.deadline(), Some(limit));
    // The rest of it, and a part of the next, which has to wait for the first: not the client's fault.
    let mut rest = vec![0; REQUEST_BYTES - 4];
    rest[REQUEST_BYTES - 4 - 2] = 16;
    rest.push(0x25);
    tester.receive(&rest);
    assert!(matches!(tester.outputs()[..], [Output::Fetch { .. }]));
    assert_eq!(tester.session.deadline(), None);
}

#[test]
fn a_client_that_says_goodbye_and_takes_no_reply_is_given_up_in_time() {
    let mut tester = Tester::new(Limits::default());
    tester.write_first_block();
    tester.request(wire::CMD_DISC, 0, 0);
    tester.handle(Input::SendBlocked);
    assert_eq!(tester.outputs(), []);
    tester.now = Instant::default().after(Limits::default().stall_time_max);
    assert_eq!(tester.session.deadline(), Some(tester.now));
    tester.handle(Input::Tick);
    assert_eq!(tester.close_reason(), Some(CloseReason::Disconnected));
}

#[test]
fn a_handshake_that_takes_too_long_ends_for_that_reason() {
    let limits = Limits::default();
    let deadline = Instant::default().after(limits.handshake_time_max);
    let mut session = Session::new(SessionKey(1), limits, Arc::default(), Instant::default());
    assert_eq!(session.poll(), Some(Output::Send));
    assert_eq!(session.deadline(), Some(deadline));
    session.handle(Instant(deadline.0 - 1), Input::Tick);
    assert_eq!(session.poll(), Some(Output::Receive));
    session.handle(deadline, Input::Tick);
    assert_eq!(session.poll(), Some(Output::Shutdown));
    session.handle(deadline, Input::SendFailed);
    session.handle(deadline, Input::ReceiveFailed);
    assert_eq!(session.poll(), Some(Output::Close { reason: CloseReason::HandshakeTimedOut }));
}

#[test]
fn the_end_of_the_stream_is_told_by_where_it_is() {
    let magic = wire::REQUEST_MAGIC.to_be_bytes();
    let write = RequestHeader {
        magic: wire::REQUEST_MAGIC,
        flags: 0,
        command: wire::CMD_WRITE,
        cookie: COOKIE,
        offset: 0,
        length: 4096,
    };
    let cases: [(&[u8], CloseReason); 3] = [
        (&[], CloseReason::EndOfStream),
        (&magic, CloseReason::EndedMidRequest),
        (&write.encode(), CloseReason::EndedMidRequest),
    ];
    for (bytes, reason) in cases {
        let mut tester = Tester::new(Limits::default());
        if !bytes.is_empty() {
            tester.receive(bytes);
            assert_eq!(tester.outputs(), [Output::Receive]);
        }
        tester.handle(Input::EndOfStream);
        assert_eq!(tester.close_reason(), Some(reason));
    }
    // An option too long to be looked at is skipped; in the middle of that nothing is left unread.
    let limits = Limits::default();
    let mut session = Session::new(SessionKey(1), limits, Arc::default(), Instant::default());
    let mut said = 3u32.to_be_bytes().to_vec();
    said.extend(wire::OPTION_MAGIC.to_be_bytes());
    said.extend(wire::OPT_LIST.to_be_bytes());
    said.extend((OPTION_BYTES_MAX + 1).to_be_bytes());
    assert_eq!(session.poll(), Some(Output::Send));
    assert_eq!(session.poll(), Some(Output::Receive));
    session.receive_plan().staging[..said.len()].copy_from_slice(&said);
    session.handle(Instant::default(), Input::Received { bytes: said.len() });
    assert_eq!(session.poll(), Some(Output::Receive));
    session.handle(Instant::default(), Input::EndOfStream);
    session.handle(Instant::default(), Input::SendFailed);
    assert_eq!(session.poll(), Some(Output::Close { reason: CloseReason::EndedMidRequest }));
}

#[test]
fn edges_of_zeroes_over_zeroes_need_nothing_unless_space_is_set_aside() {
    let mut tester = Tester::new(Limits::default());
    tester.request(wire::CMD_TRIM, 0, 4 * 4096);
    assert_eq!(tester.outputs(), [Output::Receive, Output::Send]);
    tester.send_all();
    // It would be refused if anything had to be merged.
    tester.request_with(wire::CMD_FLAG_FAST_ZERO, wire::CMD_WRITE_ZEROES, 100, 2 * 4096);
    assert_eq!(tester.outputs(), [Output::Receive, Output::Send]);
    assert_eq!(tester.errors(), [0]);
    tester.send_all();
    tester.request_with(wire::CMD_FLAG_NO_HOLE, wire::CMD_WRITE_ZEROES, 100, 4096);
    let outputs = tester.outputs();
    assert!(
        matches!(outputs[..], [Output::Receive, Output::Merge { .. }, Output::Merge { .. }]),
        "{outputs:?}"
    );
}

#[test]
fn a_write_of_nothing_but_zeroes_needs_no_slot() {
    for (differs_at, detect_zeroes) in
        [(None, true), (None, false), (Some(0), true), (Some(4095), true)]
    {
        let mut tester = Tester::new(Limits { detect_zeroes, ..Limits::default() });
        let mut payload = vec![0; 4096];
        if let Some(at) = differs_at {
            payload[at] = 7;
        }
        tester.request_bytes(0, wire::CMD_WRITE, 0, 4096, &payload);
        tester.outputs();
        let is_zero = differs_at.is_none() && detect_zeroes;
        assert_eq!(tester.overlay.counts().filling == 0, is_zero, "{differs_at:?} {detect_zeroes}");
    }
}

#[test]
fn a_flush_that_waits_is_forgotten_when_its_client_is_gone() {
    let (overlay, size_bytes) = crate::journal::tests::blank_sheet();
    let mut tester = Tester::over(Limits::default(), overlay, size_bytes);
    tester.write_first_block();
    tester.request(wire::CMD_FLUSH, 0, 0);
    assert_eq!(tester.outputs(), [Output::Receive]);
    tester.handle(Input::SendFailed);
    assert_eq!(tester.outputs(), [Output::Shutdown]);
    while let Some(task) = tester.overlay.poll_task() {
        tester.overlay.finished(task, Ok(()));
    }
    assert_eq!(tester.overlay.poll_woken(), Some(SessionKey(1)));
    tester.handle(Input::Wake);
    assert_eq!(tester.outputs(), []);
    tester.handle(Input::ReceiveFailed);
    assert_eq!(tester.close_reason(), Some(CloseReason::ConnectionLost));
}

#[test]
fn a_merge_pins_what_may_be_used_again_and_only_that() {
    let mut tester = Tester::new(Limits::default());
    tester.write_first_block();
    tester.send_all();
    let pinned =
        |tester: &Tester| tester.session.pin_cell().expect("it has entered").oldest().is_some();
    for (offset, pins) in [(4 * BLOCK, false), (0, true)] {
        tester.request(wire::CMD_WRITE, offset, 100);
        let outputs = tester.outputs();
        let [Output::Receive, Output::Merge { id, .. }, Output::Store { .. }] = outputs[..] else {
            panic!("{outputs:?}");
        };
        assert_eq!(pinned(&tester), pins);
        tester.handle(Input::Merged { id, result: Ok(()) });
        tester.handle(Input::Stored { id, result: Ok(()) });
        assert_eq!(tester.outputs(), [Output::Send]);
        assert!(!pinned(&tester));
        tester.send_all();
    }
}

#[test]
fn a_template_read_goes_on_where_it_came_short_and_fails_if_nothing_came() {
    let mut tester = Tester::new(Limits::default());
    let id = tester.read_template();
    tester.handle(Input::Fetched { id, result: Ok(4095) });
    let rest = Output::Fetch { id, offset: 8 * BLOCK + 4095, length: 1 };
    assert_eq!(tester.outputs(), [rest]);
    tester.handle(Input::Fetched { id, result: Ok(0) });
    assert_eq!(tester.outputs(), [Output::Send]);
    assert_eq!(tester.errors(), [Errno::Io.code()]);
}

#[test]
fn only_a_payload_that_is_long_or_does_not_fit_goes_straight_into_its_slots() {
    let staging = Limits::default().staging_bytes;
    let cases = [
        (8192, 8192, false),
        (8192, 8193, true),
        (u32::MAX, staging, false),
        (u32::MAX, staging + 1, true),
    ];
    for (direct_bytes_min, length, direct) in cases {
        let mut tester = Tester::new(Limits { direct_bytes_min, ..Limits::default() });
        tester.request_bytes(0, wire::CMD_WRITE, 0, length, &[]);
        let outputs = tester.outputs();
        assert!(outputs.contains(&Output::Receive), "{outputs:?}");
        let bytes: u64 = tester.session.receive_plan().direct.map(|(_, length)| length).sum();
        assert_eq!(bytes, if direct { u64::from(length) } else { 0 }, "{length} bytes");
        // None of it has come with the header, so there is nothing to store.
        assert!(!outputs.iter().any(|output| matches!(output, Output::Store { .. })));
    }
}

#[test]
fn behind_a_large_payload_is_room_for_the_next_header_and_no_more() {
    let limits = Limits { direct_bytes_min: 8192, ..Limits::default() };
    let mut tester = Tester::new(limits);
    let staging = tester.session.receive_plan().staging.len();
    tester.request_bytes(0, wire::CMD_WRITE, 0, 32_768, &[]);
    tester.outputs();
    let mut to_come = 32_768;
    for (left, room) in [(32_768, 28), (8193, 28), (8192, staging), (1, staging)] {
        if left < to_come {
            tester.handle(Input::Received { bytes: (to_come - left) as usize });
            tester.outputs();
        }
        to_come = left;
        let plan = tester.session.receive_plan();
        assert_eq!(plan.staging.len(), room, "{left} bytes are to come");
        assert_eq!(plan.direct.map(|(_, length)| length).sum::<u64>(), left);
    }
}

#[test]
fn only_cache_announces_what_will_be_read() {
    let mut tester = Tester::new(Limits::default());
    tester.request(wire::CMD_CACHE, 100, 200);
    let prefetch = Output::Prefetch { offset: 100, length: 200 };
    assert_eq!(tester.outputs(), [prefetch, Output::Send, Output::Receive]);
    tester.send_all();
    tester.request(wire::CMD_CACHE, 100, 0);
    assert_eq!(tester.outputs(), [Output::Send, Output::Receive]);
    tester.send_all();
    // A FLUSH asks the device first, and covers no range.
    tester.request(wire::CMD_FLUSH, 100, 200);
    assert_eq!(tester.outputs(), [Output::Receive, Output::Send]);
}

#[test]
fn no_read_is_resolved_while_enough_waits_to_be_sent() {
    let mut tester = Tester::new(Limits { unsent_bytes_max: 4096, ..Limits::default() });
    tester.write_first_block();
    tester.send_all();
    for _ in 0..2 {
        tester.request(wire::CMD_READ, 0, 4096);
        let _ = tester.outputs();
        assert_eq!(tester.plan().0, 16 + 4096);
    }
    tester.handle(Input::Sent { bytes: 17 });
    assert_eq!(tester.outputs(), [Output::Send]);
    assert_eq!(tester.plan().0, 4095 + 16 + 4096);
}

#[test]
fn a_client_that_takes_a_byte_has_time_for_the_next() {
    let second = |second: u64| Instant(second * 1_000_000_000);
    for (bytes, since) in [(0, 0), (1, 10)] {
        let mut tester = Tester::new(Limits::default());
        tester.write_first_block();
        tester.request(wire::CMD_DISC, 0, 0);
        tester.now = second(10);
        tester.handle(Input::Sent { bytes });
        assert_eq!(tester.outputs(), [Output::Send]);
        tester.handle(Input::SendBlocked);
        let limit = second(since).after(Limits::default().stall_time_max);
        assert_eq!(tester.session.deadline(), Some(limit));
    }
}
