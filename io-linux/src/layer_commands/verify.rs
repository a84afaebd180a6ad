//! `glassine layer verify`: whether every byte of a layer is as it was written.

use std::fs::File;

use anyhow::Context;
use glassine_core::limits::BLOCK_BYTES;
use serde::Serialize;

use super::progress::Progress;
use super::{name, printable, text};
use crate::cli::layer::Verify;
use crate::layer::{Hex, LayerReader, WINDOW_BYTES};

/// So many damaged frames are listed; the others are counted.
const DAMAGE_MAX: usize = 1000;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    file: String,
    /// Whether all is as it was written.
    pub(super) ok: bool,
    /// What it is known by, if that can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// How many frames were read.
    frames: u64,
    /// Bytes of the blocks in them.
    data_bytes: u64,
    /// How many of them are damaged.
    damaged_frames: u64,
    /// The first of those; or what is wrong outside of the frames.
    damage: Vec<Damage>,
}

/// Something that is not as it was written.
#[derive(Debug, Serialize)]
struct Damage {
    #[serde(flatten)]
    frame: Option<FrameAt>,
    error: String,
}

/// A frame, and where it is.
#[derive(Debug, Serialize)]
struct FrameAt {
    /// Its number in the layer.
    frame: usize,
    /// Where it lies in the file.
    offset: u64,
    /// How many bytes lie there.
    bytes: u32,
    /// Where its window begins on the device.
    device_offset: u64,
}

pub(super) fn verify(arguments: &Verify, progress: &mut Progress) -> anyhow::Result<Report> {
    let path = &arguments.file;
    // That it cannot be opened at all says nothing of its bytes.
    File::open(path)
        .with_context(|| format!("cannot open layer {}; name a readable layer", path.display()))?;
    let mut report = Report {
        file: text(path),
        ok: false,
        id: None,
        frames: 0,
        data_bytes: 0,
        damaged_frames: 0,
        damage: Vec::new(),
    };
    match LayerReader::open(path) {
        Ok(layer) => read(&layer, &mut report, progress)?,
        Err(error) => report.damage.push(Damage { frame: None, error: format!("{error:#}") }),
    }
    report.ok = report.damage.is_empty();
    Ok(report)
}

/// Reads every frame. The rest was checked when the layer was opened.
fn read(layer: &LayerReader, report: &mut Report, progress: &mut Progress) -> anyhow::Result<()> {
    let footer = layer.footer();
    report.id = Some(Hex(&layer.id()).to_string());
    report.frames = footer.frames;
    report.data_bytes = footer.data_blocks * u64::from(BLOCK_BYTES);
    let total = footer.index.offset;
    progress.begin(format!("reading {}", name(layer.path())), total)?;
    let mut bytes = Box::new([0; WINDOW_BYTES]);
    for (number, frame) in layer.index().frames().iter().enumerate() {
        if let Err(error) = layer.read_blocks(frame.window, u16::MAX, &mut bytes) {
            report.damaged_frames += 1;
            if report.damage.len() < DAMAGE_MAX {
                let at = FrameAt {
                    frame: number,
                    offset: frame.offset,
                    bytes: frame.stored_bytes,
                    device_offset: frame.window * WINDOW_BYTES as u64,
                };
                report.damage.push(Damage { frame: Some(at), error: format!("{error:#}") });
            }
        }
        progress.advance(frame.stored_bytes.into())?;
    }
    Ok(())
}

/// A report for people.
impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { frames, data_bytes, damaged_frames, damage, .. } = self;
        let file = printable(&self.file);
        if self.ok {
            return write!(
                f,
                "{file}: all is as it was written: {frames} frames, {data_bytes} bytes of data"
            );
        }
        write!(f, "{file} is damaged; restore it from a copy")?;
        for Damage { frame, error } in damage {
            match frame {
                Some(FrameAt { frame, offset, bytes, device_offset }) => write!(
                    f,
                    "\nframe {frame}, {bytes} bytes at {offset}, for the device from {device_offset} on: {error}"
                )?,
                None => write!(f, "\n{error}")?,
            }
        }
        if *damaged_frames > damage.len() as u64 {
            write!(f, "\nand {} more frames", damaged_frames - damage.len() as u64)?;
        }
        if *damaged_frames > 0 {
            write!(f, "\n{damaged_frames} of {frames} frames are damaged")?;
        }
        Ok(())
    }
}
