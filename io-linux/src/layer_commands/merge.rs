//! `glassine layer merge`: one layer of several.

use glassine_core::layer::index::Codec;
use glassine_core::limits::BLOCK_BYTES;

use super::chain::{Chain, Source, by_windows, open_layer};
use super::output::NewLayerReport;
use super::progress::Progress;
use crate::cli::layer::{Compression, Merge};
use crate::layer::{About, LayerReader, LayerWriter};
use crate::new_file::refuse_existing;

/// The zstd level where nobody gave one.
const LEVEL: i32 = 3;

pub(super) fn merge(arguments: &Merge, progress: &mut Progress) -> anyhow::Result<NewLayerReport> {
    refuse_existing(&arguments.out)?;
    let layers = arguments.layers.iter().map(|path| open_layer(path));
    let layers = layers.collect::<anyhow::Result<Vec<_>>>()?;
    let about = About {
        virtual_bytes: layers.last().map_or(0, |top| top.footer().size_bytes),
        parent: layers.first().and_then(|lowest| lowest.footer().parent.clone()),
        compress: level(arguments.compress, &layers),
    };
    let chain = Chain::of_layers(layers)?;
    let mut new = LayerWriter::create(&arguments.out, &about)?;
    write(&chain, &mut new, "merging", progress)?;
    Ok(NewLayerReport::new(&arguments.out, &new.finish()?))
}

/// Appends all that the layers of a chain have, and its base.
pub(super) fn write(
    chain: &Chain,
    new: &mut LayerWriter,
    what: &str,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let runs = chain.everything();
    let has_data = |source| matches!(source, Some(Source::Layer(_) | Source::Base));
    let data = runs.iter().filter(|(_, source)| has_data(*source));
    let blocks: u64 = data.map(|(blocks, _)| blocks.end - blocks.start).sum();
    progress.begin(what.to_owned(), blocks * u64::from(BLOCK_BYTES))?;
    let mut cursor = chain.cursor();
    for (blocks, source) in runs {
        match source {
            None => {}
            Some(Source::Zero) => new.zero(blocks)?,
            Some(Source::Layer(_) | Source::Base) => {
                for part in by_windows(blocks) {
                    let bytes = cursor.read(&part)?;
                    new.data(part.start, bytes)?;
                    progress.advance(bytes.len() as u64)?;
                }
            }
        }
    }
    progress.check()
}

/// The level that was asked for; or some if a layer that is read is compressed.
pub(super) fn level(asked: Option<Compression>, layers: &[LayerReader]) -> Option<i32> {
    let is_compressed =
        |layer: &LayerReader| layer.index().frames().iter().any(|frame| frame.codec == Codec::Zstd);
    match asked {
        Some(compression) => compression.level(),
        None => layers.iter().any(is_compressed).then_some(LEVEL),
    }
}
