//! Bounded wait: now and then one connection is looked at while something it must not depend on
//! stands still. Whatever it has asked for must be answered all the same.

use super::*;

/// More steps than any connection needs for what it may have in flight.
const STEPS_MAX: u64 = 300_000;

impl World {
    /// Looks at one connection that is healthy, as the tape says.
    pub fn probe(&mut self) -> Result<(), Broken> {
        let healthy = |one: &&Connection| {
            !one.is_ending() && !one.client.is_silent() && one.client.is_in_transmission()
        };
        let healthy: Vec<u64> =
            self.connections.iter().filter(healthy).map(|one| one.key).collect();
        if healthy.is_empty() {
            return Ok(());
        }
        let key = *self.tape.pick(Lane::Schedule, &healthy);
        let still = match self.tape.draw(Lane::Schedule, 3) {
            0 => Still::Others,
            1 => Still::Fetches { before: self.next_serial },
            _ => Still::Reading,
        };
        let frozen = |operation: &&Operation| {
            operation.key == key && matches!(operation.kind, Kind::Fetch { .. })
        };
        let fetches = self.operations.iter().filter(frozen).count();
        self.note("probe", key, [fetches as u64, 0, 0, 0]);
        let late: Vec<bool> = self.operations.iter().map(|one| one.never).collect();
        self.mood = Mood::Probing(Probe { key, still });
        for operation in &mut self.operations {
            operation.never = false;
        }
        let serials: Vec<u64> = self.operations.iter().map(|one| one.serial).collect();
        let limit = self.step + STEPS_MAX;
        while self.step()? {
            if self.step > limit {
                return Broken::by(
                    "bounded wait",
                    format!("{still:?} never rests\n{}", self.stuck()),
                );
            }
        }
        self.judge_probe(key, still, fetches)?;
        self.mood = Mood::Faulty;
        for operation in &mut self.operations {
            let before = serials.iter().position(|serial| *serial == operation.serial);
            operation.never = before.is_some_and(|at| late[at]);
        }
        self.note("probed", key, [0; 4]);
        Ok(())
    }

    fn judge_probe(&self, key: u64, still: Still, fetches: usize) -> Result<(), Broken> {
        let Some(one) = self.connections.iter().find(|one| one.key == key) else {
            // It was being given up already; the reason was checked when it closed.
            return Ok(());
        };
        if one.client.is_silent() {
            // It fell silent meanwhile.
            return Ok(());
        }
        let full = one.session.in_flight() == usize::from(self.swarm.limits.requests_max);
        let unanswered = one.client.asked.len();
        let (check, holds) = match still {
            Still::Others => ("served while others stand still", unanswered == 0),
            Still::Fetches { .. } => {
                ("served while a template read is slow", unanswered <= fetches || full)
            }
            Still::Reading => {
                let taken = !one.client.has_output() && one.to_server.is_empty();
                ("receiving while replies are not read", taken || full)
            }
        };
        if holds { Ok(()) } else { Broken::by(check, self.stuck()) }
    }
}
