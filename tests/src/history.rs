//! What was asked of a device since it was last looked at, and what of it a crash may take.

use std::ops::Range;

use crate::pattern;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of the device.
pub const BLOCKS: usize = 2048;

/// What a change leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Bytes of this version.
    Payload(u64),
    /// Zeroes.
    Zero,
}

#[derive(Debug, Clone)]
struct Change {
    blocks: Range<usize>,
    content: Content,
    sent: u64,
    answered: Option<u64>,
    /// With FUA, it is durable when it is answered.
    fua: bool,
    durable: bool,
}

/// Everything since the device was last looked at. Changes of one block are sent one after the other, so
/// their order is certain.
#[derive(Debug, Clone)]
pub struct History {
    base: Vec<u8>,
    changes: Vec<Change>,
    by_block: Vec<Vec<usize>>,
    /// Counts what was sent and answered.
    now: u64,
    versions: u64,
    /// Changes that survived although nobody had been promised, for the report.
    pub spared: u64,
    /// Changes that had to survive.
    pub promised: u64,
}

impl History {
    /// Of a device that shows these bytes.
    #[must_use]
    pub fn new(base: Vec<u8>) -> Self {
        assert_eq!(base.len(), BLOCKS * BLOCK);
        Self {
            base,
            changes: Vec::new(),
            by_block: vec![Vec::new(); BLOCKS],
            now: 0,
            versions: 0,
            spared: 0,
            promised: 0,
        }
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The next version of a payload.
    pub fn version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    /// A change is being sent; answers its number.
    pub fn sent(&mut self, blocks: Range<usize>, content: Content, fua: bool) -> usize {
        self.now += 1;
        let number = self.changes.len();
        for block in blocks.clone() {
            self.by_block[block].push(number);
        }
        let (sent, answered, durable) = (self.now, None, false);
        self.changes.push(Change { blocks, content, sent, answered, fua, durable });
        number
    }

    /// It was answered with success.
    pub fn answered(&mut self, number: usize) {
        self.now += 1;
        let change = &mut self.changes[number];
        change.answered = Some(self.now);
        change.durable |= change.fua;
    }

    /// It was refused, and must never be seen.
    pub fn refused(&mut self, number: usize) {
        for block in std::mem::take(&mut self.changes[number].blocks) {
            self.by_block[block].retain(|other| *other != number);
        }
    }

    /// A FLUSH that was sent at this moment was answered with success.
    pub fn flushed(&mut self, since: u64) {
        for change in &mut self.changes {
            change.durable |= change.answered.is_some_and(|at| at <= since);
        }
    }

    /// Counts as durable what was answered by this moment, and nothing else: of what shows another moment than the
    /// last.
    pub fn settle(&mut self, at: u64) {
        for change in &mut self.changes {
            change.durable = change.answered.is_some_and(|answered| answered <= at);
        }
    }

    /// Holds what a device shows after a crash against what it may show, and goes on from there.
    pub fn check(&mut self, image: Vec<u8>) -> Result<(), String> {
        assert_eq!(image.len(), BLOCKS * BLOCK);
        // For each block, how many of its changes have happened; and the latest that can only be seen because
        // everything answered before it was sent is there as well.
        let mut happened = Vec::new();
        let mut horizon = 0;
        for (block, data) in image.chunks_exact(BLOCK).enumerate() {
            let shown = self.shown(block, data)?;
            if let Some(number) = shown.checked_sub(1).map(|last| self.by_block[block][last])
                && let Content::Payload(_) = self.changes[number].content
            {
                horizon = horizon.max(self.changes[number].sent);
            }
            happened.push(shown);
        }
        for (number, change) in self.changes.iter().enumerate() {
            let is_before = change.answered.is_some_and(|at| at < horizon);
            for block in change.blocks.clone() {
                let place = self.by_block[block].iter().position(|other| *other == number);
                let is_there = place.expect("listed") < happened[block];
                if change.durable && !is_there {
                    return Err(format!(
                        "block {block}: change {number} was acknowledged as durable, and is lost"
                    ));
                }
                if is_before && !is_there {
                    return Err(format!(
                        "block {block}: change {number} is lost, but a later one is there"
                    ));
                }
            }
            self.promised += u64::from(change.durable);
            self.spared += u64::from(is_before && !change.durable);
        }
        self.base = image;
        self.changes.clear();
        self.by_block.iter_mut().for_each(Vec::clear);
        Ok(())
    }

    /// How many of the changes of a block have happened, at most.
    fn shown(&self, block: usize, data: &[u8]) -> Result<usize, String> {
        let is_zero = data.iter().all(|byte| *byte == 0);
        let mut expected = [0; BLOCK];
        for (place, number) in self.by_block[block].iter().enumerate().rev() {
            let is_shown = match self.changes[*number].content {
                Content::Zero => is_zero,
                Content::Payload(version) => {
                    let offset = (block * BLOCK) as u64;
                    data[..8] == pattern::word(version, offset).to_le_bytes() && {
                        pattern::fill(&mut expected, version, offset);
                        expected == *data
                    }
                }
            };
            if is_shown {
                return Ok(place + 1);
            }
        }
        if self.base[block * BLOCK..][..BLOCK] == *data {
            return Ok(0);
        }
        Err(format!("block {block} shows none of its versions, or a mixture of them"))
    }
}
