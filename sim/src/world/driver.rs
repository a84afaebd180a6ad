//! What a driver does: clients at one end, the session's outputs at the other.

use super::*;

impl World {
    pub(super) fn client_sends(&mut self, index: usize) {
        let room = self.connections[index].to_server.room() as u64;
        let most = self.portion(Lane::Net, room);
        let connection = &mut self.connections[index];
        let count = connection.client.output_bytes().min(most as usize);
        let bytes = connection.client.send(count, &mut self.model, self.step);
        connection.to_server.push(&bytes);
        self.trace.note_bytes(&bytes);
        let key = connection.key;
        self.note("client-sends", key, count as u64, 0);
    }

    pub(super) fn client_reads(&mut self, index: usize) -> Result<(), String> {
        let waiting = self.connections[index].to_client.len() as u64;
        let count = self.portion(Lane::Net, waiting);
        let connection = &mut self.connections[index];
        let bytes = connection.to_client.take(count as usize);
        self.trace.note_bytes(&bytes);
        let key = connection.key;
        let outcome = connection.client.receive(&bytes, &mut self.model, self.step, &self.faults);
        self.note("client-reads", key, bytes.len() as u64, 0);
        outcome.map_err(|error| format!("connection {key}: {error}"))
    }

    pub(super) fn leave(&mut self, index: usize) {
        let politely = self.tape.chance(Lane::Client, 50);
        let connection = &mut self.connections[index];
        if connection.client.is_gone() || !politely {
            connection.to_server.ended = true;
        }
        connection.client.say_goodbye(politely);
        let key = connection.key;
        self.note("leaves", key, u64::from(politely), 0);
    }

    pub(super) fn advance(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.session.advance(&mut self.overlay);
        let key = connection.key;
        self.note("advance", key, 0, 0);
        self.after_overlay();
    }

    /// The overlay was used: it may want to grow, or somebody to wake.
    pub(super) fn after_overlay(&mut self) {
        if let Some(slots) = self.overlay.poll_growth() {
            self.add(0, Kind::Grow { slots });
        }
        for key in self.overlay.take_waiting() {
            self.add(key.0, Kind::Wake);
        }
    }

    pub(super) fn add(&mut self, key: u64, kind: Kind) {
        let delay = self.tape.length(Lane::Backend, self.swarm.delay_steps);
        let may_stick =
            matches!(kind, Kind::Fetch { .. } | Kind::Merge { .. } | Kind::Store { .. });
        let stuck = self.tape.chance(Lane::Backend, self.swarm.never_percent);
        let never = stuck && may_stick && !self.healing;
        let due = if self.healing { 0 } else { self.step + delay };
        self.operations.push(Operation { key, due, never, kind });
    }

    pub(super) fn poll(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let Some(output) = connection.session.poll() else {
            return;
        };
        match output {
            Output::Enter { .. } => {
                let cell = self.overlay.attach();
                connection.cell = Some(cell.clone());
                connection.session.entered(cell);
                self.note("enter", key, 0, 0);
            }
            Output::Receive => {
                let plan = connection.session.receive_plan();
                let targets: Vec<_> = plan.direct.collect();
                let direct: u64 = targets.iter().map(|(_, length)| length).sum();
                let stopped = false;
                connection.receive = Some(Receive { targets, landed: 0, stopped });
                self.note("receive", key, direct, 0);
            }
            Output::Send => {
                let pieces = connection.session.send_plan().map(|piece| match piece {
                    SendPiece::Bytes(bytes) => Piece::Bytes(bytes.to_vec()),
                    SendPiece::Segment(segment) => Piece::Segment(segment),
                });
                connection.send = Some(Send { pieces: pieces.collect(), taken: 0 });
                self.note("send", key, 0, 0);
            }
            Output::Load => self.add(key, Kind::Load),
            Output::Store { id, staged } => {
                let targets = connection.session.targets(id, staged.len()).collect();
                self.note("store", key, staged.start as u64, staged.end as u64);
                self.add(key, Kind::Store { id, staged, targets, done: 0 });
            }
            Output::Merge { id, merge } => {
                self.note("merge", key, merge.target, u64::from(merge.keep.start));
                self.add(key, Kind::Merge { id, merge, block: None, half: false });
            }
            Output::Fetch { id, offset, length } => {
                self.note("fetch", key, offset, length);
                self.add(key, Kind::Fetch { id, offset, length, cancelled: false });
            }
            Output::CancelFetch { id: cancelled_id } => {
                for operation in self.operations.iter_mut().filter(|other| other.key == key) {
                    if let Kind::Fetch { id, cancelled, .. } = &mut operation.kind
                        && *id == cancelled_id
                    {
                        *cancelled = true;
                    }
                }
                self.note("cancel-fetch", key, 0, 0);
            }
            Output::Prefetch { offset, length } => self.note("prefetch", key, offset, length),
            Output::StopReceiving => {
                if let Some(receive) = &mut connection.receive {
                    receive.stopped = true;
                }
                self.note("stop-receiving", key, 0, 0);
            }
            Output::Shutdown => {
                connection.shut = true;
                self.note("shutdown", key, 0, 0);
            }
            Output::Close { reason } => self.close(index, reason),
        }
    }

    pub(super) fn close(&mut self, index: usize, reason: CloseReason) {
        let connection = self.connections.remove(index);
        self.note("close", connection.key, reason as u64, 0);
        connection.session.audit();
        assert!(connection.receive.is_none() && connection.send.is_none(), "nothing is under way");
        let key = connection.key;
        let mine = |other: &&Operation| other.key == key && !matches!(other.kind, Kind::Wake);
        assert!(self.operations.iter().find(mine).is_none(), "nothing is under way");
        if let Some(cell) = &connection.cell {
            self.overlay.detach(cell);
        }
        self.answered += connection.client.answered;
        if !self.healing && self.requests_left > 0 {
            self.connect();
        }
    }
}
