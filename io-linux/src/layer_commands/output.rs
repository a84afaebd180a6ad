//! What the commands that make a layer say of it; and files that are small enough to be written at once.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::{printable, text};
use crate::layer::{Hex, LayerSummary};
use crate::new_file::NewFile;

/// Makes a file of some bytes.
pub(super) fn write_file(out: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = NewFile::create(out)?;
    new.file().write_all(bytes).with_context(|| format!("cannot write {}", out.display()))?;
    new.finish()
}

/// What a new layer is.
#[derive(Debug, Serialize)]
pub(super) struct NewLayerReport {
    /// The file.
    out: String,
    /// What it is known by.
    id: String,
    /// How many blocks are data.
    data_blocks: u64,
    /// How many blocks are zero.
    zero_blocks: u64,
    /// Bytes of the file.
    file_bytes: u64,
}

impl NewLayerReport {
    pub(super) fn new(out: &Path, summary: &LayerSummary) -> Self {
        let LayerSummary { id, data_blocks, zero_blocks, file_bytes } = summary;
        Self {
            out: text(out),
            id: Hex(id).to_string(),
            data_blocks: *data_blocks,
            zero_blocks: *zero_blocks,
            file_bytes: *file_bytes,
        }
    }
}

impl std::fmt::Display for NewLayerReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { out, id, data_blocks, zero_blocks, file_bytes } = self;
        let out = printable(out);
        write!(
            f,
            "{out}: {data_blocks} blocks of data, {zero_blocks} of zeroes, in {file_bytes} bytes; its identity is {id}"
        )
    }
}
