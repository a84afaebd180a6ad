//! What files do: stores, merges, fetches, loads and growth that take their time, and fail.

use super::*;

impl World {
    pub(super) fn fails(&mut self) -> bool {
        let fails = self.tape.chance(Lane::Backend, self.swarm.fault_percent) && !self.is_calm();
        if fails {
            self.faults.storage = Some(self.step);
        }
        fails
    }

    /// An operation goes on, perhaps to its end.
    pub(super) fn operate(&mut self, at: usize) -> Result<(), Broken> {
        let (key, serial) = (self.operations[at].key, self.operations[at].serial);
        let index = self.connections.iter().position(|one| one.key == key);
        let mut operation = self.operations.swap_remove(at);
        operation.since = self.step;
        match &mut operation.kind {
            Kind::Grow { run } => {
                let run = *run;
                self.grow(run);
                return Ok(());
            }
            Kind::Punch { run } => {
                let run = *run;
                self.punch(run);
                return Ok(());
            }
            Kind::Export(export) => {
                if self.export(export)? {
                    operation.due = self.step + self.export_delay();
                    self.operations.push(operation);
                } else {
                    self.ends("exported", key, serial);
                }
                return Ok(());
            }
            Kind::Wake => {
                if let Some(index) = index {
                    self.tell(index, "wake", Input::Wake);
                }
                return Ok(());
            }
            Kind::Task { task, done } => {
                let mut goes_on = task.take().expect("it is handed back once");
                let Some(result) = self.perform_task(&mut goes_on, done) else {
                    *task = Some(goes_on);
                    self.operations.push(operation);
                    return Ok(());
                };
                let what = if result.is_ok() { "task-done" } else { "task-failed" };
                self.ends(what, key, serial);
                self.note(what, 0, [serial, 0, 0, 0]);
                self.overlay.finished(goes_on, result);
                self.after_overlay();
                return Ok(());
            }
            _ => {}
        }
        let index = index.expect("a session outlives its operations");
        let (what, input) = match &mut operation.kind {
            Kind::Load => {
                self.ends("loaded", key, serial);
                return self.load(index);
            }
            Kind::Fetch { id, offset, length, cancelled } => (
                if *cancelled { "fetched-late" } else { "fetched" },
                self.fetch(*id, *offset, *length, *cancelled),
            ),
            Kind::Store { id, staged, targets, done } => {
                let id = *id;
                if self.fails() {
                    ("store-failed", Input::Stored { id, result: Err(Errno::Io) })
                } else {
                    let left = staged.len() - *done;
                    let count = self.portion(Lane::Backend, left as u64) as usize;
                    self.store(index, staged, targets, *done, count)?;
                    *done += count;
                    if *done < staged.len() {
                        self.operations.push(operation);
                        return Ok(());
                    }
                    ("stored", Input::Stored { id, result: Ok(()) })
                }
            }
            Kind::Merge { id, merge, block, half } => {
                let id = *id;
                if self.fails() {
                    ("merge-failed", Input::Merged { id, result: Err(Errno::Io) })
                } else if self.merge(key, merge, block, half)? {
                    ("merged", Input::Merged { id, result: Ok(()) })
                } else {
                    self.operations.push(operation);
                    return Ok(());
                }
            }
            Kind::Grow { .. }
            | Kind::Punch { .. }
            | Kind::Task { .. }
            | Kind::Export(_)
            | Kind::Wake => unreachable!("done above"),
        };
        self.ends(what, key, serial);
        self.tell(index, what, input);
        Ok(())
    }

    /// For pictures: an operation has ended.
    fn ends(&mut self, what: &'static str, connection: u64, serial: u64) {
        let numbers = [0, serial, u64::from(what.ends_with("failed")), 0];
        self.trace.watch(Event { step: self.step, what: "ends", connection, numbers });
    }

    pub(super) fn grow(&mut self, run: Run) {
        let drawn = self.tape.chance(Lane::Backend, self.swarm.full_percent) && !self.is_calm();
        let is_new = run.first.offset() as usize >= self.disk.bytes(DiskFile::Data).len();
        // What has space already takes none of a full disk.
        let fails = drawn && (is_new || !self.disk.have_space(run));
        if fails {
            self.faults.growth = Some(self.step);
        } else if is_new {
            // What a slot held in its last life is still there: anything but zeroes.
            self.disk.grow(DiskFile::Data, run.count as usize * BLOCK, 0xa5);
        } else {
            self.disk.fill(run);
        }
        self.overlay.grown(!fails);
        let numbers = [run.count.into(), u64::from(fails), run.first.0.into(), u64::from(is_new)];
        self.note("grown", 0, numbers);
        self.after_overlay();
    }

