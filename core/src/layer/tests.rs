use std::vec;
use std::vec::Vec;

use super::footer::{self, FOOTER_BYTES, Footer, Parent, ParentKind};
use super::index::{self, About, Codec, Content, Index, Run, Window};
use super::stack::{Origin, Stack};
use super::*;

const PARENT: [u8; 32] = [8; 32];

fn about(size_bytes: u64) -> About {
    let name = "base.img".into();
    let parent = Parent { kind: ParentKind::Image, id: PARENT, bytes: 5000, name };
    About { number: [7; 16], size_bytes, parent: Some(parent), note: b"{}".to_vec() }
}

fn data(block: u64, count: u64) -> Run {
    Run { block, count, content: Content::Data }
}

fn zero(block: u64, count: u64) -> Run {
    Run { block, count, content: Content::Zero }
}

/// Blocks 3 to 33 in three frames, but for 5 and 6, which are zero; and the last one, of one byte.
fn sample() -> (Index, Vec<u8>) {
    let mut index = Index::default();
    for run in [data(3, 2), zero(5, 2), data(7, 20), data(27, 7), data(99, 1), zero(100, 1)] {
        index.push(run);
    }
    for (window, blocks, codec) in
        [(0, 11, Codec::Raw), (1, 16, Codec::Zstd), (2, 2, Codec::Raw), (6, 1, Codec::Raw)]
    {
        let bytes = if codec == Codec::Raw { blocks * 4096 } else { 100 };
        index.push_frame(window, bytes, codec, 9);
    }
    let mut file = footer::header().to_vec();
    file.resize(index.frames_end() as usize, 1);
    let (tail, ..) = index.seal(&about(100 * 4096 + 1)).unwrap();
    file.extend(tail);
    (index, file)
}

/// What a driver does to open a file.
fn open(file: &[u8]) -> Result<(Footer, Index, Vec<u8>), Damage> {
    footer::check_header(file)?;
    let length = file.len() as u64;
    let Some(page) = file.last_chunk::<FOOTER_BYTES>() else {
        return Err(Damage { offset: 0, fault: Fault::Short });
    };
    let footer = Footer::parse(page, length)?;
    let range = footer.sections();
    let sections = &file[range.start as usize..range.end as usize];
    let index = Index::parse(&footer, sections)?;
    let note = index::note(&footer, sections).to_vec();
    Ok((footer, index, note))
}

#[test]
fn a_layer_reads_as_it_was_written() {
    let (written, file) = sample();
    let (footer, index, note) = open(&file).unwrap();
    assert_eq!(index, written);
    assert_eq!(note, b"{}");
    assert_eq!((footer.data_blocks, footer.zero_blocks, footer.frames), (30, 3, 4));
    assert_eq!(footer.parent, about(1).parent);
    assert_eq!(index.window(0), Window { data: 0xff98, zero: 0x60 });
    assert_eq!(index.window(1), Window { data: 0xffff, zero: 0 });
    assert_eq!(index.window(2), Window { data: 3, zero: 0 });
    assert_eq!(index.window(3), Window::default());
    assert_eq!(index.window(6), Window { data: 8, zero: 16 });
    assert_eq!(index.frame(1).unwrap().offset, 4096 + 11 * 4096);
    assert_eq!(index.frame(5), None);
    assert!(footer::is_layer(&file, &[]) && footer::is_layer(&[], &file[file.len() - 4096..]));
}

#[test]
fn no_bit_outside_the_frames_may_change() {
    let (index, file) = sample();
    let end = index.frames_end() as usize;
    for byte in (0..FOOTER_BYTES).chain(end..file.len()) {
        let mut damaged = file.clone();
        damaged[byte] ^= 1 << (byte % 8);
        let damage = open(&damaged).unwrap_err();
        assert!(damage.offset <= file.len() as u64, "{damage}");
    }
}

