//! A simulated client: it speaks NBD byte by byte, keeps requests in flight, now and then breaks the
//! rules, and holds every reply against what it may be.

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::ops::Range;

use glassine_core::judge;
use glassine_core::wire::{self, RequestHeader};
use glassine_core::{Errno, Overlay};

use crate::broken::Broken;
use crate::choice::{Lane, Tape};
use crate::model::{Content, Model, Moment, fill_payload};
use crate::net::{hash_bytes, take_front};
use crate::swarm::Swarm;

const LANE: Lane = Lane::Client;
const BLOCK: u64 = 4096;

/// A request a client made.
#[derive(Debug)]
pub struct Asked {
    header: RequestHeader,
    /// The version it writes, if it changes anything.
    change: Option<usize>,
    /// What it must be answered with, if that is certain.
    verdict: Option<Errno>,
    /// When its first byte left.
    pub issued_at: Moment,
    /// The position of its last byte among all that were queued.
    end: u64,
    sent: bool,
}

/// Something a client noticed, for the trace.
#[derive(Debug, Clone, Copy)]
pub enum Noticed {
    /// It made this request.
    Asks(RequestHeader),
    /// The last byte of a request has left.
    Sent(u64),
    /// A request was answered, with this error or 0.
    Answered(u64, u32),
}

/// What has to be answered with which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Greeting,
    OptionReplies,
    ExportName,
    Replies,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Bytes to send, and after how many more of them a request begins or ends.
    out: VecDeque<u8>,
    marks: VecDeque<(u64, Mark)>,
    queued: u64,
    pushed: u64,
    inbox: VecDeque<u8>,
    reading: Reading,
    no_zeroes: bool,
    export_name: bool,
    /// Options sent, and the last reply that each must get.
    options: VecDeque<(u32, u32)>,
    /// Requests made and not answered, by cookie.
    pub asked: HashMap<u64, Asked>,
    next_cookie: u64,
    /// It does not read replies before the faults stop.
    pub deaf: bool,
    /// It will make no more requests, and leaves when all are answered.
    pub leaving: bool,
    said_goodbye: bool,
    /// It sends no byte from this position on.
    silent_from: u64,
    /// Requests answered.
    pub answered: u64,
    /// What it noticed since this was last taken.
    pub noticed: Vec<Noticed>,
}

#[derive(Debug, Clone, Copy)]
enum Mark {
    Begins(u64),
    Ends(u64),
}

/// What the world tells a client about a device.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Its size.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The longest payload.
    pub payload_bytes_max: u32,
    /// An error may have come from a fault since this moment.
    pub now: Moment,
}

/// Which errors a fault could explain for a request issued at some moment.
pub trait Excuses {
    /// Whether storage failed since then.
    fn storage_failed(&self, since: Moment) -> bool;
    /// Whether `blocks` more could have been too many since then.
    fn space_was_short(&self, since: Moment, blocks: u64) -> bool;
    /// When the journal failed, if it did: nothing becomes durable any more.
    fn journal_failed(&self) -> Option<Moment> {
        None
    }
    /// Whether the journal had no space to go on at some moment since then.
    fn journal_was_full(&self, _since: Moment) -> bool {
        false
    }
}

/// What went wrong when, to excuse errors.
#[derive(Debug, Default)]
pub struct Faults {
    /// When storage failed last.
    pub storage: Option<Moment>,
    /// When the data file could not grow last.
    pub growth: Option<Moment>,
    /// When the journal failed.
    pub journal: Option<Moment>,
    /// When a checkpoint waited for space last.
    full: Option<Moment>,
    /// Moments at which more of the quota was spoken for than before or after.
    used: Vec<(Moment, u64)>,
    quota_blocks: u64,
}

impl Faults {
    /// Nothing went wrong yet, and this is the quota.
    #[must_use]
    pub fn new(quota_bytes: u64) -> Self {
        // What this thread's last world used does not count.
        let _ = judge::take_most_used();
        Self { quota_blocks: quota_bytes / BLOCK, ..Self::default() }
    }

