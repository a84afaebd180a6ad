//! Crashes: the process dies, or the power goes, at any step; then recovery, which may be broken off
//! itself, and the device goes on with new connections.

use glassine_core::journal::frame::{Frame, FrameHeader, FrameKind};
use glassine_core::journal::recovery::{Damage, Recovery, Refusal, Step};
use glassine_core::journal::superblock::{Identity, Superblock};
use glassine_core::journal::{Action, JournalFile, Task};

use super::*;
use crate::disk::{Disk, DiskFile};
use crate::swarm::Sheet;

/// By what the template is known.
const TEMPLATE_ID: [u8; 32] = [0x61; 32];
/// So often recovery may be broken off.
const INTERRUPTIONS_MAX: u64 = 2;

/// How a recovery that did not come to its end was stopped.
enum Stopped {
    /// The process died, or a file failed it: begin again.
    Interrupted,
    Refused(Refusal),
}

/// A byte on the medium that changed by itself, and where recovery must find that out.
struct Rot {
    file: JournalFile,
    byte: u64,
    /// Where the damaged record begins, if another one of its segment follows, or the checkpoint needs it.
    record: Option<u64>,
}

impl World {
    /// The files of a sheet that nobody has written to, and the device over them.
    pub(super) fn make_sheet(&mut self, sheet: &Sheet) {
        let identity = Identity {
            sheet: 0x5eed,
            size_bytes: self.swarm.size_bytes,
            template_bytes: self.swarm.template_bytes,
            template_id: TEMPLATE_ID,
            segment_bytes: sheet.segment_bytes,
        };
        self.disk = Disk::new(true);
        self.disk.put_blank(&identity);
        let mut recovery = self.recovery();
        while let Some(step) = recovery.poll() {
            let read = self.recovery_step(&step);
            recovery.handle(Ok(&read)).expect("a blank sheet is whole");
        }
        self.overlay = recovery.finish().0;
    }

    /// How many crashes there will be.
    #[must_use]
    pub fn crashes(&self) -> u64 {
        self.swarm.sheet.as_ref().map_or(0, |sheet| sheet.crashes)
    }

    /// How many there were.
    #[must_use]
    pub fn crashed(&self) -> u64 {
        self.crashed
    }

