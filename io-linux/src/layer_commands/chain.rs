//! A layer and what is below it, seen as one device.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use glassine_core::layer::stack::{DEPTH_MAX, Origin, Piece, Stack};
use glassine_core::limits::BLOCK_BYTES;

use super::printable;
use crate::layer::chain::{Base as Image, read_window};
use crate::layer::{
    Content, Hex, Index, LayerReader, Parent, ParentKind, WINDOW_BLOCKS, WINDOW_BYTES, is_layer,
};
use crate::sys;
use crate::template::Template;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where the bytes of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In this layer of the chain; 0 is the lowest.
    Layer(u16),
    /// In the raw image.
    Base,
    /// Nowhere: it is zero.
    Zero,
}

/// Blocks side by side that come from one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) blocks: Range<u64>,
    pub(super) source: Source,
}

/// The raw image at the end of a chain.
#[derive(Debug)]
pub(super) struct Base {
    image: Image,
    inode: (u64, u64),
    /// How a layer names it as its parent.
    as_parent: Parent,
}

/// A layer with its parents, as far as they are known; or a raw image; or nothing, which is zero.
#[derive(Debug)]
pub(super) struct Chain {
    /// The lowest first.
    layers: Vec<LayerReader>,
    base: Option<Base>,
    size_bytes: u64,
    /// What has not been given of what is below, in words.
    missing: Option<String>,
    /// What the layers have; what none of them has is as in the base.
    stack: Stack,
    /// What is no hole in the base.
    extents: Vec<Run>,
}

/// One file of a chain.
enum Part {
    Layer(Box<LayerReader>),
    Base(Base),
}

impl Chain {
    /// Opens a layer or a raw image, with what is below it from the nearest to the farthest. What has not been
    /// given is missing in the end; what was given wrong is an error.
    pub(super) fn open(top: &Path, parents: &[PathBuf]) -> anyhow::Result<Self> {
        let top = open_part(top)?;
        let size_bytes = match &top {
            Part::Layer(layer) => layer.footer().size_bytes,
            Part::Base(base) => base.image.bytes,
        };
        Self::collect(Some(top), size_bytes, None, parents)
    }

    /// Opens what is below a layer: all of it.
    pub(super) fn below(layer: &LayerReader, parents: &[PathBuf]) -> anyhow::Result<Self> {
        let size_bytes = layer.footer().size_bytes;
        let chain = Self::collect(None, size_bytes, Some(layer), parents)?;
        chain.check_complete()?;
        Ok(chain)
    }

    /// Layers that lie upon each other, the lowest first, without what is below them.
    pub(super) fn of_layers(layers: Vec<LayerReader>) -> anyhow::Result<Self> {
        for pair in layers.windows(2) {
            check_parent(&pair[1], &pair[0].as_parent(), pair[0].path())?;
        }
        let size_bytes = layers.last().map_or(0, |top| top.footer().size_bytes);
        Self::new(layers, None, size_bytes, None)
    }

    fn collect(
        top: Option<Part>,
        size_bytes: u64,
        below: Option<&LayerReader>,
        parents: &[PathBuf],
    ) -> anyhow::Result<Self> {
        let (mut layers, mut base): (Vec<LayerReader>, Option<Base>) = (Vec::new(), None);
        match top {
            Some(Part::Layer(layer)) => layers.push(*layer),
            Some(Part::Base(image)) => base = Some(image),
            None => {}
        }
        for path in parents {
            let shown = path.display();
            if let Some(base) = &base {
                let image = base.path().display();
                bail!("{image} is a raw image, with nothing below it; leave {shown} out");
            }
            let above = layers.last().or(below).expect("a parent is below something");
            match open_part(path)? {
                Part::Layer(layer) => {
                    check_parent(above, &layer.as_parent(), path)?;
                    layers.push(*layer);
                }
                Part::Base(image) => {
                    check_parent(above, &image.as_parent(), path)?;
                    base = Some(image);
                }
            }
        }
        let lowest = layers.last().or(below).filter(|_| base.is_none());
        let missing = lowest.and_then(missing);
        layers.reverse();
        Self::new(layers, base, size_bytes, missing)
    }

    fn new(
        layers: Vec<LayerReader>,
        base: Option<Base>,
        size_bytes: u64,
        missing: Option<String>,
    ) -> anyhow::Result<Self> {
        ensure!(
            layers.len() <= DEPTH_MAX,
            "{} layers are more than {DEPTH_MAX}; merge some of them",
            layers.len()
        );
        let indexes: Vec<&Index> = layers.iter().map(LayerReader::index).collect();
        let stack = Stack::new(&indexes);
        let extents = base.as_ref().map(Base::extents).transpose()?.unwrap_or_default();
        Ok(Self { layers, base, size_bytes, missing, stack, extents })
    }

    /// An error if something below it has not been given.
    pub(super) fn check_complete(&self) -> anyhow::Result<()> {
        match &self.missing {
            Some(missing) => bail!("{missing}"),
            None => Ok(()),
        }
    }

