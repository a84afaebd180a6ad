//! New files: under a name of their own until they are complete, and never in the place of another.

use std::fs::{File, Permissions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use glassine_core::limits::BLOCK_BYTES;
use serde::Serialize;
use tempfile::NamedTempFile;

use super::{printable, text};
use crate::layer::{About, Hex, LayerSummary, LayerWriter};

const BLOCK: usize = BLOCK_BYTES as usize;

/// A file that is being made. It is gone unless [`Self::finish`] is called.
#[derive(Debug)]
pub(super) struct NewFile {
    out: PathBuf,
    file: NamedTempFile,
}

impl NewFile {
    /// Begins a file that is to be at `out`.
    pub(super) fn create(out: &Path) -> anyhow::Result<Self> {
        refuse_existing(out)?;
        Ok(Self { out: out.to_owned(), file: temporary(out)? })
    }

    /// Makes a whole file of some bytes.
    pub(super) fn write(out: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let mut new = Self::create(out)?;
        new.file.write_all(bytes).with_context(|| format!("cannot write {}", out.display()))?;
        new.finish()
    }

    /// Where to write.
    pub(super) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Makes it durable, and gives it its name.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let shown = self.out.display();
        self.file.as_file().sync_all().with_context(|| format!("cannot write {shown}"))?;
        self.file.persist_noclobber(&self.out).map_err(|error| error.error).with_context(|| {
            format!(
                "cannot give {shown} its name; a file that is there is never replaced: give another name"
            )
        })?;
        File::open(directory(&self.out))
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("cannot sync the directory of {shown}"))
    }
}

/// An error if there is such a file.
pub(super) fn refuse_existing(out: &Path) -> anyhow::Result<()> {
    let shown = out.display();
    // A link to nowhere is something as well.
    ensure!(
        out.symlink_metadata().is_err(),
        "{shown} exists, and is never replaced; give another name"
    );
    Ok(())
}

/// A file beside another that is yet to be made; it goes when it is dropped.
pub(super) fn temporary(out: &Path) -> anyhow::Result<NamedTempFile> {
    let shown = out.display();
    let Some(name) = out.file_name() else { bail!("{shown} is no name for a file; give one") };
    let mut prefix = name.to_owned();
    prefix.push(".");
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".new")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory(out))
        .with_context(|| {
            format!("cannot make a file beside {shown}; its directory must be there and writable")
        })
}

fn directory(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A layer that is being made. Without a parent it has no zeroes: they are what is not there.
#[derive(Debug)]
pub(super) struct NewLayer {
    out: PathBuf,
    writer: LayerWriter,
    has_parent: bool,
}

impl NewLayer {
    pub(super) fn create(out: &Path, about: &About) -> anyhow::Result<Self> {
        refuse_existing(out)?;
        let writer = LayerWriter::create(out, about)?;
        Ok(Self { out: out.to_owned(), writer, has_parent: about.parent.is_some() })
    }

    /// These blocks are zero.
    pub(super) fn zero(&mut self, blocks: Range<u64>) -> anyhow::Result<()> {
        if self.has_parent { self.writer.zero(blocks) } else { Ok(()) }
    }

    /// These are the bytes of some blocks.
    pub(super) fn data(&mut self, first: u64, bytes: &[u8]) -> anyhow::Result<()> {
        if self.has_parent {
            return self.writer.data(first, bytes);
        }
        let mut block = first;
        for run in alike(bytes) {
            if !run.is_zero {
                self.writer.data(block, run.bytes)?;
            }
            block += (run.bytes.len() / BLOCK) as u64;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> anyhow::Result<NewLayerReport> {
        let summary = self.writer.finish()?;
        Ok(NewLayerReport::new(&self.out, &summary))
    }
}

/// Whole blocks that are all zero, or all not.
pub(super) struct Alike<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) is_zero: bool,
}

/// Cuts bytes into runs of blocks that are zero, and such that are not.
pub(super) fn alike(bytes: &[u8]) -> impl Iterator<Item = Alike<'_>> {
    const ZEROES: [u8; BLOCK] = [0; BLOCK];
    let is_zero = |block: &[u8]| *block == ZEROES[..block.len()];
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let zero = is_zero(rest.chunks(BLOCK).next()?);
        let blocks = rest.chunks(BLOCK).take_while(|block| is_zero(block) == zero);
        let (bytes, behind) = rest.split_at(blocks.map(<[u8]>::len).sum());
        rest = behind;
        Some(Alike { bytes, is_zero: zero })
    })
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
    fn new(out: &Path, summary: &LayerSummary) -> Self {
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