    /// The process dies, or the power goes. Nothing in memory survives.
    pub fn crash(&mut self, goes_on: bool) -> Result<(), Broken> {
        self.crashed += 1;
        let power = self.tape.chance(Lane::Backend, 75);
        self.note("crash", 0, [u64::from(power), self.overlay.generation(), 0, 0]);
        // What was handed to the kernel still reaches its client.
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            let waiting = if connection.reset { 0 } else { connection.to_client.len() };
            let bytes = connection.to_client.take(waiting);
            let client = &mut connection.client;
            client.receive(&bytes, &mut self.model, self.step, &self.faults)?;
            self.notice(index);
        }
        for connection in std::mem::take(&mut self.connections) {
            self.answered += connection.client.answered;
        }
        self.operations.clear();
        if power {
            self.disk.cut_power(&mut self.tape);
        }
        let rots = self.swarm.sheet.as_ref().is_some_and(|sheet| sheet.rots);
        if self.overlay.is_checkpointing() {
            self.begun = self.overlay.generation() + 1;
        }
        if rots && self.tape.chance(Lane::Backend, 50) {
            self.refuse_rot()?;
        }
        if rots && self.tape.chance(Lane::Needed, 50) {
            self.refuse_needed_rot()?;
        }
        self.recover()?;
        self.faults.recovered();
        let content = self.content()?;
        self.trace.note_bytes(&content);
        self.model.recovered(&content, self.step)?;
        self.step += 1;
        if goes_on {
            for _ in 0..self.swarm.connections {
                self.connect();
            }
        }
        Ok(())
    }

    fn recovery(&self) -> Recovery {
        let limits = self.swarm.sheet.as_ref().expect("there is a sheet").limits.clone();
        let slots = (self.disk.bytes(DiskFile::Data).len() / BLOCK) as u32;
        Recovery::new(self.overlay_config(), TEMPLATE_ID, slots, limits)
    }

    /// Recovers, however often that is broken off.
    fn recover(&mut self) -> Result<(), Broken> {
        let mut left = self.tape.draw(Lane::Backend, INTERRUPTIONS_MAX + 1);
        loop {
            let outcome = self.try_to_recover(self.recovery(), left > 0);
            match outcome {
                Ok(()) => break,
                Err(Stopped::Interrupted) => left -= 1,
                Err(Stopped::Refused(refusal)) => {
                    return Broken::by("recovery succeeds", refusal.to_string());
                }
            }
        }
        self.available.fill(0);
        self.overlay.audit();
        let numbers = [self.overlay.generation(), self.overlay.counts().live.into(), 0, 0];
        self.note("recovered", 0, numbers);
        Ok(())
    }

    fn try_to_recover(&mut self, mut recovery: Recovery, may_stop: bool) -> Result<(), Stopped> {
        while let Some(step) = recovery.poll() {
            if may_stop && self.tape.draw(Lane::Backend, 8) == 7 {
                self.stop_in_the_middle(&step);
                return Err(Stopped::Interrupted);
            }
            let read = self.recovery_step(&step);
            recovery.handle(Ok(&read)).map_err(Stopped::Refused)?;
        }
        let (overlay, report) = recovery.finish();
        self.overlay = overlay;
        let numbers = [report.records, report.edits, report.sections, u64::from(report.cut)];
        self.note("replayed", 0, numbers);
        Ok(())
    }

    /// Recovery is broken off at a step: by a crash, or since the step fails.
    fn stop_in_the_middle(&mut self, step: &Step) {
        match step {
            Step::Read { .. } => {}
            Step::Write { file, offset, bytes } => {
                let count = self.tape.draw(Lane::Backend, bytes.len() as u64 + 1) as usize;
                self.disk.write(DiskFile::Journal(*file), *offset, &bytes[..count]);
            }
            Step::Sync { file } => self.disk.fail_to_sync(DiskFile::Journal(*file)),
            Step::WriteData { offset, bytes } => {
                let count = self.tape.draw(Lane::Records, bytes.len() as u64 + 1) as usize;
                self.disk.write(DiskFile::Data, *offset, &bytes[..count]);
            }
        }
        let power = self.tape.chance(Lane::Backend, 50);
        if power {
            self.disk.cut_power(&mut self.tape);
        }
        self.note("interrupted", 0, [u64::from(power), 0, 0, 0]);
    }

    fn recovery_step(&mut self, step: &Step) -> Vec<u8> {
        match step {
            Step::Read { file, offset, length } => {
                return self.disk.read(DiskFile::Journal(*file), *offset, *length).to_vec();
            }
            Step::Write { file, offset, bytes } => {
                self.disk.write(DiskFile::Journal(*file), *offset, bytes);
            }
            Step::Sync { file } => self.disk.sync(DiskFile::Journal(*file)),
            Step::WriteData { offset, bytes } => {
                let slot = offset / BLOCK as u64;
                assert!(self.disk.has_space(slot), "recovery writes to slot {slot}, a hole");
                self.disk.write(DiskFile::Data, *offset, bytes);
            }
        }
        Vec::new()
    }

    /// A byte that recovery needs has changed, and recovery finds that out. Then it changes back; or it stays
    /// as it is, if the sheet can be repaired.
    fn refuse_rot(&mut self) -> Result<(), Broken> {
        let Some(rot) = self.draw_rot() else { return Ok(()) };
        self.find_rot(&rot)?;
        let is_checkpoint = matches!(rot.file, JournalFile::Checkpoint(_));
        let stays = is_checkpoint && self.tape.chance(Lane::Checkpoints, 50) && self.repair()?;
        if !stays {
            self.disk.spoil(DiskFile::Journal(rot.file), rot.byte);
        }
        Ok(())
    }

    /// The same with the last record of a segment, if the checkpoint needs it. It always changes back.
    fn refuse_needed_rot(&mut self) -> Result<(), Broken> {
        let newest = Superblock::newest(self.journal(JournalFile::Superblock));
        let newest = newest.expect("it was not damaged");
        let [_, file] = newest.files();
        let records = self.records(file, newest.generation);
        let Some(last) = records.last() else { return Ok(()) };
        if newest.number + records.len() as u64 > newest.needs {
            return Ok(());
        }
        let byte = last.start + self.tape.draw(Lane::Needed, last.end - last.start);
        self.find_rot(&Rot { file, byte, record: Some(last.start) })?;
        self.disk.spoil(DiskFile::Journal(file), byte);
        Ok(())
    }

    /// Changes the byte. Recovery must say so, and where.
    fn find_rot(&mut self, rot: &Rot) -> Result<(), Broken> {
        self.disk.spoil(DiskFile::Journal(rot.file), rot.byte);
        let refusal = self.refusal();
        self.note("rot", 0, [rot.byte, 0, 0, 0]);
        let is_found = match (&refusal, rot.record) {
            (
                Some(Refusal::Damaged {
                    file,
                    offset,
                    damage: Damage::Hole { .. } | Damage::Missing,
                }),
                Some(record),
            ) => (*file, *offset) == (rot.file, record),
            (Some(Refusal::Damaged { .. }), None) => true,
            _ => false,
        };
        if !is_found {
            let text = format!("{} byte {} was damaged: {refusal:?}", rot.file, rot.byte);
            return Broken::by("damage is refused", text);
        }
        Ok(())
    }

    /// Why the sheet cannot be served, if it cannot. Nothing is written.
    fn refusal(&self) -> Option<Refusal> {
        let mut recovery = self.recovery();
        while let Some(Step::Read { file, offset, length }) = recovery.poll() {
            let read = self.disk.read(DiskFile::Journal(file), offset, length);
            if let Err(refusal) = recovery.handle(Ok(read)) {
                return Some(refusal);
            }
        }
        None
    }

    /// Goes back from a damaged checkpoint to the one before, however often that is broken off. Answers whether
    /// there is a way: there must be, unless the next generation was written over it.
    fn repair(&mut self) -> Result<bool, Broken> {
        let file = self.journal(JournalFile::Superblock);
        let newest = Superblock::newest(file).expect("it was not damaged").generation;
        let is_next_begun = self.begun > newest;
        let mut left = self.tape.draw(Lane::Checkpoints, INTERRUPTIONS_MAX + 1);
        loop {
            let recovery = self.recovery();
            // What is whole is recovered as well: a repair that was broken off may not be durable yet.
            let is_damaged = self.refusal().is_some();
            let recovery = if is_damaged { recovery.going_back() } else { recovery };
            match self.try_to_recover(recovery, left > 0) {
                Ok(()) => break,
                Err(Stopped::Interrupted) => left -= 1,
                Err(Stopped::Refused(_)) if newest == 0 || is_next_begun => return Ok(false),
                Err(Stopped::Refused(refusal)) => {
                    return Broken::by("a damaged checkpoint is repaired", refusal.to_string());
                }
            }
        }
        self.note("repaired", 0, [newest, 0, 0, 0]);
        Ok(true)
    }

    /// A byte of the checkpoint, or of a record that is not the last one.
    fn draw_rot(&mut self) -> Option<Rot> {
        let superblock = Superblock::newest(self.journal(JournalFile::Superblock)).ok()?;
        let [checkpoint, segment] = superblock.files();
        let records = self.records(segment, superblock.generation);
        let JournalFile::Segment(side) = segment else { unreachable!("the second is the segment") };
        let behind = self.records(JournalFile::Segment(!side), superblock.generation + 1);
        let (file, records, last_is_inner) =
            if behind.len() > 1 && self.tape.chance(Lane::Backend, 50) {
                (JournalFile::Segment(!side), behind, false)
            } else {
                let goes_on = !behind.is_empty();
                (segment, records, goes_on)
            };
        let inner = records.len() - usize::from(!last_is_inner && !records.is_empty());
        if inner == 0 || self.tape.chance(Lane::Backend, 20) {
            let frame = Frame::parse(self.journal(checkpoint)).ok()?;
            let byte = self.tape.draw(Lane::Backend, frame.bytes.len() as u64);
            return Some(Rot { file: checkpoint, byte, record: None });
        }
        let at = self.tape.draw(Lane::Backend, inner as u64) as usize;
        let record = &records[at];
        let byte = record.start + self.tape.draw(Lane::Backend, record.end - record.start);
        // Behind the last record of a segment, the hole is found at the start of the next one.
        let start = Some(record.start).filter(|_| at + 1 < records.len());
        Some(Rot { file, byte, record: start })
    }

    fn journal(&self, file: JournalFile) -> &[u8] {
        self.disk.bytes(DiskFile::Journal(file))
    }

    /// Where the records of a segment's life lie.
    fn records(&self, segment: JournalFile, generation: u64) -> Vec<Range<u64>> {
        let bytes = self.journal(segment);
        let (mut at, mut records) = (0, Vec::new());
        while let Ok(frame) = Frame::parse(&bytes[at..]) {
            let FrameHeader { kind, generation: life, .. } = frame.header;
            if kind != FrameKind::Record || life != generation {
                break;
            }
            records.push(at as u64..(at + frame.bytes.len()) as u64);
            at += frame.bytes.len();
        }
        records
    }

    /// A task of the journal goes on. Answers how it ended, if it did.
    pub(super) fn perform_task(
        &mut self,
        task: &mut Task,
        done: &mut usize,
    ) -> Option<Result<(), Errno>> {
        if *done == 0 {
            let data = self.disk.bytes(DiskFile::Data);
            let read = |offset: u64, bytes: &mut [u8]| {
                bytes.copy_from_slice(&data[offset as usize..][..bytes.len()]);
                Ok::<_, Errno>(())
            };
            task.carry(read).expect("the data file has its slots");
        }
        let per_1000 = self.swarm.sheet.as_ref().map_or(0, |sheet| sheet.fault_per_1000);
        let fails = !self.is_calm() && self.tape.draw(Lane::Backend, 1000) >= 1000 - per_1000;
        match &task.action {
            Action::SyncData if fails => self.disk.fail_to_sync(DiskFile::Data),
            Action::SyncData => self.disk.sync(DiskFile::Data),
            Action::Sync { file } if fails => self.disk.fail_to_sync(DiskFile::Journal(*file)),
            Action::Sync { file } => self.disk.sync(DiskFile::Journal(*file)),
            Action::Write { file: file @ JournalFile::Checkpoint(_), offset, bytes }
                if *done == 0 && self.is_full() =>
            {
                let count = self.tape.draw(Lane::Checkpoints, bytes.len() as u64) as usize;
                self.disk.write(DiskFile::Journal(*file), *offset, &bytes[..count]);
                return Some(Err(Errno::NoSpace));
            }
            Action::Write { file, offset, bytes } => {
                let count = self.portion(Lane::Backend, (bytes.len() - *done) as u64) as usize;
                let piece = &bytes[*done..*done + count];
                self.disk.write(DiskFile::Journal(*file), offset + *done as u64, piece);
                *done += count;
                if *done < bytes.len() && !fails {
                    return None;
                }
            }
        }
        if fails {
            self.faults.journal = self.faults.journal.or(Some(self.step));
            return Some(Err(Errno::Io));
        }
        Some(Ok(()))
    }

    /// Whether there is no space for a checkpoint, for some time.
    fn is_full(&mut self) -> bool {
        if self.is_calm() {
            return false;
        }
        if self.step >= self.full_until && self.tape.chance(Lane::Checkpoints, 3) {
            self.full_until = self.step + self.tape.length(Lane::Checkpoints, 10_000);
        }
        self.step < self.full_until
    }

    /// Everything that is visible becomes durable, at the end of a run.
    pub(super) fn flush_all(&mut self) {
        self.overlay.flush();
        while let Some(mut task) = self.overlay.poll_task() {
            let mut done = 0;
            let result = loop {
                if let Some(result) = self.perform_task(&mut task, &mut done) {
                    break result;
                }
            };
            self.overlay.finished(task, result);
        }
        while self.overlay.poll_woken().is_some() {}
    }
}
