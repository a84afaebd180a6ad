//! Where slots come from and where they go: displaced ones that nobody looks at any more, the data file that grows,
//! and space that is given back to the file system.

use super::*;
use crate::limits::{RECLAIM_SLOTS_PER_STEP, RECLAIM_STEPS_MAX};
use crate::map::SLOTS_MAX;
use crate::slot::Hole;

/// What the driver was asked for.
#[derive(Debug, Clone, Copy, Hash)]
enum Asked {
    /// So many slots more, at the end of the data file.
    More(u32),
    /// Space for these.
    Hole(Hole),
}

impl Asked {
    fn count(self) -> u32 {
        match self {
            Self::More(count) => count,
            Self::Hole(hole) => hole.run.count,
        }
    }
}

/// What gives space back.
#[derive(Debug, Default, Hash)]
pub(super) struct Punching {
    /// These slots are on their way to lose their space.
    busy: Option<Run>,
    /// The file system cannot do it.
    never: bool,
    /// There was more to reclaim than one step does.
    more: bool,
    /// Who was woken since the last tick to use what is free, and has not come yet.
    pub(super) woken: Vec<SessionKey>,
    /// The epoch at the last tick, and how many ticks before had the same.
    seen: Option<Epoch>,
    quiet_ticks: u32,
}

#[derive(Debug, Default, Hash)]
pub(super) struct Growth {
    /// What the driver is getting space for.
    asked: Option<Asked>,
    /// Slots that waiting writes cannot do without.
    pub(super) demand: u64,
    /// The extent to grow by next, while it goes well.
    step: u32,
    /// The last attempt failed: grow by no more than is needed, and not ahead of need.
    failed: bool,
    /// Sessions woken by a failure: they hear of it when they ask again. Anybody else's request
    /// deserves an attempt of its own, since space may have been freed meanwhile.
    pub(super) denied: Vec<SessionKey>,
    /// It failed, but slots wait for a record: the sessions that wait are woken when this is durable.
    pub(super) barrier: Option<Epoch>,
}

impl Growth {
    pub(super) fn new(slots_min: u32) -> Self {
        Self { step: slots_min, ..Self::default() }
    }
}

impl Overlay {
    /// Frees displaced slots nobody looks at any more. A bounded step; the driver may call it when it
    /// has nothing better to do, and every reservation that runs short does. Answers whether another step may free more.
    pub fn reclaim(&mut self) -> bool {
        if self.slots.counts().displaced == 0 && !self.slots.is_unsealing() {
            return false;
        }
        let mut unsealed = 0;
        while self.slots.is_unsealing() && unsealed < RECLAIM_SLOTS_PER_STEP {
            let (seen, limbo) = self.slots.unseal_step(self.epoch);
            unsealed += seen;
            self.note_limbo(limbo);
        }
        let oldest = self.cells.iter().filter_map(PinCell::oldest).min();
        let unpinned = oldest.unwrap_or(Epoch::LAST);
        let unpinned = if planted(Bug::ReuseWhilePinned) { Epoch::LAST } else { unpinned };
        let durable = self.durable_until();
        let mut budget = RECLAIM_SLOTS_PER_STEP;
        budget -= self.slots.reclaim(unpinned, durable, budget).min(budget);
        if budget > 0 && self.slots.counts().displaced > 0 && oldest.is_some() {
            mark(Mark::PinHoldsSlots);
        }
        // Parts of the map that were cut off may hold slots of either kind.
        let limit = unpinned.min(durable);
        while budget > 0 {
            match self.dropped.front_mut() {
                Some(DroppedAt { epoch, seal, nodes }) if *epoch <= limit => {
                    let slots = &mut self.slots;
                    let seen = nodes.step(&mut |slot| {
                        mark(Mark::DroppedFreed);
                        slots.free_dropped(slot, *seal);
                    });
                    if nodes.is_empty() {
                        self.dropped.pop_front();
                    }
                    budget = budget.saturating_sub(seen);
                }
                _ => break,
            }
        }
        budget == 0 || self.slots.is_unsealing()
    }

    /// Whether so many slots are free, after looking for displaced ones.
    pub(super) fn available(&mut self, count: u64) -> bool {
        self.reclaim();
        // A dropped terabyte, or a seal let go, is worth more than one step when slots are short; but no more
        // than a few while the data file can grow instead.
        let mut steps = if self.growth.failed { u32::MAX } else { RECLAIM_STEPS_MAX };
        while u64::from(self.slots.counts().free) < count
            && (!self.dropped.is_empty() || self.slots.is_unsealing())
            && steps > 0
        {
            steps -= 1;
            let before = self.slots.counts();
            self.reclaim();
            if self.slots.counts() == before && !self.slots.is_unsealing() {
                break;
            }
        }
        u64::from(self.slots.counts().free) >= count
    }

