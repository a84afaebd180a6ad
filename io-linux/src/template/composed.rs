//! A template made of layers: composed, window by window, in a nameless file, when somebody first asks for it.
//!
//! A window is written there as a whole, by one thread, and only then counts as ready. What is ready never
//! changes. A window that could not be composed is tried again by whoever asks next.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use glassine_core::Errno;
use glassine_core::layer::stack::{Origin, Stack};
use glassine_core::layer::{WINDOW_BLOCKS, WINDOW_BYTES};
use glassine_core::limits::BLOCK_BYTES;
use glassine_core::sync::weakened;

use crate::layer::chain::{Chain, read_window};
use crate::sync::{AtomicU64, Mutex, Ordering, lock, thread};

const BLOCK: usize = BLOCK_BYTES as usize;
const WINDOW: u64 = WINDOW_BYTES as u64;
/// Windows that are this far apart wait for each other.
const LOCKS: usize = if cfg!(loom) { 2 } else { 64 };

/// What layers make together.
#[derive(Debug)]
pub struct Composed {
    chain: Chain,
    stack: Stack,
    bytes: u64,
    /// Where it is composed.
    file: File,
    /// A bit for each window that is there. Set after its bytes are, and never taken back.
    ready: Box<[AtomicU64]>,
    /// A bit for each window that is all zero: a hole of the file.
    holes: Box<[u64]>,
    /// Held by whoever composes a window.
    locks: Box<[Mutex<()>]>,
}

/// How a window came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It is a hole.
    Hole,
    /// It was there before.
    Before,
    /// It is now.
    Now,
}

impl Composed {
    /// Opens a layer and everything below it. Answers also the file that is to be read in its place.
    pub fn open(path: &Path, directories: &[PathBuf]) -> anyhow::Result<(Self, File)> {
        let chain = Chain::open(path, directories)?;
        let bytes = chain.top().footer().size_bytes;
        let indexes: Vec<_> = chain.layers.iter().map(|layer| layer.index()).collect();
        let stack = Stack::new(&indexes);
        let shown = path.display();
        let temporary = std::env::temp_dir();
        let make = || {
            let file = tempfile::tempfile()?;
            file.set_len(bytes)?;
            Ok::<_, std::io::Error>((file.try_clone()?, file))
        };
        let (file, same) = make().with_context(|| {
            format!(
                "cannot make a file of {bytes} bytes in {} to compose layer {shown} in; set TMPDIR to another directory",
                temporary.display()
            )
        })?;
        let words = bytes.div_ceil(WINDOW).div_ceil(64);
        let composed = Self {
            holes: holes(&stack, bytes, chain.base.as_ref().map_or(0, |base| base.bytes)),
            chain,
            stack,
            bytes,
            file,
            ready: (0..words).map(|_| AtomicU64::new(0)).collect(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        };
        Ok((composed, same))
    }

    /// The layers and the image it is made of.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Whether all bytes of a range are there.
    #[must_use]
    pub fn is_ready(&self, range: Range<u64>) -> bool {
        windows(range).all(|window| self.is_hole(window) || self.is_there(window))
    }

    /// The parts of a range that are no holes.
    pub fn filled(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let filled = windows(range.clone()).filter(|window| !self.is_hole(*window));
        filled.map(move |window| {
            range.start.max(window * WINDOW)..range.end.min((window + 1) * WINDOW)
        })
    }

    fn is_hole(&self, window: u64) -> bool {
        self.holes[(window / 64) as usize] & 1 << (window % 64) != 0
    }

    fn is_there(&self, window: u64) -> bool {
        // Whoever sees the bit sees the bytes.
        self.ready[(window / 64) as usize].load(Ordering::Acquire) & 1 << (window % 64) != 0
    }

    /// Makes sure that the window with this byte is there. May block.
    pub fn compose(&self, offset: u64) -> Result<Done, Errno> {
        let window = offset / WINDOW;
        if self.is_hole(window) {
            return Ok(Done::Hole);
        }
        if self.is_there(window) {
            return Ok(Done::Before);
        }
        let _composing = lock(&self.locks[window as usize % LOCKS]);
        if self.is_there(window) {
            // Somebody else has done it meanwhile.
            return Ok(Done::Before);
        }
        let set =
            || self.ready[(window / 64) as usize].fetch_or(1 << (window % 64), Ordering::Release);
        if weakened("ready-early") {
            set();
            thread::yield_now();
        }
        self.write(window).map_err(|error| {
            let template = self.chain.top().path().display();
            tracing::error!(%template, offset = window * WINDOW, "{error:#}");
            Errno::Io
        })?;
        set();
        Ok(Done::Now)
    }

    fn write(&self, window: u64) -> anyhow::Result<()> {
        let mut bytes = [0; WINDOW_BYTES];
        let Chain { layers, base } = &self.chain;
        read_window(layers, &self.stack, base.as_ref(), window, &mut bytes)?;
        let start = window * WINDOW;
        let length = (self.bytes - start).min(WINDOW) as usize;
        self.file.write_all_at(&bytes[..length], start).with_context(|| {
            format!(
                "cannot compose a part of the template in {}: reads of that part fail until there is space",
                std::env::temp_dir().display()
            )
        })
    }
}

/// The windows that a range of bytes touches.
fn windows(range: Range<u64>) -> impl Iterator<Item = u64> {
    range.start / WINDOW..range.end.div_ceil(WINDOW)
}

/// Which windows are all zero: no layer has data there, and no image shows.
fn holes(stack: &Stack, bytes: u64, base_bytes: u64) -> Box<[u64]> {
    let count = bytes.div_ceil(WINDOW);
    let mut holes = vec![u64::MAX; count.div_ceil(64) as usize].into_boxed_slice();
    let mut set = |windows: Range<u64>, is_hole: bool| {
        for window in windows {
            let (word, bit) = (&mut holes[(window / 64) as usize], 1 << (window % 64));
            *word = if is_hole { *word | bit } else { *word & !bit };
        }
    };
    set(0..base_bytes.div_ceil(WINDOW), false);
    for piece in stack.pieces() {
        match piece.origin {
            Origin::Layer(_) => {
                set(piece.block / WINDOW_BLOCKS..piece.end().div_ceil(WINDOW_BLOCKS), false);
            }
            Origin::Zero => {
                // The last window may end in the middle.
                let is_last = piece.end() == bytes.div_ceil(BLOCK as u64);
                let end = if is_last { count } else { piece.end() / WINDOW_BLOCKS };
                set(piece.block.div_ceil(WINDOW_BLOCKS)..end, true);
            }
        }
    }
    holes
}
