//! The receiving side: from bytes in the staging buffer to requests, and payloads to their places.
//!
//! It waits for room only: never for the sending side, nor for storage.

use super::*;

impl Session {
    pub(super) fn wants_to_receive(&mut self) -> bool {
        match self.stream {
            Stream::Ended => false,
            Stream::Direct { request } => {
                let request = self.table.get(request);
                let admitted = request.grant.is_some();
                if admitted {
                    self.staging.make_room();
                }
                admitted
            }
            Stream::Header if matches!(self.phase, Phase::Entering { .. }) => false,
            Stream::Header if self.table.is_full() => false,
            Stream::Header | Stream::Staged { .. } | Stream::Discard { .. } => {
                self.staging.make_room() > 0
            }
        }
    }

    /// Whether everything received is a number of whole requests, or options.
    pub(super) fn is_between_requests(&self) -> bool {
        let skips = match &self.phase {
            Phase::Handshake { handshake, .. } => handshake.is_skipping(),
            _ => false,
        };
        self.stream == Stream::Header && self.staging.unread().is_empty() && !skips
    }

    /// A `Receive` is over; its request no longer has the kernel writing into its slots.
    pub(super) fn receive_ended(&mut self) -> Option<u16> {
        let index = self.receiving.take().expect("a Receive was under way")?;
        let request = self.table.get_mut(index);
        request.outstanding -= 1;
        if request.abandoned {
            self.drop_if_idle(index);
            return None;
        }
        Some(index)
    }

    pub(super) fn received(&mut self, bytes: usize) {
        assert!(bytes > 0, "the end of the stream is an input of its own");
        self.moved_at = self.now;
        let mut rest = bytes as u64;
        let direct = self.receive_ended();
        if self.stream == Stream::Ended {
            // The session began to end while the kernel was receiving.
            return;
        }
        if let Some(index) = direct {
            let request = self.table.get_mut(index);
            let direct = rest.min(request.direct_left);
            request.direct_left -= direct;
            rest -= direct;
            if request.direct_left == 0 {
                mark(Mark::PayloadDirect);
                self.stream = Stream::Header;
                self.filled(index);
            }
        }
        self.staging.received(usize::try_from(rest).expect("no more than received"));
        self.parse();
    }

    /// Takes everything out of the staging buffer that can be taken.
    pub(super) fn parse(&mut self) {
        loop {
            let go_on = match self.stream {
                Stream::Ended => {
                    let rest = self.staging.unread().len();
                    if rest > 0 {
                        mark(Mark::UnreadDropped);
                    }
                    self.staging.consume(rest);
                    false
                }
                Stream::Header => match self.phase {
                    Phase::Handshake { .. } => self.parse_option(),
                    Phase::Entering { .. } => false,
                    Phase::Transmission { .. } => self.parse_request(),
                },
                Stream::Staged { request } => self.parse_payload(request),
                Stream::Direct { .. } => false,
                Stream::Discard { request, left } => self.discard(request, left),
            };
            if !go_on {
                return;
            }
        }
    }

    pub(super) fn parse_option(&mut self) -> bool {
        let Phase::Handshake { handshake, .. } = &mut self.phase else { unreachable!() };
        let unread = self.staging.unread();
        let (count, step) = handshake.receive(unread, &self.catalog, &mut self.outbox.preface);
        self.staging.consume(count);
        match step {
            Step::Wait => false,
            Step::Again => true,
            Step::Enter(export) => {
                let chosen = &self.catalog.exports()[export];
                let (size_bytes, read_only) = (chosen.size_bytes, chosen.read_only);
                self.phase = Phase::Entering { size_bytes, read_only };
                self.outputs.push_back(Output::Enter { export });
                false
            }
            Step::Close(reason) => {
                self.finish(reason, Some(self.now.after(self.limits.drain_time_max)));
                false
            }
        }
    }

