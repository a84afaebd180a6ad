//! One client as its byte streams show it: a small parser of its own follows what reached the server,
//! and every reply is held against the protocol's rules and a model of the device.

use std::collections::BTreeMap;

use glassine_core::wire::RequestHeader;
use glassine_core::{CloseReason, Errno};
use sim::broken::Broken;
use sim::client::{self, Faults, View};
use sim::model::{Content, Model, Moment};

/// What a client says to choose the default export, with NO_ZEROES and EXPORT_NAME.
pub(crate) const HELLO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0";
/// The greeting, and the answer to that.
const HELLO_REPLY_BYTES: usize = 18 + 10;

const MAGIC: u32 = 0x2560_9513;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

/// A request that reached the server in part or in full.
#[derive(Debug)]
struct Asked {
    header: RequestHeader,
    verdict: Option<Errno>,
    change: Option<usize>,
    since: Moment,
    is_complete: bool,
}

/// Where in its stream of requests the server is.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Hello,
    Header,
    Payload {
        cookie: u64,
        left: u64,
    },
    /// The stream is over, and this is why.
    Over(CloseReason),
}

/// One client. See the module.
#[derive(Debug)]
pub(crate) struct Client {
    view: View,
    pub(crate) model: Model,
    pub(crate) faults: Faults,
    /// What has reached the server and is not a whole header, or a payload that will be written.
    stream: Vec<u8>,
    payload: Vec<u8>,
    reading: Reading,
    asked: BTreeMap<u64, Asked>,
    inbox: Vec<u8>,
    hello_left: usize,
}

impl Client {
    pub(crate) fn new(view: View, template_bytes: u64, quota_bytes: u64) -> Self {
        Self {
            view,
            model: Model::new(view.size_bytes, template_bytes),
            faults: Faults::new(quota_bytes),
            stream: Vec::new(),
            payload: Vec::new(),
            reading: Reading::Hello,
            asked: BTreeMap::new(),
            inbox: Vec::new(),
            hello_left: HELLO_REPLY_BYTES,
        }
    }

    /// The present moment.
    pub(crate) fn now(&self) -> Moment {
        self.view.now
    }

    /// Something is about to happen.
    pub(crate) fn step(&mut self) {
        self.view.now += 1;
    }

    /// These bytes are about to reach the server.
    pub(crate) fn given(&mut self, bytes: &[u8]) {
        self.stream.extend(bytes);
        loop {
            match &mut self.reading {
                Reading::Hello if self.stream.len() >= HELLO.len() => {
                    self.stream.drain(..HELLO.len());
                    self.reading = Reading::Header;
                }
                Reading::Header if self.stream.len() >= 28 => self.header(),
                Reading::Payload { cookie, left } => {
                    let (cookie, count) = (*cookie, self.stream.len().min(*left as usize));
                    *left -= count as u64;
                    let is_whole = *left == 0;
                    let rest = self.stream.split_off(count);
                    let bytes = std::mem::replace(&mut self.stream, rest);
                    if self.asked[&cookie].verdict.is_none() {
                        self.payload.extend(bytes);
                    }
                    if !is_whole {
                        return;
                    }
                    self.reading = Reading::Header;
                    self.complete(cookie);
                }
                Reading::Over(_) => return self.stream.clear(),
                _ => return,
            }
        }
    }

