//! The block map: what each block of a device is.
//!
//! A radix tree of 512-way nodes. A subtree whose blocks are all alike is one tag, so a fresh device
//! needs no memory and a TRIM of a terabyte replaces a few tags. A leaf describes 512 blocks (2 MiB)
//! in 2 KiB; a GiB touched everywhere costs 1 MiB of leaves and 8 KiB of inner nodes.
//!
//! A clone is a *frozen* map: it shares all nodes, and whichever of the two changes a node first copies it.
//! So freezing costs the same for any map, and the cost is paid bit by bit: a leaf and the nodes above it, once
//! for each leaf that is written to afterwards.

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::ops::Range;

use crate::judge::{Bug, Mark, mark, planted};
use crate::slot::SlotId;
use crate::sync::Shared;

/// What a block of the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Never written: the template shows through.
    Template,
    /// Zero, and nothing is set aside for it.
    Zero,
    /// Zero, and space is set aside: a later write finds a slot.
    ZeroProvisioned,
    /// Zero; space was set aside, and a write under way uses it. Nobody else may count on it, but if the write
    /// comes to nothing, or a crash takes it, the space is set aside again.
    ZeroClaimed,
    /// The bytes are in this slot.
    Slot(SlotId),
}

/// What a whole range of blocks can be made at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Uniform {
    /// See [`Entry::Template`].
    Template,
    /// See [`Entry::Zero`].
    Zero,
    /// See [`Entry::ZeroProvisioned`].
    ZeroProvisioned,
    /// See [`Entry::ZeroClaimed`].
    ZeroClaimed,
}

impl From<Uniform> for Entry {
    fn from(uniform: Uniform) -> Self {
        match uniform {
            Uniform::Template => Self::Template,
            Uniform::Zero => Self::Zero,
            Uniform::ZeroProvisioned => Self::ZeroProvisioned,
            Uniform::ZeroClaimed => Self::ZeroClaimed,
        }
    }
}

/// How many blocks of a part of the map are slots, and how many have space set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Tally {
    /// Blocks that are [`Entry::Slot`].
    pub slots: u64,
    /// Blocks that are [`Entry::ZeroProvisioned`].
    pub reserved: u64,
}

impl Tally {
    /// Blocks that count against a quota.
    #[must_use]
    pub fn provisioned(self) -> u64 {
        self.slots + self.reserved
    }

    fn count(&mut self, entry: Entry) {
        match entry {
            Entry::Slot(_) => self.slots += 1,
            Entry::ZeroProvisioned => self.reserved += 1,
            Entry::Template | Entry::Zero | Entry::ZeroClaimed => {}
        }
    }

    fn uncount(&mut self, entry: Entry) {
        match entry {
            Entry::Slot(_) => self.slots -= 1,
            Entry::ZeroProvisioned => self.reserved -= 1,
            Entry::Template | Entry::Zero | Entry::ZeroClaimed => {}
        }
    }

    fn exchange(&mut self, old: Entry, new: Entry) {
        self.uncount(old);
        self.count(new);
    }

    fn add(&mut self, other: Self) {
        self.slots += other.slots;
        self.reserved += other.reserved;
    }

    fn replace(&mut self, old: Self, new: Self) {
        self.slots = self.slots - old.slots + new.slots;
        self.reserved = self.reserved - old.reserved + new.reserved;
    }

    fn uniform(uniform: Uniform, blocks: u64) -> Self {
        match uniform {
            Uniform::ZeroProvisioned => Self { slots: 0, reserved: blocks },
            Uniform::Template | Uniform::Zero | Uniform::ZeroClaimed => Self::default(),
        }
    }
}

const FANOUT_BITS: u32 = 9;
const FANOUT: usize = 1 << FANOUT_BITS;

/// An entry in four bytes: four tags, then slot numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Packed(u32);

impl Packed {
    const FIRST_SLOT: u32 = 4;

    fn pack(entry: Entry) -> Self {
        Self(match entry {
            Entry::Template => 0,
            Entry::Zero => 1,
            Entry::ZeroProvisioned => 2,
            Entry::ZeroClaimed => 3,
            Entry::Slot(slot) => slot.0 + Self::FIRST_SLOT,
        })
    }

