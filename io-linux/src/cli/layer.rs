//! The command line of `glassine layer`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The arguments of `layer`.
#[derive(Debug, Args)]
pub struct Layer {
    /// What to do.
    #[command(subcommand)]
    pub command: LayerCommand,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do with sealed layers. None of it changes a file that is there.
#[derive(Debug, Subcommand)]
pub enum LayerCommand {
    /// Tell what a layer says of itself: its parent, how much it has, and where in the file.
    Inspect(Inspect),
    /// Read all of a layer and check every checksum; exit with 1 if it is damaged.
    Verify(Verify),
    /// Print what every block is, as runs: offset, bytes, and where they are. Draw it as well.
    Map(Map),
    /// Make one layer of several that lie upon each other.
    Merge(Merge),
    /// Put a layer over another parent. What the device reads stays the same.
    Rebase(Rebase),
    /// Write what a layer over its parents reads as, as a sparse raw image.
    Export(Export),
    /// Make a layer without a parent of a raw or qcow2 image.
    Import(Import),
    /// Compare what two layers or raw images read as.
    #[command(after_help = "Exit codes, as those of diff:
  0  they read the same
  1  they read differently
  2  they could not be compared")]
    Diff(Diff),
}

/// How the frames of a new layer are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// By zstd, of this level.
    Zstd(i32),
}

impl Compression {
    /// The zstd level, if there is one.
    #[must_use]
    pub fn level(self) -> Option<i32> {
        match self {
            Self::None => None,
            Self::Zstd(level) => Some(level),
        }
    }
}

/// The arguments of `layer inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The layer.
    pub file: PathBuf,
}

/// The arguments of `layer verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The layer.
    pub file: PathBuf,
}

/// The arguments of `layer map`.
#[derive(Debug, Args)]
pub struct Map {
    /// The layer.
    pub file: PathBuf,
    /// What is below it, from the nearest to the farthest; without it, what the layer lacks is shown as its
    /// parent's.
    #[arg(long, value_name = "FILE")]
    pub parent: Vec<PathBuf>,
    /// Draw it into this new file.
    #[arg(long, value_name = "OUT")]
    pub svg: Option<PathBuf>,
    /// The same in pixels.
    #[arg(long, value_name = "OUT")]
    pub png: Option<PathBuf>,
}

/// The arguments of `layer merge`.
#[derive(Debug, Args)]
pub struct Merge {
    /// The layers, the lowest first; each is the parent of the next.
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    pub layers: Vec<PathBuf>,
    /// The new layer; it has the parent of the lowest.
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// How to store it: zstd:N or none. If not given: zstd:3 if one of the layers is compressed, else none.
    #[arg(long, value_name = "zstd:N", value_parser = parse_compression)]
    pub compress: Option<Compression>,
}

/// The arguments of `layer rebase`.
#[derive(Debug, Args)]
pub struct Rebase {
    /// The layer.
    pub file: PathBuf,
    /// The new parent: a raw image, or a layer.
    #[arg(long, value_name = "OTHER")]
    pub onto: PathBuf,
    /// The new layer.
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// What is below the layer now, from the nearest to the farthest.
    #[arg(long, value_name = "FILE")]
    pub parent: Vec<PathBuf>,
    /// What is below the new parent, from the nearest to the farthest.
    #[arg(long, value_name = "FILE")]
    pub onto_parent: Vec<PathBuf>,
    /// Do not compare the old parent with the new one: where they differ, so will the device.
    #[arg(long = "unsafe", conflicts_with_all = ["parent", "onto_parent"])]
    pub is_unsafe: bool,
    /// How to store it: zstd:N or none. If not given: zstd:3 if the layer is compressed, else none.
    #[arg(long, value_name = "zstd:N", value_parser = parse_compression)]
    pub compress: Option<Compression>,
}

/// The arguments of `layer export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The layer.
    pub file: PathBuf,
    /// The new image.
    #[arg(long, value_name = "OUT")]
    pub raw: PathBuf,
    /// What is below the layer, from the nearest to the farthest.
    #[arg(long, value_name = "FILE")]
    pub parent: Vec<PathBuf>,
}

/// The arguments of `layer import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The image: raw, or qcow2, which needs qemu-img and room for the raw image beside OUT.
    pub image: PathBuf,
    /// The new layer.
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// How to store it: zstd:N or none.
    #[arg(long, value_name = "zstd:N", default_value = "none", value_parser = parse_compression)]
    pub compress: Compression,
}

/// The arguments of `layer diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// A layer or a raw image.
    pub a: PathBuf,
    /// Another.
    pub b: PathBuf,
    /// What is below the first, from the nearest to the farthest.
    #[arg(long, value_name = "FILE")]
    pub parent_a: Vec<PathBuf>,
    /// What is below the second, from the nearest to the farthest.
    #[arg(long, value_name = "FILE")]
    pub parent_b: Vec<PathBuf>,
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    if text == "none" {
        return Ok(Compression::None);
    }
    let levels = zstd::compression_level_range();
    text.strip_prefix("zstd:")
        .and_then(|level| level.parse().ok())
        .filter(|level| levels.contains(level))
        .map(Compression::Zstd)
        .ok_or_else(|| format!("write none, or zstd:1 to zstd:{}", levels.end()))
}
