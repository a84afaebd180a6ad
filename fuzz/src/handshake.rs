//! Option haggling, any bytes, cut anywhere: a small parser of its own predicts every reply, and what
//! becomes of the client.

use glassine_core::limits::{HANDSHAKE_REPLY_BYTES_MAX, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX};
use glassine_core::outbox::SendPiece;
use glassine_core::overlay::SessionKey;
use glassine_core::session::{Input, Output};
use glassine_core::sync::Arc;
use glassine_core::{Catalog, CloseReason, Export, Instant, Limits, Session};

use crate::input::{Choices, Cuts};

/// Longest text of an error: none may grow with what a client sent (H11).
const ERROR_TEXT_BYTES_MAX: usize = 100;

/// Anything a client may send before it has chosen an export. The first byte says what there is to
/// choose from, and whether the client reads replies; the second, where the stream is cut.
pub fn handshake(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (how, cuts) = (choices.byte(), Cuts::new(choices.byte()));
    let catalog = catalog(how);
    let stream = choices.rest();
    let expected = predict(stream, &catalog);
    let got = run(&catalog, stream, how & 4 != 0, cuts);
    expected.judge(&got, &catalog);
}

fn catalog(how: u8) -> Vec<Export> {
    let export = |name: &str, description: &str, size_bytes, read_only| Export {
        name: name.to_owned(),
        description: description.to_owned(),
        size_bytes,
        read_only,
    };
    match how % 4 {
        0 => vec![export("disk", "a disk", 40_000, false)],
        1 => vec![export("a", "", 0, true), export("", "the default", 1 << 50, false)],
        2 => vec![
            export(&"n".repeat(4096), &"d".repeat(4000), 4096, false),
            export("ä", "two bytes a letter", 12_345, true),
        ],
        _ => vec![],
    }
}

/// What a client saw.
struct Got {
    replies: Vec<u8>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Entered(usize),
    Closed(CloseReason),
}

/// Feeds a session until it enters an export or closes.
fn run(catalog: &[Export], stream: &[u8], is_deaf: bool, mut cuts: Cuts) -> Got {
    let limits = Limits { requests_max: 1, staging_bytes: 8208, ..Limits::default() };
    let payload_max = limits.payload_bytes_max;
    assert_eq!(payload_max, 64 << 20, "what `predict` says");
    let shared = Arc::new(Catalog::new(catalog.to_vec()));
    let mut session = Session::new(SessionKey(1), limits, shared, Instant(0));
    let one_option: usize = catalog.iter().map(list_bytes).sum::<usize>() + 20;
    let unsent_max = HANDSHAKE_REPLY_BYTES_MAX + one_option.max(20_000);
    let (mut rest, mut replies, mut entered) = (stream, Vec::new(), None);
    let (mut receiving, mut blocked, mut stopped) = (false, false, false);
    for _ in 0..10 * (stream.len() + 10) {
        match session.poll() {
            Some(Output::Enter { export }) => entered = Some(export),
            Some(Output::Receive) => receiving = true,
            Some(Output::Send) => {
                let pieces = session.send_plan().map(|piece| match piece {
                    SendPiece::Bytes(bytes) => bytes.to_vec(),
                    SendPiece::Segment(_) => panic!("no payload in a handshake"),
                });
                let bytes: Vec<u8> = pieces.flatten().collect();
                assert!(bytes.len() <= unsent_max, "{} bytes of replies wait", bytes.len());
                // A deaf client reads only when nothing else is left to do.
                if is_deaf && !blocked && !stopped && entered.is_none() {
                    blocked = true;
                    session.handle(Instant(0), Input::SendBlocked);
                } else {
                    let count = bytes.len() as u64;
                    replies.extend(bytes);
                    session.handle(Instant(0), Input::Sent { bytes: count });
                }
            }
            Some(Output::StopReceiving) => {
                stopped = true;
                if std::mem::take(&mut receiving) {
                    session.handle(Instant(0), Input::EndOfStream);
                }
            }
            Some(Output::Close { reason }) => return Got { replies, end: End::Closed(reason) },
            Some(output) => panic!("{output:?} in a handshake"),
            None if receiving && !rest.is_empty() => {
                receiving = false;
                let room = session.receive_plan().staging;
                let count = rest.len().min(room.len()).min(cuts.next());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                session.handle(Instant(0), Input::Received { bytes: count });
            }
            None if blocked => {
                (blocked, stopped) = (false, true);
                session.handle(Instant(0), Input::SendReady);
            }
            None if receiving => {
                receiving = false;
                session.handle(Instant(0), Input::EndOfStream);
            }
            None => {
                let export = entered.expect("a session that wants nothing has entered an export");
                return Got { replies, end: End::Entered(export) };
            }
        }
        session.audit();
    }
    panic!("the handshake does not come to an end");
}

