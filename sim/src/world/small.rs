//! Small worlds, of which every interleaving is run. What could never make a difference to anybody
//! else is not a choice: a session's outputs are taken at once, and a client's bytes move up to the
//! next point of interest.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;

use super::*;
use crate::exhaust::{Ask, SmallWorld};

impl World {
    /// A small world, to be got ready by [`Self::prepare`].
    #[must_use]
    pub fn small(small: &SmallWorld, tape: Tape, trace: Trace) -> Self {
        let mut world = Self::made(tape, trace, small.swarm(), false);
        world.mood = Mood::Preparing;
        world.connect();
        world.connect();
        world
    }

    /// Handshakes and what is there before take place in the plainest order; then all requests are
    /// ready to be sent, and everything that happens next is a choice.
    pub fn prepare(&mut self, small: &SmallWorld) -> Result<(), Broken> {
        for ask in small.before.asks() {
            self.ask(0, *ask);
            while self.step()? {}
        }
        for (index, asks) in small.asks.iter().enumerate() {
            asks.iter().for_each(|ask| self.ask(index, *ask));
        }
        self.dismiss();
        self.note("ready", 0, [0; 4]);
        self.mood = Mood::Branching { resets: u64::from(small.resets) };
        Ok(())
    }

    fn ask(&mut self, index: usize, ask: Ask) {
        let (command, flags, bytes) = ask.request();
        let view = self.view();
        self.connections[index].client.ask_for(command, flags, bytes, view, &mut self.model);
        self.notice(index);
    }

    pub(super) fn is_small(&self) -> bool {
        matches!(self.mood, Mood::Preparing | Mood::Branching { .. })
    }

    /// Every session says all it has to say.
    pub(super) fn settle(&mut self) -> Result<(), Broken> {
        while let Some(index) = self.connections.iter().position(|one| !one.polled) {
            self.poll(index)?;
        }
        Ok(())
    }

    /// A number that two states share if, and in practice only if, they have the same future.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let mut moments: Vec<Moment> = self.model.moments().collect();
        moments.extend(self.connections.iter().flat_map(|one| one.client.moments()));
        moments.sort_unstable();
        moments.dedup();
        let rank = |moment: Moment| moments.binary_search(&moment).expect("all are listed");

        let build = FixedState::with_seed(0);
        let mut state = build.build_hasher();
        self.overlay.hash(&mut state);
        self.disk.hash(&mut state);
        self.available.hash(&mut state);
        self.model.hash_state(&rank, &mut state);
        for one in &self.connections {
            one.session.hash(&mut state);
            one.client.hash_state(&rank, &mut state);
            // What is on its way to the server is certain once it is known how much.
            (one.key, one.to_server.len(), one.to_server.ended).hash(&mut state);
            one.to_client.hash(&mut state);
            (&one.receive, &one.send, one.blocked, one.shut, one.reset).hash(&mut state);
        }
        // In whatever order they were begun.
        let operation = |one: &Operation| build.hash_one((one.key, &one.kind));
        let mut operations: Vec<u64> = self.operations.iter().map(operation).collect();
        operations.sort_unstable();
        operations.hash(&mut state);
        let Mood::Branching { resets } = self.mood else { unreachable!("a small world is ready") };
        resets.hash(&mut state);
        state.finish()
    }
}
