//! Layers: a stack of them made as a sequence of choices says, read back, laid upon each other; then bytes of
//! one change, and it is read again. The same bytes also go to the parsers as they are.
//!
//! What was written must be read. What was damaged must be refused, or read as it was written. With its
//! checksums made to fit, a damaged layer may say anything: then nothing may panic, or take more memory than
//! the file explains.

use crc::{CRC_32_ISCSI, Crc};
use glassine_core::layer::footer::{self, FOOTER_BYTES, Footer, Parent, ParentKind};
use glassine_core::layer::index::{self, About, Codec, Content, Frame, Index, Run};
use glassine_core::layer::stack::{Origin, Stack};
use glassine_core::layer::{Damage, Fault, WINDOW_BLOCKS};
use sha2::{Digest, Sha256};

use crate::input::Choices;

const BLOCK: usize = 4096;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What a block is: of one byte all over, so that a block is known by it. 0 is a block of zeroes.
type Block = Option<u8>;

/// A layer, and what it must say.
struct Layer {
    model: Vec<Block>,
    file: Vec<u8>,
}

/// One step of making or changing a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Some blocks are data.
    Data,
    /// Some blocks are as in the parent.
    Skip,
    /// Some blocks are zero.
    Zero,
    /// Another layer begins, over this one.
    Seal,
    /// A byte of the last layer changes, near its end.
    DamageEnd,
    /// A byte of it changes, anywhere.
    Damage,
    /// It ends earlier.
    Cut,
    /// Something is appended to it.
    Extend,
    /// Its checksums are made to fit.
    Forge,
}

impl Op {
    /// All of them, in the order of the bytes that name them: the usual ones several times.
    pub const ALL: [Self; 16] = [
        Self::Data,
        Self::Skip,
        Self::Zero,
        Self::Seal,
        Self::Data,
        Self::Skip,
        Self::Zero,
        Self::Seal,
        Self::Data,
        Self::DamageEnd,
        Self::Data,
        Self::DamageEnd,
        Self::Damage,
        Self::Cut,
        Self::Extend,
        Self::Forge,
    ];
}

/// Any stack of layers, and any damage to the last of them.
pub fn layer(bytes: &[u8]) {
    parse_anything(bytes);
    let mut choices = Choices::new(bytes);
    let blocks = choices.pick(&[40u64, 16, 1, 100]);
    let size_bytes = blocks * BLOCK as u64 - choices.pick(&[0, 1, 4095]);
    let mut layers: Vec<Layer> = Vec::new();
    let mut runs: Vec<Block> = Vec::new();
    let mut damage: Vec<Op> = Vec::new();
    while !choices.is_empty() && layers.len() < 8 {
        let op = choices.pick(&Op::ALL);
        match op {
            Op::Data | Op::Skip | Op::Zero => {
                let count = 1 + choices.below(20) as usize;
                for _ in 0..count.min(blocks as usize - runs.len()) {
                    runs.push(match op {
                        Op::Data => Some(1 + choices.below(255) as u8),
                        Op::Zero => Some(0),
                        _ => None,
                    });
                }
            }
            Op::Seal if !damage.is_empty() => break,
            Op::Seal => {
                layers.push(seal(
                    std::mem::take(&mut runs),
                    size_bytes,
                    layers.last(),
                    &mut choices,
                ));
            }
            op => {
                damage.push(op);
                if damage.len() > 10 {
                    break;
                }
                let Some(last) = layers.last_mut() else { continue };
                change(&mut last.file, op, &mut choices);
            }
        }
    }
    if damage.is_empty() {
        layers.push(seal(runs, size_bytes, layers.last(), &mut choices));
        check_stack(&layers);
    } else if let Some(last) = layers.last() {
        let read = open(&last.file).and_then(|(_, index)| blocks_of(&last.file, &index, blocks));
        if !damage.contains(&Op::Forge)
            && let Ok(read) = read
        {
            assert!(read == padded(&last.model, blocks), "damage was taken for something else");
        }
    }
}

