//! Layers one above the other, seen as one: which of them each block is from.

use alloc::vec::Vec;

use super::WINDOW_BLOCKS;
use super::index::{Content, Index, Run, mask};
use crate::judge::{Bug, planted};

/// The most layers of a stack.
pub const DEPTH_MAX: usize = 1024;

/// Where the bytes of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// In this layer of the stack; 0 is the lowest.
    Layer(u16),
    /// Nowhere: it is zero.
    Zero,
}

/// Blocks side by side that come from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The first block.
    pub block: u64,
    /// How many; never zero.
    pub count: u64,
    /// Where they are.
    pub origin: Origin,
}

impl Piece {
    /// The block behind the last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.block + self.count
    }
}

/// A stack of layers. What no layer has is as below the lowest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stack {
    pieces: Vec<Piece>,
}

impl Stack {
    /// Lays layers upon each other, the lowest first: at most [`DEPTH_MAX`]. Takes time for every run of every
    /// layer, times the logarithm of their number.
    #[must_use]
    pub fn new(layers: &[&Index]) -> Self {
        assert!(layers.len() <= DEPTH_MAX, "so many fit a number");
        let mut parts: Vec<Vec<Piece>> = Vec::with_capacity(layers.len());
        for (layer, index) in layers.iter().enumerate() {
            let piece = |run: &Run| Piece {
                block: run.block,
                count: run.count,
                origin: match run.content {
                    Content::Data => Origin::Layer(layer as u16),
                    Content::Zero => Origin::Zero,
                },
            };
            parts.push(index.runs().iter().map(piece).collect());
        }
        // Neighbours by twos, until one is left.
        while parts.len() > 1 {
            let pairs = parts.chunks(2);
            parts = pairs
                .map(|pair| match pair {
                    [lower, upper] => over(upper, lower),
                    one => one[0].clone(),
                })
                .collect();
        }
        Self { pieces: parts.pop().unwrap_or_default() }
    }

    /// The pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces that a window has a part of, each with which of its blocks.
    pub fn window(&self, window: u64) -> impl Iterator<Item = (Origin, u16)> {
        let blocks = window * WINDOW_BLOCKS..(window + 1) * WINDOW_BLOCKS;
        let first = self.pieces.partition_point(|piece| piece.end() <= blocks.start);
        let pieces = self.pieces[first..].iter();
        let pieces = pieces.take_while(move |piece| piece.block < blocks.end);
        pieces.map(move |piece| (piece.origin, mask(&(piece.block..piece.end()), blocks.start)))
    }
}

/// One part of a stack over another.
fn over(upper: &[Piece], lower: &[Piece]) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(upper.len() + lower.len());
    let mut rest = lower;
    let mut start = 0;
    let ends = upper.iter().map(|piece| (piece.block, Some(piece)));
    for (end, above) in ends.chain([(u64::MAX, None)]) {
        // What shows of the lower part between the last piece of the upper one and the next.
        while let Some(below) = rest.first().filter(|below| below.block < end) {
            let (from, to) = (below.block.max(start), below.end().min(end));
            if from < to {
                push(&mut pieces, Piece { block: from, count: to - from, ..*below });
            }
            if below.end() > end {
                break;
            }
            rest = &rest[1..];
        }
        if let Some(above) = above {
            push(&mut pieces, *above);
            start = above.end();
        }
    }
    pieces
}

/// Appends a piece, and joins it with the one before if they are one.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last)
            if last.end() == piece.block
                && (last.origin == piece.origin || planted(Bug::StorageMerge)) =>
        {
            last.count += piece.count;
        }
        _ => pieces.push(piece),
    }
}
