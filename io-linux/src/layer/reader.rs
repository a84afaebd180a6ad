//! Opens a layer and reads its blocks, and believes neither before it has been checked.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use glassine_core::layer::footer::{self, FOOTER_BYTES, Footer, Parent, ParentKind, SUFFIX_BYTES};
use glassine_core::layer::index::{self, Codec, Frame, Index};
use glassine_core::layer::{Damage, Fault, WINDOW_BYTES};
use glassine_core::limits::BLOCK_BYTES;
use zstd::bulk::Decompressor;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A layer whose index has been read and checked. May be used by several threads at a time.
#[derive(Debug)]
pub struct LayerReader {
    path: PathBuf,
    file: File,
    footer: Footer,
    index: Index,
    note: Vec<u8>,
    id: [u8; 32],
}

/// Whether a file is meant to be a layer, whole or not: else it is a raw image.
pub fn is_layer(file: &File) -> io::Result<bool> {
    let bytes = file.metadata()?.len();
    let (mut first, mut last) = ([0; 8], [0; 8]);
    if bytes < FOOTER_BYTES as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut first, 0)?;
    file.read_exact_at(&mut last, bytes - FOOTER_BYTES as u64)?;
    Ok(footer::is_layer(&first, &last))
}

impl LayerReader {
    /// Opens a layer. Everything but its frames is read and checked.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let file = File::open(path)
            .with_context(|| format!("cannot open layer {shown}; name a readable layer"))?;
        let metadata = file.metadata().with_context(|| format!("cannot stat layer {shown}"))?;
        let (footer, index, note, id) = read(&file, metadata.len())
            .with_context(|| format!("cannot read layer {shown}"))?
            .map_err(|damage| {
                anyhow!("{shown} cannot be used as a layer: {damage}; {}", advice(damage.fault))
            })?;
        Ok(Self { path: path.to_owned(), file, footer, index, note, id })
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is known by.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    /// What a layer over it has to say of it.
    #[must_use]
    pub fn as_parent(&self) -> Parent {
        super::parent(ParentKind::Layer, self.id, self.footer.size_bytes, &self.path)
    }

    /// What it says of itself: its size, its parent, and how much it has.
    #[must_use]
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Which blocks it has.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What its maker had to say: JSON, or nothing.
    #[must_use]
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// Reads some data blocks of a window, and leaves the others as they are.
    pub fn read_blocks(
        &self,
        window: u64,
        blocks: u16,
        into: &mut [u8; WINDOW_BYTES],
    ) -> anyhow::Result<()> {
        let data = self.index.window(window).data;
        let wanted = blocks & data;
        let Some(frame) = self.index.frame(window).filter(|_| wanted != 0) else { return Ok(()) };
        let plain = self.read_frame(frame, data.count_ones() as usize * BLOCK)?;
        let mut packed = plain.chunks_exact(BLOCK);
        for (block, bytes) in into.chunks_exact_mut(BLOCK).enumerate() {
            if data & 1 << block != 0 {
                let block_bytes = packed.next().expect("as many as the mask has bits");
                if wanted & 1 << block != 0 {
                    bytes.copy_from_slice(block_bytes);
                }
            }
        }
        Ok(())
    }

    /// The blocks of a frame, packed.
    fn read_frame(&self, frame: &Frame, plain_bytes: usize) -> anyhow::Result<Vec<u8>> {
        let describe = || {
            format!(
                "layer {}: the frame of window {} at byte {}",
                self.path.display(),
                frame.window,
                frame.offset
            )
        };
        let mut stored = vec![0; frame.stored_bytes as usize];
        self.file
            .read_exact_at(&mut stored, frame.offset)
            .with_context(|| format!("{} cannot be read", describe()))?;
        let plain = match frame.codec {
            Codec::Raw => stored,
            Codec::Zstd => decompress(&stored, plain_bytes)
                .with_context(|| format!("{} cannot be decompressed", describe()))?,
        };
        ensure!(
            plain.len() == plain_bytes,
            "{} has {} bytes, not {plain_bytes}",
            describe(),
            plain.len()
        );
        frame.check(crc32c::crc32c(&plain)).map_err(|_| {
            anyhow!("{} is damaged: its checksum does not fit; restore the layer", describe())
        })?;
        Ok(plain)
    }
}

/// What to do about a layer that cannot be used.
fn advice(fault: Fault) -> &'static str {
    match fault {
        Fault::Version(_) | Fault::BlockSize(_) | Fault::Kind => {
            "it was made by a later version of glassine: use that version"
        }
        _ => "restore it from a copy, or make it anew",
    }
}

type Parts = (Footer, Index, Vec<u8>, [u8; 32]);

/// One read gets the footer and, unless the layer is large, all sections.
fn read(file: &File, bytes: u64) -> io::Result<Result<Parts, Damage>> {
    let mut first = [0; FOOTER_BYTES];
    if bytes < 2 * FOOTER_BYTES as u64 {
        return Ok(Err(Damage { offset: 0, fault: Fault::Short }));
    }
    file.read_exact_at(&mut first, 0)?;
    if let Err(damage) = footer::check_header(&first) {
        return Ok(Err(damage));
    }
    let suffix_at = bytes.saturating_sub(SUFFIX_BYTES);
    let mut suffix = vec![0; (bytes - suffix_at) as usize];
    file.read_exact_at(&mut suffix, suffix_at)?;
    let page = suffix.last_chunk().expect("there are two pages at least");
    let id = footer::identity(page);
    let footer = match Footer::parse(page, bytes) {
        Ok(footer) => footer,
        Err(damage) => return Ok(Err(damage)),
    };
    let range = footer.sections();
    let mut sections = Vec::new();
    if range.start < suffix_at {
        sections.resize((range.end.min(suffix_at) - range.start) as usize, 0);
        file.read_exact_at(&mut sections, range.start)?;
    }
    let here = range.start.max(suffix_at)..range.end.max(suffix_at);
    sections.extend(&suffix[(here.start - suffix_at) as usize..(here.end - suffix_at) as usize]);
    Ok(Index::parse(&footer, &sections).map(|index| {
        let note = index::note(&footer, &sections).to_vec();
        (footer, index, note, id)
    }))
}

/// Never more than so many bytes, whatever the frame says.
fn decompress(stored: &[u8], plain_bytes: usize) -> io::Result<Vec<u8>> {
    thread_local! {
        // It is large, and costs more to make than a frame costs to read.
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new()?),
        };
        decompressor.decompress(stored, plain_bytes)
    })
}
