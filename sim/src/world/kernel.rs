//! What the kernel does: receives that land in slots piece by piece, sends that read segments late.

use super::*;

impl World {
    pub(super) fn write_data(&mut self, key: u64, offset: u64, bytes: &[u8]) -> Result<(), Broken> {
        let end = offset + bytes.len() as u64;
        for place in
            (offset / BLOCK as u64..end.div_ceil(BLOCK as u64)).map(|slot| slot * BLOCK as u64)
        {
            if !self.overlay.is_private(place) {
                let text = format!("connection {key} writes to the slot at {place}");
                return Broken::by("only private slots are written", text);
            }
            if !self.disk.has_space(place / BLOCK as u64) {
                let text = format!("connection {key} writes to the hole at {place}");
                return Broken::by("slots that are written have space", text);
            }
        }
        self.disk.write(DiskFile::Data, offset, bytes);
        self.touches("writes", key, offset, bytes.len() as u64);
        Ok(())
    }

    /// For pictures: bytes of slots are written or read.
    fn touches(&mut self, what: &'static str, connection: u64, offset: u64, length: u64) {
        let numbers = [offset / BLOCK as u64, offset, length, 0];
        self.trace.watch(Event { step: self.step, what, connection, numbers });
    }

    pub(super) fn read(
        &mut self,
        key: u64,
        source: Source,
        bytes: &mut [u8],
    ) -> Result<(), Broken> {
        match source {
            Source::Zero => bytes.fill(0),
            Source::Data { offset } => {
                let range = offset as usize..offset as usize + bytes.len();
                self.touches("reads", key, offset, bytes.len() as u64);
                for slot in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                    let state = self.overlay.slot_state((slot * BLOCK) as u64);
                    if !self.overlay.is_readable((slot * BLOCK) as u64) {
                        let text =
                            format!("connection {key} reads slot {slot}, which is {state:?}");
                        return Broken::by("only slots in use are read", text);
                    }
                }
                bytes.copy_from_slice(&self.disk.bytes(DiskFile::Data)[range]);
            }
            Source::Template { offset } => {
                let end = offset + bytes.len() as u64;
                if end > self.swarm.template_bytes {
                    let text = format!("connection {key} reads it up to {end}");
                    return Broken::by("the template is not read past its end", text);
                }
                fill_template(offset, bytes);
            }
        }
        Ok(())
    }

    /// The kernel receives: some bytes land in slots, and perhaps it then says so.
    pub(super) fn receive(&mut self, index: usize) -> Result<(), Broken> {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let receive = connection.receive.as_mut().expect("the action was possible");
        let direct: u64 = receive.targets.iter().map(|(_, length)| length).sum();
        let lands = (direct - receive.landed).min(connection.to_server.len() as u64);
        if lands > 0 && !connection.reset && !self.tape.chance(Lane::Net, 30) {
            let count = self.portion(Lane::Net, lands);
            let connection = &mut self.connections[index];
            let receive = connection.receive.as_mut().expect("just seen");
            let bytes = connection.to_server.take(count as usize);
            let mut skip = receive.landed;
            receive.landed += count;
            if self.swarm.fault_percent > 0 && self.fails() {
                self.tell(index, "receive-fault", Input::ReceiveFault);
                return Ok(());
            }
            let receive = self.connections[index].receive.as_ref().expect("just seen");
            let mut rest = &bytes[..];
            for (offset, length) in receive.targets.clone() {
                let here = length.saturating_sub(skip).min(rest.len() as u64);
                if here > 0 {
                    let (piece, after) = rest.split_at(here as usize);
                    self.write_data(key, offset + skip, piece)?;
                    rest = after;
                }
                skip = skip.saturating_sub(length);
            }
            self.note("lands", key, [count, 0, 0, 0]);
            return Ok(());
        }
        let landed = receive.landed;
        let full = landed == direct;
        let receive = connection.receive.take().expect("the action was possible");
        let broken = connection.reset || connection.shut;
        let input = if broken && (landed == 0 || self.tape.chance(Lane::Net, 50)) {
            Input::ReceiveFailed
        } else {
            // Behind the slots, the staging buffer.
            let mut bytes = landed;
            if full && !broken {
                let room = connection.session.receive_plan().staging.len();
                let most = room.min(connection.to_server.len()) as u64;
                let count = if most == 0 { 0 } else { self.portion(Lane::Net, most) };
                let connection = &mut self.connections[index];
                let taken = connection.to_server.take(count as usize);
                connection.session.receive_plan().staging[..count as usize].copy_from_slice(&taken);
                bytes += count;
            }
            let connection = &mut self.connections[index];
            let ended =
                receive.stopped || (connection.to_server.ended && connection.to_server.is_empty());
            match bytes {
                0 if ended => Input::EndOfStream,
                0 => {
                    connection.receive = Some(receive);
                    return Ok(());
                }
                bytes => {
                    connection.given += bytes;
                    Input::Received { bytes: bytes as usize }
                }
            }
        };
        let what = match input {
            Input::Received { .. } => "received",
            Input::EndOfStream => "end-of-stream",
            _ => "receive-failed",
        };
        self.tell(index, what, input);
        Ok(())
    }

    /// The kernel sends: it takes a few bytes, or says how many it took.
    pub(super) fn send(&mut self, index: usize) -> Result<(), Broken> {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let send = connection.send.as_ref().expect("the action was possible");
        let total: u64 = send.pieces.iter().map(Piece::length).sum();
        let room = connection.to_client.room() as u64;
        let left = (total - send.taken).min(room);
        let broken = connection.reset || connection.shut;
        if left > 0 && !broken && !self.tape.chance(Lane::Net, 25) {
            let count = self.portion(Lane::Net, left);
            let bytes = self.read_pieces(index, count)?;
            let connection = &mut self.connections[index];
            connection.send.as_mut().expect("just seen").taken += count;
            connection.to_client.push(&bytes);
            self.note("takes", key, [count, 0, 0, 0]);
            return Ok(());
        }
        let taken = send.taken;
        connection.send = None;
        if broken && (taken == 0 || self.tape.chance(Lane::Net, 50)) {
            self.tell(index, "send-failed", Input::SendFailed);
        } else if taken > 0 {
            self.tell(index, "sent", Input::Sent { bytes: taken });
        } else if !self.is_calm() && self.tape.chance(Lane::Backend, self.swarm.fault_percent / 4) {
            self.tell(index, "send-fault", Input::SendFault);
        } else if room == 0 || self.tape.chance(Lane::Net, 50) {
            self.connections[index].blocked = true;
            self.tell(index, "send-blocked", Input::SendBlocked);
        } else {
            self.tell(index, "sent", Input::Sent { bytes: 0 });
        }
        Ok(())
    }

    /// The next `count` bytes of a send, as they are at this moment.
    pub(super) fn read_pieces(&mut self, index: usize, count: u64) -> Result<Vec<u8>, Broken> {
        let key = self.connections[index].key;
        let send = self.connections[index].send.take().expect("a send is under way");
        let mut bytes = vec![0; count as usize];
        let (mut skip, mut at) = (send.taken, 0usize);
        for piece in &send.pieces {
            let length = piece.length();
            if skip >= length {
                skip -= length;
                continue;
            }
            let here = (length - skip).min(count - at as u64) as usize;
            let into = &mut bytes[at..at + here];
            match piece {
                Piece::Bytes(bytes) => {
                    into.copy_from_slice(&bytes[skip as usize..skip as usize + here]);
                }
                Piece::Segment(segment) => {
                    let source = advance_source(segment.source, skip);
                    if let Source::Template { offset } = source {
                        let range = offset as usize..offset as usize + here;
                        if self.available[range].contains(&0) {
                            let text = format!("connection {key} sends template bytes at {offset}");
                            return Broken::by("template bytes are sent after they came", text);
                        }
                    }
                    self.read(key, source, into)?;
                    if std::mem::take(&mut self.spoils) {
                        into[0] ^= 1;
                    }
                }
            }
            at += here;
            skip = 0;
            if at as u64 == count {
                break;
            }
        }
        self.connections[index].send = Some(send);
        Ok(bytes)
    }
}
