//! One connection of a load: its requests in flight, and what is received of their replies.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::sys::{self, Piece, piece};
use super::{Load, content};
use crate::client::{READ, WRITE};

const REQUEST_MAGIC: [u8; 4] = 0x2560_9513u32.to_be_bytes();
const REPLY_MAGIC: [u8; 4] = 0x6744_6698u32.to_be_bytes();
const REQUEST_BYTES: usize = 28;
pub(super) const REPLY_BYTES: usize = 16;
/// A message is a request header and a payload; the payload is at a multiple of this.
const ALIGNMENT: usize = 64;
/// A whole payload is compared once in so many.
const WHOLE_EVERY: u64 = 64;

/// Where replies are received to; one for all lanes of a thread, so that it stays in the cache.
pub(super) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
}

impl Inbox {
    /// The header of a large reply ends here, so its payload begins on a page.
    const PAGE: usize = 4096;

    pub(super) fn new(load: &Load) -> Self {
        let room = if load.is_large() { load.bytes as usize + REPLY_BYTES } else { 256 << 10 };
        // Not zero, so that the memory is touched now and not while the clock runs.
        let bytes = vec![1; room + 3 * Self::PAGE];
        let start = bytes.as_ptr().align_offset(Self::PAGE) + Self::PAGE - REPLY_BYTES;
        Self { bytes, start }
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

#[derive(Clone, Copy)]
struct Request {
    offset: u64,
    sent: Instant,
    write: bool,
    waiting: bool,
}

pub(super) struct Lane<'a> {
    load: &'a Load,
    socket: RawFd,
    rng: ChaCha8Rng,
    requests: Vec<Request>,
    idle: Vec<u32>,
    /// By cookie: header and payload of a WRITE, ready but for what changes.
    messages: Vec<u8>,
    /// Headers of READs, one behind the other.
    heads: Vec<u8>,
    pieces: Vec<Piece>,
    /// What was received of a reply that is not whole.
    rest: Vec<u8>,
    /// How many requests were made, and how many replies were checked.
    made: u64,
    checked: u64,
}

impl<'a> Lane<'a> {
    pub(super) fn new(load: &'a Load, socket: RawFd, seed: u64) -> Self {
        let depth = load.depth as usize;
        let request = Request { offset: 0, sent: Instant::now(), write: false, waiting: false };
        let mut messages = Vec::new();
        if load.writes() {
            messages = vec![0; depth * load.stride() + ALIGNMENT];
            let base = messages.as_ptr().align_offset(ALIGNMENT);
            for cookie in 0..depth {
                let at = base + cookie * load.stride() + ALIGNMENT;
                content::prepare(&mut messages[at..at + load.bytes as usize]);
            }
        }
        Self {
            load,
            socket,
            rng: ChaCha8Rng::seed_from_u64(seed),
            requests: vec![request; depth],
            idle: (0..load.depth as u32).rev().collect(),
            messages,
            heads: vec![0; depth * REQUEST_BYTES],
            pieces: Vec::with_capacity(depth),
            rest: Vec::with_capacity(load.bytes as usize + REPLY_BYTES),
            made: 0,
            checked: 0,
        }
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.idle.len() == self.requests.len()
    }

    /// Whether every place was asked for that is asked for at all.
    fn is_done(&self) -> bool {
        self.load.is_once() && self.made == self.load.places()
    }