    /// What the block `count` places on is, if the run goes on: the same, or the slot so many on.
    fn next_by(self, count: u32) -> Self {
        if self.0 < Self::FIRST_SLOT { self } else { Self(self.0.wrapping_add(count)) }
    }

    fn unpack(self) -> Entry {
        match self.0 {
            0 => Entry::Template,
            1 => Entry::Zero,
            2 => Entry::ZeroProvisioned,
            3 => Entry::ZeroClaimed,
            slot => Entry::Slot(SlotId(slot - Self::FIRST_SLOT)),
        }
    }
}

/// The most slots whose numbers fit an entry.
pub const SLOTS_MAX: u32 = u32::MAX - Packed::FIRST_SLOT;

#[derive(Clone, Hash)]
enum Node {
    Uniform(Uniform),
    Inner(Shared<Inner>),
    Leaf(Shared<Leaf>),
}

#[derive(Clone, Hash)]
struct Inner {
    tally: Tally,
    children: [Node; FANOUT],
}

#[derive(Clone, Hash)]
struct Leaf {
    tally: Tally,
    entries: [Packed; FANOUT],
}

/// A part of a map that a trim cut off. It still names slots, which are to be freed bit by bit.
#[derive(Hash)]
pub struct Dropped {
    nodes: Vec<Node>,
}

/// The map of one device. See the module on what a clone costs.
#[derive(Clone, Hash)]
pub struct Map {
    root: Node,
    /// Node levels above the blocks: a node of level 1 is a leaf.
    levels: u32,
    blocks: u64,
    /// What all blocks were at first.
    initial: Uniform,
    tally: Tally,
}

impl core::fmt::Debug for Map {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Map").field("blocks", &self.blocks).field("tally", &self.tally).finish()
    }
}

impl core::fmt::Debug for Dropped {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Dropped").field("nodes", &self.nodes.len()).finish()
    }
}

impl Map {
    /// A map of `blocks` blocks that are all alike.
    #[must_use]
    pub fn new(blocks: u64, uniform: Uniform) -> Self {
        let mut levels = 1;
        while blocks > 1 << (FANOUT_BITS * levels) {
            levels += 1;
        }
        let tally = Tally::uniform(uniform, blocks);
        Self { root: Node::Uniform(uniform), levels, blocks, initial: uniform, tally }
    }

    /// Blocks of the device.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// What all blocks were at first.
    #[must_use]
    pub fn initial(&self) -> Uniform {
        self.initial
    }

    /// Slots and reservations of the whole map.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// What one block is.
    #[must_use]
    pub fn entry(&self, block: u64) -> Entry {
        assert!(block < self.blocks);
        let mut node = &self.root;
        let mut level = self.levels;
        loop {
            match node {
                Node::Uniform(uniform) => return (*uniform).into(),
                Node::Leaf(leaf) => return leaf.entries[index(block, 1)].unpack(),
                Node::Inner(inner) => node = &inner.children[index(block, level)],
            }
            level -= 1;
        }
    }

    /// What `block` is, and up to where its neighbours go on like it: they are alike, or in neighbouring
    /// slots. Looks at no more than one node of each level, so the run may go on behind its end.
    #[must_use]
    pub fn run_at(&self, block: u64) -> (Range<u64>, Entry) {
        assert!(block < self.blocks);
        let mut node = &self.root;
        let mut level = self.levels;
        loop {
            let end = (block | ((child_blocks(level) << FANOUT_BITS) - 1)) + 1;
            match node {
                Node::Uniform(uniform) => {
                    return (block..end.min(self.blocks), (*uniform).into());
                }
                Node::Leaf(leaf) => {
                    let entries = &leaf.entries[index(block, 1)..];
                    let next = |count: usize| entries[0].next_by(count as u32);
                    let alike = (0..entries.len()).take_while(|at| entries[*at] == next(*at));
                    let end = block + alike.count() as u64;
                    return (block..end.min(self.blocks), entries[0].unpack());
                }
                Node::Inner(inner) => node = &inner.children[index(block, level)],
            }
            level -= 1;
        }
    }

