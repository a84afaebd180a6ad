//! The life of a request, from its slots to its reply.
//!
//! A WRITE: admitted, stored and merged, published; answered when it is visible, or durable if it has FUA.
//! A READ: resolved, perhaps fetched and resolved again, sent. A FLUSH: answered when all is durable.

use super::*;

impl Session {
    pub(super) fn answer(&mut self, index: u16) {
        let request = self.table.get(index);
        if self.is_aborting() {
            self.table.remove(index);
            return;
        }
        self.outbox.reply(index, request.cookie, request.error);
    }

    /// Asks for slots; then the payload can go where it belongs.
    pub(super) fn admit(&mut self, index: u16, overlay: &mut Overlay) {
        let is_late = self.backlogged && !planted(Bug::EdgesForgotten);
        let request = self.table.get_mut(index);
        // WRITE_ZEROES: edges that are zero already need nothing. All or none: what is left out here
        // takes effect now, and must not do so before the rest; so not while the journal takes nothing in.
        if request.command == Command::Zero && !request.extent.provision && !is_late {
            let is_zero =
                |entry| matches!(entry, Entry::Zero | Entry::ZeroProvisioned | Entry::ZeroClaimed);
            if request.edges.iter().all(|edge| is_zero(overlay.entry(edge.block))) {
                if !request.edges.is_empty() {
                    mark(Mark::EdgesDropped);
                }
                request.drop_edges();
            }
        }
        if request.fast && !request.edges.is_empty() {
            // NBD z2: merging a block is no faster than writing it.
            mark(Mark::FastRefused);
            request.error = Some(Errno::NotSupported);
            self.answer(index);
            return;
        }
        match overlay.reserve(&request.extent, self.key, &mut request.runs) {
            Ok(Reserve::Granted(grant)) => request.grant = Some(grant),
            Ok(Reserve::Wait) => {
                self.waiting = true;
                self.admit.push_front(index);
                return;
            }
            Err(error) => {
                request.error = Some(error);
                self.refuse(index);
                return;
            }
        }
        for position in 0..self.table.get(index).edges.len() {
            self.merge(index, position, overlay);
        }
        if self.table.get(index).staged.is_some() {
            self.store(index);
        }
        let request = self.table.get(index);
        if request.command == Command::Zero && request.is_filled() {
            if self.backlogged {
                self.publish.push_back(index);
            } else {
                self.publish(index, overlay);
            }
        }
    }

    /// A WRITE gets no slots: what is still to come of its payload is discarded.
    pub(super) fn refuse(&mut self, index: u16) {
        match self.stream {
            Stream::Staged { request } if request == index => mark(Mark::RefusedStaged),
            Stream::Direct { request } if request == index => {
                mark(Mark::RefusedDirect);
                let left = core::mem::take(&mut self.table.get_mut(index).direct_left);
                self.let_go_of_payload(index);
                self.stream = Stream::Discard { request: index, left };
            }
            _ => {
                mark(Mark::RefusedWhole);
                self.let_go_of_payload(index);
                self.answer(index);
            }
        }
    }

    pub(super) fn store(&mut self, index: u16) {
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        let staged = request.staged.clone().expect("there is something to store");
        request.outstanding += 1;
        if planted(Bug::BufferEarly) {
            self.staging.unhold();
        }
        self.outputs.push_back(Output::Store { id, staged });
    }