    /// Whether something below it has not been given.
    pub(super) fn is_cut(&self) -> bool {
        self.missing.is_some()
    }

    /// The layers, the lowest first.
    pub(super) fn layers(&self) -> &[LayerReader] {
        &self.layers
    }

    /// The raw image, if there is one.
    pub(super) fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    /// Size of the device to the byte.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Its blocks, the last of them perhaps in part beyond its end.
    pub(super) fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK)
    }

    /// All that is not known to be zero.
    pub(super) fn runs(&self) -> Vec<Run> {
        let known = |(blocks, source): (Range<u64>, Option<Source>)| match source {
            None | Some(Source::Zero) => None,
            Some(source) => Some(Run { blocks, source }),
        };
        self.everything().into_iter().filter_map(known).collect()
    }

    /// All blocks, as runs that are as long as can be: what nobody has is `None`.
    pub(super) fn everything(&self) -> Vec<(Range<u64>, Option<Source>)> {
        let mut all: Vec<(Range<u64>, Option<Source>)> = Vec::new();
        let run = |piece: &Piece| Run {
            blocks: piece.block..piece.end(),
            source: match piece.origin {
                Origin::Layer(layer) => Source::Layer(layer),
                Origin::Zero => Source::Zero,
            },
        };
        let pieces: Vec<Run> = self.stack.pieces().iter().map(run).collect();
        over(&pieces, &self.extents, self.blocks(), &mut |blocks, upper, lower| {
            let source = upper.or(lower);
            match all.last_mut().filter(|(_, last)| *last == source) {
                Some((last, _)) => last.end = blocks.end,
                None => all.push((blocks, source)),
            }
        });
        all
    }

    /// Where one reads what a block of it is.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { chain: self, window: None, bytes: Box::new([0; WINDOW_BYTES]) }
    }

    /// Whether two sources, of this chain and of another one, are the same bytes.
    fn is_same(&self, mine: Option<Source>, other: &Self, theirs: Option<Source>) -> bool {
        match (mine, theirs) {
            (None, None) => true,
            (Some(Source::Layer(mine)), Some(Source::Layer(theirs))) => {
                self.layers[usize::from(mine)].id() == other.layers[usize::from(theirs)].id()
            }
            (Some(Source::Base), Some(Source::Base)) => {
                let inode = |chain: &Self| chain.base.as_ref().map(|base| base.inode);
                inode(self) == inode(other)
            }
            _ => false,
        }
    }

    /// Which blocks might read differently in another chain: all that do not come from one place.
    pub(super) fn suspects(&self, other: &Self) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let end = self.blocks().max(other.blocks());
        over(&self.runs(), &other.runs(), end, &mut |blocks, mine, theirs| {
            if !self.is_same(mine, other, theirs) {
                match found.last_mut().filter(|last| last.end == blocks.start) {
                    Some(last) => last.end = blocks.end,
                    None => found.push(blocks),
                }
            }
        });
        found
    }
}

/// Reads the blocks of a chain, a window at a time. Cheap if they come in order.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    chain: &'a Chain,
    /// What is in `bytes`.
    window: Option<u64>,
    bytes: Box<[u8; WINDOW_BYTES]>,
}

impl Cursor<'_> {
    /// Some blocks of one window. What lies beyond the end of the device is zero.
    pub(super) fn read(&mut self, blocks: &Range<u64>) -> anyhow::Result<&[u8]> {
        let window = blocks.start / WINDOW_BLOCKS;
        if self.window != Some(window) {
            self.window = None;
            self.load(window)?;
            self.window = Some(window);
        }
        let at = |block: u64| ((block - window * WINDOW_BLOCKS) * BLOCK) as usize;
        Ok(&self.bytes[at(blocks.start)..at(blocks.end)])
    }

    fn load(&mut self, window: u64) -> anyhow::Result<()> {
        self.bytes.fill(0);
        let Chain { layers, stack, base, .. } = self.chain;
        let image = base.as_ref().map(|base| &base.image);
        read_window(layers, stack, image, window, &mut self.bytes)
    }
}

impl Base {
    fn open(path: &Path) -> anyhow::Result<Self> {
        // It refuses what is no image, and knows by what layers know one.
        let template = Template::open(path, &[])?;
        let file = File::open(path)
            .with_context(|| format!("cannot open {}; name a readable image", path.display()))?;
        let image = Image { path: path.to_owned(), file, bytes: template.bytes() };
        Ok(Self { image, inode: template.identity(), as_parent: template.as_parent() })
    }

