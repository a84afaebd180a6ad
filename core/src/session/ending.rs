//! How a session ends: finish (answer what is in flight) or abort (answer nothing more), and the
//! deadlines that lead there.

use super::*;

impl Session {
    pub(super) fn is_aborting(&self) -> bool {
        self.ending.is_some_and(|ending| ending.abort)
    }

    pub(super) fn is_done(&self) -> bool {
        let receiving = self.receiving.is_some() && !planted(Bug::CloseUnderReceive);
        let idle = !receiving && !self.sending && self.loading.is_none();
        idle && self.outbox.is_empty() && self.table.in_flight() == 0 && self.give_back.is_empty()
    }

    /// Reads nothing more, answers what is in flight, then closes.
    pub(super) fn finish(&mut self, reason: CloseReason, deadline: Option<Instant>) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Ending { reason, abort: false, deadline });
        self.moved_at = self.now;
        let arriving = match core::mem::replace(&mut self.stream, Stream::Ended) {
            Stream::Staged { request }
            | Stream::Direct { request }
            | Stream::Discard { request, .. } => Some(request),
            Stream::Header | Stream::Ended => None,
        };
        if let Some(index) = arriving {
            mark(Mark::CutPayload);
            self.abandon(index);
        }
        self.parse();
        if self.receiving.is_some() {
            self.outputs.push_back(Output::StopReceiving);
        }
    }

    /// Answers nothing more, waits for the operations under way, then closes.
    pub(super) fn abort(&mut self, reason: CloseReason) {
        if self.is_aborting() {
            return;
        }
        let reason = match self.ending {
            // The client got all it could; that it is gone now is how such a session ends.
            Some(ending) if reason == CloseReason::ConnectionLost => ending.reason,
            _ => reason,
        };
        self.ending = Some(Ending { reason, abort: true, deadline: None });
        self.stream = Stream::Ended;
        self.parse();
        if self.receiving.is_some() || self.sending {
            self.outputs.push_back(Output::Shutdown);
        }
    }

    /// While aborting: replies are dropped once no send or load reads them, requests abandoned.
    pub(super) fn drop_unanswered(&mut self) {
        if !self.is_aborting() || self.sending || self.loading.is_some() {
            return;
        }
        let table = &mut self.table;
        self.outbox.clear(&mut |index| table.remove(index));
        self.unpin_outbox();
        for index in 0..self.limits.requests_max {
            if self.table.get(index).in_use && !self.table.get(index).abandoned {
                self.abandon(index);
            }
        }
    }

    /// Nobody will be answered: once no operation refers to the request, it is taken apart.
    pub(super) fn abandon(&mut self, index: u16) {
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        if request.grant.is_some() {
            mark(Mark::Abandoned);
        }
        if request.outstanding > 0 {
            mark(Mark::AbandonedBusy);
        }
        request.abandoned = true;
        request.direct_left = 0;
        if request.command == Command::Read && request.outstanding > 0 {
            self.outputs.push_back(Output::CancelFetch { id });
        }
        for queue in [&mut self.admit, &mut self.publish, &mut self.resolve, &mut self.flush] {
            queue.retain(|other| *other != index);
        }
        self.durable.retain(|(other, _)| *other != index);
        self.drop_if_idle(index);
    }

    pub(super) fn drop_if_idle(&mut self, index: u16) {
        let request = self.table.get(index);
        if request.outstanding > 0 {
            return;
        }
        self.let_go_of_payload(index);
        self.unpin_edges(index);
        if self.table.get(index).grant.is_some() {
            self.give_back.push_back(index);
        } else {
            self.table.remove(index);
        }
    }

    pub(super) fn give_back(&mut self, index: u16, overlay: &mut Overlay) {
        let request = self.table.get_mut(index);
        let grant = request.grant.take().expect("something to give back");
        overlay.release(&mut request.runs, grant);
        self.table.remove(index);
    }

    /// See [`Bug::FreeOnDisconnect`].
    pub(super) fn free_abandoned(&mut self, overlay: &mut Overlay) {
        for index in 0..self.limits.requests_max {
            let request = self.table.get_mut(index);
            if request.abandoned
                && request.outstanding > 0
                && let Some(grant) = request.grant.take()
            {
                overlay.release(&mut request.runs, grant);
            }
        }
    }

    /// When a client that neither sends nor takes is given up: only in the middle of something.
    pub(super) fn stall_deadline(&self) -> Option<Instant> {
        let mid_request = match self.stream {
            Stream::Header => !self.staging.unread().is_empty() && !self.table.is_full(),
            Stream::Direct { .. } if planted(Bug::DeadlineNotArmed) => false,
            Stream::Staged { .. } | Stream::Direct { .. } | Stream::Discard { .. } => true,
            Stream::Ended => self.blocked,
        };
        let waits_for_client = self.receiving.is_some() || self.blocked;
        (mid_request && waits_for_client).then(|| self.moved_at.after(self.limits.stall_time_max))
    }

    pub(super) fn tick(&mut self) {
        if self.deadline().is_none_or(|deadline| deadline > self.now) {
            return;
        }
        let (path, reason) = match (&self.phase, self.ending) {
            (_, Some(Ending { reason: CloseReason::Drained, .. })) => {
                (Mark::DrainTimedOut, CloseReason::DrainTimedOut)
            }
            (_, Some(ending)) => (Mark::Stalled, ending.reason),
            (Phase::Handshake { .. }, None) => {
                (Mark::HandshakeTimedOut, CloseReason::HandshakeTimedOut)
            }
            _ => (Mark::Stalled, CloseReason::Stalled),
        };
        mark(path);
        self.abort(reason);
    }
}
