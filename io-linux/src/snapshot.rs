//! Snapshots of a running device: a seal, exported as a layer while clients go on.
//!
//! Only the seal itself holds the device's lock, for no longer than a request does. All that follows reads
//! slots which nobody changes any more, on a thread that gives way to everybody else.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use glassine_core::overlay::SessionKey;
use glassine_core::{Errno, Overlay, Seal, Source};

use crate::device::Device;
use crate::layer::{About, Hex, LayerSummary, LayerWriter};
use crate::pool::Pool;
use crate::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering, sleep, thread};
use crate::sys;

const BLOCK: u64 = glassine_core::limits::BLOCK_BYTES as u64;
/// So many bytes are read, then written, at a time; so many parts, where there is little in each.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_PARTS_MAX: usize = 1024;
/// So many chunks wait to be written.
const CHUNKS_MAX: usize = 2;
/// How often it is asked whether a flush is done.
const FLUSH_POLL_TIME: Duration = Duration::from_millis(1);
/// No connection has this name: waking it wakes nobody.
const NOBODY: SessionKey = SessionKey(0);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where the layer goes.
    pub out: PathBuf,
    /// Whether the device is flushed first.
    pub flush: bool,
    /// The level of zstd, if the layer is to be compressed.
    pub compress: Option<i32>,
}

/// How far it is, and whether it is still wanted.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that are done.
    pub done_bytes: AtomicU64,
    /// Bytes there are to do.
    pub total_bytes: AtomicU64,
    /// Nobody wants it any more.
    pub cancelled: AtomicBool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The name of the layer's content.
    pub layer_id: String,
    /// Bytes of data in the layer.
    pub data_bytes: u64,
    /// Bytes that it says are zero.
    pub zero_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// From asking for the seal to having it.
    pub seal_micros: u64,
    /// How long it took in all.
    pub seconds: f64,
}