    /// Whoever failed has been started again.
    pub fn recovered(&mut self) {
        self.journal = None;
    }

    /// Notes how much of the quota is spoken for, and whether the journal has no space to go on.
    pub fn note_used(&mut self, now: Moment, overlay: &Overlay) {
        if overlay.checkpoint_waits() {
            self.full = Some(now);
        }
        let used = overlay.tally().provisioned() + overlay.charged();
        // Within one batch, blocks may have come and gone.
        let most = judge::take_most_used();
        if most > used {
            self.used.push((now, most));
        }
        if self.used.last().is_none_or(|(_, last)| *last != used) {
            self.used.push((now, used));
        }
    }
}

impl Excuses for Faults {
    fn storage_failed(&self, since: Moment) -> bool {
        self.storage.is_some_and(|at| at >= since)
    }

    fn space_was_short(&self, since: Moment, blocks: u64) -> bool {
        let mut used = self.used.iter().rev();
        let last = used.by_ref().take_while(|(at, _)| *at >= since).map(|(_, used)| *used).max();
        // What held when the request was issued was noted before that.
        let before = self.used.iter().rev().find(|(at, _)| *at < since).map(|(_, used)| *used);
        let most = last.max(before).unwrap_or(0);
        self.growth.is_some_and(|at| at >= since) || most + blocks > self.quota_blocks
    }

    fn journal_failed(&self) -> Option<Moment> {
        self.journal
    }

    fn journal_was_full(&self, since: Moment) -> bool {
        self.full.is_some_and(|at| at >= since)
    }
}

impl Client {
    /// A client that has just connected, with its handshake ready to be sent.
    #[must_use]
    pub fn new(tape: &mut Tape, swarm: &Swarm, connection: u64) -> Self {
        let mut client = Self {
            out: VecDeque::new(),
            marks: VecDeque::new(),
            queued: 0,
            pushed: 0,
            inbox: VecDeque::new(),
            reading: Reading::Greeting,
            no_zeroes: tape.chance(LANE, 50),
            export_name: tape.chance(LANE, 30),
            options: VecDeque::new(),
            asked: HashMap::new(),
            // Cookies are opaque: any 64 bits will do, and no two clients share them.
            next_cookie: connection << 40 ^ tape.draw(LANE, 1 << 20) << 20,
            deaf: tape.chance(LANE, swarm.deaf_percent),
            leaving: false,
            said_goodbye: false,
            silent_from: u64::MAX,
            answered: 0,
            noticed: Vec::new(),
        };
        client.queue_handshake(tape);
        if tape.chance(LANE, swarm.vanish_percent) {
            client.silent_from = tape.length(LANE, 50_000);
        }
        client
    }

    fn queue(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
        self.queued += bytes.len() as u64;
    }

    fn queue_option(&mut self, option: u32, data: &[u8]) {
        self.queue(&wire::OPTION_MAGIC.to_be_bytes());
        self.queue(&option.to_be_bytes());
        self.queue(&(data.len() as u32).to_be_bytes());
        self.queue(data);
    }

