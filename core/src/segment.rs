//! Segments: how bytes of a device are named without being touched.

use crate::judge::{Bug, planted};

/// Where the bytes of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// In the template, from this byte on.
    Template {
        /// Byte offset in the template.
        offset: u64,
    },
    /// Nowhere: they are zero.
    Zero,
    /// In the data file, from this byte on.
    Data {
        /// Byte offset in the data file.
        offset: u64,
    },
}

/// A run of bytes at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Where they are.
    pub source: Source,
    /// How many.
    pub length: u64,
}

impl Segment {
    /// Lengthens this segment by one that follows it, if both lie side by side.
    pub fn absorb(&mut self, next: Self) -> bool {
        let follows = match (self.source, next.source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Template { offset }, Source::Template { offset: next })
            | (Source::Data { offset }, Source::Data { offset: next }) => {
                let gap = planted(Bug::RunsNotAdjacent) && offset < next;
                offset + self.length == next || gap
            }
            _ => false,
        };
        if follows {
            self.length += next.length;
        }
        follows
    }
}
