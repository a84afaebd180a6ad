//! What a driver does: clients at one end, the session's outputs at the other.

use glassine_core::journal::Action;

use super::*;

impl World {
    pub(super) fn client_sends(&mut self, index: usize) {
        let room = self.connections[index].to_server.room() as u64;
        let most = match self.is_small() {
            true => room.min(self.connections[index].client.bytes_to_pause()),
            false => self.portion(Lane::Net, room),
        };
        let connection = &mut self.connections[index];
        let count = connection.client.output_bytes().min(most as usize);
        let bytes = connection.client.send(count, &mut self.model, self.step);
        connection.to_server.push(&bytes);
        self.trace.note_bytes(&bytes);
        let key = connection.key;
        self.note("client-sends", key, [count as u64, 0, 0, 0]);
        self.notice(index);
    }

    /// Notes what a client noticed.
    pub(super) fn notice(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let key = connection.key;
        for noticed in std::mem::take(&mut connection.client.noticed) {
            match noticed {
                Noticed::Asks(header) => {
                    let command = u64::from(header.command) | u64::from(header.flags) << 16;
                    let length = u64::from(header.length);
                    self.note("asks", key, [header.cookie, command, header.offset, length]);
                }
                Noticed::Sent(cookie) => self.note("request-sent", key, [cookie, 0, 0, 0]),
                Noticed::Answered(cookie, error) => {
                    self.note("answered", key, [cookie, u64::from(error), 0, 0]);
                }
            }
        }
    }

    pub(super) fn client_reads(&mut self, index: usize) -> Result<(), Broken> {
        let waiting = self.connections[index].to_client.len() as u64;
        let count = self.portion(Lane::Net, waiting);
        let connection = &mut self.connections[index];
        let bytes = connection.to_client.take(count as usize);
        self.trace.note_bytes(&bytes);
        let key = connection.key;
        let outcome = connection.client.receive(&bytes, &mut self.model, self.step, &self.faults);
        self.note("client-reads", key, [bytes.len() as u64, 0, 0, 0]);
        self.notice(index);
        outcome.map_err(|broken| Broken {
            check: broken.check,
            text: format!("connection {key}: {}", broken.text),
        })
    }

    pub(super) fn leave(&mut self, index: usize) {
        let connection = &self.connections[index];
        let wordless = connection.client.is_gone() || connection.client.is_silent();
        let politely = !wordless && self.tape.chance(Lane::Client, 50);
        let connection = &mut self.connections[index];
        if !politely {
            connection.to_server.ended = true;
        }
        connection.client.say_goodbye(politely);
        let key = connection.key;
        self.note("leaves", key, [u64::from(politely), 0, 0, 0]);
    }

    pub(super) fn advance(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.session.advance(&mut self.overlay);
        connection.polled = false;
        let key = connection.key;
        self.note("advance", key, [0; 4]);
        self.after_overlay();
    }

    /// The overlay was used: it may want to grow, or somebody to wake.
    pub(super) fn after_overlay(&mut self) {
        if let Some(run) = self.overlay.poll_growth() {
            self.add(0, Kind::Grow { run });
        }
        if let Some(run) = self.overlay.poll_punch() {
            self.add(0, Kind::Punch { run });
        }
        while let Some(task) = self.overlay.poll_task() {
            let serial = self.next_serial;
            let (what, place) = match &task.action {
                Action::SyncData => ("sync-data", [serial, 0, 0, 0]),
                Action::Write { offset, bytes, .. } => {
                    ("write-journal", [serial, *offset, bytes.len() as u64, 0])
                }
                Action::Sync { .. } => ("sync-journal", [serial, 0, 0, 0]),
            };
            self.note(what, 0, place);
            self.add(0, Kind::Task { task: Some(task), done: 0 });
        }
        let waiting = self.overlay.take_waiting();
        let woken = std::iter::from_fn(|| self.overlay.poll_woken());
        let woken: Vec<_> = waiting.into_iter().chain(woken).collect();
        for key in woken {
            self.add(key.0, Kind::Wake);
        }
    }

    pub(super) fn add(&mut self, key: u64, kind: Kind) {
        let delay = self.tape.length(Lane::Backend, self.swarm.delay_steps);
        let may_stick =
            matches!(kind, Kind::Fetch { .. } | Kind::Merge { .. } | Kind::Store { .. });
        let stuck = self.tape.chance(Lane::Backend, self.swarm.never_percent);
        let never = stuck && may_stick && !self.is_calm();
        let due = if self.is_calm() { 0 } else { self.step + delay };
        let (serial, since) = (self.next_serial, self.step);
        self.next_serial += 1;
        self.operations.push(Operation { key, serial, since, due, never, kind });
    }