    pub(super) fn ask_growth(&mut self, count: u64, key: SessionKey) -> Result<(), Errno> {
        if let Some(index) = self.growth.denied.iter().position(|denied| *denied == key) {
            mark(Mark::Denied);
            self.growth.denied.swap_remove(index);
            return Err(Errno::NoSpace);
        }
        if planted(Bug::StaleDenial) && self.growth.failed {
            return Err(Errno::NoSpace);
        }
        self.growth.demand = self.growth.demand.max(count);
        if !self.waiting.contains(&key) {
            self.waiting.push(key);
        }
        Ok(())
    }

    /// Slots that should get space now: some that lost it, or as many more as there are in the run, at the end of
    /// the data file. Asked until it answers `None`; every answer is completed once, by [`Self::grown`].
    pub fn poll_growth(&mut self) -> Option<Run> {
        if self.growth.asked.is_some() || self.growth.barrier.is_some() {
            return None;
        }
        let counts = self.slots.counts();
        let missing = self.missing();
        if missing == 0 {
            // What was waited for has become free meanwhile: whoever waited asks again.
            self.growth.demand = 0;
        }
        let wanted = if missing > 0 {
            missing.max(u64::from(if self.growth.failed { 0 } else { self.growth.step }))
        } else if self.runs_low() {
            mark(Mark::GrowthAhead);
            u64::from(self.growth.step)
        } else {
            return None;
        };
        let (asked, run) = match self.take_hole(wanted) {
            Some(hole) => (Asked::Hole(hole), hole.run),
            None => {
                let count = u32::try_from(wanted).unwrap_or(u32::MAX);
                let count = count.min(SLOTS_MAX - counts.total);
                (Asked::More(count), Run { first: SlotId(counts.total), count })
            }
        };
        self.growth.asked = Some(asked);
        Some(run)
    }

    /// A hole that may have as many slots as are wanted; one group after a failure, since of that the outcome is clear.
    fn take_hole(&mut self, wanted: u64) -> Option<Hole> {
        let groups = if self.growth.failed { 1 } else { wanted.div_ceil(self.group().into()) };
        let groups = u32::try_from(groups).unwrap_or(u32::MAX);
        self.slots.take_hole(groups.saturating_mul(self.group()))
    }

    /// Slots lose and get space in groups of so many.
    fn group(&self) -> u32 {
        self.config.space.hole_slots.max(1)
    }

    /// Slots that waiting writes cannot do without, and that are not free.
    fn missing(&self) -> u64 {
        // What was set aside before a restart has its space, in holes of which nobody knows.
        let set_aside = if self.slots.has_uncertain_holes() { self.set_aside() } else { 0 };
        self.growth.demand.max(set_aside).saturating_sub(u64::from(self.slots.counts().free))
    }

    /// Free slots that are spoken for.
    fn set_aside(&self) -> u64 {
        if planted(Bug::SetAsidePunched) { 0 } else { self.map.tally().reserved + self.setting }
    }

    /// The slots that were asked for have space, or do not get it. Wake those in [`Self::take_waiting`].
    pub fn grown(&mut self, ok: bool) {
        let asked = self.growth.asked.take().expect("growth is completed once");
        let is_over =
            if ok && asked.count() > 0 { self.got(asked) } else { self.got_nothing(asked) };
        if is_over {
            self.growth.demand = 0;
        }
    }

    /// Answers whether those who wait may ask again.
    fn got(&mut self, asked: Asked) -> bool {
        self.growth.failed = false;
        self.growth.step = (self.growth.step * 2).min(self.config.space.growth_slots_max);
        match asked {
            Asked::More(count) => {
                self.slots.grow(count);
                true
            }
            Asked::Hole(hole) => {
                mark(Mark::HoleFilled);
                self.slots.fill_hole(hole.run);
                // Otherwise there are more holes, or the data file grows.
                self.missing() == 0
            }
        }
    }

    /// Answers whether those who wait are to hear of it.
    fn got_nothing(&mut self, asked: Asked) -> bool {
        let missing = self.missing();
        let least = match asked {
            Asked::More(_) => missing,
            Asked::Hole(Hole { run, certain }) => {
                // Of several groups, some may have space.
                let certain = certain || run.count <= self.group();
                self.slots.put_hole(Hole { run, certain });
                self.group().into()
            }
        };
        self.growth.step = self.config.space.growth_slots_min;
        let had_failed = core::mem::replace(&mut self.growth.failed, true);
        if missing > 0 && !had_failed && u64::from(asked.count()) > least {
            // Try again with only what is needed, before anybody hears of it.
            mark(Mark::GrowthRetried);
            return false;
        }
        if missing > 0 && self.slots.has_uncertain_holes() {
            // One of them may have space yet, however full the disk is.
            return false;
        }
        mark(Mark::GrowthFailed);
        self.growth.barrier = self.flush_for_space();
        if self.growth.barrier.is_some() {
            return false;
        }
        self.growth.denied.clone_from(&self.waiting);
        true
    }