    /// Visits a range in order, as runs of blocks that are alike (slots come one by one).
    pub fn walk(&self, range: Range<u64>, visit: &mut impl FnMut(Range<u64>, Entry)) {
        assert!(range.end <= self.blocks);
        if !range.is_empty() {
            walk(&self.root, self.levels, 0, &range, visit);
        }
    }

    /// Slots and reservations in a range. Whole subtrees are counted in one step.
    #[must_use]
    pub fn tally_in(&self, range: Range<u64>) -> Tally {
        assert!(range.end <= self.blocks);
        if range == (0..self.blocks) {
            return self.tally;
        }
        let mut tally = Tally::default();
        if range.end - range.start == 1 {
            // What most requests ask for.
            tally.count(self.entry(range.start));
        } else if !range.is_empty() {
            tally_in(&self.root, self.levels, 0, &range, &mut tally);
        }
        tally
    }

    /// Points the blocks of a range at `slots`, in order, and reports every slot that was displaced.
    pub fn publish(
        &mut self,
        range: Range<u64>,
        slots: &mut impl Iterator<Item = SlotId>,
        displaced: &mut impl FnMut(SlotId),
    ) {
        assert!(range.end <= self.blocks);
        let mut next = || Entry::Slot(slots.next().expect("as many slots as blocks"));
        if range.end - range.start == 1 {
            // What most requests ask for.
            if let Entry::Slot(slot) = self.replace(range.start, next()) {
                displaced(slot);
            }
        } else if !range.is_empty() {
            let tally = &mut self.tally;
            edit(&mut self.root, self.levels, 0, &range, tally, &mut next, displaced);
        }
    }

    /// Sets one block; answers what it was.
    fn replace(&mut self, block: u64, new: Entry) -> Entry {
        let old = self.entry(block);
        let mut node = &mut self.root;
        let mut level = self.levels;
        self.tally.exchange(old, new);
        loop {
            expand(node, level, child_blocks(level) << FANOUT_BITS);
            match node {
                Node::Uniform(_) => unreachable!("just expanded"),
                Node::Inner(inner) => {
                    let inner = own(inner);
                    inner.tally.exchange(old, new);
                    node = &mut inner.children[index(block, level)];
                    level -= 1;
                }
                Node::Leaf(leaf) => {
                    let leaf = own(leaf);
                    leaf.tally.exchange(old, new);
                    leaf.entries[index(block, 1)] = Packed::pack(new);
                    return old;
                }
            }
        }
    }

    /// Makes all blocks of a range alike. Slots of boundary leaves are reported one by one; whole
    /// subtrees are cut off and appended to `dropped`, so the work does not grow with the range.
    /// Answers how many slots went with the dropped parts.
    pub fn fill(
        &mut self,
        range: Range<u64>,
        uniform: Uniform,
        displaced: &mut impl FnMut(SlotId),
        dropped: &mut Dropped,
    ) -> u64 {
        assert!(range.end <= self.blocks);
        if range.is_empty() {
            return 0;
        }
        let mut fill = Fill { blocks: self.blocks, range, uniform, dropped, dropped_slots: 0 };
        fill.node(&mut self.root, self.levels, 0, &mut self.tally, displaced);
        fill.dropped_slots
    }

    /// Checks the tallies against the entries. For tests and the simulator: it walks the whole map.
    pub fn audit(&self) {
        let mut tally = Tally::default();
        self.walk(0..self.blocks, &mut |range, entry| match entry {
            Entry::Slot(_) => tally.slots += range.end - range.start,
            Entry::ZeroProvisioned => tally.reserved += range.end - range.start,
            Entry::Template | Entry::Zero | Entry::ZeroClaimed => {}
        });
        assert_eq!(tally, self.tally, "the tally of the map agrees with its entries");
    }
}