    pub(super) fn poll(&mut self, index: usize) -> Result<(), Broken> {
        let connection = &mut self.connections[index];
        let key = connection.key;
        let Some(output) = connection.session.poll() else {
            connection.polled = true;
            return Ok(());
        };
        let serial = self.next_serial;
        match output {
            Output::Enter { .. } => {
                let cell = self.overlay.attach();
                connection.cell = Some(cell.clone());
                connection.session.entered(cell);
                self.note("enter", key, [0; 4]);
            }
            Output::Receive => {
                let plan = connection.session.receive_plan();
                let targets: Vec<_> = plan.direct.collect();
                let direct: u64 = targets.iter().map(|(_, length)| length).sum();
                let stopped = false;
                connection.receive = Some(Receive { targets, landed: 0, stopped });
                self.note("receive", key, [direct, 0, 0, 0]);
            }
            Output::Send => {
                let pieces = connection.session.send_plan().map(|piece| match piece {
                    SendPiece::Bytes(bytes) => Piece::Bytes(bytes.to_vec()),
                    SendPiece::Segment(segment) => Piece::Segment(segment),
                });
                connection.send = Some(Send { pieces: pieces.collect(), taken: 0 });
                self.note("send", key, [0; 4]);
            }
            Output::Load => {
                self.note("load", key, [serial, 0, 0, 0]);
                self.add(key, Kind::Load);
            }
            Output::Store { id, staged } => {
                let targets = connection.session.targets(id, staged.len()).collect();
                let cookie = connection.session.cookie(id);
                let length = (staged.end - staged.start) as u64;
                self.note("store", key, [cookie, serial, staged.start as u64, length]);
                self.add(key, Kind::Store { id, staged, targets, done: 0 });
            }
            Output::Merge { id, merge } => {
                let cookie = connection.session.cookie(id);
                self.note("merge", key, [cookie, serial, merge.target, merge.keep.start.into()]);
                self.add(key, Kind::Merge { id, merge, block: None, half: false });
            }
            Output::Fetch { offset, length, .. } if offset + length > self.swarm.template_bytes => {
                let text = format!("connection {key} fetches {length} bytes at {offset}");
                return Broken::by("the template is not read past its end", text);
            }
            Output::Fetch { id, offset, length } => {
                let cookie = connection.session.cookie(id);
                self.note("fetch", key, [cookie, serial, offset, length]);
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
                self.note("cancel-fetch", key, [0; 4]);
            }
            Output::Prefetch { offset, length } => {
                self.note("prefetch", key, [offset, length, 0, 0])
            }
            Output::StopReceiving => {
                if let Some(receive) = &mut connection.receive {
                    receive.stopped = true;
                }
                self.note("stop-receiving", key, [0; 4]);
            }
            Output::Shutdown => {
                connection.shut = true;
                self.note("shutdown", key, [0; 4]);
            }
            Output::Close { reason } => self.close(index, reason)?,
        }
        Ok(())
    }

    pub(super) fn close(&mut self, index: usize, reason: CloseReason) -> Result<(), Broken> {
        let key = self.connections[index].key;
        self.note("close", key, [reason as u64, 0, 0, 0]);
        self.check_close(index, reason)?;
        let connection = self.connections.remove(index);
        connection.session.audit();
        assert!(connection.receive.is_none() && connection.send.is_none(), "nothing is under way");
        let mine = |other: &&Operation| other.key == key && !matches!(other.kind, Kind::Wake);
        assert!(self.operations.iter().find(mine).is_none(), "nothing is under way");
        if let Some(cell) = &connection.cell {
            self.overlay.detach(cell);
        }
        self.answered += connection.client.answered;
        if self.mood == Mood::Faulty && self.requests_left > 0 {
            self.connect();
        }
        Ok(())
    }

    /// A session ends for a reason that there was, and owes nothing it could have given.
    fn check_close(&mut self, index: usize, reason: CloseReason) -> Result<(), Broken> {
        let one = &self.connections[index];
        let broken = one.reset;
        let given = one.given;
        let (explained, owes_until) = match reason {
            CloseReason::ConnectionLost => (broken, None),
            CloseReason::EndOfStream => (one.to_server.ended, Some(given)),
            CloseReason::EndedMidRequest => (one.to_server.ended, Some(given)),
            CloseReason::Disconnected => (one.client.is_gone(), Some(given)),
            CloseReason::Drained => {
                let owed = one.drained_at.filter(|at| at.had_room).map(|at| at.given);
                (one.drained_at.is_some(), owed)
            }
            CloseReason::DrainTimedOut => (one.drained_at.is_some(), None),
            CloseReason::HandshakeTimedOut => (!one.client.is_in_transmission(), None),
            CloseReason::Stalled => (true, None),
            CloseReason::ReadFailedMidReply | CloseReason::OutOfMemory => {
                (self.faults.storage.is_some(), None)
            }
            _ => (false, None),
        };
        if !explained {
            return Broken::by("reason of a close", format!("connection {}: {reason}", one.key));
        }
        // A client that takes nothing is given up at last, and gets nothing.
        let takes = !broken && !one.shut && !one.ticked;
        let Some(position) = owes_until.filter(|_| takes) else { return Ok(()) };
        let waiting = one.to_client.len();
        if waiting > 0 {
            let connection = &mut self.connections[index];
            let bytes = connection.to_client.take(waiting);
            let client = &mut connection.client;
            client.receive(&bytes, &mut self.model, self.step, &self.faults)?;
            self.notice(index);
        }
        let one = &self.connections[index];
        match one.client.unanswered_before(position).min() {
            None => Ok(()),
            Some(cookie) => {
                let text =
                    format!("connection {}: {reason}, but {cookie:#x} is owed a reply", one.key);
                Broken::by("replies owed at a close", text)
            }
        }
    }
}
