//! The sending side: how much may wait to be sent, and what becomes of pins when a client is slow.

use super::*;

impl Session {
    /// A READ may be resolved while few bytes are unsent, and none had to be copied for a slow
    /// client: this is what bounds pins, and the memory behind [`Outbox::load`].
    pub(super) fn may_resolve(&self) -> bool {
        !self.blocked
            && self.loading.is_none()
            && !self.outbox.has_spilled()
            && self.outbox.payload_bytes() < u64::from(self.limits.unsent_bytes_max)
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        assert!(core::mem::take(&mut self.sending), "a Send was under way");
        if bytes > 0 {
            self.moved_at = self.now;
        }
        let table = &mut self.table;
        self.outbox.sent(bytes, &mut |index| table.remove(index));
        self.unpin_outbox();
        if bytes > 0 && planted(Bug::TornReply) {
            self.unpin_early();
        }
        self.parse();
    }

    /// See [`Bug::TornReply`].
    fn unpin_early(&mut self) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { return };
        if let Some(epoch) = self.outbox_pin.take() {
            pins.release(epoch);
        }
    }

    pub(super) fn unpin_outbox(&mut self) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { return };
        if !self.outbox.has_mutable()
            && let Some(epoch) = self.outbox_pin.take()
        {
            pins.release(epoch);
        }
    }

    pub(super) fn start_load(&mut self, kind: LoadKind) {
        if self.is_aborting() {
            return;
        }
        mark(if kind == LoadKind::All { Mark::LoadAll } else { Mark::LoadMutable });
        self.loading = Some(kind);
        self.outputs.push_back(Output::Load);
    }
}