/// Takes a snapshot of a device, whose files `storage` sees to. Blocks until the layer is there and durable; the thread it runs
/// on has a low priority from now on.
pub fn take(
    device: &Arc<Device>,
    storage: &Pool,
    request: &Request,
    progress: &Progress,
) -> anyhow::Result<Done> {
    sys::lower_priority();
    let began = Instant::now();
    let about = About {
        virtual_bytes: device.export.size_bytes,
        parent: device.layer_parent(),
        compress: request.compress,
    };
    // Before there is a seal: what is wrong with the name is known at once.
    let writer = LayerWriter::create(&request.out, &about)?;
    if request.flush {
        flush(device, storage).context("cannot flush the device, so no snapshot is taken")?;
    }
    let asked = Instant::now();
    let held = Held::take(device, storage);
    let seal_micros = asked.elapsed().as_micros() as u64;
    let summary = export(&held, writer, progress)?;
    drop(held);
    let LayerSummary { id, data_blocks, zero_blocks, file_bytes } = summary;
    Ok(Done {
        layer_id: Hex(&id).to_string(),
        data_bytes: data_blocks * BLOCK,
        zero_bytes: zero_blocks * BLOCK,
        file_bytes,
        seal_micros,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// A seal, which is handed back whatever happens.
struct Held<'a> {
    device: &'a Arc<Device>,
    storage: &'a Pool,
    seal: Option<Seal>,
}

impl<'a> Held<'a> {
    fn take(device: &'a Arc<Device>, storage: &'a Pool) -> Self {
        let mut seal = None;
        storage.settle(device, device.with_overlay(|overlay| seal = Some(overlay.seal())));
        Self { device, storage, seal }
    }

    fn seal(&self) -> &Seal {
        self.seal.as_ref().expect("until it is dropped")
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut seal = self.seal.take();
        let mut map = None;
        let unseal = |overlay: &mut Overlay| {
            map = seal.take().map(|seal| overlay.unseal(seal));
            overlay.reclaim();
        };
        self.storage.settle(self.device, self.device.with_overlay(unseal));
        // Only now, since this may take a while.
        drop(map);
    }
}

/// Makes everything durable that is visible.
fn flush(device: &Arc<Device>, storage: &Pool) -> anyhow::Result<()> {
    let mut visible = None;
    loop {
        let mut outcome: Result<_, Errno> = Ok(None);
        let ask = |overlay: &mut Overlay| {
            let until = *visible.get_or_insert(overlay.visible());
            outcome = overlay.durable(until, NOBODY);
        };
        storage.settle(device, device.with_overlay(ask));
        match outcome {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => sleep(FLUSH_POLL_TIME),
            Err(_) => return Err(anyhow!("its journal has failed; see the log")),
        }
    }
}

/// A part of what a seal shows.
enum Part {
    /// Blocks that are zero.
    Zero(Range<u64>),
    /// Blocks whose bytes come next.
    Data(Range<u64>),
}

/// Some of what a seal shows, in the order of its blocks.
#[derive(Default)]
struct Chunk {
    parts: Vec<Part>,
    bytes: Vec<u8>,
}

impl Chunk {
    fn is_full(&self) -> bool {
        self.bytes.len() >= CHUNK_BYTES || self.parts.len() >= CHUNK_PARTS_MAX
    }

    /// Appends blocks, whose bytes are to be put at the place that is answered.
    fn add(&mut self, blocks: Range<u64>) -> &mut [u8] {
        let (start, bytes) = (self.bytes.len(), (blocks.end - blocks.start) * BLOCK);
        match self.parts.last_mut() {
            Some(Part::Data(last)) if last.end == blocks.start => last.end = blocks.end,
            _ => self.parts.push(Part::Data(blocks)),
        }
        self.bytes.resize(start + bytes as usize, 0);
        &mut self.bytes[start..]
    }
}

/// Writes what a seal shows to a layer: the blocks that are in slots, and those that are zero. One thread reads,
/// another one writes.
fn export(
    held: &Held<'_>,
    mut writer: LayerWriter,
    progress: &Progress,
) -> anyhow::Result<LayerSummary> {
    progress.total_bytes.store(held.seal().tally().slots * BLOCK, Ordering::Relaxed);
    let (full, chunks) = sync_channel(CHUNKS_MAX);
    let (back, used) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            sys::lower_priority();
            if let Err(error) = read(held, progress, &full, &used) {
                // Whoever does not wait for it has an error of its own.
                let _ = full.send(Err(error));
            }
        });
        for chunk in chunks {
            let chunk: Chunk = chunk?;
            let mut bytes = &chunk.bytes[..];
            for part in &chunk.parts {
                match part {
                    Part::Zero(blocks) => writer.zero(blocks.clone())?,
                    Part::Data(blocks) => {
                        let length = (blocks.end - blocks.start) * BLOCK;
                        let (here, rest) = bytes.split_at(length as usize);
                        writer.data(blocks.start, here)?;
                        bytes = rest;
                    }
                }
            }
            progress.done_bytes.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            let _ = back.send(chunk);
        }
        anyhow::Ok(())
    })?;
    writer.finish()
}

/// Reads what a seal shows, until nobody takes it any more.
fn read(
    held: &Held<'_>,
    progress: &Progress,
    full: &SyncSender<anyhow::Result<Chunk>>,
    used: &Receiver<Chunk>,
) -> anyhow::Result<()> {
    let seal = held.seal();
    let mut chunk = Chunk::default();
    let mut block = 0;
    while block < seal.blocks() {
        ensure!(!progress.cancelled.load(Ordering::Relaxed), "the snapshot was cancelled");
        let (run, source) = seal.run_at(block);
        block = run.end;
        match source {
            // As in the parent.
            Source::Template { .. } => {}
            Source::Zero => chunk.parts.push(Part::Zero(run)),
            Source::Data { offset } => {
                let room = (CHUNK_BYTES - chunk.bytes.len()) as u64 / BLOCK;
                block = run.end.min(run.start + room);
                let bytes = chunk.add(run.start..block);
                held.device.data().read(bytes, offset).map_err(|error| {
                    anyhow!("cannot read the sheet at byte {offset}: {error:?}")
                })?;
            }
        }
        if chunk.is_full() || block >= seal.blocks() {
            let mut empty = used.try_recv().unwrap_or_default();
            empty.parts.clear();
            empty.bytes.clear();
            if full.send(Ok(std::mem::replace(&mut chunk, empty))).is_err() {
                break;
            }
        }
    }
    Ok(())
}