    pub(super) fn parse_request(&mut self) -> bool {
        let Some(bytes) = self.staging.unread().first_chunk::<REQUEST_BYTES>() else {
            return false;
        };
        let mut header = RequestHeader::parse(bytes);
        if planted(Bug::FlagsAsType) && header.flags != 0 {
            header.command = u16::MAX;
        }
        if header.magic != wire::REQUEST_MAGIC {
            self.abort(CloseReason::BadRequestMagic);
            return false;
        }
        if planted(Bug::UnknownCommandCloses) && header.command > wire::CMD_WRITE_ZEROES {
            self.abort(CloseReason::ConnectionLost);
            return false;
        }
        if header.command == wire::CMD_DISC {
            self.staging.consume(REQUEST_BYTES);
            self.finish(CloseReason::Disconnected, None);
            return false;
        }
        if self.table.is_full() {
            mark(Mark::TableFull);
            return false;
        }
        let waits = (planted(Bug::SerialConnection) && self.is_fetching())
            || (planted(Bug::ReaderWaitsForWriter) && self.blocked);
        if waits {
            return false;
        }
        self.staging.consume(REQUEST_BYTES);
        self.begin(&header);
        true
    }

    /// Judges a request and sets it going.
    pub(super) fn begin(&mut self, header: &RequestHeader) {
        let Phase::Transmission { size_bytes, read_only, .. } = self.phase else { unreachable!() };
        let length = u64::from(header.length);
        let verdict = judge(header, size_bytes, read_only, self.limits.payload_bytes_max);
        let bytes = match verdict {
            Ok(Command::Read | Command::Write | Command::Zero) => {
                header.offset..header.offset + length
            }
            // No range is meant, or none that was checked: FLUSH may come with any offset.
            Ok(Command::Plain | Command::Flush) | Err(_) => 0..0,
        };
        let command = verdict.unwrap_or(Command::Plain);
        let index = self.table.add(command, header.cookie, bytes);
        if let Err(error) = verdict {
            let clipped = planted(Bug::ClipAndSayOk) && error == Errno::NoSpace;
            self.table.get_mut(index).error = Some(error).filter(|_| !clipped);
            if header.command == wire::CMD_WRITE && !planted(Bug::PayloadLeft) {
                // NBD R5: an errored WRITE's payload must still be consumed.
                self.stream = Stream::Discard { request: index, left: length };
            } else {
                self.answer(index);
            }
            return;
        }
        let request = self.table.get_mut(index);
        request.fua = header.flags & wire::CMD_FLAG_FUA != 0;
        match command {
            Command::Flush => self.flush.push_back(index),
            Command::Plain => {
                if header.command == wire::CMD_CACHE && length > 0 {
                    let offset = header.offset;
                    self.outputs.push_back(Output::Prefetch { offset, length });
                }
                self.answer(index);
            }
            Command::Read => self.resolve.push_back(index),
            Command::Write => {
                request.cover_write();
                self.admit.push_back(index);
                self.begin_payload(index);
            }
            Command::Zero => {
                if header.command == wire::CMD_TRIM {
                    request.cover_trim(size_bytes);
                } else {
                    request.fast = header.flags & wire::CMD_FLAG_FAST_ZERO != 0;
                    let provision = header.flags & wire::CMD_FLAG_NO_HOLE != 0;
                    request.cover_zeroes(size_bytes, provision);
                }
                self.admit.push_back(index);
            }
        }
    }

    /// Decides where the payload of a WRITE arrives.
    pub(super) fn begin_payload(&mut self, index: u16) {
        let length = self.table.get(index).length() as usize;
        let here = self.staging.unread().len().min(length);
        let missing = length - here;
        let direct = missing > self.limits.direct_bytes_min as usize || !self.staging.fits(length);
        if missing == 0 || !direct {
            self.table.get_mut(index).arriving = true;
            self.stream = Stream::Staged { request: index };
            return;
        }
        if here > 0 {
            mark(Mark::PayloadSplit);
        }
        self.table.get_mut(index).direct_left = missing as u64;
        self.stage(index, here);
        self.stream = Stream::Direct { request: index };
    }

