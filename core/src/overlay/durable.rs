//! What a journal adds to a device: publishes that survive, and slots that wait until they do.

use super::*;
use crate::journal::frame::{Content, Entry as Edit};
use crate::journal::{Journal, Place, Task};
use crate::map::Entry as MapEntry;

/// A moment of a device: everything published up to it is seen by every later READ. Whether it survives
/// a crash is another question, which [`Overlay::durable`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[must_use = "what is visible may have to become durable"]
pub struct Visible(Epoch);

/// The proof that everything up to some moment survives whatever happens. Only an overlay makes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "somebody waits for it"]
pub struct Durable(());

impl Visible {
    pub(super) fn at(epoch: Epoch) -> Self {
        Self(epoch)
    }
}

impl Overlay {
    /// A device as recovery found it; all of it is durable.
    pub(crate) fn recovered(
        config: OverlayConfig,
        map: Map,
        slots: SlotTable,
        journal: Journal,
    ) -> Self {
        let quota_bytes = config.quota_bytes;
        let fresh = Self::new(config);
        let mut overlay = Self { map, slots, journal: Some(journal), ..fresh };
        // It may be another one than last time, and less than what is there.
        overlay.set_quota(quota_bytes);
        overlay
    }

    /// Whether what is flushed survives the process. Otherwise a FLUSH costs nothing, and is worth as
    /// much.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Whether the journal failed: nothing can be changed any more, nor become durable. Reads go on.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::has_failed)
    }

    /// How many checkpoints the sheet has had, those before this process included.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::generation)
    }

    /// Whether the next one is being written.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_checkpointing)
    }

    /// Whether the next one found the disk full, and is tried again with the next [`Self::tick`]. Publishes
    /// are refused once the journal has no room left.
    #[must_use]
    pub fn checkpoint_waits(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::checkpoint_waits)
    }

    /// Everything that was published so far.
    pub fn visible(&self) -> Visible {
        Visible(self.epoch)
    }

    /// Whether everything up to a moment is durable. If not, a barrier is under way, the session named
    /// `key` is woken when it is done, and asks again. Fails for good once the journal has failed.
    pub fn durable(&mut self, visible: Visible, key: SessionKey) -> Result<Option<Durable>, Errno> {
        let Some(journal) = &mut self.journal else { return Ok(Some(Durable(()))) };
        if journal.has_failed() {
            return Err(Errno::Io);
        }
        // What the barrier under way has captured is what it covers, and no more.
        let early = planted(Bug::FlushTooEarly);
        let needed = if early { visible.0.min(journal.captured()) } else { visible.0 };
        if journal.durable() >= needed {
            return Ok(Some(Durable(())));
        }
        journal.want(needed);
        journal.wait(key);
        Ok(None)
    }

    /// Begins to make everything durable that is visible, though nobody waits for it.
    pub fn flush(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.want(self.epoch);
        }
    }

    /// To be called every few seconds, so that a crash takes little where nobody flushes: begins to make
    /// everything durable if nothing was published since the last call, and with every sixth call whatever happens.
    /// Tries again to write a checkpoint that found the disk full.
    /// Gives much more space back if nothing was for [`SpaceLimits::quiet_ticks`](crate::SpaceLimits::quiet_ticks).
    pub fn tick(&mut self) {
        self.tidy();
        if let Some(journal) = &mut self.journal {
            journal.want_when_quiet(self.epoch);
            journal.try_again();
        }
    }

    /// The session named `key` is woken when the journal has moved on: a publish found no room.
    pub fn wait_for_journal(&mut self, key: SessionKey) {
        let journal = self.journal.as_mut().expect("only a journal runs out of room");
        mark(Mark::Backlog);
        journal.want(self.epoch);
        journal.wait(key);
    }

    /// The next thing to do for the journal, if any. Ask until there is none, after every use of the
    /// overlay; then [`Self::poll_woken`].
    pub fn poll_task(&mut self) -> Option<Task> {
        let task = self.journal.as_mut()?.poll(self.epoch, &self.map, &mut self.slots);
        // A barrier that found nothing to record is over without a task.
        if !planted(Bug::SettledUnnoticed) {
            self.end_wait_for_space();
        }
        task
    }

    /// A task is done. It is handed back with its outcome; whatever it was, a failure is final.
    pub fn finished(&mut self, task: Task, result: Result<(), Errno>) {
        let journal = self.journal.as_mut().expect("the task came from it");
        journal.finished(task, result, &self.map);
        self.end_wait_for_space();
    }

    fn end_wait_for_space(&mut self) {
        let (Some(journal), growth) = (&self.journal, &mut self.growth) else { return };
        let is_over = |epoch: &mut Epoch| journal.has_failed() || journal.durable() >= *epoch;
        if growth.barrier.take_if(is_over).is_some() {
            // Slots may have become free: whoever waited asks again.
            growth.demand = 0;
        }
    }

    /// A session to wake since the journal has moved on. Ask until there is none.
    pub fn poll_woken(&mut self) -> Option<SessionKey> {
        self.journal.as_mut()?.poll_woken()
    }

    /// Whether the journal takes in a publish.
    pub(super) fn may_record(&self, extent: &Extent, runs: &[Run]) -> Result<(), Conflict> {
        let Some(journal) = &self.journal else { return Ok(()) };
        if journal.has_failed() {
            return Err(Conflict::Failed);
        }
        // The zero range may split a run, and is an edit of its own.
        if journal.has_room(runs.len() + 2, extent.slots()) {
            return Ok(());
        }
        if journal.is_full() {
            mark(Mark::JournalFull);
            return Err(Conflict::NoSpace);
        }
        Err(Conflict::Backlog)
    }

    /// The edits of a publish join the journal, in the step that makes them visible. Answers where, if it is
    /// one edit.
    pub(super) fn record(&mut self, extent: &Extent, runs: &[Run]) -> Option<Place> {
        let journal = self.journal.as_mut()?;
        let zero = &extent.zero;
        if let [Run { first, count: 1 }] = *runs
            && extent.blocks.end - extent.blocks.start == 1
            && let MapEntry::Slot(old) = self.map.entry(extent.blocks.start)
            && let Some(place) = self.slots.place(old)
        {
            let content = Content::Slots(first);
            journal.record_again(place, &Edit { block: extent.blocks.start, count: 1, content });
            return Some(place);
        }
        let content = if extent.provision { Content::ZeroProvisioned } else { Content::Zero };
        let zero = Edit { block: zero.start, count: zero.end - zero.start, content };
        let zero = Some(zero).filter(|edit| edit.count > 0 && !planted(Bug::TrimForgotten));
        journal.record(zero.into_iter().chain(edits(extent, runs)))
    }

    /// Up to when what was displaced may be used again, as far as the journal is concerned.
    pub(super) fn durable_until(&self) -> Epoch {
        match &self.journal {
            Some(journal) if !planted(Bug::ReuseBeforeDurable) => journal.durable(),
            _ => Epoch::LAST,
        }
    }

    /// Begins a barrier if slots would become free by it; answers until when it must be done.
    pub(super) fn flush_for_space(&mut self) -> Option<Epoch> {
        let journal = self.journal.as_mut().filter(|journal| !journal.has_failed())?;
        let dropped = self.dropped.back().map(|dropped| dropped.epoch);
        let last = self.slots.displaced_last().max(dropped)?;
        if last <= journal.durable() {
            return None;
        }
        mark(Mark::BarrierForSpace);
        journal.want(last);
        Some(last)
    }
}

/// What a publish makes of the blocks that get slots: runs of blocks in runs of slots.
fn edits(extent: &Extent, runs: &[Run]) -> impl Iterator<Item = Edit> {
    let [mut part, mut behind] = extent.parts();
    let mut runs = runs.iter().copied();
    let mut rest: Option<Run> = None;
    core::iter::from_fn(move || {
        if part.is_empty() {
            part = core::mem::take(&mut behind);
        }
        if part.is_empty() {
            return None;
        }
        let run = rest.take().or_else(|| runs.next()).expect("as many slots as blocks");
        let count = run.count.min(u32::try_from(part.end - part.start).unwrap_or(u32::MAX));
        if count < run.count {
            rest = Some(Run { first: run.slot(count), count: run.count - count });
        }
        let block = part.start;
        part.start += u64::from(count);
        Some(Edit { block, count: u64::from(count), content: Content::Slots(run.first) })
    })
}