    fn queue_handshake(&mut self, tape: &mut Tape) {
        self.queue(&(1 | u32::from(self.no_zeroes) << 1).to_be_bytes());
        let info = |name: &[u8], requests: &[u16]| {
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend(name);
            data.extend((requests.len() as u16).to_be_bytes());
            data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
            data
        };
        for _ in 0..tape.draw(LANE, 3) {
            let (option, data, reply) = match tape.draw(LANE, 8) {
                0 => (wire::OPT_LIST, vec![], wire::REP_ACK),
                1 => (wire::OPT_INFO, info(b"", &[3, 1, 77]), wire::REP_ACK),
                2 => (wire::OPT_GO, info(b"nobody", &[]), wire::REP_ERR_UNKNOWN),
                3 => (0x0765_4321, vec![1; 9], wire::REP_ERR_UNSUP),
                4 => (wire::OPT_INFO, vec![0xff; 6], wire::REP_ERR_INVALID),
                // Longer than any option is: it has to be skipped.
                5 => (0x0765_4321, vec![1; 8193], wire::REP_ERR_UNSUP),
                // A name longer than its option, and more information requests than there are.
                6 => (wire::OPT_INFO, vec![0, 0, 0, 9, 0, 0], wire::REP_ERR_INVALID),
                _ => (wire::OPT_INFO, vec![0, 0, 0, 0, 0, 2, 0, 3], wire::REP_ERR_INVALID),
            };
            self.queue_option(option, &data);
            self.options.push_back((option, reply));
        }
        if self.export_name {
            self.queue_option(wire::OPT_EXPORT_NAME, b"");
        } else {
            self.queue_option(wire::OPT_GO, &info(b"", &[3]));
            self.options.push_back((wire::OPT_GO, wire::REP_ACK));
        }
    }

