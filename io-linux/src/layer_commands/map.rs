//! `glassine layer map`: where every block of a device is.

use std::path::Path;

use glassine_core::layer::WINDOW_BLOCKS;
use glassine_core::limits::BLOCK_BYTES;
use serde::Serialize;

use super::chain::{Chain, Source, open_layer};
use super::output::write_file;
use super::picture::{self, Kind, Legend, Picture};
use super::{name, printable, text};
use crate::cli::layer::Map;
use crate::new_file::refuse_existing;

/// Where every block is.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    file: String,
    size_bytes: u64,
    runs: Vec<Run>,
}

/// Blocks that lie side by side, and are alike.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Run {
    /// Byte offset in the device.
    offset: u64,
    /// How many bytes.
    bytes: u64,
    /// What they are.
    is: What,
    /// The layer that has them, if it is one below, or the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// Where the frame of the first of them lies in the file of its layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    frame_offset: Option<u64>,
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    /// In the layer, or in one below.
    Data,
    /// In the raw image.
    Base,
    /// Zero.
    Zero,
    /// As in a parent that was not given.
    Parent,
}

pub(super) fn map(arguments: &Map) -> anyhow::Result<Report> {
    for out in arguments.svg.iter().chain(&arguments.png) {
        refuse_existing(out)?;
    }
    // A raw image has no map.
    open_layer(&arguments.file)?;
    let chain = Chain::open(&arguments.file, &arguments.parent)?;
    if arguments.svg.is_some() || arguments.png.is_some() {
        let picture = picture(&chain);
        if let Some(out) = &arguments.svg {
            write_file(out, picture::svg(&picture)?.as_bytes())?;
        }
        if let Some(out) = &arguments.png {
            write_file(out, &picture::png(&picture)?)?;
        }
    }
    let (file, size_bytes) = (text(&arguments.file), chain.size_bytes());
    Ok(Report { file, size_bytes, runs: runs(&chain) })
}

fn runs(chain: &Chain) -> Vec<Run> {
    let (block, top) = (u64::from(BLOCK_BYTES), chain.layers().len() - 1);
    let mut runs: Vec<Run> = Vec::new();
    for (blocks, source) in chain.everything() {
        let (is, file, frame_offset) = match source {
            Some(Source::Layer(layer)) => {
                let layer = usize::from(layer);
                let reader = &chain.layers()[layer];
                let frame = reader.index().frame(blocks.start / WINDOW_BLOCKS);
                let file = (layer != top).then(|| text(reader.path()));
                (What::Data, file, frame.map(|frame| frame.offset))
            }
            Some(Source::Base) => (What::Base, chain.base().map(|base| text(base.path())), None),
            None if chain.is_cut() => (What::Parent, None, None),
            None | Some(Source::Zero) => (What::Zero, None, None),
        };
        let offset = blocks.start * block;
        let bytes = (blocks.end * block).min(chain.size_bytes()) - offset;
        match runs.last_mut() {
            // What one layer made zero, and what nobody has.
            Some(last) if (last.is, is) == (What::Zero, What::Zero) => last.bytes += bytes,
            _ => runs.push(Run { offset, bytes, is, file, frame_offset }),
        }
    }
    runs
}

fn picture(chain: &Chain) -> Picture {
    let top = chain.layers().len() - 1;
    let runs = chain.everything().into_iter().map(|(blocks, source)| {
        let kind = match source {
            Some(Source::Layer(layer)) => Kind::Layer(top - usize::from(layer)),
            Some(Source::Base) => Kind::Base,
            None if chain.is_cut() => Kind::Missing,
            None | Some(Source::Zero) => Kind::Zero,
        };
        (blocks, kind)
    });
    let layers = chain.layers().iter().rev().map(|layer| Legend {
        name: name(layer.path()),
        file_bytes: Some(layer.footer().file_bytes()),
    });
    let base = chain.base().map(|base| Legend { name: name(base.path()), file_bytes: None });
    let title = name(chain.layers()[top].path());
    Picture::new(title, chain.size_bytes(), layers.collect(), base, runs)
}

/// A report for people.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = printable(&self.file);
        write!(f, "layer {file}: a device of {} bytes", self.size_bytes)?;
        for Run { offset, bytes, is, file, frame_offset } in &self.runs {
            let what = match is {
                What::Data => "data",
                What::Base => "base",
                What::Zero => "zero",
                What::Parent => "parent",
            };
            write!(f, "\n{offset:>16} {bytes:>16}  {what}")?;
            if let Some(file) = file {
                write!(f, " in {}", name(Path::new(file)))?;
            }
            if let Some(at) = frame_offset {
                write!(f, ", frame at {at}")?;
            }
        }
        Ok(())
    }
}