    pub(super) fn parse_payload(&mut self, index: u16) -> bool {
        let Phase::Transmission { size_bytes, .. } = self.phase else { unreachable!() };
        let length = self.table.get(index).length() as usize;
        if self.staging.unread().len() < length {
            return false;
        }
        mark(Mark::PayloadStaged);
        self.stream = Stream::Header;
        self.table.get_mut(index).arriving = false;
        if self.limits.detect_zeroes
            && is_zero(&self.staging.unread()[..length])
            && self.table.get_mut(index).turn_to_zeroes(size_bytes)
        {
            mark(Mark::PayloadZero);
            self.staging.consume(length);
            return true;
        }
        self.stage(index, length);
        let request = self.table.get(index);
        if request.error.is_some() && request.grant.is_none() {
            // Refused while its payload was arriving.
            self.let_go_of_payload(index);
            self.answer(index);
        } else if request.grant.is_some() {
            self.store(index);
        }
        true
    }

    /// Notes `count` unread bytes as (part of) the payload of a request, and keeps them in place.
    pub(super) fn stage(&mut self, index: u16, count: usize) {
        let staged = self.staging.consume(count);
        if count > 0 {
            self.staging.hold();
            self.table.get_mut(index).staged = Some(staged);
        }
    }

    pub(super) fn let_go_of_payload(&mut self, index: u16) {
        if self.table.get_mut(index).staged.take().is_some() {
            self.staging.unhold();
        }
    }

    pub(super) fn discard(&mut self, index: u16, left: u64) -> bool {
        let count = (self.staging.unread().len() as u64).min(left);
        self.staging.consume(count as usize);
        let left = left - count;
        if left > 0 {
            mark(Mark::PayloadDiscarded);
            self.stream = Stream::Discard { request: index, left };
            return false;
        }
        self.stream = Stream::Header;
        self.answer(index);
        true
    }
}

/// Whether bytes are zero. Most that are not differ early; the rest is looked at by the vector.
fn is_zero(bytes: &[u8]) -> bool {
    const LANES: usize = 64;
    let (vectors, rest) = bytes.as_chunks::<LANES>();
    let vector_is_zero = |vector: &[u8; LANES]| vector.iter().fold(0, |or, byte| or | byte) == 0;
    vectors.iter().all(vector_is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// What a request asks for, or the error it gets (R4, R6, R7, R8, Z1).
fn judge(
    header: &RequestHeader,
    size_bytes: u64,
    read_only: bool,
    payload_bytes_max: u32,
) -> Result<Command, Errno> {
    let zero_flags = wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO;
    let (command, more_flags) = match header.command {
        wire::CMD_READ => (Command::Read, 0),
        wire::CMD_WRITE => (Command::Write, 0),
        wire::CMD_TRIM => (Command::Zero, 0),
        wire::CMD_WRITE_ZEROES => (Command::Zero, zero_flags),
        wire::CMD_FLUSH => (Command::Flush, 0),
        wire::CMD_CACHE => (Command::Plain, 0),
        _ => return Err(Errno::Invalid),
    };
    // R4: FUA is accepted on every command, since SEND_FUA is always set.
    if header.flags & !(wire::CMD_FLAG_FUA | more_flags) != 0 {
        return Err(Errno::Invalid);
    }
    let changes = matches!(command, Command::Write | Command::Zero);
    if changes && read_only {
        return Err(Errno::Perm);
    }
    let has_payload = matches!(command, Command::Read | Command::Write);
    let too_long = header.length > payload_bytes_max && !planted(Bug::UnboundedLength);
    if has_payload && too_long {
        return Err(Errno::Invalid);
    }
    if header.command == wire::CMD_FLUSH {
        // FLUSH covers no range; what a client puts there has no meaning.
        return Ok(command);
    }
    let end = header.offset.checked_add(u64::from(header.length));
    let wrapped = header.offset.wrapping_add(u64::from(header.length));
    let end = if planted(Bug::OffsetWrap) { Some(wrapped) } else { end };
    if end.is_none_or(|end| end > size_bytes) {
        let grows = matches!(header.command, wire::CMD_WRITE | wire::CMD_WRITE_ZEROES);
        return Err(if grows { Errno::NoSpace } else { Errno::Invalid });
    }
    // R6: nothing to do is done.
    Ok(if header.length == 0 { Command::Plain } else { command })
}
