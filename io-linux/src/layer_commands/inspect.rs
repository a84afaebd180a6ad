//! `glassine layer inspect`: what a layer says of itself.

use glassine_core::layer::index::Codec;
use glassine_core::limits::BLOCK_BYTES;
use serde::Serialize;
use serde_json::Value;

use super::chain::{describe, open_layer};
use super::{printable, text};
use crate::cli::layer::Inspect;
use crate::layer::{Footer, Hex, LayerReader, Parent, ParentKind};

/// What a layer says of itself.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    file: String,
    id: String,
    file_bytes: u64,
    size_bytes: u64,
    parent: Option<ParentReport>,
    data_blocks: u64,
    zero_blocks: u64,
    other_blocks: u64,
    frames: u64,
    compressed_frames: u64,
    /// Bytes of the blocks that are data.
    data_bytes: u64,
    /// What they take in the file.
    stored_bytes: u64,
    /// The first by the second; none without data.
    ratio: Option<f64>,
    sections: Vec<Section>,
    /// JSON if it is any, else a string; none if there is none.
    note: Option<Value>,
}

#[derive(Debug, Serialize)]
struct ParentReport {
    kind: &'static str,
    id: String,
    bytes: u64,
    name: String,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct Section {
    name: &'static str,
    offset: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

pub(super) fn inspect(arguments: &Inspect) -> anyhow::Result<Report> {
    let layer = open_layer(&arguments.file)?;
    let (footer, frames) = (layer.footer(), layer.index().frames());
    let data_bytes = footer.data_blocks * u64::from(BLOCK_BYTES);
    let stored_bytes = frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum();
    let compressed = frames.iter().filter(|frame| frame.codec == Codec::Zstd).count();
    Ok(Report {
        file: text(&arguments.file),
        id: Hex(&layer.id()).to_string(),
        file_bytes: footer.file_bytes(),
        size_bytes: footer.size_bytes,
        parent: footer.parent.as_ref().map(ParentReport::new),
        data_blocks: footer.data_blocks,
        zero_blocks: footer.zero_blocks,
        other_blocks: footer.blocks() - footer.data_blocks - footer.zero_blocks,
        frames: footer.frames,
        compressed_frames: compressed as u64,
        data_bytes,
        stored_bytes,
        ratio: (stored_bytes > 0).then(|| data_bytes as f64 / stored_bytes as f64),
        sections: sections(footer, stored_bytes),
        note: note(&layer),
    })
}

fn sections(footer: &Footer, stored_bytes: u64) -> Vec<Section> {
    let offset = footer.index.offset - stored_bytes;
    let frames = Section { name: "frames", offset, length: stored_bytes, sha256: None };
    let named = [("index", footer.index), ("table", footer.table), ("note", footer.note)];
    let named = named.map(|(name, section)| Section {
        name,
        offset: section.offset,
        length: section.length,
        sha256: Some(Hex(&section.digest).to_string()),
    });
    let offset = footer.note.end();
    let length = footer.file_bytes() - offset;
    let last = Section { name: "footer", offset, length, sha256: None };
    [frames].into_iter().chain(named).chain([last]).collect()
}

fn note(layer: &LayerReader) -> Option<Value> {
    let bytes = layer.note();
    let plain = || Value::String(String::from_utf8_lossy(bytes).into_owned());
    (!bytes.is_empty()).then(|| serde_json::from_slice(bytes).unwrap_or_else(|_| plain()))
}

impl ParentReport {
    fn new(parent: &Parent) -> Self {
        Self {
            kind: match parent.kind {
                ParentKind::Image => "image",
                ParentKind::Layer => "layer",
            },
            id: Hex(&parent.id).to_string(),
            bytes: parent.bytes,
            name: parent.name.clone(),
            text: describe(parent),
        }
    }
}

/// A report for people.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, file_bytes, size_bytes, frames, compressed_frames, .. } = self;
        let file = printable(&self.file);
        writeln!(f, "layer {file}: {file_bytes} bytes, for a device of {size_bytes}")?;
        writeln!(f, "identity {id}")?;
        let others = match &self.parent {
            Some(parent) => {
                match printable(&parent.name).as_str() {
                    "" => writeln!(f, "over {}", parent.text)?,
                    name => writeln!(f, "over {name}: {}", parent.text)?,
                }
                "as in the parent"
            }
            None => {
                writeln!(f, "over nothing")?;
                "zero as well"
            }
        };
        let Self { data_blocks, zero_blocks, other_blocks, .. } = self;
        writeln!(
            f,
            "{data_blocks} blocks of data, {zero_blocks} of zeroes; {other_blocks} are {others}"
        )?;
        let Self { data_bytes, stored_bytes, .. } = self;
        write!(
            f,
            "{frames} frames, {compressed_frames} of them compressed: {data_bytes} bytes of data in {stored_bytes}"
        )?;
        if let Some(ratio) = self.ratio {
            write!(f, ", {ratio:.2} to 1")?;
        }
        for Section { name, offset, length, .. } in &self.sections {
            write!(f, "\n{offset:>16} {length:>16}  {name}")?;
        }
        match &self.note {
            Some(note) => write!(f, "\nnote {}", printable(&note.to_string())),
            None => Ok(()),
        }
    }
}
