//! `glassine layer export`: what a layer over its parents reads as, as a raw image.

use std::os::unix::fs::FileExt;

use anyhow::Context;
use glassine_core::limits::BLOCK_BYTES;
use serde::Serialize;

use super::chain::{Chain, by_windows};
use super::progress::Progress;
use super::{name, printable, text};
use crate::cli::layer::Export;
use crate::layer::alike;
use crate::new_file::{NewFile, refuse_existing};

/// What was made.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    out: String,
    size_bytes: u64,
    /// Those that are not in a hole.
    written_bytes: u64,
}

pub(super) fn export(arguments: &Export, progress: &mut Progress) -> anyhow::Result<Report> {
    let out = &arguments.raw;
    refuse_existing(out)?;
    let chain = Chain::open(&arguments.file, &arguments.parent)?;
    chain.check_complete()?;
    let (size_bytes, runs) = (chain.size_bytes(), chain.runs());
    let total: u64 = runs.iter().map(|run| run.blocks.end - run.blocks.start).sum();
    let what = format!("exporting {}", name(&arguments.file));
    progress.begin(what, total * u64::from(BLOCK_BYTES))?;
    let new = NewFile::create(out)?;
    let shown = out.display();
    new.file().set_len(size_bytes).with_context(|| {
        format!("cannot make {shown} {size_bytes} bytes long; use a file system that can")
    })?;
    let mut cursor = chain.cursor();
    let mut written_bytes = 0;
    for part in runs.into_iter().flat_map(|run| by_windows(run.blocks)) {
        let mut offset = part.start * u64::from(BLOCK_BYTES);
        let bytes = cursor.read(&part)?;
        let there = (size_bytes - offset).min(bytes.len() as u64) as usize;
        for run in alike(&bytes[..there]) {
            if !run.is_zero {
                new.file().write_all_at(run.bytes, offset).with_context(|| {
                    format!("cannot write {shown} at byte {offset}; nothing is left of it")
                })?;
                written_bytes += run.bytes.len() as u64;
            }
            offset += run.bytes.len() as u64;
        }
        progress.advance(bytes.len() as u64)?;
    }
    progress.check()?;
    new.finish()?;
    Ok(Report { out: text(out), size_bytes, written_bytes })
}

/// A report for people.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out = printable(&self.out);
        let Self { size_bytes, written_bytes, .. } = self;
        write!(f, "{out}: {size_bytes} bytes, {written_bytes} of them not in a hole")
    }
}
