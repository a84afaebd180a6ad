//! `glassine repair`: a sheet whose newest checkpoint is damaged goes back to the one before, and loses
//! nothing by it; or it says why that cannot be, and changes nothing.

use std::fmt;
use std::path::Path;

use anyhow::bail;
use serde::Serialize;

use crate::check::Closed;

/// What was done to a sheet.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was wrong with it; nothing if it can be served as it is.
    pub damage: Option<String>,
    /// The generation whose checkpoint counts now.
    pub generation: u64,
    /// Records behind it, all of which are there, and the edits in them.
    pub records: u64,
    /// Edits in those records.
    pub edits: u64,
    /// Whether a crash cut a record that nobody had been promised.
    pub cut: bool,
}

/// Repairs the sheet in a directory.
pub fn repair(path: &Path) -> anyhow::Result<Report> {
    let closed = Closed::open(path, false)?;
    let damage = closed.look(closed.recovery()).err();
    let mut recovery = closed.recovery();
    if let Some(damage) = damage {
        if let Err(refusal) = closed.look(closed.recovery().going_back()) {
            bail!(
                "sheet {} cannot be repaired: {damage}; and it cannot go back to the checkpoint before: {refusal}. Nothing was changed; restore the sheet from a copy, or serve another one over its last snapshot",
                closed.shown()
            );
        }
        recovery = recovery.going_back();
    }
    // Also if nothing is damaged: a repair that was broken off may not be durable yet.
    let found = closed.perform(recovery)?;
    Ok(Report {
        damage: damage.map(|damage| damage.to_string()),
        generation: found.generation,
        records: found.records,
        edits: found.edits,
        cut: found.cut,
    })
}

/// A report for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { damage, generation, records, edits, cut } = self;
        match damage {
            None => write!(f, "nothing to repair: the sheet can be served as it is")?,
            Some(damage) => write!(
                f,
                "damage: {damage}\n\
                 repaired: the sheet went back to the checkpoint before, of generation {generation}; all {records} records \
                 since then are there, with {edits} edits\n\
                 lost: nothing"
            )?,
        }
        if *cut {
            write!(f, "; a crash cut the last record, which nobody had been promised")?;
        }
        Ok(())
    }
}
