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