    /// Whether there are bytes to send.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.output_bytes() > 0
    }

    /// How many bytes it has to send, and will.
    #[must_use]
    pub fn output_bytes(&self) -> usize {
        self.out.len().min(self.silent_from.saturating_sub(self.pushed) as usize)
    }

    /// Whether it has fallen silent.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.pushed >= self.silent_from
    }

    /// Whether it has begun something that the server may expect it to finish.
    #[must_use]
    pub fn is_in_the_middle(&self) -> bool {
        self.reading != Reading::Replies || matches!(self.marks.front(), Some((_, Mark::Ends(_))))
    }

    /// Whether its handshake is done.
    #[must_use]
    pub fn is_in_transmission(&self) -> bool {
        self.reading == Reading::Replies
    }

    /// Requests made of which the last byte lies before a position, and that have no answer.
    pub fn unanswered_before(&self, position: u64) -> impl Iterator<Item = u64> {
        let before = self.asked.iter().filter(move |(_, asked)| asked.end <= position);
        before.map(|(cookie, _)| *cookie)
    }

    /// Whether it waits for nothing and has nothing to say.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.out.is_empty() && self.reading == Reading::Replies
    }

    /// Whether it has said that it leaves, and every byte of that was sent.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.said_goodbye && self.out.is_empty()
    }

    /// Sends `count` bytes.
    pub fn send(&mut self, count: usize, model: &mut Model, now: Moment) -> Vec<u8> {
        let bytes = take_front(&mut self.out, count);
        while let Some((at, mark)) = self.marks.front().copied() {
            match mark {
                Mark::Begins(cookie) if at < self.pushed + count as u64 => {
                    self.asked.get_mut(&cookie).expect("just made").issued_at = now;
                }
                Mark::Ends(cookie) if at <= self.pushed + count as u64 => {
                    let asked =
                        self.asked.get_mut(&cookie).expect("not answered before it is sent");
                    asked.sent = true;
                    if let Some(version) = asked.change {
                        model.sent(version, now);
                    }
                    self.noticed.push(Noticed::Sent(cookie));
                }
                _ => break,
            }
            self.marks.pop_front();
        }
        self.pushed += count as u64;
        bytes
    }

    /// Says goodbye, politely or by just ending.
    pub fn say_goodbye(&mut self, politely: bool) {
        if !std::mem::replace(&mut self.said_goodbye, true) && politely {
            let header = RequestHeader {
                magic: wire::REQUEST_MAGIC,
                flags: 0,
                command: wire::CMD_DISC,
                cookie: 0,
                offset: 0,
                length: 0,
            };
            self.queue(&header.encode());
        }
    }

    /// Makes a request.
    pub fn ask(&mut self, tape: &mut Tape, swarm: &Swarm, view: View, model: &mut Model) {
        let total: u64 = swarm.weights.iter().sum();
        let mut ticket = tape.draw(LANE, total.max(1));
        let kind = swarm.weights.iter().position(|weight| {
            let here = ticket < *weight;
            ticket = ticket.saturating_sub(*weight);
            here
        });
        let (offset, length) = draw_range(tape, swarm);
        let mut header = RequestHeader {
            magic: wire::REQUEST_MAGIC,
            flags: u16::from(tape.chance(LANE, 20)),
            command: wire::CMD_READ,
            cookie: self.next_cookie,
            offset,
            length,
        };
        self.next_cookie = self.next_cookie.wrapping_add(1);
        match kind {
            Some(1) => header.command = wire::CMD_WRITE,
            Some(2) => header.command = wire::CMD_TRIM,
            Some(3) => {
                header.command = wire::CMD_WRITE_ZEROES;
                header.flags |= (tape.draw(LANE, 2) as u16) << 1 | (tape.draw(LANE, 2) as u16) << 4;
            }
            Some(4) => (header.command, header.offset, header.length) = (wire::CMD_FLUSH, 0, 0),
            Some(5) => header.command = wire::CMD_CACHE,
            Some(6) => break_a_rule(tape, swarm, &mut header),
            _ => {}
        }
        // No draw where there are none: tapes from before they came keep their meaning.
        let zeroes = header.command == wire::CMD_WRITE
            && swarm.zeroes_percent > 0
            && tape.chance(LANE, swarm.zeroes_percent);
        let content = if zeroes { Content::Zero } else { Content::Payload };
        self.queue_request(header, content, view, model);
    }

    /// Reads a range, to see what is there.
    pub fn ask_to_read(&mut self, bytes: Range<u64>, view: View, model: &mut Model) {
        self.ask_for(wire::CMD_READ, 0, bytes, view, model);
    }

    /// Makes a certain request.
    pub fn ask_for(
        &mut self,
        command: u16,
        flags: u16,
        bytes: Range<u64>,
        view: View,
        model: &mut Model,
    ) {
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC,
            flags,
            command,
            cookie: self.next_cookie,
            offset: bytes.start,
            length: (bytes.end - bytes.start) as u32,
        };
        self.next_cookie = self.next_cookie.wrapping_add(1);
        self.queue_request(header, Content::Payload, view, model);
    }

    /// How many bytes it sends up to the next point of interest: the middle of a payload, or the end
    /// of a request.
    #[must_use]
    pub fn bytes_to_pause(&self) -> u64 {
        const HEADER: u64 = wire::REQUEST_BYTES as u64;
        let at = |index: usize| self.marks.get(index).map(|(at, _)| at - self.pushed);
        match (self.marks.front(), at(0), at(1)) {
            (Some((_, Mark::Begins(_))), Some(start), Some(end)) if end - start > HEADER => {
                start + HEADER + (end - start - HEADER) / 2
            }
            (Some((_, Mark::Begins(_))), _, Some(end)) => end,
            (_, Some(end), _) => end,
            _ => self.out.len() as u64,
        }
    }

    /// The moments its state depends on.
    pub fn moments(&self) -> impl Iterator<Item = Moment> {
        self.asked.values().map(|asked| asked.issued_at)
    }

    /// Hashes what decides about its future. Which bytes it sends is certain once it has asked.
    pub fn hash_state(&self, rank: &impl Fn(Moment) -> usize, state: &mut impl Hasher) {
        (self.pushed, self.queued, self.said_goodbye, self.leaving).hash(state);
        hash_bytes(&self.inbox, state);
        let mut asked: Vec<_> = self.asked.iter().collect();
        asked.sort_unstable_by_key(|(cookie, _)| **cookie);
        for (cookie, asked) in asked {
            (cookie, rank(asked.issued_at), asked.sent).hash(state);
        }
    }

    /// `content` is what a WRITE writes.
    fn queue_request(
        &mut self,
        header: RequestHeader,
        content: Content,
        view: View,
        model: &mut Model,
    ) {
        let is_payload = content == Content::Payload;
        let verdict = verdict(&header, view);
        self.noticed.push(Noticed::Asks(header));
        let bytes = header.offset..header.offset.wrapping_add(u64::from(header.length));
        let change = match header.command {
            _ if verdict.is_some() || header.length == 0 => None,
            wire::CMD_WRITE => Some(model.begin(bytes.clone(), content)),
            wire::CMD_WRITE_ZEROES => Some(model.begin(bytes.clone(), Content::Zero)),
            wire::CMD_TRIM => Some(model.begin(inward(&bytes, view.size_bytes), Content::Zero)),
            _ => None,
        };
        let cookie = header.cookie;
        self.marks.push_back((self.queued, Mark::Begins(cookie)));
        self.queue(&header.encode());
        if header.command == wire::CMD_WRITE {
            let version = change.unwrap_or(usize::MAX / 2);
            let mut payload = vec![0; header.length as usize];
            if is_payload {
                fill_payload(version, header.offset, &mut payload);
            }
            self.queue(&payload);
        }
        self.marks.push_back((self.queued, Mark::Ends(cookie)));
        let (issued_at, end) = (view.now, self.queued);
        let asked = Asked { header, change, verdict, issued_at, end, sent: false };
        self.asked.insert(cookie, asked);
    }

    /// Bytes have arrived. Fails if they are not what they may be.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        model: &mut Model,
        now: Moment,
        excuses: &impl Excuses,
    ) -> Result<(), Broken> {
        self.inbox.extend(bytes);
        loop {
            let inbox: &[u8] = self.inbox.make_contiguous();
            let used = match self.reading {
                Reading::Greeting => greeting(inbox)?,
                Reading::OptionReplies => option_reply(inbox, &mut self.options)?,
                Reading::ExportName => {
                    let length = if self.no_zeroes { 10 } else { 134 };
                    if inbox.len() < length { 0 } else { length }
                }
                Reading::Replies => self.reply(model, now, excuses)?,
            };
            if used == 0 && (self.reading != Reading::OptionReplies || !self.options.is_empty()) {
                return Ok(());
            }
            self.inbox.drain(..used);
            self.reading = match self.reading {
                Reading::Greeting => Reading::OptionReplies,
                Reading::OptionReplies if !self.options.is_empty() => Reading::OptionReplies,
                Reading::OptionReplies if self.export_name => Reading::ExportName,
                _ => Reading::Replies,
            };
        }
    }

    fn reply(
        &mut self,
        model: &mut Model,
        now: Moment,
        excuses: &impl Excuses,
    ) -> Result<usize, Broken> {
        let inbox: &[u8] = self.inbox.make_contiguous();
        const HEADER: usize = wire::SIMPLE_REPLY_BYTES;
        if inbox.len() < HEADER {
            return Ok(0);
        }
        if wire::be32(inbox, 0) != wire::SIMPLE_REPLY_MAGIC {
            let magic = wire::be32(inbox, 0);
            return Broken::by("replies in step", format!("a reply begins with {magic:#x}"));
        }
        let (error, cookie) = (wire::be32(inbox, 4), wire::be64(inbox, 8));
        let Some(asked) = self.asked.get(&cookie) else {
            let text =
                format!("a reply to {cookie:#x}, which was not asked or is answered already");
            return Broken::by("one reply a request", text);
        };
        let header = asked.header;
        let is_data = header.command == wire::CMD_READ && error == 0;
        let length = if is_data { header.length as usize } else { 0 };
        let Some(data) = inbox.get(HEADER..HEADER + length) else {
            return Ok(0);
        };
        if !asked.sent {
            let text = format!("{header:?} was answered before it was sent");
            return Broken::by("one reply a request", text);
        }
        let since = asked.issued_at;
        judge_error(&header, asked.verdict, error, since, excuses)?;
        if is_data {
            let bytes = header.offset..header.offset + u64::from(header.length);
            model.check(bytes, data, since, now)?;
        }
        let must_survive = header.flags & wire::CMD_FLAG_FUA != 0;
        if header.command == wire::CMD_FLUSH && error == 0 {
            model.flushed(since);
        }
        if let Some(version) = asked.change {
            if error == 0 {
                model.answered(version, now);
                if must_survive {
                    model.survives(version);
                }
            } else if !must_survive || excuses.journal_failed().is_none() {
                model.refused(version)?;
            }
        }
        self.asked.remove(&cookie);
        self.answered += 1;
        self.noticed.push(Noticed::Answered(cookie, error));
        Ok(HEADER + length)
    }
}