    /// Where it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.image.path
    }

    /// How a layer names it as its parent.
    pub(super) fn as_parent(&self) -> Parent {
        self.as_parent.clone()
    }

    /// Which of its blocks are no holes.
    fn extents(&self) -> anyhow::Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut from = 0;
        let Image { path, file, bytes } = &self.image;
        while from < *bytes {
            let found = sys::next_data(file, from, *bytes).with_context(|| {
                format!("cannot look for holes in {} at byte {from}", path.display())
            })?;
            let Some(data) = found else { break };
            // Whoever lengthens it meanwhile must not keep us here.
            from = data.end.max(from + 1);
            let blocks = data.start / BLOCK..data.end.div_ceil(BLOCK);
            match runs.last_mut().filter(|last| last.blocks.end >= blocks.start) {
                Some(last) => last.blocks.end = last.blocks.end.max(blocks.end),
                None => runs.push(Run { blocks, source: Source::Base }),
            }
        }
        Ok(runs)
    }
}

/// A layer: nothing else will do.
pub(super) fn open_layer(path: &Path) -> anyhow::Result<LayerReader> {
    match open_part(path)? {
        Part::Layer(layer) => Ok(*layer),
        Part::Base(_) => bail!(
            "{} is a raw image, and this needs a layer; make one with glassine layer import",
            path.display()
        ),
    }
}

/// Blocks, a part for each window that they have a part of.
pub(super) fn by_windows(blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut rest = blocks;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.end.min((rest.start / WINDOW_BLOCKS + 1) * WINDOW_BLOCKS);
        let part = rest.start..end;
        rest.start = end;
        Some(part)
    })
}

/// What an index has.
pub(super) fn index_runs(index: &Index) -> Vec<Run> {
    let run = |run: &crate::layer::Run| Run {
        blocks: run.block..run.end(),
        source: match run.content {
            Content::Data => Source::Layer(0),
            Content::Zero => Source::Zero,
        },
    };
    index.runs().iter().map(run).collect()
}

/// Goes over the blocks before `end` in pieces, each as long as it is from one place in both of two lists, and
/// tells which.
pub(super) fn over(
    upper: &[Run],
    lower: &[Run],
    end: u64,
    visit: &mut impl FnMut(Range<u64>, Option<Source>, Option<Source>),
) {
    /// What is at a block, and the next block where that changes.
    fn at(rest: &mut &[Run], block: u64, end: u64) -> (Option<Source>, u64) {
        while rest.first().is_some_and(|run| run.blocks.end <= block) {
            *rest = &rest[1..];
        }
        match rest.first() {
            Some(run) if run.blocks.start <= block => (Some(run.source), run.blocks.end.min(end)),
            Some(run) => (None, run.blocks.start.min(end)),
            None => (None, end),
        }
    }
    let (mut upper, mut lower) = (upper, lower);
    let mut block = 0;
    while block < end {
        let (above, above_end) = at(&mut upper, block, end);
        let (below, below_end) = at(&mut lower, block, end);
        let next = above_end.min(below_end);
        visit(block..next, above, below);
        block = next;
    }
}

fn open_part(path: &Path) -> anyhow::Result<Part> {
    let shown = path.display();
    let advice = || format!("cannot open {shown}; name a readable layer or raw image");
    let metadata = fs::metadata(path).with_context(advice)?;
    let kind = metadata.file_type();
    // Nothing can be read at a place of a pipe, and opening one waits.
    let is_empty = kind.is_file() && metadata.len() == 0;
    ensure!(!is_empty, "{shown} is empty; name a layer or a raw image");
    ensure!(
        kind.is_file() || kind.is_block_device(),
        "{shown} is neither a file nor a disk; name a layer or a raw image"
    );
    let file = File::open(path).with_context(advice)?;
    if is_layer(&file).with_context(|| format!("cannot read {shown}"))? {
        return Ok(Part::Layer(Box::new(LayerReader::open(path)?)));
    }
    Ok(Part::Base(Base::open(path)?))
}

/// Whether a file, known as it would be as a parent, is what a layer is over.
fn check_parent(above: &LayerReader, found: &Parent, path: &Path) -> anyhow::Result<()> {
    let (layer, shown) = (above.path().display(), path.display());
    let Some(parent) = &above.footer().parent else {
        bail!("layer {layer} has no parent; leave {shown} out");
    };
    if (parent.kind, parent.bytes, parent.id) != (found.kind, found.bytes, found.id) {
        bail!(
            "{shown} ({}) is not what layer {layer} is over; give {}",
            describe(found),
            wanted(parent)
        );
    }
    Ok(())
}

fn missing(layer: &LayerReader) -> Option<String> {
    let (parent, shown) = (layer.footer().parent.as_ref()?, layer.path().display());
    Some(format!("what layer {shown} is over has not been given; give {}", wanted(parent)))
}

fn wanted(parent: &Parent) -> String {
    match parent.name.as_str() {
        "" => describe(parent),
        name => format!("{}, or what it is called now: {}", printable(name), describe(parent)),
    }
}

/// By what a parent is known, in words.
pub(super) fn describe(parent: &Parent) -> String {
    let kind = match parent.kind {
        ParentKind::Image => "a raw image",
        ParentKind::Layer => "a layer",
    };
    format!("{kind} of {} bytes, identity {}", parent.bytes, Hex(&parent.id))
}