    /// Fills the queue, and sends what is new with one call.
    pub(super) fn send(&mut self, now: Instant) -> io::Result<()> {
        self.pieces.clear();
        let mut heads = 0;
        while !self.is_done()
            && let Some(cookie) = self.idle.pop()
        {
            let (place, write) = self.load.next(self.made, &mut self.rng);
            let offset = place * u64::from(self.load.bytes);
            self.made += 1;
            self.requests[cookie as usize] = Request { offset, sent: now, write, waiting: true };
            let command = if write { WRITE } else { READ };
            let header = header(command, cookie, offset, self.load.bytes);
            if write {
                let base = self.messages.as_ptr().align_offset(ALIGNMENT);
                let payload = base + cookie as usize * self.load.stride() + ALIGNMENT;
                let end = payload + self.load.bytes as usize;
                content::stamp(&mut self.messages[payload..end], self.load.version, offset);
                self.messages[payload - REQUEST_BYTES..payload].copy_from_slice(&header);
                self.pieces.push(piece(&self.messages[payload - REQUEST_BYTES..end]));
                continue;
            }
            let end = heads + REQUEST_BYTES;
            self.heads[heads..end].copy_from_slice(&header);
            let head = piece(&self.heads[heads..end]);
            heads = end;
            match self.pieces.last_mut() {
                // Headers one behind the other are one piece.
                Some(last)
                    if last.iov_base.cast::<u8>().wrapping_add(last.iov_len)
                        == head.iov_base.cast() =>
                {
                    last.iov_len += REQUEST_BYTES;
                }
                _ => self.pieces.push(head),
            }
        }
        // SAFETY: the pieces are parts of `messages` and `heads`, which live and rest through the call.
        unsafe { sys::send_all(self.socket, &mut self.pieces) }
    }

    /// Receives once, and checks every reply that is whole now. Answers to `done` when each was sent.
    pub(super) fn receive(
        &mut self,
        inbox: &mut Inbox,
        done: impl FnMut(Instant),
    ) -> io::Result<()> {
        if self.load.is_large() {
            return self.receive_large(inbox, done);
        }
        let room = inbox.room();
        let kept = self.rest.len();
        room[..kept].copy_from_slice(&self.rest);
        let got = sys::receive(self.socket, &mut room[kept..])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let used = self.replies(&room[..kept + got], done)?;
        self.rest.clear();
        self.rest.extend_from_slice(&room[used..kept + got]);
        Ok(())
    }

    /// A large reply is received to one place, with the header of the next behind it.
    fn receive_large(&mut self, inbox: &mut Inbox, done: impl FnMut(Instant)) -> io::Result<()> {
        let whole = REPLY_BYTES + self.load.bytes as usize;
        let room = inbox.room();
        room[..self.rest.len()].copy_from_slice(&self.rest);
        let mut have = self.rest.len();
        while have < whole {
            let got = sys::receive(self.socket, &mut room[have..whole + REPLY_BYTES])?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += got;
            // A reply of an error has no payload: it must not be waited for.
            if have >= REPLY_BYTES && room[4..8] != [0; 4] {
                break;
            }
        }
        let used = self.replies(&room[..have], done)?;
        self.rest.clear();
        self.rest.extend_from_slice(&room[used..have]);
        Ok(())
    }

    /// Takes whole replies, and answers how many bytes they were.
    fn replies(&mut self, bytes: &[u8], mut done: impl FnMut(Instant)) -> io::Result<usize> {
        let mut used = 0;
        while let Some(header) = bytes.get(used..used + REPLY_BYTES) {
            let cookie = u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"));
            if header[..4] != REPLY_MAGIC {
                return Err(io::Error::other("the stream is out of step"));
            }
            if header[4..8] != [0; 4] {
                return Err(io::Error::other(format!("a request failed: {:?}", &header[4..8])));
            }
            let index = usize::try_from(cookie).unwrap_or(usize::MAX);
            let Some(&request) = self.requests.get(index).filter(|one| one.waiting) else {
                return Err(io::Error::other("a reply to nothing"));
            };
            if !request.write {
                let payload = used + REPLY_BYTES..used + REPLY_BYTES + self.load.bytes as usize;
                let Some(payload) = bytes.get(payload) else { break };
                let whole = self.checked.is_multiple_of(WHOLE_EVERY);
                content::check(payload, self.load.version, request.offset, whole)
                    .map_err(|at| io::Error::other(format!("wrong bytes at {at}")))?;
                used += payload.len();
                self.checked += 1;
            }
            used += REPLY_BYTES;
            self.requests[index].waiting = false;
            self.idle.push(cookie as u32);
            done(request.sent);
        }
        Ok(used)
    }
}

/// A simple request.
pub(super) fn header(command: u16, cookie: u32, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
    let mut header = [0; REQUEST_BYTES];
    header[..4].copy_from_slice(&REQUEST_MAGIC);
    header[6..8].copy_from_slice(&command.to_be_bytes());
    header[8..16].copy_from_slice(&u64::from(cookie).to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..28].copy_from_slice(&length.to_be_bytes());
    header
}
