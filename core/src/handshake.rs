//! Fixed-newstyle handshake: from the greeting to a chosen export.
//!
//! Feed received bytes to [`Handshake::receive`] until it says [`Step::Wait`], and send the replies
//! it appends. One call parses at most one option, so its work is bounded.

use alloc::vec::Vec;

use crate::error::CloseReason;
use crate::export::{Catalog, Export};
use crate::judge::{Bug, planted};
use crate::limits::{
    BLOCK_BYTES, HANDSHAKE_REPLY_BYTES_MAX, NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX,
};
use crate::wire::{self, be16, be32, be64, put_option_reply};

/// What came of some received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing more can be done until more bytes arrive.
    Wait,
    /// Something was consumed; call again with the rest.
    Again,
    /// The client chose the export at this position of the catalog: transmission begins.
    Enter(usize),
    /// The session is over once the replies are sent.
    Close(CloseReason),
}

/// The state of one client's option haggling.
#[derive(Debug, Hash)]
pub struct Handshake {
    state: State,
    no_zeroes: bool,
    /// The longest payload, as clients are told.
    payload_bytes_max: u32,
}

#[derive(Debug, Clone, Copy, Hash)]
enum State {
    ClientFlags,
    Option,
    /// The rest of an option that was too long to be looked at.
    Skip(u32),
}

impl Handshake {
    /// A handshake that begins with a greeting.
    #[must_use]
    pub fn new(replies: &mut Vec<u8>, payload_bytes_max: u32) -> Self {
        wire::put_greeting(replies);
        Self { state: State::ClientFlags, no_zeroes: false, payload_bytes_max }
    }

    /// Whether the rest of an option is still to be skipped.
    #[must_use]
    pub fn is_skipping(&self) -> bool {
        matches!(self.state, State::Skip(_))
    }

    /// Looks at received bytes and appends what is to be sent to `replies`; answers how many bytes
    /// were consumed and what to do.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        catalog: &Catalog,
        replies: &mut Vec<u8>,
    ) -> (usize, Step) {
        if replies.len() > HANDSHAKE_REPLY_BYTES_MAX {
            return (0, Step::Close(CloseReason::RepliesNotRead));
        }
        match self.state {
            State::ClientFlags => self.client_flags(bytes),
            State::Option => self.option(bytes, catalog, replies),
            State::Skip(left) => {
                let count = bytes.len().min(left as usize);
                if count == 0 {
                    return (0, Step::Wait);
                }
                let left = left - u32::try_from(count).expect("bounded by left");
                self.state = if left == 0 { State::Option } else { State::Skip(left) };
                (count, Step::Again)
            }
        }
    }

    fn client_flags(&mut self, bytes: &[u8]) -> (usize, Step) {
        if bytes.len() < wire::CLIENT_FLAGS_BYTES {
            return (0, Step::Wait);
        }
        let flags = be32(bytes, 0);
        // H3: an unknown flag means the client counts on something we would not do.
        if flags & !u32::from(wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES) != 0 {
            return (0, Step::Close(CloseReason::UnknownClientFlags));
        }
        let no_zeroes = flags & u32::from(wire::HANDSHAKE_NO_ZEROES) != 0;
        self.no_zeroes = no_zeroes && !planted(Bug::PaddedAlways);
        self.state = State::Option;
        (wire::CLIENT_FLAGS_BYTES, Step::Again)
    }

    fn option(&mut self, bytes: &[u8], catalog: &Catalog, replies: &mut Vec<u8>) -> (usize, Step) {
        const HEADER: usize = wire::OPTION_HEADER_BYTES;
        if bytes.len() < HEADER {
            return (0, Step::Wait);
        }
        if be64(bytes, 0) != wire::OPTION_MAGIC {
            return (0, Step::Close(CloseReason::BadOptionMagic));
        }
        let option = be32(bytes, 8);
        let length = be32(bytes, 12);
        if length > OPTION_BYTES_MAX {
            return (HEADER, self.refuse_long(option, length, replies));
        }
        let end = HEADER + length as usize;
        let end = if planted(Bug::OptionCut) { end.min(bytes.len()) } else { end };
        let Some(data) = bytes.get(HEADER..end) else {
            return (0, Step::Wait);
        };
        (end, self.answer(option, replies).answer(data, catalog))
    }

    fn answer<'a>(&self, option: u32, replies: &'a mut Vec<u8>) -> Answer<'a> {
        let Self { no_zeroes, payload_bytes_max, .. } = *self;
        Answer { option, replies, no_zeroes, payload_bytes_max }
    }

    /// An option longer than anything we understand: skipped if bearable (H7), never buffered.
    fn refuse_long(&mut self, option: u32, length: u32, replies: &mut Vec<u8>) -> Step {
        let mut answer = self.answer(option, replies);
        match option {
            wire::OPT_ABORT => return answer.abort(),
            _ if length > OPTION_SKIP_BYTES_MAX => return Step::Close(CloseReason::OptionTooLong),
            // E1: it has no error reply.
            wire::OPT_EXPORT_NAME => return Step::Close(CloseReason::OptionTooLong),
            wire::OPT_LIST | wire::OPT_INFO | wire::OPT_GO => {
                answer.error(wire::REP_ERR_TOO_BIG, b"the option is longer than 8192 bytes");
            }
            _ => {
                answer.unsupported();
            }
        }
        if !planted(Bug::LongOptionLeft) {
            self.state = State::Skip(length);
        }
        Step::Again
    }
}