/// The model of a layer with so many blocks.
fn padded(model: &[Block], blocks: u64) -> Vec<Block> {
    let mut model = model.to_vec();
    model.resize(blocks as usize, None);
    model
}

/// Makes a layer; each frame is stored as it is, or shorter: then a byte stands for each block, since the
/// codec is the driver's.
fn seal(model: Vec<Block>, size: u64, below: Option<&Layer>, choices: &mut Choices<'_>) -> Layer {
    let mut index = Index::default();
    let mut file = footer::header().to_vec();
    for (window, part) in model.chunks(WINDOW_BLOCKS as usize).enumerate() {
        let mut plain = Vec::new();
        for (position, block) in part.iter().enumerate() {
            let block_number = window as u64 * WINDOW_BLOCKS + position as u64;
            let content = match block {
                None => continue,
                Some(0) => Content::Zero,
                Some(byte) => {
                    plain.resize(plain.len() + BLOCK, *byte);
                    Content::Data
                }
            };
            index.push(Run { block: block_number, count: 1, content });
        }
        if plain.is_empty() {
            continue;
        }
        let checksum = CRC.checksum(&plain);
        let is_short = choices.below(4) == 3;
        if is_short {
            plain = plain.chunks(BLOCK).map(|block| block[0]).collect();
        }
        let codec = if is_short { Codec::Zstd } else { Codec::Raw };
        index.push_frame(window as u64, plain.len() as u32, codec, checksum);
        file.extend(plain);
    }
    let parent = below.map(|below| {
        let page = below.file.last_chunk().expect("a layer has a footer");
        let name = ["", "below.glass"][usize::from(choices.byte() % 2)].into();
        Parent { kind: ParentKind::Layer, id: footer::identity(page), bytes: size, name }
    });
    let note = vec![b' '; usize::from(choices.byte() % 3)];
    let about = About { number: [choices.byte(); 16], size_bytes: size, parent, note };
    let (tail, sealed, id) = index.seal(&about).expect("it is small");
    file.extend(tail);
    let (footer, parsed) = open(&file).expect("what was made can be read");
    assert!(parsed == index && footer == sealed);
    assert!(footer.encode()[..] == file[file.len() - FOOTER_BYTES..]);
    assert_eq!(footer::identity(&footer.encode()), id);
    let layer = Layer { model, file };
    let blocks = size.div_ceil(BLOCK as u64);
    let read = blocks_of(&layer.file, &index, blocks).expect("what was made is whole");
    assert!(read == padded(&layer.model, blocks), "what was written is not what is read");
    layer
}

/// What a driver does to open a layer.
fn open(file: &[u8]) -> Result<(Footer, Index), Damage> {
    let short = Damage { offset: 0, fault: Fault::Short };
    footer::check_header(file)?;
    let footer = Footer::parse(file.last_chunk().ok_or(short)?, file.len() as u64)?;
    let range = footer.sections();
    let sections = &file[range.start as usize..range.end as usize];
    let index = Index::parse(&footer, sections)?;
    assert!(index::note(&footer, sections).len() as u64 == footer.note.length);
    Ok((footer, index))
}

/// What a driver does to read a frame.
fn read_frame(file: &[u8], frame: &Frame) -> Result<Vec<u8>, Damage> {
    let (start, length) = (frame.offset as usize, frame.stored_bytes as usize);
    let stored = &file[start..start + length];
    let plain = match frame.codec {
        Codec::Raw => stored.to_vec(),
        Codec::Zstd => stored.iter().flat_map(|byte| [*byte; BLOCK]).collect(),
    };
    frame.check(CRC.checksum(&plain))?;
    Ok(plain)
}

