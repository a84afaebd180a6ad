//! `glassine layer diff`: where two devices read differently.

use glassine_core::limits::BLOCK_BYTES;
use serde::Serialize;

use super::chain::{Chain, by_windows};
use super::import::refuse_qcow2;
use super::progress::Progress;
use crate::cli::layer::Diff;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// So many runs are listed; the others are counted.
const RUNS_MAX: usize = 1 << 20;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Whether they read the same to the last byte.
    pub(super) same: bool,
    a_bytes: u64,
    b_bytes: u64,
    /// Bytes of the blocks that read differently. Behind the end of the smaller one there are zeroes.
    different_bytes: u64,
    /// Runs of such blocks.
    different_runs: u64,
    /// The first of them.
    runs: Vec<Run>,
}

/// Blocks side by side that read differently.
#[derive(Debug, Serialize)]
struct Run {
    /// Byte offset in the device.
    offset: u64,
    /// How many bytes.
    bytes: u64,
}

pub(super) fn diff(arguments: &Diff, progress: &mut Progress) -> anyhow::Result<Report> {
    refuse_qcow2(&arguments.a)?;
    refuse_qcow2(&arguments.b)?;
    let a = Chain::open(&arguments.a, &arguments.parent_a)?;
    a.check_complete()?;
    let b = Chain::open(&arguments.b, &arguments.parent_b)?;
    b.check_complete()?;
    let suspects = a.suspects(&b);
    let total: u64 = suspects.iter().map(|blocks| blocks.end - blocks.start).sum();
    progress.begin("comparing".to_owned(), total * BLOCK)?;
    let (a_bytes, b_bytes) = (a.size_bytes(), b.size_bytes());
    let mut report = Report { a_bytes, b_bytes, ..Report::default() };
    let (mut a, mut b) = (a.cursor(), b.cursor());
    let mut last_end = None;
    for part in suspects.into_iter().flat_map(by_windows) {
        let (mine, theirs) = (a.read(&part)?, b.read(&part)?);
        let pairs = mine.chunks(BLOCK as usize).zip(theirs.chunks(BLOCK as usize));
        for (block, (mine, theirs)) in (part.start..).zip(pairs) {
            if mine != theirs {
                let offset = block * BLOCK;
                let bytes = (a_bytes.max(b_bytes) - offset).min(BLOCK);
                report.add(Run { offset, bytes }, last_end == Some(offset));
                last_end = Some(offset + bytes);
            }
        }
        progress.advance(mine.len() as u64)?;
    }
    progress.check()?;
    report.same = report.different_runs == 0 && a_bytes == b_bytes;
    Ok(report)
}

impl Report {
    fn add(&mut self, run: Run, is_joined: bool) {
        self.different_bytes += run.bytes;
        if !is_joined {
            self.different_runs += 1;
            if self.runs.len() < RUNS_MAX {
                self.runs.push(run);
            }
        } else if self.different_runs == self.runs.len() as u64
            && let Some(last) = self.runs.last_mut()
        {
            last.bytes += run.bytes;
        }
    }
}

/// A report for people.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { a_bytes, b_bytes, different_bytes, different_runs, runs, .. } = self;
        if self.same {
            return write!(f, "they read the same, all {a_bytes} bytes");
        }
        if a_bytes != b_bytes {
            writeln!(f, "they have {a_bytes} and {b_bytes} bytes; the rest counts as zeroes")?;
        }
        write!(f, "{different_bytes} bytes read differently, runs of blocks: {different_runs}")?;
        for Run { offset, bytes } in runs {
            write!(f, "\n{offset:>16} {bytes:>16}")?;
        }
        if *different_runs > runs.len() as u64 {
            write!(f, "\nand {} more runs", different_runs - runs.len() as u64)?;
        }
        Ok(())
    }
}