/// One option being answered.
struct Answer<'a> {
    option: u32,
    replies: &'a mut Vec<u8>,
    no_zeroes: bool,
    payload_bytes_max: u32,
}

impl Answer<'_> {
    fn answer(&mut self, data: &[u8], catalog: &Catalog) -> Step {
        match self.option {
            wire::OPT_EXPORT_NAME => self.export_name(data, catalog),
            wire::OPT_ABORT => self.abort(),
            wire::OPT_LIST => self.list(data, catalog),
            wire::OPT_INFO | wire::OPT_GO => self.info(data, catalog),
            _ => self.unsupported(),
        }
    }

    /// H7: everything else, known to us or not.
    fn unsupported(&mut self) -> Step {
        self.error(wire::REP_ERR_UNSUP, b"this option is not supported")
    }

    fn abort(&mut self) -> Step {
        // A2: whatever data comes along is ignored.
        self.reply(wire::REP_ACK, &[]);
        Step::Close(CloseReason::Aborted)
    }

    fn export_name(&mut self, name: &[u8], catalog: &Catalog) -> Step {
        // E1: this option has no error reply; the end of the connection is one.
        let Some(index) = catalog.find(name) else {
            return Step::Close(CloseReason::UnknownExport);
        };
        let export = &catalog.exports()[index];
        self.replies.extend_from_slice(&export.size_bytes.to_be_bytes());
        self.replies.extend_from_slice(&export.flags().to_be_bytes());
        if !self.no_zeroes {
            self.replies.extend_from_slice(&[0; 124]);
        }
        Step::Enter(index)
    }

    fn list(&mut self, data: &[u8], catalog: &Catalog) -> Step {
        if !data.is_empty() {
            // L2
            return self.error(wire::REP_ERR_INVALID, b"LIST takes no data");
        }
        for export in catalog.exports() {
            let name = export.name.as_bytes();
            let length = u32::try_from(name.len()).expect("names are short").to_be_bytes();
            self.reply(wire::REP_SERVER, &[&length, name, export.description.as_bytes()]);
        }
        self.reply(wire::REP_ACK, &[]);
        Step::Again
    }

    fn info(&mut self, data: &[u8], catalog: &Catalog) -> Step {
        let (name, requests) = match parse_info(data) {
            Ok(parsed) => parsed,
            Err(text) => return self.error(wire::REP_ERR_INVALID, text),
        };
        let Some(index) = catalog.find(name) else {
            // G4, G5: say so, and let the client try again. The name is not quoted: no error text
            // may grow with what the peer sent (H11).
            let text = b"there is no export of this name; LIST shows those there are";
            return self.error(wire::REP_ERR_UNKNOWN, text);
        };
        self.infos(&catalog.exports()[index], requests);
        self.reply(wire::REP_ACK, &[]);
        if self.option == wire::OPT_GO { Step::Enter(index) } else { Step::Again }
    }

    /// INFO_EXPORT always (G3), the others on request, unknown ones ignored (G2).
    fn infos(&mut self, export: &Export, requests: &[u8]) {
        let info = |kind: u16| kind.to_be_bytes();
        let wanted = |kind: u16| requests.chunks_exact(2).any(|pair| be16(pair, 0) == kind);
        let size = export.size_bytes.to_be_bytes();
        let flags = export.flags().to_be_bytes();
        self.reply(wire::REP_INFO, &[&info(wire::INFO_EXPORT), &size, &flags]);
        if wanted(wire::INFO_NAME) {
            self.reply(wire::REP_INFO, &[&info(wire::INFO_NAME), export.name.as_bytes()]);
        }
        if wanted(wire::INFO_DESCRIPTION) {
            let text = export.description.as_bytes();
            self.reply(wire::REP_INFO, &[&info(wire::INFO_DESCRIPTION), text]);
        }
        if wanted(wire::INFO_BLOCK_SIZE) {
            let minimum = 1u32.to_be_bytes();
            let preferred = BLOCK_BYTES.to_be_bytes();
            let maximum = self.payload_bytes_max.to_be_bytes();
            let parts = [&info(wire::INFO_BLOCK_SIZE)[..], &minimum, &preferred, &maximum];
            self.reply(wire::REP_INFO, &parts);
        }
    }

    fn error(&mut self, kind: u32, text: &[u8]) -> Step {
        self.reply(kind, &[text]);
        Step::Again
    }

    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        put_option_reply(self.replies, self.option, kind, parts);
    }
}