#[test]
fn a_file_cut_short_or_extended_is_named_so() {
    let (_, file) = sample();
    for cut in [1, 100, 4096, 5000, file.len() - 4096] {
        let damage = open(&file[..file.len() - cut]).unwrap_err();
        assert_eq!(damage.fault, Fault::NoFooter, "{cut}");
    }
    assert_eq!(open(&file[..4095]).unwrap_err().fault, Fault::Short);
    assert_eq!(open(&[&file[..], &[0]].concat()).unwrap_err().fault, Fault::NoFooter);
    // A page less, or more, between the frames and the end.
    let (front, back) = file.split_at(8192);
    let damage = open(&[front, &[1; 4096], back].concat()).unwrap_err();
    assert_eq!(damage.fault, Fault::FileLength(file.len() as u64));
    assert_eq!(damage.offset, file.len() as u64 + 104);
}

/// The footer of the sample, changed and with its checksum made to fit.
fn refused(change: impl FnOnce(&mut [u8])) -> Fault {
    let (_, mut file) = sample();
    let at = file.len() - FOOTER_BYTES;
    change(&mut file[at..]);
    let checksum = crc32c::crc32c(&file[at..at + 4092]);
    file[at + 4092..].copy_from_slice(&checksum.to_le_bytes());
    open(&file).unwrap_err().fault
}

#[test]
fn what_a_footer_may_not_say_is_refused() {
    assert_eq!(refused(|footer| footer[8] = 2), Fault::Version(2));
    assert_eq!(refused(|footer| footer[13] = 0), Fault::BlockSize(0));
    assert_eq!(refused(|footer| footer[10] = 3), Fault::Kind);
    assert_eq!(refused(|footer| footer[10] = 0), Fault::Reserved);
    assert_eq!(refused(|footer| footer[11] = 3), Fault::Reserved);
    assert_eq!(refused(|footer| footer[320] = b'/'), Fault::Name);
    assert_eq!(refused(|footer| footer[4091] = 1), Fault::Reserved);
    assert_eq!(refused(|footer| footer[112] = 4), Fault::Kind);
    assert_eq!(refused(|footer| footer[128 + 16] = 9), Fault::Kind);
    assert_eq!(refused(|footer| footer[128 + 7] = 255), Fault::Place);
    assert_eq!(refused(|footer| footer[128 + 15] = 255), Fault::Place);
    assert_eq!(refused(|footer| footer[39] = 255), Fault::Range);
    assert_eq!(refused(|footer| footer[46] = 255), Fault::Range);
    assert_eq!(refused(|footer| footer[80] += 1), Fault::Count);
    assert_eq!(refused(|footer| footer[96] += 1), Fault::Count);
    assert_eq!(refused(|footer| footer[160] += 1), Fault::Checksum);
    // One block fewer: then the last run lies beyond the end.
    assert_eq!(refused(|footer| footer[32] = 0), Fault::Range);
}