fn greeting(inbox: &[u8]) -> Result<usize, Broken> {
    if inbox.len() < 18 {
        return Ok(0);
    }
    if wire::be64(inbox, 0) != wire::GREETING_MAGIC || wire::be16(inbox, 16) != 3 {
        return Broken::by("handshake", "a wrong greeting");
    }
    Ok(18)
}

fn option_reply(inbox: &[u8], options: &mut VecDeque<(u32, u32)>) -> Result<usize, Broken> {
    let Some(&(option, last)) = options.front() else { return Ok(0) };
    if inbox.len() < 20 {
        return Ok(0);
    }
    if wire::be64(inbox, 0) != wire::OPTION_REPLY_MAGIC {
        return Broken::by("handshake", "an option reply without its magic");
    }
    let (kind, length) = (wire::be32(inbox, 12), wire::be32(inbox, 16) as usize);
    let is_last = kind != wire::REP_INFO && kind != wire::REP_SERVER;
    if wire::be32(inbox, 8) != option || (is_last && kind != last) {
        return Broken::by("handshake", format!("option {option} was answered {kind:#x}"));
    }
    if inbox.len() < 20 + length {
        return Ok(0);
    }
    if is_last {
        options.pop_front();
    }
    Ok(20 + length)
}

/// Whether a request may get this error: what the protocol says, or what a fault explains.
pub fn judge_error(
    header: &RequestHeader,
    verdict: Option<Errno>,
    error: u32,
    since: Moment,
    excuses: &impl Excuses,
) -> Result<(), Broken> {
    let expected = verdict.map_or(0, Errno::code);
    let blocks = u64::from(header.length) / BLOCK + 2;
    let changes = matches!(header.command, wire::CMD_WRITE | wire::CMD_WRITE_ZEROES);
    let failed = excuses.storage_failed(since);
    let trims = header.command == wire::CMD_TRIM;
    let flushes = header.command == wire::CMD_FLUSH;
    let must_survive = header.flags & wire::CMD_FLAG_FUA != 0 && header.length > 0;
    let durable = flushes || (must_survive && (changes || trims));
    if error == 0 && durable && excuses.journal_failed().is_some_and(|at| at < since) {
        let text = format!("{header:?} was acknowledged though the journal had failed");
        return Broken::by("a failed journal acknowledges nothing", text);
    }
    let journal_failed = excuses.journal_failed().is_some();
    let explained = match error {
        _ if error == expected => true,
        _ if verdict.is_some() => false,
        5 if journal_failed && (changes || trims || flushes) => true,
        5 => failed && (changes || header.command == wire::CMD_READ),
        28 if excuses.journal_was_full(since) && (changes || trims) => true,
        28 => changes && (excuses.space_was_short(since, blocks) || failed),
        95 => {
            header.command == wire::CMD_WRITE_ZEROES
                && header.flags & wire::CMD_FLAG_FAST_ZERO != 0
                && !(header.offset | u64::from(header.length)).is_multiple_of(BLOCK)
        }
        _ => false,
    };
    if explained {
        return Ok(());
    }
    Broken::by("error of a reply", format!("{header:?} was answered {error}, expected {verdict:?}"))
}

