//! What nobody asked for: clocks that jump, ticks, and connections that break.

use super::*;

impl World {
    /// Faults of connections, at any moment.
    pub(super) fn disturb(&mut self) {
        if self.swarm.jumps && self.tape.draw(Lane::Schedule, 3000) == 2999 {
            self.time = Instant(self.time.0 + 30_000_000_000);
        }
        if self.swarm.sheet.is_some() && self.tape.draw(Lane::Schedule, 1000) == 999 {
            // As a driver does now and then, where nobody flushes.
            self.overlay.flush();
            self.note("flush-all", 0, [0; 4]);
            self.after_overlay();
        }
        // As a driver does every few seconds; without a publish between two of them, the device is quiet.
        let ticks = [0, 1, 2][self.tape.draw(Lane::Space, 300).saturating_sub(297) as usize];
        for _ in 0..ticks {
            self.overlay.tick();
            self.note("tick-all", 0, [0; 4]);
            self.after_overlay();
        }
        self.perhaps_seal();
        if self.swarm.reset_per_10k == 0 || self.connections.is_empty() {
            return;
        }
        if self.tape.draw(Lane::Net, 10_000) < 10_000 - self.swarm.reset_per_10k {
            return;
        }
        let index = self.tape.draw(Lane::Net, self.connections.len() as u64) as usize;
        let connection = &mut self.connections[index];
        let key = connection.key;
        match self.tape.draw(Lane::Net, 5) {
            0 | 1 => self.reset(index),
            2 => {
                connection.to_server.ended = true;
                self.note("half-close", key, [0; 4]);
            }
            3 => {
                connection.client.leaving = true;
                connection.client.say_goodbye(true);
                self.note("goodbye", key, [0; 4]);
            }
            _ if connection.drained_at.is_none() => {
                let given = connection.given;
                let full = self.swarm.limits.requests_max as usize;
                let entered = connection.client.is_in_transmission();
                let had_room = entered && connection.session.in_flight() < full;
                connection.drained_at = Some(Drained { given, had_room });
                self.tell(index, "drain", Input::Drain);
            }
            _ => {}
        }
    }

    /// The connection breaks.
    pub(super) fn reset(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.reset = true;
        let key = connection.key;
        self.note("reset", key, [0; 4]);
    }
}