impl Dropped {
    /// Nothing dropped yet.
    #[must_use]
    pub fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Takes one node apart and reports the slots it names; answers how many entries it looked at.
    pub fn step(&mut self, free: &mut impl FnMut(SlotId)) -> u32 {
        match self.nodes.pop() {
            None | Some(Node::Uniform(_)) => 1,
            Some(Node::Inner(inner)) => {
                // A frozen map may share it.
                let children = inner.children.iter();
                let children = children.filter(|node| !matches!(node, Node::Uniform(_)));
                self.nodes.extend(children.cloned());
                FANOUT as u32
            }
            Some(Node::Leaf(leaf)) => {
                for packed in leaf.entries {
                    if let Entry::Slot(slot) = packed.unpack() {
                        free(slot);
                    }
                }
                FANOUT as u32
            }
        }
    }
}

impl Default for Dropped {
    fn default() -> Self {
        Self::new()
    }
}

/// The position of `block` among the children of a node of this level.
fn index(block: u64, level: u32) -> usize {
    (block >> (FANOUT_BITS * (level - 1))) as usize & (FANOUT - 1)
}

/// Blocks below one child of a node of this level.
fn child_blocks(level: u32) -> u64 {
    1 << (FANOUT_BITS * (level - 1))
}

/// The children of a node at `base` that a range touches: each with its position and first block.
fn children(level: u32, base: u64, range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let width = child_blocks(level);
    let first = range.start.saturating_sub(base) / width;
    let last = ((range.end - 1 - base) / width).min(FANOUT as u64 - 1);
    (first..=last).map(move |position| (position as usize, base + position * width))
}

/// Turns a uniform node into one with children (or entries) that are all that way.
fn expand(node: &mut Node, level: u32, blocks_below: u64) {
    if let Node::Uniform(uniform) = *node {
        *node = expanded(uniform, level, blocks_below);
    }
}

/// Out of line: a node on the stack is large, and this is rare.
#[cold]
#[inline(never)]
fn expanded(uniform: Uniform, level: u32, blocks_below: u64) -> Node {
    mark(Mark::SubtreeExpanded);
    let tally = Tally::uniform(uniform, blocks_below);
    if level == 1 {
        return Node::Leaf(Shared::new(Leaf {
            tally,
            entries: [Packed::pack(uniform.into()); FANOUT],
        }));
    }
    let children = [const { Node::Uniform(Uniform::Template) }; FANOUT];
    let children = children.map(|_| Node::Uniform(uniform));
    Node::Inner(Shared::new(Inner { tally, children }))
}

fn walk(
    node: &Node,
    level: u32,
    base: u64,
    range: &Range<u64>,
    visit: &mut impl FnMut(Range<u64>, Entry),
) {
    match node {
        Node::Uniform(uniform) => {
            let end = base + (child_blocks(level) << FANOUT_BITS);
            let start =
                if planted(Bug::WalkNotClipped) { range.start } else { range.start.max(base) };
            visit(start..range.end.min(end), (*uniform).into());
        }
        Node::Inner(inner) => {
            if children(level, base, range).count() > 1 {
                mark(Mark::LevelsSeveral);
            }
            for (position, base) in children(level, base, range) {
                walk(&inner.children[position], level - 1, base, range, visit);
            }
        }
        Node::Leaf(leaf) => {
            for (position, block) in children(1, base, range) {
                visit(block..block + 1, leaf.entries[position].unpack());
            }
        }
    }
}

fn tally_in(node: &Node, level: u32, base: u64, range: &Range<u64>, tally: &mut Tally) {
    let end = base + (child_blocks(level) << FANOUT_BITS);
    let whole = range.start <= base && range.end >= end;
    match node {
        Node::Uniform(uniform) => {
            let blocks = range.end.min(end) - range.start.max(base);
            tally.add(Tally::uniform(*uniform, blocks));
        }
        Node::Inner(inner) if whole => tally.add(inner.tally),
        Node::Leaf(leaf) if whole => tally.add(leaf.tally),
        Node::Inner(inner) => {
            for (position, base) in children(level, base, range) {
                tally_in(&inner.children[position], level - 1, base, range, tally);
            }
        }
        Node::Leaf(leaf) => {
            for (position, _) in children(1, base, range) {
                tally.count(leaf.entries[position].unpack());
            }
        }
    }
}