    /// The space of slots is given back, unless the file system cannot.
    fn punch(&mut self, run: Run) {
        let fails = self.tape.chance(Lane::Space, 3);
        if !fails {
            self.disk.punch(run);
        }
        self.overlay.punched(!fails);
        self.note("punched", 0, [run.count.into(), u64::from(fails), run.first.0.into(), 0]);
        self.after_overlay();
    }

    pub(super) fn fetch(
        &mut self,
        id: RequestId,
        offset: u64,
        length: u64,
        cancelled: bool,
    ) -> Input {
        if (cancelled && self.tape.chance(Lane::Backend, 50)) || self.fails() {
            return Input::Fetched { id, result: Err(Errno::Io) };
        }
        let short = !self.is_calm() && self.tape.chance(Lane::Backend, self.swarm.fault_percent);
        let count = if short { self.tape.draw(Lane::Backend, length + 1) } else { length };
        if count == 0 {
            self.faults.storage = Some(self.step);
        }
        self.available[offset as usize..(offset + count) as usize].fill(1);
        Input::Fetched { id, result: Ok(count) }
    }

    pub(super) fn store(
        &mut self,
        index: usize,
        staged: &Range<usize>,
        targets: &[(u64, u64)],
        done: usize,
        count: usize,
    ) -> Result<(), Broken> {
        // The staging buffer is read at this very moment: it must still hold the payload.
        let key = self.connections[index].key;
        let bytes =
            self.connections[index].session.staged(staged.clone())[done..done + count].to_vec();
        let (mut skip, mut rest) = (done as u64, &bytes[..]);
        for (offset, length) in targets {
            let here = length.saturating_sub(skip).min(rest.len() as u64);
            if here > 0 {
                let (piece, after) = rest.split_at(here as usize);
                self.write_data(key, offset + skip, piece)?;
                rest = after;
            }
            skip = skip.saturating_sub(*length);
        }
        Ok(())
    }

    /// Reads, then writes one side, then the other. Answers whether it is done.
    pub(super) fn merge(
        &mut self,
        key: u64,
        merge: &Merge,
        block: &mut Option<Box<[u8; BLOCK]>>,
        half: &mut bool,
    ) -> Result<bool, Broken> {
        let (start, end) = (merge.keep.start as usize, merge.keep.end as usize);
        let Some(block) = block else {
            let mut bytes = Box::new([0; BLOCK]);
            self.read(key, merge.source, &mut bytes[..merge.source_bytes as usize])?;
            if merge.zero_keep {
                bytes[start..end].fill(0);
            }
            *block = Some(bytes);
            return Ok(false);
        };
        if merge.zero_keep {
            self.write_data(key, merge.target, &block[..])?;
            return Ok(true);
        }
        if !std::mem::replace(half, true) {
            self.write_data(key, merge.target, &block[..start])?;
            // The slot is private: nobody else sees the time between its two sides.
            if !self.is_small() {
                return Ok(false);
            }
        }
        self.write_data(key, merge.target + end as u64, &block[end..])?;
        Ok(true)
    }

    pub(super) fn load(&mut self, index: usize) -> Result<(), Broken> {
        let fails = self.fails();
        let mut failure = None;
        let key = self.connections[index].key;
        let mut session = std::mem::replace(
            &mut self.connections[index].session,
            Session::new(
                SessionKey(0),
                self.swarm.limits.clone(),
                Arc::clone(&self.catalog),
                self.time,
            ),
        );
        // Now and then the process has no memory left for a slow client.
        let room = if fails && self.step.is_multiple_of(3) { 0 } else { u64::MAX };
        session.load(room, |source, bytes| {
            if fails {
                return Err(Errno::Io);
            }
            if let Err(error) = self.read(key, source, bytes) {
                failure = Some(error);
            }
            Ok(())
        });
        let connection = &mut self.connections[index];
        connection.session = session;
        connection.polled = false;
        self.note("loaded", key, [u64::from(fails), 0, 0, 0]);
        failure.map_or(Ok(()), Err)
    }
}
