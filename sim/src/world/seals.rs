//! Seals: taken at any step, and read bit by bit while clients go on. What a seal shows must be the device
//! as it was when the seal was taken, however much later it is read.

use glassine_core::seal::Seal;

use super::*;

/// A seal that is being read.
#[derive(Hash)]
pub(super) struct Export {
    /// Until it is handed back.
    seal: Option<Seal>,
    taken_at: Moment,
    /// What was read of it so far.
    image: Vec<u8>,
}

impl World {
    /// Takes a seal, if the tape says so.
    pub(super) fn perhaps_seal(&mut self) {
        if self.seals_left == 0 || self.tape.draw(Lane::Seals, 100) != 99 {
            return;
        }
        self.seals_left -= 1;
        let seal = self.overlay.seal();
        self.note("seal", 0, [self.overlay.seals() as u64, seal.tally().slots, 0, 0]);
        let export = Export { seal: Some(seal), taken_at: self.step, image: Vec::new() };
        self.add(0, Kind::Export(export));
    }

    /// How long the next part of a seal is left alone.
    pub(super) fn export_delay(&mut self) -> u64 {
        if self.is_calm() { 0 } else { self.tape.length(Lane::Seals, 500) }
    }

    /// Reads the next part of a seal. Answers whether there is more; if not, it was checked and handed back.
    pub(super) fn export(&mut self, export: &mut Export) -> Result<bool, Broken> {
        let seal = export.seal.as_ref().expect("it is handed back once");
        let done = export.image.len() as u64;
        if done < self.swarm.size_bytes {
            let (run, source) = seal.run_at(done / BLOCK as u64);
            let end = self.swarm.size_bytes.min(run.end * BLOCK as u64);
            let mut bytes = vec![0; (end - done) as usize];
            // A template shorter than the device is followed by zeroes.
            let there = match source {
                Source::Template { .. } => end.min(self.swarm.template_bytes).saturating_sub(done),
                Source::Data { .. } | Source::Zero => end - done,
            };
            if there > 0 {
                self.read(0, source, &mut bytes[..there as usize])?;
            }
            export.image.extend(bytes);
            return Ok(true);
        }
        let seal = export.seal.take().expect("just seen");
        self.note("unseal", 0, [export.taken_at, 0, 0, 0]);
        let _ = self.overlay.unseal(seal);
        self.after_overlay();
        let (whole, at) = (0..self.swarm.size_bytes, export.taken_at);
        self.model.check(whole, &export.image, at, at).map_err(|broken| Broken {
            check: "a seal is one moment",
            text: format!("a seal taken at {at}: {}", broken.text),
        })?;
        Ok(false)
    }
}