/// What a layer says of the first so many blocks, all of it read.
fn blocks_of(file: &[u8], index: &Index, blocks: u64) -> Result<Vec<Block>, Damage> {
    let mut found = Vec::new();
    for window in 0..blocks.div_ceil(WINDOW_BLOCKS) {
        let masks = index.window(window);
        assert!(masks.data & masks.zero == 0);
        let plain = index.frame(window).map_or(Ok(Vec::new()), |frame| read_frame(file, frame))?;
        let mut packed = plain.chunks(BLOCK);
        for position in 0..WINDOW_BLOCKS {
            found.push(if masks.data & 1 << position != 0 {
                // A forged frame may be shorter than its blocks need, once it is unpacked.
                let block = packed.next().unwrap_or(&[0]);
                let is_damaged = block.iter().any(|byte| *byte != block[0]);
                if is_damaged { Some(0) } else { Some(block[0]) }
            } else {
                (masks.zero & 1 << position != 0).then_some(0)
            });
        }
    }
    found.truncate(blocks as usize);
    Ok(found)
}

/// Every block of the stack is from the topmost layer that has it.
fn check_stack(layers: &[Layer]) {
    let indexes: Vec<Index> =
        layers.iter().map(|layer| open(&layer.file).expect("it was whole before").1).collect();
    let stack = Stack::new(&indexes.iter().collect::<Vec<_>>());
    let blocks = layers.iter().map(|layer| layer.model.len()).max().unwrap_or_default();
    let mut found: Vec<Option<Origin>> = vec![None; blocks.next_multiple_of(16)];
    for window in 0..blocks.div_ceil(16) {
        for (origin, mask) in stack.window(window as u64) {
            for position in (0..16).filter(|position| mask & 1 << position != 0) {
                assert!(found[window * 16 + position].replace(origin).is_none());
            }
        }
    }
    for (block, found) in found.into_iter().enumerate() {
        let has = |layer: &Layer| layer.model.get(block).copied().flatten();
        let expected = layers.iter().enumerate().rev().find_map(|(layer, one)| {
            has(one).map(|byte| match byte {
                0 => Origin::Zero,
                _ => Origin::Layer(layer as u16),
            })
        });
        assert_eq!(found, expected, "block {block}");
    }
}

fn change(file: &mut Vec<u8>, op: Op, choices: &mut Choices<'_>) {
    let length = file.len() as u32;
    match op {
        Op::DamageEnd => {
            let at = choices.below(length.min(4800));
            file[(length - 1 - at) as usize] ^= choices.byte();
        }
        Op::Damage => {
            let at = choices.below(length) as usize;
            file[at] ^= choices.byte();
        }
        Op::Cut => {
            let left = length - choices.below(length.min(9000));
            file.truncate(left as usize);
        }
        Op::Extend => file.resize(file.len() + 1 + usize::from(choices.byte()), 0),
        _ => forge(file),
    }
    if file.is_empty() {
        file.push(0);
    }
}

/// Makes the checksums of the footer, and of the sections that it names, fit.
fn forge(file: &mut [u8]) {
    let Some(at) = file.len().checked_sub(FOOTER_BYTES) else { return };
    let (front, footer) = file.split_at_mut(at);
    for position in 0..3 {
        let entry = &mut footer[128 + position * 64..][..64];
        let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight"));
        let (start, length) = (number(0), number(8));
        let end = start.saturating_add(length);
        if let Some(section) = front.get(start as usize..end as usize) {
            entry[32..].copy_from_slice(&Sha256::digest(section));
        }
    }
    let checksum = CRC.checksum(&footer[..FOOTER_BYTES - 4]);
    footer[FOOTER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
}

/// Parsers take any bytes; and what they take for whole, they would write in the same way.
fn parse_anything(bytes: &[u8]) {
    let mut page = [0; FOOTER_BYTES];
    let length = bytes.len().min(FOOTER_BYTES);
    page[..length].copy_from_slice(&bytes[..length]);
    forge(&mut page);
    let file_bytes = u64::from_le_bytes(page[104..112].try_into().expect("eight"));
    if let Ok(footer) = Footer::parse(&page, file_bytes) {
        assert!(footer.encode() == page);
        let range = footer.sections();
        assert!(range.start <= range.end && range.end + FOOTER_BYTES as u64 == file_bytes);
    }
    let _ = footer::check_header(bytes);
    let _ = footer::is_layer(bytes, bytes);
}
