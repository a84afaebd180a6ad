//! `glassine layer rebase`: a layer over another parent.

use std::ops::Range;
use std::slice;

use anyhow::{bail, ensure};
use glassine_core::limits::BLOCK_BYTES;

use super::chain::{Chain, Run, Source, by_windows, index_runs, open_layer, over};
use super::import::refuse_qcow2;
use super::output::NewLayerReport;
use super::progress::Progress;
use super::{merge, name};
use crate::cli::layer::Rebase;
use crate::layer::{About, LayerReader, LayerWriter, Parent};
use crate::new_file::refuse_existing;

/// What some blocks of the new layer are.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// What they are in the layer.
    Data(Range<u64>),
    /// Zero.
    Zero(Range<u64>),
    /// What they were in the old parent, where the new one has something else.
    Compared(Range<u64>),
}

pub(super) fn rebase(
    arguments: &Rebase,
    progress: &mut Progress,
) -> anyhow::Result<NewLayerReport> {
    refuse_existing(&arguments.out)?;
    let layer = open_layer(&arguments.file)?;
    refuse_qcow2(&arguments.onto)?;
    let new_below = Chain::open(&arguments.onto, &arguments.onto_parent)?;
    let parent = as_parent(&new_below);
    let (size, shown) = (layer.footer().size_bytes, arguments.file.display());
    ensure!(
        parent.bytes <= size,
        "{} has {} bytes, and layer {shown} is for a device of {size}, which is smaller; use a parent that is not larger",
        arguments.onto.display(),
        parent.bytes
    );
    let about = About {
        virtual_bytes: size,
        parent: Some(parent),
        compress: merge::level(arguments.compress, slice::from_ref(&layer)),
    };
    let below = if arguments.is_unsafe {
        if layer.footer().parent.is_none() {
            bail!(
                "layer {shown} has no parent that could be taken for another; leave --unsafe out"
            );
        }
        None
    } else {
        new_below.check_complete()?;
        Some((Chain::below(&layer, &arguments.parent)?, new_below))
    };
    let suspects = below.as_ref().map(|(old, new)| old.suspects(new)).unwrap_or_default();
    let parts = parts(&layer, suspects);
    let mut new = LayerWriter::create(&arguments.out, &about)?;
    write(layer, &parts, below.as_ref(), &mut new, progress)?;
    Ok(NewLayerReport::new(&arguments.out, &new.finish()?))
}

/// How a layer would name what is on top of a chain.
fn as_parent(chain: &Chain) -> Parent {
    match (chain.layers().last(), chain.base()) {
        (Some(top), _) => top.as_parent(),
        (None, base) => base.expect("something was opened").as_parent(),
    }
}

/// What the new layer has, in order.
fn parts(layer: &LayerReader, suspects: Vec<Range<u64>>) -> Vec<Part> {
    // Any source will do: all that counts is that they are there.
    let suspect = |blocks| Run { blocks, source: Source::Base };
    let suspects: Vec<Run> = suspects.into_iter().map(suspect).collect();
    let mut parts = Vec::new();
    over(
        &index_runs(layer.index()),
        &suspects,
        layer.footer().blocks(),
        &mut |blocks, has, suspect| match (has, suspect) {
            (Some(Source::Zero), _) => parts.push(Part::Zero(blocks)),
            (Some(_), _) => parts.push(Part::Data(blocks)),
            (None, Some(_)) => parts.push(Part::Compared(blocks)),
            (None, None) => {}
        },
    );
    parts
}

fn write(
    layer: LayerReader,
    parts: &[Part],
    below: Option<&(Chain, Chain)>,
    new: &mut LayerWriter,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    let total = |part: &Part| match part {
        Part::Data(blocks) | Part::Compared(blocks) => (blocks.end - blocks.start) * BLOCK,
        Part::Zero(_) => 0,
    };
    let what = format!("rebasing {}", name(layer.path()));
    progress.begin(what, parts.iter().map(total).sum())?;
    let own = Chain::of_layers(vec![layer])?;
    let mut own = own.cursor();
    let mut below = below.map(|(old, new)| (old.cursor(), new.cursor()));
    for part in parts {
        match part {
            Part::Zero(blocks) => new.zero(blocks.clone())?,
            Part::Data(blocks) => {
                for part in by_windows(blocks.clone()) {
                    let bytes = own.read(&part)?;
                    new.data(part.start, bytes)?;
                    progress.advance(bytes.len() as u64)?;
                }
            }
            Part::Compared(blocks) => {
                let (before, after) = below.as_mut().expect("there is something to compare");
                for part in by_windows(blocks.clone()) {
                    let (before, after) = (before.read(&part)?, after.read(&part)?);
                    let pairs = before.chunks(BLOCK as usize).zip(after.chunks(BLOCK as usize));
                    for (block, (before, after)) in (part.start..).zip(pairs) {
                        if before != after {
                            new.data(block, before)?;
                        }
                    }
                    progress.advance(before.len() as u64)?;
                }
            }
        }
    }
    progress.check()
}