/// The error a request must get, by the protocol alone; written anew from the clauses, so that it
/// does not share the core's mistakes.
#[must_use]
pub fn verdict(header: &RequestHeader, view: View) -> Option<Errno> {
    let allowed = match header.command {
        wire::CMD_WRITE_ZEROES => 0b1_0011,
        wire::CMD_READ | wire::CMD_WRITE | wire::CMD_TRIM | wire::CMD_FLUSH | wire::CMD_CACHE => 1,
        _ => return Some(Errno::Invalid),
    };
    if header.flags & !allowed != 0 {
        return Some(Errno::Invalid);
    }
    let writes = [wire::CMD_WRITE, wire::CMD_WRITE_ZEROES];
    if view.read_only && (writes.contains(&header.command) || header.command == wire::CMD_TRIM) {
        return Some(Errno::Perm);
    }
    let has_payload = [wire::CMD_READ, wire::CMD_WRITE].contains(&header.command);
    if has_payload && header.length > view.payload_bytes_max {
        return Some(Errno::Invalid);
    }
    let beyond =
        u128::from(header.offset) + u128::from(header.length) > u128::from(view.size_bytes);
    if beyond && header.command != wire::CMD_FLUSH {
        let error = if writes.contains(&header.command) { Errno::NoSpace } else { Errno::Invalid };
        return Some(error);
    }
    None
}