    /// Completes an edge from what its block is now.
    pub(super) fn merge(&mut self, index: u16, position: usize, overlay: &Overlay) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { unreachable!() };
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        let block = request.edges[position].block;
        let entry = overlay.entry(block);
        let (source, source_bytes) = overlay.source_of(block, entry);
        let target = request.slot_of(block).offset();
        let zero_keep = request.command == Command::Zero;
        let edge = &mut request.edges[position];
        // The pin stays until the publish: while it does, an entry that looks the same is the same.
        if let Some(epoch) = edge.pin.take() {
            pins.release(epoch);
        }
        if matches!(entry, Entry::Slot(_)) && !planted(Bug::MergeUnpinned) {
            edge.pin = Some(pins.take(overlay.epoch()));
        }
        edge.merged_from = Some(entry);
        if source == Source::Zero && planted(Bug::WrongPredecessor) {
            return;
        }
        let merge = Merge { source, source_bytes, target, keep: edge.keep.clone(), zero_keep };
        request.outstanding += 1;
        self.outputs.push_back(Output::Merge { id, merge });
    }

    /// Something a request waited for is done.
    pub(super) fn filled(&mut self, index: u16) {
        let request = self.table.get(index);
        if request.abandoned && !planted(Bug::MergeAfterAbort) {
            self.drop_if_idle(index);
        } else if request.is_filled() {
            self.publish.push_back(index);
        }
    }

    pub(super) fn publish(&mut self, index: u16, overlay: &mut Overlay) {
        let request = self.table.get_mut(index);
        let grant = request.grant.expect("only what was admitted is published");
        let mut runs = core::mem::take(&mut request.runs);
        let outcome = if request.error.is_some() && !planted(Bug::HalfCopyKept) {
            overlay.release(&mut runs, grant);
            Ok(None)
        } else {
            overlay.publish(&request.extent, &mut runs, grant, request.predecessors()).map(Some)
        };
        request.runs = runs;
        let visible = match outcome {
            Ok(visible) => visible,
            Err(Conflict::Short) => {
                overlay.release(&mut request.runs, grant);
                request.grant = None;
                if !planted(Bug::ShortKeepsPins) {
                    // It may be refused when it asks again.
                    self.unpin_edges(index);
                }
                self.admit.push_back(index);
                return;
            }
            Err(Conflict::Backlog) => {
                overlay.wait_for_journal(self.key);
                self.backlogged = true;
                if request.edges_dropped && !planted(Bug::EdgesForgotten) {
                    // They may be zero no more when the journal has room again.
                    overlay.release(&mut request.runs, grant);
                    request.grant = None;
                    let Phase::Transmission { size_bytes, .. } = self.phase else { unreachable!() };
                    request.cover_zeroes(size_bytes, false);
                    self.admit.push_front(index);
                } else {
                    self.publish.push_front(index);
                }
                return;
            }
            Err(conflict @ (Conflict::NoSpace | Conflict::Failed)) => {
                let is_full = conflict == Conflict::NoSpace;
                request.error = Some(if is_full { Errno::NoSpace } else { Errno::Io });
                overlay.release(&mut request.runs, grant);
                None
            }
            Err(Conflict::Replaced(_)) => {
                // Another client wrote its part of the block meanwhile. Both must win.
                for position in 0..self.table.get(index).edges.len() {
                    let edge = &self.table.get(index).edges[position];
                    if edge.merged_from != Some(overlay.entry(edge.block)) {
                        self.merge(index, position, overlay);
                    }
                }
                return;
            }
        };
        self.table.get_mut(index).grant = None;
        self.unpin_edges(index);
        match visible {
            Some(visible) if self.table.get(index).fua && !planted(Bug::FuaIgnored) => {
                self.await_durable(index, visible, overlay);
            }
            _ => self.answer(index),
        }
    }

    /// A request is answered when everything up to a moment is durable.
    pub(super) fn await_durable(&mut self, index: u16, visible: Visible, overlay: &mut Overlay) {
        // Whatever came before it waits for less; so it is asked for now, and answered in its turn.
        if overlay.durable(visible, self.key) == Ok(None) {
            mark(Mark::FlushWaited);
        }
        self.durable.push_back((index, visible));
        self.answer_durable(overlay);
    }

    /// Answers what waited for something that is durable by now, or never will be.
    pub(super) fn answer_durable(&mut self, overlay: &mut Overlay) {
        while let Some((index, visible)) = self.durable.front().copied() {
            match overlay.durable(visible, self.key) {
                Ok(None) => return,
                Ok(Some(proof)) => self.acknowledge(index, proof),
                Err(error) => {
                    self.table.get_mut(index).error = Some(error);
                    self.answer(index);
                }
            }
            self.durable.pop_front();
        }
    }

    /// Tells a client that something survives whatever happens: not without the proof.
    fn acknowledge(&mut self, index: u16, _: Durable) {
        self.answer(index);
    }

    pub(super) fn resolve(&mut self, index: u16, overlay: &Overlay) {
        let raced = planted(Bug::ReadinessRace) && self.is_fetching();
        let Phase::Transmission { pins, .. } = &mut self.phase else { unreachable!() };
        let request = self.table.get_mut(index);
        let before = self.outbox.len();
        let mut template: Option<Range<u64>> = None;
        self.outbox.reply(index, request.cookie, None);
        overlay.resolve(request.bytes.clone(), &mut |segment| {
            if let Source::Template { offset } = segment.source {
                let end = offset + segment.length;
                let range = template.as_ref().map_or(offset, |range| range.start)..end;
                let first = template.take_if(|_| planted(Bug::FetchFirstSegment));
                template = Some(first.unwrap_or(range));
            }
            self.outbox.payload(segment);
        });
        if let Some(range) = template
            && !request.fetched
            && !raced
        {
            // A block that shows the template now may be written meanwhile, but none that does not
            // will ever show it again: what is fetched is all that will be needed.
            self.outbox.cut(before);
            request.fetch = range;
            self.fetch(index);
            return;
        }
        if request.fetched && self.outbox.len() > before + 2 {
            mark(Mark::ResolvedAgain);
        }
        let unpinned = planted(Bug::NoPin);
        if self.outbox.has_mutable() && self.outbox_pin.is_none() && !unpinned {
            self.outbox_pin = Some(pins.take(overlay.epoch()));
        }
    }

    pub(super) fn fetch(&mut self, index: u16) {
        let id = self.table.id(index);
        let request = self.table.get_mut(index);
        request.outstanding += 1;
        let Range { start: offset, end } = request.fetch;
        self.outputs.push_back(Output::Fetch { id, offset, length: end - offset });
    }

    /// See [`Bug::ReadinessRace`], [`Bug::SerialConnection`].
    pub(super) fn is_fetching(&self) -> bool {
        self.oldest_fetch().is_some()
    }

    /// See [`Bug::CookieMixed`].
    fn oldest_fetch(&self) -> Option<u16> {
        let fetches = |index: &u16| {
            let request = self.table.get(*index);
            request.command == Command::Read && request.outstanding > 0
        };
        self.table.indices().find(fetches)
    }

    pub(super) fn fetched(&mut self, id: RequestId, result: Result<u64, Errno>) {
        let mixed = self.oldest_fetch().filter(|_| planted(Bug::CookieMixed));
        let id = mixed.map_or(id, |index| self.table.id(index));
        let request = self.table.completed(id);
        if request.abandoned {
            mark(Mark::FetchLate);
            self.drop_if_idle(id.index);
            return;
        }
        match result {
            Ok(_) if planted(Bug::ShortReadAsFull) => {
                request.fetched = true;
                self.resolve.push_back(id.index);
            }
            Ok(count) if count >= request.fetch.end - request.fetch.start => {
                request.fetched = true;
                self.resolve.push_back(id.index);
            }
            Ok(count) if count > 0 => {
                mark(Mark::FetchShort);
                request.fetch.start += count;
                self.fetch(id.index);
            }
            Err(_) if planted(Bug::ErrorCached) => {
                request.fetched = true;
                self.resolve.push_back(id.index);
            }
            Err(_) if planted(Bug::NoReply) => self.table.remove(id.index),
            Ok(_) | Err(_) => {
                mark(Mark::FetchFailed);
                request.error = Some(result.err().unwrap_or(Errno::Io));
                self.answer(id.index);
                if planted(Bug::DoubleReply) {
                    self.answer(id.index);
                }
            }
        }
    }

    pub(super) fn unpin_edges(&mut self, index: u16) {
        let Phase::Transmission { pins, .. } = &mut self.phase else { return };
        for edge in &mut self.table.get_mut(index).edges {
            if let Some(epoch) = edge.pin.take() {
                pins.release(epoch);
            }
        }
    }
}