/// The name and the information requests of INFO or GO (G1, W2), or what is wrong with them.
fn parse_info(data: &[u8]) -> Result<(&[u8], &[u8]), &'static [u8]> {
    const TRUNCATED: &[u8] = b"the option is shorter than its fields say";
    if data.len() < 6 {
        return Err(TRUNCATED);
    }
    let name_bytes = be32(data, 0);
    if name_bytes > NAME_BYTES_MAX {
        return Err(b"the name is longer than 4096 bytes");
    }
    let name_end = 4 + name_bytes as usize;
    let name = if planted(Bug::NameTrusted) {
        &data[4..name_end]
    } else {
        data.get(4..name_end).ok_or(TRUNCATED)?
    };
    if name.contains(&0) || core::str::from_utf8(name).is_err() {
        return Err(b"the name is not UTF-8 without NUL");
    }
    let count = data.get(name_end..name_end + 2).ok_or(TRUNCATED)?;
    let requests = &data[name_end + 2..];
    let matches = requests.len() == usize::from(be16(count, 0)) * 2;
    if !matches && !planted(Bug::CountTrusted) {
        return Err(b"the number of information requests does not match the length");
    }
    Ok((name, requests))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec;

    const PAYLOAD: u32 = 0x0102_0300;

    fn export(name: &str, size_bytes: u64, read_only: bool) -> Export {
        let description = if read_only { "for reading".into() } else { String::new() };
        Export { name: name.into(), description, size_bytes, read_only }
    }

    fn catalog() -> Catalog {
        Catalog::new(vec![export("a", 0x0102_0304_0506_0708, false), export("bé", 10, true)])
    }

    fn option(option: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    /// The data of INFO or GO.
    fn info(name: &[u8], requests: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name);
        data.extend((requests.len() as u16).to_be_bytes());
        requests.iter().for_each(|request| data.extend(request.to_be_bytes()));
        data
    }

    /// A client that has sent its flags.
    fn greeted(flags: u32) -> Handshake {
        let mut handshake = Handshake::new(&mut Vec::new(), PAYLOAD);
        let (count, step) = handshake.receive(&flags.to_be_bytes(), &catalog(), &mut Vec::new());
        assert_eq!((count, step), (4, Step::Again));
        handshake
    }

    /// What an option is answered with, once it is there to its last byte and not before.
    fn sent(bytes: &[u8]) -> (Step, Vec<u8>) {
        let mut handshake = greeted(3);
        let mut replies = Vec::new();
        for end in 0..bytes.len() {
            let early = handshake.receive(&bytes[..end], &catalog(), &mut replies);
            assert_eq!((early, replies.len()), ((0, Step::Wait), 0), "{end} bytes");
        }
        let (count, step) = handshake.receive(&[bytes, b"more"].concat(), &catalog(), &mut replies);
        assert_eq!(count, bytes.len());
        (step, replies)
    }

    /// Replies to an option: kinds and data.
    fn replies(mut bytes: &[u8], option: u32) -> Vec<(u32, &[u8])> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
            assert_eq!(be32(bytes, 8), option);
            let (data, behind) = bytes[20..].split_at(be32(bytes, 16) as usize);
            found.push((be32(bytes, 12), data));
            bytes = behind;
        }
        found
    }

    /// The one error that an option is answered with; the client may go on.
    fn refused(kind: u32, data: &[u8]) -> u32 {
        let (step, bytes) = sent(&option(kind, data));
        assert_eq!(step, Step::Again);
        let [(error, text)] = replies(&bytes, kind)[..] else { panic!("one reply") };
        assert!(text.len() > 10 && core::str::from_utf8(text).is_ok());
        error
    }

    #[test]
    fn a_greeting_comes_first_and_flags_are_judged() {
        let mut greeting = Vec::new();
        let mut handshake = Handshake::new(&mut greeting, PAYLOAD);
        assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
        let mut receive = |bytes: &[u8]| handshake.receive(bytes, &catalog(), &mut Vec::new());
        assert_eq!(receive(&[0; 3]), (0, Step::Wait));
        for unknown in [[0, 0, 0, 4], [0x80, 0, 0, 3], [0, 1, 0, 0]] {
            assert_eq!(receive(&unknown), (0, Step::Close(CloseReason::UnknownClientFlags)));
        }
        (0..4).for_each(|flags| assert!(!greeted(flags).is_skipping()));
    }

    #[test]
    fn what_is_no_option_ends_the_session() {
        let mut handshake = greeted(3);
        let close = (0, Step::Close(CloseReason::BadOptionMagic));
        assert_eq!(
            handshake.receive(b"IHAVEOPt\0\0\0\x03\0\0\0\0", &catalog(), &mut vec![]),
            close
        );
    }

    #[test]
    fn an_option_that_is_not_known_is_not_supported() {
        for kind in [0, 4, 5, 8, 9, 10, 11, u32::MAX] {
            assert_eq!(refused(kind, b"data"), wire::REP_ERR_UNSUP);
        }
    }

    #[test]
    fn abort_is_acknowledged_whatever_comes_along() {
        for data in [&b""[..], b"data"] {
            let (step, bytes) = sent(&option(wire::OPT_ABORT, data));
            assert_eq!(step, Step::Close(CloseReason::Aborted));
            assert_eq!(replies(&bytes, wire::OPT_ABORT), [(wire::REP_ACK, &b""[..])]);
        }
    }

    #[test]
    fn list_names_all_exports_and_takes_no_data() {
        let (step, bytes) = sent(&option(wire::OPT_LIST, b""));
        assert_eq!(step, Step::Again);
        let expected: [(u32, &[u8]); 3] = [
            (wire::REP_SERVER, b"\0\0\0\x01a"),
            (wire::REP_SERVER, "\0\0\0\x03béfor reading".as_bytes()),
            (wire::REP_ACK, b""),
        ];
        assert_eq!(replies(&bytes, wire::OPT_LIST), expected);
        assert_eq!(refused(wire::OPT_LIST, b"x"), wire::REP_ERR_INVALID);
    }

    #[test]
    fn export_name_enters_with_or_without_padding() {
        let head = [1, 2, 3, 4, 5, 6, 7, 8, 0x0d, 0x6d];
        for (flags, padding) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
            let mut bytes = Vec::new();
            let name = option(wire::OPT_EXPORT_NAME, b"a");
            let step = greeted(flags).receive(&name, &catalog(), &mut bytes);
            assert_eq!(step, (name.len(), Step::Enter(0)));
            assert_eq!(bytes[..10], head);
            assert_eq!(bytes[10..], vec![0; padding]);
        }
        let (step, bytes) = sent(&option(wire::OPT_EXPORT_NAME, b"c"));
        assert_eq!((step, bytes.len()), (Step::Close(CloseReason::UnknownExport), 0));
    }

    #[test]
    fn go_enters_and_info_only_tells() {
        let size_and_flags: &[u8] = &[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x0d, 0x6d];
        let block_size: &[u8] = &[0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 1, 2, 3, 0];
        let infos: [(&[u16], Vec<&[u8]>); 6] = [
            (&[], vec![]),
            (&[0, 9, 0x0301], vec![]),
            (&[1], vec![b"\0\x01a"]),
            (&[2], vec![b"\0\x02"]),
            (&[3], vec![block_size]),
            (&[3, 2, 1], vec![b"\0\x01a", b"\0\x02", block_size]),
        ];
        for (kind, end) in [(wire::OPT_GO, Step::Enter(0)), (wire::OPT_INFO, Step::Again)] {
            for (requests, expected) in &infos {
                let (step, bytes) = sent(&option(kind, &info(b"a", requests)));
                assert_eq!(step, end);
                let mut all = vec![(wire::REP_INFO, size_and_flags)];
                all.extend(expected.iter().map(|info| (wire::REP_INFO, *info)));
                all.push((wire::REP_ACK, b""));
                assert_eq!(replies(&bytes, kind), all);
            }
        }
        let (step, bytes) = sent(&option(wire::OPT_GO, &info("bé".as_bytes(), &[2])));
        assert_eq!(step, Step::Enter(1));
        assert_eq!(replies(&bytes, wire::OPT_GO)[1].1, b"\0\x02for reading");
    }

    #[test]
    fn an_info_that_does_not_hold_what_it_says_is_refused() {
        for kind in [wire::OPT_GO, wire::OPT_INFO] {
            let unknown = [info(b"c", &[]), info(b"", &[]), info(&[b'x'; 4096], &[1])];
            for data in unknown {
                assert_eq!(refused(kind, &data), wire::REP_ERR_UNKNOWN);
            }
            let whole = info(b"a", &[1, 2]);
            for end in 0..whole.len() {
                assert_eq!(refused(kind, &whole[..end]), wire::REP_ERR_INVALID, "{end}");
            }
            for data in [
                [&whole[..], &[0]].concat(),
                [&whole[..], &[0, 3]].concat(),
                info(b"a\0", &[]),
                info(b"\xff", &[]),
                info(&[b'x'; 4097], &[]),
                [0xff; 100].to_vec(),
            ] {
                assert_eq!(refused(kind, &data), wire::REP_ERR_INVALID);
            }
        }
    }

    #[test]
    fn a_long_option_is_skipped_and_a_very_long_one_not_borne() {
        let head = |kind: u32, length: u32| {
            let mut bytes = option(kind, b"");
            bytes[12..].copy_from_slice(&length.to_be_bytes());
            bytes
        };
        let receive = |handshake: &mut Handshake, bytes: &[u8]| {
            let mut replies = Vec::new();
            (handshake.receive(bytes, &catalog(), &mut replies), replies)
        };
        for (kind, error) in [
            (wire::OPT_LIST, wire::REP_ERR_TOO_BIG),
            (wire::OPT_INFO, wire::REP_ERR_TOO_BIG),
            (wire::OPT_GO, wire::REP_ERR_TOO_BIG),
            (10, wire::REP_ERR_UNSUP),
        ] {
            assert_eq!(receive(&mut greeted(3), &head(kind, 8192)).0, (0, Step::Wait));
            for length in [8193, 1 << 20] {
                let mut handshake = greeted(3);
                let (step, bytes) = receive(&mut handshake, &head(kind, length));
                assert_eq!(step, (16, Step::Again));
                assert_eq!(replies(&bytes, kind)[0].0, error);
                assert!(handshake.is_skipping());
                assert_eq!(receive(&mut handshake, &[]).0, (0, Step::Wait));
                assert_eq!(receive(&mut handshake, &[1; 192]).0, (192, Step::Again));
                let rest = vec![1; length as usize];
                let left = length as usize - 192;
                assert_eq!(receive(&mut handshake, &rest[1..left]).0, (left - 1, Step::Again));
                assert!(handshake.is_skipping());
                assert_eq!(receive(&mut handshake, &rest).0, (1, Step::Again));
                assert!(!handshake.is_skipping());
                let (step, _) = receive(&mut handshake, &option(wire::OPT_EXPORT_NAME, b"a"));
                assert_eq!(step.1, Step::Enter(0));
            }
            let too_long = (16, Step::Close(CloseReason::OptionTooLong));
            assert_eq!(receive(&mut greeted(3), &head(kind, (1 << 20) + 1)).0, too_long);
        }
        let (step, _) = receive(&mut greeted(3), &head(wire::OPT_EXPORT_NAME, 8193));
        assert_eq!(step, (16, Step::Close(CloseReason::OptionTooLong)));
        let (step, bytes) = receive(&mut greeted(3), &head(wire::OPT_ABORT, u32::MAX));
        assert_eq!(step, (16, Step::Close(CloseReason::Aborted)));
        assert_eq!(replies(&bytes, wire::OPT_ABORT), [(wire::REP_ACK, &b""[..])]);
    }

    #[test]
    fn a_client_that_does_not_read_gets_no_more_replies() {
        let list = option(wire::OPT_LIST, b"");
        let mut replies = vec![0; 256 << 10];
        let (_, step) = greeted(3).receive(&list, &catalog(), &mut replies);
        assert_eq!(step, Step::Again);
        let mut replies = vec![0; (256 << 10) + 1];
        let answered = greeted(3).receive(&list, &catalog(), &mut replies);
        assert_eq!(answered, (0, Step::Close(CloseReason::RepliesNotRead)));
        assert_eq!(replies.len(), (256 << 10) + 1);
    }
}