/// Sets every block of the range to what `next` says, in order, and keeps the tallies of the nodes passed.
fn edit(
    node: &mut Node,
    level: u32,
    base: u64,
    range: &Range<u64>,
    above: &mut Tally,
    next: &mut impl FnMut() -> Entry,
    displaced: &mut impl FnMut(SlotId),
) {
    // A reservation uniform at the device's end counts blocks that do not exist, were it expanded
    // at full width; `Fill` never leaves such a node there.
    expand(node, level, child_blocks(level) << FANOUT_BITS);
    match node {
        Node::Uniform(_) => unreachable!("just expanded"),
        Node::Inner(inner) => {
            let inner = own(inner);
            let before = inner.tally;
            for (position, base) in children(level, base, range) {
                let child = &mut inner.children[position];
                edit(child, level - 1, base, range, &mut inner.tally, next, displaced);
            }
            above.replace(before, inner.tally);
        }
        Node::Leaf(leaf) => {
            let leaf = own(leaf);
            let before = leaf.tally;
            for (position, _) in children(1, base, range) {
                set(leaf, position, next(), displaced);
            }
            above.replace(before, leaf.tally);
        }
    }
}

/// A node that may be changed: a copy, if a frozen map shares it.
fn own<T: Clone>(node: &mut Shared<T>) -> &mut T {
    if Shared::strong_count(node) > 1 {
        copy(node);
    }
    Shared::get_mut(node).expect("nobody else has it")
}

/// Out of line, like [`expanded`].
#[cold]
#[inline(never)]
fn copy<T: Clone>(node: &mut Shared<T>) {
    mark(Mark::NodeCopied);
    *node = Shared::new(T::clone(node));
}

fn set(leaf: &mut Leaf, position: usize, new: Entry, displaced: &mut impl FnMut(SlotId)) {
    let old = leaf.entries[position].unpack();
    leaf.entries[position] = Packed::pack(new);
    leaf.tally.exchange(old, new);
    if let Entry::Slot(slot) = old {
        displaced(slot);
    }
}

struct Fill<'a> {
    blocks: u64,
    range: Range<u64>,
    uniform: Uniform,
    dropped: &'a mut Dropped,
    dropped_slots: u64,
}

impl Fill<'_> {
    fn node(
        &mut self,
        node: &mut Node,
        level: u32,
        base: u64,
        above: &mut Tally,
        displaced: &mut impl FnMut(SlotId),
    ) {
        let width = child_blocks(level) << FANOUT_BITS;
        let end = base + width;
        if self.range.start <= base && self.range.end >= end.min(self.blocks) && self.may_tag(end) {
            let existing = end.min(self.blocks) - base;
            let old = match node {
                Node::Uniform(uniform) => Tally::uniform(*uniform, existing),
                Node::Inner(inner) => inner.tally,
                Node::Leaf(leaf) => leaf.tally,
            };
            above.replace(old, Tally::uniform(self.uniform, existing));
            self.dropped_slots += old.slots;
            let old_node = core::mem::replace(node, Node::Uniform(self.uniform));
            if old.slots > 0 {
                self.dropped.nodes.push(old_node);
            }
            return;
        }
        expand(node, level, width);
        let range = self.range.clone();
        match node {
            Node::Uniform(_) => unreachable!("just expanded"),
            Node::Inner(inner) => {
                let inner = own(inner);
                let before = inner.tally;
                for (position, base) in children(level, base, &range) {
                    let child = &mut inner.children[position];
                    self.node(child, level - 1, base, &mut inner.tally, displaced);
                }
                above.replace(before, inner.tally);
            }
            Node::Leaf(leaf) => {
                let leaf = own(leaf);
                let before = leaf.tally;
                for (position, _) in children(1, base, &range) {
                    set(leaf, position, self.uniform.into(), displaced);
                }
                above.replace(before, leaf.tally);
            }
        }
    }

    /// A reservation counts blocks, so no tag of it may reach over the end of the device.
    fn may_tag(&self, end: u64) -> bool {
        self.uniform != Uniform::ZeroProvisioned || end <= self.blocks
    }
}