/// TRIM touches whole blocks only; the end of the device ends a block.
#[must_use]
pub fn inward(bytes: &Range<u64>, size_bytes: u64) -> Range<u64> {
    let start = bytes.start.div_ceil(BLOCK) * BLOCK;
    let end = if bytes.end == size_bytes { size_bytes } else { bytes.end / BLOCK * BLOCK };
    if start < end { start..end } else { 0..0 }
}

fn draw_range(tape: &mut Tape, swarm: &Swarm) -> (u64, u32) {
    let size = swarm.size_bytes;
    let blocks = size.div_ceil(BLOCK);
    let hot = if tape.chance(LANE, 20) { blocks } else { swarm.hot_blocks.min(blocks) };
    let mut start = tape.draw(LANE, hot) * BLOCK;
    let mut length = tape.length(LANE, swarm.length_max);
    if tape.chance(LANE, 100 - swarm.aligned_percent) {
        start += tape.draw(LANE, BLOCK);
    } else {
        length = (length / BLOCK).max(1) * BLOCK;
    }
    if !tape.chance(LANE, 3) {
        length = length.min(u64::from(swarm.limits.payload_bytes_max));
    }
    let start = start.min(size);
    (start, length.min(size - start) as u32)
}

fn break_a_rule(tape: &mut Tape, swarm: &Swarm, header: &mut RequestHeader) {
    match tape.draw(LANE, 8) {
        0 => header.length = 0,
        1 => header.command = 7 + tape.draw(LANE, 60_000) as u16,
        2 => header.flags |= 1 << *tape.pick(LANE, &[1, 2, 3, 5, 9, 15]),
        3 => header.offset = swarm.size_bytes - header.offset.min(5),
        4 => {
            header.offset = u64::MAX - tape.draw(LANE, 5000);
            header.command = *tape.pick(LANE, &[0, 4, 5, 6]);
            // FLUSH covers no range, so any will do; found by a fuzzer as an overflow.
            if header.command == wire::CMD_CACHE && header.offset.is_multiple_of(2) {
                header.command = wire::CMD_FLUSH;
            }
        }
        5 => header.length = u32::MAX - tape.draw(LANE, 5000) as u32,
        6 => {
            header.command = *tape.pick(LANE, &[wire::CMD_WRITE, wire::CMD_WRITE_ZEROES]);
            header.offset = swarm.size_bytes - header.offset.min(100);
            header.length = 200;
        }
        _ if swarm.limits.payload_bytes_max > 100_000 => header.length = 0,
        _ => {
            header.command = wire::CMD_WRITE;
            header.length = swarm.limits.payload_bytes_max + 1 + tape.draw(LANE, 5000) as u32;
        }
    }
}