    /// Free slots whose space should be given back now, because there are many. They are no longer free, whatever comes of
    /// it. Every answer is completed once, by [`Self::punched`]; a run of no slots needs nothing done before that, and
    /// stands for a bounded step of looking for some.
    pub fn poll_punch(&mut self) -> Option<Run> {
        if self.punching.busy.is_some() || self.growth.asked.is_some() || self.growth.demand > 0 {
            return None;
        }
        let mut run = None;
        let is_free = u64::from(self.slots.counts().free) >= self.set_aside();
        let is_claimed = !self.waiting.is_empty() || !self.punching.woken.is_empty();
        if is_free && !self.punching.never && !is_claimed {
            let most = self.config.space.punch_slots_max;
            // Whoever writes after a restart may find space in the uncertain ones, until the first tick.
            run = self.punching.seen.and_then(|_| self.slots.punch_uncertain(most));
            run = run.or_else(|| self.slots.punch(self.surplus().min(most.into()) as u32));
        }
        if run.is_some_and(|run| run.count > 0) {
            mark(Mark::HolePunched);
        }
        let again = core::mem::take(&mut self.punching.more);
        let run = run.or_else(|| again.then_some(Run { first: SlotId(0), count: 0 }))?;
        self.punching.busy = Some(run);
        Some(run)
    }

    /// The space of slots was given back, or could not be: then none ever will.
    pub fn punched(&mut self, ok: bool) {
        let run = self.punching.busy.take().expect("a punch is completed once");
        if run.count > 0 {
            self.punching.never |= !ok;
            if planted(Bug::HoleUsed) {
                self.slots.fill_hole(run);
            } else {
                self.slots.put_hole(Hole { run, certain: ok });
            }
        }
        self.punching.more = self.reclaim();
    }

    /// To be called every few seconds: looks at what was displaced, which nobody else does where nothing is written.
    pub(super) fn tidy(&mut self) {
        let seen = self.punching.seen.replace(self.epoch);
        let is_same = seen == Some(self.epoch);
        self.punching.quiet_ticks =
            if is_same { self.punching.quiet_ticks.saturating_add(1) } else { 0 };
        self.punching.woken.clear();
        if self.is_quiet() {
            // Whoever begins to write again begins with little.
            self.growth.step = self.config.space.growth_slots_min;
        }
        self.punching.more = self.reclaim();
    }

    /// Whether nothing was published between as many ticks as that takes, nor since.
    fn is_quiet(&self) -> bool {
        self.punching.quiet_ticks >= self.config.space.quiet_ticks
            && self.punching.seen == Some(self.epoch)
    }

    /// How many free slots nobody needs: little is kept where nothing is written.
    fn surplus(&self) -> u64 {
        let (space, counts) = (&self.config.space, self.slots.counts());
        let spare = if self.is_quiet() { 0 } else { space.spare_slots };
        // What the data file grew by ahead of need is not given back at once, only to be asked for again.
        let spare = spare.max(2 * self.growth.step);
        let kept = u64::from(spare + counts.live / 8) + self.set_aside();
        u64::from(counts.free).saturating_sub(kept)
    }

    /// Slots that may turn out to have space when they are asked for. For audits.
    pub(super) fn perhaps_free(&self) -> u32 {
        let asked = match self.growth.asked {
            Some(Asked::Hole(Hole { run, certain: false })) => run.count,
            _ => 0,
        };
        asked + self.slots.uncertain_holes()
    }

    /// The sessions to wake, if growth has come to an end.
    pub fn take_waiting(&mut self) -> Vec<SessionKey> {
        if self.growth.demand > 0 {
            return Vec::new();
        }
        if planted(Bug::LostWakeUp) {
            self.waiting.truncate(1);
        }
        self.punching.woken.extend_from_slice(&self.waiting);
        core::mem::take(&mut self.waiting)
    }

    fn runs_low(&self) -> bool {
        let counts = self.slots.counts();
        let blocks = self.map.blocks().min(self.quota_blocks);
        let spare = u64::from(counts.free) - self.map.tally().reserved.min(u64::from(counts.free));
        counts.total > 0
            && !self.growth.failed
            && u64::from(counts.total - counts.sealed - counts.holes) < blocks
            && spare < u64::from(self.growth.step / 4)
    }
}