#[test]
fn what_an_index_may_not_say_is_refused() {
    let refused = |runs: &[(u64, u64, u8)], frames: &[(u32, u8)]| {
        let mut bytes = Vec::new();
        for (block, count, kind) in runs {
            bytes.extend((block | u64::from(*kind) << 40).to_le_bytes());
            bytes.extend(count.to_le_bytes());
        }
        let index_bytes = bytes.len() as u64;
        for (stored, codec) in frames {
            bytes.extend((stored | u32::from(*codec) << 24).to_le_bytes());
            bytes.extend([0; 4]);
        }
        let sum = |kind| runs.iter().filter(|run| run.2 == kind).map(|run| run.1).sum();
        let stored: u64 = frames.iter().map(|frame| u64::from(frame.0)).sum();
        let mut offset = 4096 + stored;
        let mut at = 0;
        let mut section = |length: u64| {
            use sha2::Digest;
            let digest = sha2::Sha256::digest(&bytes[at..at + length as usize]).into();
            let section = footer::Section { offset, length, digest };
            (offset, at) = (offset + length, at + length as usize);
            section
        };
        let footer = Footer {
            number: [0; 16],
            size_bytes: 100 * 4096,
            parent: None,
            data_blocks: sum(1),
            zero_blocks: sum(2),
            frames: frames.len() as u64,
            index: section(index_bytes),
            table: section(frames.len() as u64 * 8),
            note: section(0),
        };
        Index::parse(&footer, &bytes).err().map(|damage| damage.fault)
    };
    assert_eq!(refused(&[(0, 2, 1), (2, 1, 2)], &[(8192, 0)]), None);
    assert_eq!(refused(&[(0, 2, 3)], &[]), Some(Fault::Kind));
    assert_eq!(refused(&[(0, 0, 2)], &[]), Some(Fault::Range));
    assert_eq!(refused(&[(99, 2, 2)], &[]), Some(Fault::Range));
    assert_eq!(refused(&[(1, u64::MAX, 2)], &[]), Some(Fault::Range));
    assert_eq!(refused(&[(5, 1, 2), (4, 1, 2)], &[]), Some(Fault::Order));
    assert_eq!(refused(&[(5, 2, 2), (6, 1, 1)], &[(4096, 0)]), Some(Fault::Order));
    assert_eq!(refused(&[(5, 1, 2), (6, 1, 2)], &[]), Some(Fault::Order));
    assert_eq!(refused(&[(0, 1, 1)], &[]), Some(Fault::Count));
    assert_eq!(refused(&[(0, 1, 2)], &[(4096, 0)]), Some(Fault::Count));
    assert_eq!(refused(&[(0, 1, 1)], &[(4096, 2)]), Some(Fault::Kind));
    assert_eq!(refused(&[(0, 1, 1)], &[(8192, 0)]), Some(Fault::FrameLength));
    assert_eq!(refused(&[(0, 1, 1)], &[(4096, 1)]), Some(Fault::FrameLength));
    assert_eq!(refused(&[(0, 1, 1)], &[(0, 1)]), Some(Fault::FrameLength));
}

#[test]
fn a_name_is_a_file_name() {
    for name in ["", "a", "a b.glass", "..a", "ä"] {
        assert!(footer::is_file_name(name), "{name}");
    }
    for name in ["a/b", "/", ".", "..", "a\0"] {
        assert!(!footer::is_file_name(name), "{name}");
    }
    assert!(!footer::is_file_name(&"a".repeat(256)));
}

#[test]
fn the_topmost_layer_that_has_a_block_counts() {
    const BLOCKS: u64 = 90;
    let mut state = 1u64;
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for depth in 0..12u16 {
        let mut model = vec![None; BLOCKS as usize];
        let mut layers = Vec::new();
        for layer in 0..depth {
            let mut index = Index::default();
            let mut block = 0;
            loop {
                block += draw(20);
                let count = 1 + draw(20);
                if block + count > BLOCKS {
                    break;
                }
                let content = if draw(3) == 0 { Content::Zero } else { Content::Data };
                index.push(Run { block, count, content });
                let origin = match content {
                    Content::Data => Origin::Layer(layer),
                    Content::Zero => Origin::Zero,
                };
                model[block as usize..(block + count) as usize].fill(Some(origin));
                block += count;
            }
            layers.push(index);
        }
        let stack = Stack::new(&layers.iter().collect::<Vec<_>>());
        let mut found = vec![None; BLOCKS.next_multiple_of(WINDOW_BLOCKS) as usize];
        for window in 0..BLOCKS.div_ceil(WINDOW_BLOCKS) {
            for (origin, mask) in stack.window(window) {
                for block in (0..16).filter(|block| mask & 1 << block != 0) {
                    let before = found[(window * 16 + block) as usize].replace(origin);
                    assert_eq!(before, None, "a block has one origin");
                }
            }
        }
        assert_eq!(found[..BLOCKS as usize], model);
        for pair in stack.pieces().windows(2) {
            assert!(pair[0].end() <= pair[1].block, "in order");
            assert!(pair[0].end() < pair[1].block || pair[0].origin != pair[1].origin, "joined");
        }
    }
}
