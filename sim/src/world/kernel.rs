//! What the kernel does: receives that land in slots piece by piece, sends that read segments late.

use super::*;

impl World {
    pub(super) fn write_data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let end = offset + bytes.len() as u64;
        for place in
            (offset / BLOCK as u64..end.div_ceil(BLOCK as u64)).map(|slot| slot * BLOCK as u64)
        {
            if !self.overlay.is_private(place) {
                return Err(format!("a write to the slot at {place}, which is not private"));
            }
        }
        self.data[offset as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    }

    pub(super) fn read(&self, source: Source, bytes: &mut [u8]) -> Result<(), String> {
        match source {
            Source::Zero => bytes.fill(0),
            Source::Data { offset } => {
                let range = offset as usize..offset as usize + bytes.len();
                for slot in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                    if !self.overlay.is_readable((slot * BLOCK) as u64) {
                        return Err(format!("a read of slot {slot}, which is nobody's bytes"));
                    }
                }
                bytes.copy_from_slice(&self.data[range]);
            }
            Source::Template { offset } => {
                for (position, byte) in (offset..).zip(bytes) {
                    if position >= self.swarm.template_bytes {
                        return Err(format!("a read of the template at {position}, past its end"));
                    }
                    *byte = template_byte(position);
                }
            }
        }
        Ok(())
    }

    /// The kernel receives: some bytes land in slots, and perhaps it then says so.
    pub(super) fn receive(&mut self, index: usize) -> Result<(), String> {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let receive = connection.receive.as_mut().expect("the action was possible");
        let direct: u64 = receive.targets.iter().map(|(_, length)| length).sum();
        let lands = (direct - receive.landed).min(connection.to_server.len() as u64);
        if lands > 0 && !connection.reset && self.tape.chance(Lane::Net, 70) {
            let count = self.portion(Lane::Net, lands);
            let connection = &mut self.connections[index];
            let receive = connection.receive.as_mut().expect("just seen");
            let bytes = connection.to_server.take(count as usize);
            let mut skip = receive.landed;
            receive.landed += count;
            let mut rest = &bytes[..];
            for (offset, length) in receive.targets.clone() {
                let here = length.saturating_sub(skip).min(rest.len() as u64);
                if here > 0 {
                    let (piece, after) = rest.split_at(here as usize);
                    self.write_data(offset + skip, piece)?;
                    rest = after;
                }
                skip = skip.saturating_sub(length);
            }
            self.note("lands", key, count, 0);
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
                let count = match (most, self.healing) {
                    (0, _) => 0,
                    (most, true) => most,
                    (most, false) => {
                        self.tape.length(Lane::Net, most).max(u64::from(landed == 0)).min(most)
                    }
                };
                let taken = connection.to_server.take(count as usize);
                connection.session.receive_plan().staging[..count as usize].copy_from_slice(&taken);
                bytes += count;
            }
            let ended =
                receive.stopped || (connection.to_server.ended && connection.to_server.is_empty());
            match bytes {
                0 if ended => Input::EndOfStream,
                0 => {
                    connection.receive = Some(receive);
                    return Ok(());
                }
                bytes => Input::Received { bytes: bytes as usize },
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
    pub(super) fn send(&mut self, index: usize) -> Result<(), String> {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let send = connection.send.as_ref().expect("the action was possible");
        let total: u64 = send.pieces.iter().map(Piece::length).sum();
        let room = connection.to_client.room() as u64;
        let left = (total - send.taken).min(room);
        let broken = connection.reset || connection.shut;
        if left > 0 && !broken && self.tape.chance(Lane::Net, 75) {
            let count = self.portion(Lane::Net, left);
            let bytes = self.read_pieces(index, count)?;
            let connection = &mut self.connections[index];
            connection.send.as_mut().expect("just seen").taken += count;
            connection.to_client.push(&bytes);
            self.note("takes", key, count, 0);
            return Ok(());
        }
        let taken = send.taken;
        connection.send = None;
        if broken && (taken == 0 || self.tape.chance(Lane::Net, 50)) {
            self.tell(index, "send-failed", Input::SendFailed);
        } else if taken > 0 {
            self.tell(index, "sent", Input::Sent { bytes: taken });
        } else if !self.healing && self.tape.chance(Lane::Backend, self.swarm.fault_percent / 4) {
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
    pub(super) fn read_pieces(&self, index: usize, count: u64) -> Result<Vec<u8>, String> {
        let send = self.connections[index].send.as_ref().expect("a send is under way");
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
                        if !self.available[range].iter().all(|available| *available) {
                            return Err(format!(
                                "template bytes at {offset} sent before they came"
                            ));
                        }
                    }
                    self.read(source, into)?;
                }
            }
            at += here;
            skip = 0;
            if at as u64 == count {
                break;
            }
        }
        Ok(bytes)
    }
}