fn list_bytes(export: &Export) -> usize {
    24 + export.name.len() + export.description.len()
}

/// A reply as it must be.
#[derive(Debug)]
enum Reply {
    /// These bytes.
    Exactly(Vec<u8>),
    /// An error of this kind for this option, with some text.
    Error(u32, u32),
}

/// What must become of a stream.
struct Expected {
    replies: Vec<Reply>,
    end: End,
}

/// What a client must be answered; written anew from the clauses.
fn predict(stream: &[u8], catalog: &[Export]) -> Expected {
    let mut greeting = b"NBDMAGICIHAVEOPT".to_vec();
    greeting.extend([0, 3]);
    let mut expected = Expected {
        replies: vec![Reply::Exactly(greeting)],
        end: End::Closed(CloseReason::Aborted),
    };
    expected.end = expected.follow(stream, catalog);
    expected
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What is so wrong about an option that its reply is an error of this kind.
struct Wrong(u32);

const UNSUPPORTED: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

impl Expected {
    fn follow(&mut self, stream: &[u8], catalog: &[Export]) -> End {
        let cut = |rest: &[u8]| {
            let between = rest.is_empty();
            End::Closed(if between {
                CloseReason::EndOfStream
            } else {
                CloseReason::EndedMidRequest
            })
        };
        let Some((flags, mut rest)) = stream.split_at_checked(4) else { return cut(stream) };
        if number(flags, 0, 4) > 3 {
            return End::Closed(CloseReason::UnknownClientFlags);
        }
        let no_zeroes = flags[3] & 2 != 0;
        loop {
            let Some((header, data)) = rest.split_at_checked(16) else { return cut(rest) };
            if &header[..8] != b"IHAVEOPT" {
                return End::Closed(CloseReason::BadOptionMagic);
            }
            let option = number(header, 8, 4) as u32;
            let length = number(header, 12, 4);
            let long = length > u64::from(OPTION_BYTES_MAX);
            match option {
                2 if long => {
                    self.put(2, 1, &[]);
                    return End::Closed(CloseReason::Aborted);
                }
                1 if long => return End::Closed(CloseReason::OptionTooLong),
                _ if length > u64::from(OPTION_SKIP_BYTES_MAX) => {
                    return End::Closed(CloseReason::OptionTooLong);
                }
                _ if long => {
                    let kind = if matches!(option, 3 | 6 | 7) { TOO_BIG } else { UNSUPPORTED };
                    self.replies.push(Reply::Error(option, kind));
                }
                _ => {}
            }
            let Some((data, after)) = data.split_at_checked(length as usize) else {
                return cut(rest);
            };
            rest = after;
            if long {
                continue;
            }
            match self.answer(option, data, catalog, no_zeroes) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(Wrong(kind)) => self.replies.push(Reply::Error(option, kind)),
            }
        }
    }

    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &[Export],
        no_zeroes: bool,
    ) -> Result<Option<End>, Wrong> {
        match option {
            1 => {
                let Some(at) = find(catalog, data) else {
                    return Ok(Some(End::Closed(CloseReason::UnknownExport)));
                };
                let mut bytes = size_and_flags(&catalog[at]);
                bytes.resize(if no_zeroes { 10 } else { 134 }, 0);
                self.replies.push(Reply::Exactly(bytes));
                Ok(Some(End::Entered(at)))
            }
            2 => {
                self.put(2, 1, &[]);
                Ok(Some(End::Closed(CloseReason::Aborted)))
            }
            3 if !data.is_empty() => Err(Wrong(INVALID)),
            3 => {
                for export in catalog {
                    let mut bytes = (export.name.len() as u32).to_be_bytes().to_vec();
                    bytes.extend(export.name.bytes());
                    bytes.extend(export.description.bytes());
                    self.put(3, 2, &bytes);
                }
                self.put(3, 1, &[]);
                Ok(None)
            }
            6 | 7 => {
                let at = self.info(option, data, catalog)?;
                Ok((option == 7).then_some(End::Entered(at)))
            }
            _ => Err(Wrong(UNSUPPORTED)),
        }
    }

    fn info(&mut self, option: u32, data: &[u8], catalog: &[Export]) -> Result<usize, Wrong> {
        let split = |bytes: &[u8], at: usize| -> Result<usize, Wrong> {
            if at <= bytes.len() { Ok(at) } else { Err(Wrong(INVALID)) }
        };
        let (length, rest) = data.split_at(split(data, 4)?);
        let length = number(length, 0, 4) as usize;
        let (name, rest) = rest.split_at(split(rest, length)?);
        let (count, requests) = rest.split_at(split(rest, 2)?);
        let fits = requests.len() as u64 == 2 * number(count, 0, 2);
        let is_name =
            length <= 4096 && std::str::from_utf8(name).is_ok_and(|name| !name.contains('\0'));
        if !fits || !is_name {
            return Err(Wrong(INVALID));
        }
        let at = find(catalog, name).ok_or(Wrong(UNKNOWN))?;
        let export = &catalog[at];
        let asks = |kind: u8| requests.chunks(2).any(|pair| pair == [0, kind]);
        self.put(option, 3, &[&[0, 0][..], &size_and_flags(export)].concat());
        if asks(1) {
            self.put(option, 3, &[&[0, 1], export.name.as_bytes()].concat());
        }
        if asks(2) {
            self.put(option, 3, &[&[0, 2], export.description.as_bytes()].concat());
        }
        if asks(3) {
            self.put(option, 3, &[0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 4, 0, 0, 0]);
        }
        self.put(option, 1, &[]);
        Ok(at)
    }

    fn put(&mut self, option: u32, kind: u32, data: &[u8]) {
        let mut bytes = 0x3_e889_0455_65a9u64.to_be_bytes().to_vec();
        for word in [option, kind, data.len() as u32] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(data);
        self.replies.push(Reply::Exactly(bytes));
    }

    /// Holds what a client got against what it must get.
    fn judge(&self, got: &Got, catalog: &[Export]) {
        // A client that lets too much wait is given up, and gets all of that.
        let given_up = got.end == End::Closed(CloseReason::RepliesNotRead);
        assert!(!given_up || got.replies.len() > HANDSHAKE_REPLY_BYTES_MAX, "given up too soon");
        let mut rest = &got.replies[..];
        for reply in &self.replies {
            if rest.is_empty() && given_up {
                break;
            }
            let length = match reply {
                Reply::Exactly(bytes) => {
                    assert!(rest.starts_with(bytes), "expected {bytes:x?}, found {rest:x?}");
                    bytes.len()
                }
                Reply::Error(option, kind) => {
                    assert!(rest.len() >= 20, "expected an error for option {option}: {rest:x?}");
                    assert_eq!(number(rest, 0, 8), 0x3_e889_0455_65a9);
                    assert_eq!(
                        [number(rest, 8, 4), number(rest, 12, 4)],
                        [*option, *kind].map(u64::from)
                    );
                    let length = number(rest, 16, 4) as usize;
                    assert!((1..=ERROR_TEXT_BYTES_MAX).contains(&length), "{length} bytes of text");
                    assert!(rest[20..20 + length].is_ascii(), "text");
                    20 + length
                }
            };
            rest = &rest[length..];
        }
        assert!(rest.is_empty(), "more than was asked for, with {catalog:?}: {rest:x?}");
        assert!(given_up || got.end == self.end, "{:?} instead of {:?}", got.end, self.end);
    }
}

fn find(catalog: &[Export], name: &[u8]) -> Option<usize> {
    let only = name.is_empty() && catalog.len() == 1;
    if only { Some(0) } else { catalog.iter().position(|export| export.name.as_bytes() == name) }
}

fn size_and_flags(export: &Export) -> Vec<u8> {
    // HAS_FLAGS, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN, SEND_CACHE; and READ_ONLY, or else SEND_TRIM,
    // SEND_WRITE_ZEROES, SEND_FAST_ZERO.
    let flags: u16 = if export.read_only { 0x050f } else { 0x0d6d };
    [&export.size_bytes.to_be_bytes()[..], &flags.to_be_bytes()].concat()
}