    fn header(&mut self) {
        let bytes: Vec<u8> = self.stream.drain(..28).collect();
        let field = |at: usize, width: usize| {
            bytes[at..at + width].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let header = RequestHeader {
            magic: field(0, 4) as u32,
            flags: field(4, 2) as u16,
            command: field(6, 2) as u16,
            cookie: field(8, 8),
            offset: field(16, 8),
            length: field(24, 4) as u32,
        };
        if header.magic != MAGIC {
            self.reading = Reading::Over(CloseReason::BadRequestMagic);
            return;
        }
        if header.command == DISCONNECT {
            self.reading = Reading::Over(CloseReason::Disconnected);
            return;
        }
        let verdict = client::verdict(&header, self.view);
        let since = self.view.now;
        let asked = Asked { header, verdict, change: None, since, is_complete: false };
        let before = self.asked.insert(header.cookie, asked);
        assert!(before.is_none(), "whoever makes the stream gives every request its own cookie");
        if header.command == WRITE && header.length > 0 {
            let (cookie, left) = (header.cookie, u64::from(header.length));
            self.reading = Reading::Payload { cookie, left };
        } else {
            self.complete(header.cookie);
        }
    }

    /// The last byte of a request has come.
    fn complete(&mut self, cookie: u64) {
        let asked = self.asked.get_mut(&cookie).expect("just parsed");
        asked.is_complete = true;
        let RequestHeader { offset, length, command, .. } = asked.header;
        if asked.verdict.is_some() || length == 0 {
            return;
        }
        let bytes = offset..offset.wrapping_add(u64::from(length));
        let (bytes, content) = match command {
            WRITE => (bytes, Content::Given(std::mem::take(&mut self.payload))),
            WRITE_ZEROES => (bytes, Content::Zero),
            TRIM => (client::inward(&bytes, self.view.size_bytes), Content::Zero),
            _ => return,
        };
        let version = self.model.begin(bytes, content);
        self.model.sent(version, self.view.now);
        asked.change = Some(version);
    }

    /// The server sent these bytes.
    pub(crate) fn got(&mut self, bytes: &[u8]) {
        self.inbox.extend(bytes);
        let hello = self.hello_left.min(self.inbox.len());
        self.hello_left -= hello;
        self.inbox.drain(..hello);
        loop {
            match self.reply() {
                Ok(0) => return,
                Ok(used) => drop(self.inbox.drain(..used)),
                Err(broken) => panic!("{broken}"),
            }
        }
    }

    fn reply(&mut self) -> Result<usize, Broken> {
        let Some((head, rest)) = self.inbox.split_at_checked(16) else { return Ok(0) };
        let (magic, rest_of_head) = head.split_at(4);
        if magic != [0x67, 0x44, 0x66, 0x98] {
            return Broken::by("replies in step", format!("a reply begins with {head:x?}"));
        }
        let error = u32::from_be_bytes(rest_of_head[..4].try_into().expect("four bytes"));
        let cookie = u64::from_be_bytes(rest_of_head[4..].try_into().expect("eight bytes"));
        let Some(asked) = self.asked.get(&cookie).filter(|asked| asked.is_complete) else {
            let text =
                format!("a reply to {cookie:#x}, which was not asked or is answered already");
            return Broken::by("one reply a request", text);
        };
        let header = asked.header;
        let is_data = header.command == READ && error == 0;
        let length = if is_data { header.length as usize } else { 0 };
        let Some(data) = rest.get(..length) else { return Ok(0) };
        client::judge_error(&header, asked.verdict, error, asked.since, &self.faults)?;
        if is_data {
            let bytes = header.offset..header.offset + u64::from(header.length);
            self.model.check(bytes, data, asked.since, self.view.now)?;
        }
        match asked.change {
            Some(version) if error == 0 => self.model.answered(version, self.view.now),
            Some(version) => self.model.refused(version)?,
            None => {}
        }
        self.asked.remove(&cookie);
        Ok(16 + length)
    }

    /// Cookies of the requests that are complete and not answered.
    pub(crate) fn owed(&self) -> Vec<u64> {
        let owed = self.asked.iter().filter(|(_, asked)| asked.is_complete);
        owed.map(|(cookie, _)| *cookie).collect()
    }

    /// Whether a request was not answered yet.
    pub(crate) fn is_owed(&self, cookie: u64) -> bool {
        self.asked.contains_key(&cookie)
    }

    /// Why a session must end of which the client sends no more than this.
    pub(crate) fn end(&self) -> CloseReason {
        match self.reading {
            Reading::Over(reason) => reason,
            Reading::Header | Reading::Hello if self.stream.is_empty() => CloseReason::EndOfStream,
            _ => CloseReason::EndedMidRequest,
        }
    }

    /// Whether nothing is left of a reply that was begun.
    pub(crate) fn is_between_replies(&self) -> bool {
        self.inbox.is_empty()
    }
}
