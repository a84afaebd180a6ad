use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use sha2::{Digest, Sha256};

use super::footer::{self, FOOTER_BYTES, Footer, Parent, ParentKind, Section};
use super::index::{self, About, Codec, Content, Index, Run, Window};
use super::stack::{Origin, Stack};
use super::*;
use crate::error::tests::assert_words_of_their_own;
use crate::limits::DEVICE_BYTES_MAX;

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
    assert_eq!((WINDOW_BYTES, footer::SUFFIX_BYTES), (65_536, 262_144));
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

/// The damage that opening the sample finds when its footer is changed and has a checksum that fits.
fn refused(change: impl FnOnce(&mut [u8])) -> Damage {
    let (_, mut file) = sample();
    let footer = file.last_chunk_mut::<FOOTER_BYTES>().unwrap();
    change(footer);
    fit_checksum(footer);
    open(&file).unwrap_err()
}

fn fit_checksum(footer: &mut [u8; FOOTER_BYTES]) {
    let checksum = crc32c::crc32c(&footer[..4092]);
    footer[4092..].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn what_a_footer_may_not_say_is_refused() {
    let (index, file) = sample();
    let at = |offset: usize, fault| {
        let offset = (file.len() - FOOTER_BYTES + offset) as u64;
        Damage { offset, fault }
    };
    assert_eq!(refused(|footer| footer[8] = 2), at(8, Fault::Version(2)));
    assert_eq!(refused(|footer| footer[13] = 0), at(12, Fault::BlockSize(0)));
    assert_eq!(refused(|footer| footer[10] = 3), at(10, Fault::Kind));
    assert_eq!(refused(|footer| footer[10] = 0), at(40, Fault::Reserved));
    assert_eq!(refused(|footer| footer[11] = 3), at(320, Fault::Reserved));
    assert_eq!(refused(|footer| footer[320] = b'/'), at(320, Fault::Name));
    assert_eq!(refused(|footer| footer[320] = 255), at(320, Fault::Name));
    for reserved in [116, 127, 575, 4091] {
        assert_eq!(refused(|footer| footer[reserved] = 1), at(reserved, Fault::Reserved));
    }
    assert_eq!(refused(|footer| footer[112] = 4), at(112, Fault::Kind));
    for section in [128, 192, 256] {
        assert_eq!(refused(|footer| footer[section + 16] = 9), at(section + 16, Fault::Kind));
        assert_eq!(refused(|footer| footer[section + 17] = 1), at(section + 17, Fault::Reserved));
        assert_eq!(refused(|footer| footer[section + 31] = 1), at(section + 17, Fault::Reserved));
        assert_eq!(refused(|footer| footer[section + 7] = 255), at(section, Fault::Place));
        assert_eq!(refused(|footer| footer[section + 15] = 255), at(section, Fault::Place));
    }
    assert_eq!(refused(|footer| footer[39] = 255), at(32, Fault::Range));
    assert_eq!(refused(|footer| footer[46] = 255), at(40, Fault::Range));
    assert_eq!(refused(|footer| footer[96] += 1), at(96, Fault::Count));
    // What only the sections can tell.
    let begin = index.frames_end();
    let damage = |offset, fault| Damage { offset, fault };
    assert_eq!(refused(|footer| footer[80] += 1), damage(begin, Fault::Count));
    assert_eq!(refused(|footer| footer[160] += 1), damage(begin, Fault::Checksum));
    // One block fewer: then the last run lies beyond the end.
    let last_run = begin + 16 * (index.runs().len() as u64 - 1);
    assert_eq!(refused(|footer| footer[32] = 0), damage(last_run, Fault::Range));
}

/// A footer of a layer of nearly nothing: one frame, one run, a note of two bytes.
fn small() -> Footer {
    let section = |offset, length| Section { offset, length, digest: [0; 32] };
    let About { number, parent, .. } = about(5000);
    Footer {
        number,
        size_bytes: 5000,
        parent,
        data_blocks: 1,
        zero_blocks: 0,
        frames: 1,
        index: section(4096, 16),
        table: section(4112, 8),
        note: section(4120, 2),
    }
}

/// What is wrong with a changed footer that says it fits: where in the footer, and what. None if nothing.
fn judged(change: impl FnOnce(&mut Footer)) -> Option<(u64, Fault)> {
    let mut footer = small();
    change(&mut footer);
    let parsed = Footer::parse(&footer.encode(), footer.file_bytes());
    match parsed {
        Ok(parsed) => {
            assert_eq!(parsed, footer);
            None
        }
        Err(damage) => Some((damage.offset - footer.note.end(), damage.fault)),
    }
}

/// Lays the sections of a footer side by side again.
fn close_up(footer: &mut Footer) {
    footer.table.offset = footer.index.end();
    footer.note.offset = footer.table.end();
}

#[test]
fn every_bound_of_a_footer_is_where_it_is_said_to_be() {
    let parent = |footer: &mut Footer| footer.parent.take().unwrap();
    assert_eq!(judged(|_| ()), None);
    assert_eq!(judged(|footer| footer.size_bytes = DEVICE_BYTES_MAX), None);
    assert_eq!(judged(|footer| footer.size_bytes = DEVICE_BYTES_MAX + 1), Some((32, Fault::Range)));
    assert_eq!(
        judged(|footer| {
            footer.parent = None;
            footer.size_bytes = 0;
        }),
        Some((32, Fault::Range))
    );
    assert_eq!(judged(|footer| footer.size_bytes = 4999), Some((40, Fault::Range)));
    assert_eq!(judged(|footer| footer.parent = None), None);
    for (bytes, found) in [(0, Some((40, Fault::Range))), (1, None)] {
        assert_eq!(
            judged(|footer| footer.parent = Some(Parent { bytes, ..parent(footer) })),
            found
        );
    }
    for name in ["a".repeat(255), String::new()] {
        assert_eq!(judged(|footer| footer.parent = Some(Parent { name, ..parent(footer) })), None);
    }
    let kind = ParentKind::Layer;
    assert_eq!(judged(|footer| footer.parent = Some(Parent { kind, ..parent(footer) })), None);

    // The sections lie side by side between the header and the footer.
    for (change, found) in [
        ((|footer| footer.index.offset -= 1) as fn(&mut Footer), Some((128, Fault::Place))),
        (|footer| footer.index.offset += 1, None),
        (|footer| footer.note.length = 0, None),
    ] {
        let change = |footer: &mut Footer| {
            change(footer);
            close_up(footer);
        };
        assert_eq!(judged(change), found);
    }
    for gap in [1, 2] {
        let change = |footer: &mut Footer| {
            footer.note.offset += 1;
            footer.table.offset += gap - 1;
        };
        assert_eq!(judged(change), Some((128, Fault::Place)), "{gap}");
    }
    let longer = small().file_bytes() + 1;
    let mut page = small().encode();
    page[104..112].copy_from_slice(&longer.to_le_bytes());
    fit_checksum(&mut page);
    let offset = longer - FOOTER_BYTES as u64 + 128;
    assert_eq!(Footer::parse(&page, longer), Err(Damage { offset, fault: Fault::Place }));
    let longer = small().note.end() + 1 - small().table.offset;
    assert_eq!(judged(|footer| footer.table.length = longer), Some((192, Fault::Place)));

    // Sections are of whole entries, and no longer than they may be.
    for (index, table, note, found) in [
        (1 << 30, 8, 2, None),
        ((1 << 30) + 16, 8, 2, Some((128, Fault::Range))),
        (17, 8, 2, Some((128, Fault::Range))),
        (16, 1 << 30, 2, None),
        (16, (1 << 30) + 8, 2, Some((128, Fault::Range))),
        (16, 8, 64 << 10, None),
        (16, 8, (64 << 10) + 1, Some((128, Fault::Range))),
        (16, 9, 2, Some((96, Fault::Count))),
    ] {
        let change = |footer: &mut Footer| {
            (footer.index.length, footer.table.length, footer.note.length) = (index, table, note);
            footer.frames = table / 8;
            close_up(footer);
        };
        assert_eq!(judged(change), found, "{index} {table} {note}");
    }
    assert_eq!(judged(|footer| footer.frames = 2), Some((96, Fault::Count)));
}

#[test]
fn no_parent_is_nothing_at_all() {
    let page = Footer { parent: None, ..small() }.encode();
    for at in [11, 40, 47, 48, 79] {
        let mut page = page;
        // A name of one byte needs the byte, too.
        page[at] = 1;
        page[320] = u8::from(at == 11);
        fit_checksum(&mut page);
        let damage = Footer::parse(&page, small().file_bytes()).unwrap_err();
        assert_eq!(damage, Damage { offset: small().note.end() + 40, fault: Fault::Reserved });
    }
}

#[test]
fn a_header_is_checked_to_its_last_byte() {
    let refused = |at: usize| {
        let mut header = footer::header();
        header[at] ^= 1;
        footer::check_header(&header).unwrap_err()
    };
    assert_eq!(footer::check_header(&footer::header()), Ok(()));
    assert_eq!(refused(7), Damage { offset: 0, fault: Fault::Header });
    assert_eq!(refused(8), Damage { offset: 8, fault: Fault::Version(0) });
    for at in [10, 12, 4095] {
        assert_eq!(refused(at), Damage { offset: at as u64, fault: Fault::Reserved });
    }
    assert_eq!(footer::check_header(&[]), Err(Damage { offset: 0, fault: Fault::Short }));
    assert!(!footer::is_layer(b"GLASSLY", b"LAYERFT"));
}

#[test]
fn an_identity_is_the_hash_of_the_footer() {
    let (index, file) = sample();
    let (_, footer, identity) = index.seal(&about(100 * 4096 + 1)).unwrap();
    let page = file.last_chunk().unwrap();
    assert_eq!(footer.encode(), *page);
    assert_eq!(identity, <[u8; 32]>::from(Sha256::digest(page)));
    assert_eq!(footer::identity(page), identity);
}

/// Where damage shows in the sections.
#[derive(Debug, PartialEq)]
enum At {
    Run(u64),
    Frame(u64),
}

/// What is wrong with sections of such runs (block, count, kind) and frames (stored bytes, codec), with so many bytes
/// between the frames and the sections, where there should be none.
fn judged_index(
    runs: &[(u64, u64, u8)],
    frames: &[(u32, u8)],
    gap: i64,
) -> Result<Index, (At, Fault)> {
    let mut bytes = Vec::new();
    for (block, count, kind) in runs {
        bytes.extend((block | u64::from(*kind) << 40).to_le_bytes());
        bytes.extend(count.to_le_bytes());
    }
    for (stored, codec) in frames {
        bytes.extend((stored | u32::from(*codec) << 24).to_le_bytes());
        bytes.extend([6; 4]);
    }
    let of = |kind| runs.iter().filter(move |run| run.2 == kind).map(|run| run.1);
    let sum = |kind| of(kind).fold(0, u64::wrapping_add);
    let stored: u64 = frames.iter().map(|frame| u64::from(frame.0)).sum();
    let mut offset = (4096 + stored).strict_add_signed(gap);
    let mut at = 0;
    let mut section = |length: u64| {
        let digest = Sha256::digest(&bytes[at..at + length as usize]).into();
        let section = Section { offset, length, digest };
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
        index: section(runs.len() as u64 * 16),
        table: section(frames.len() as u64 * 8),
        note: section(0),
    };
    Index::parse(&footer, &bytes).map_err(|damage| {
        let (section, bytes, at) = if damage.offset < footer.table.offset {
            (&footer.index, 16, At::Run as fn(u64) -> At)
        } else {
            (&footer.table, 8, At::Frame as fn(u64) -> At)
        };
        let behind = damage.offset - section.offset;
        assert!(behind.is_multiple_of(bytes));
        (at(behind / bytes), damage.fault)
    })
}

#[test]
fn what_an_index_may_not_say_is_refused() {
    let refused = |runs: &[_], frames: &[_]| judged_index(runs, frames, 0).err();
    assert_eq!(refused(&[(0, 2, 1), (2, 1, 2)], &[(8192, 0)]), None);
    for kind in [0, 3] {
        assert_eq!(refused(&[(0, 2, 2), (2, 1, kind)], &[]), Some((At::Run(1), Fault::Kind)));
    }
    for (block, count) in [(5, 0), (99, 2), (100, 1), (101, 1), (5, u64::MAX)] {
        let found = refused(&[(0, 1, 2), (block, count, 2)], &[]);
        assert_eq!(found, Some((At::Run(1), Fault::Range)), "{block} {count}");
    }
    assert_eq!(refused(&[(0, 1, 2), (99, 1, 2)], &[]), None);
    assert_eq!(refused(&[(5, 1, 2), (4, 1, 2)], &[]), Some((At::Run(1), Fault::Order)));
    assert_eq!(refused(&[(5, 2, 2), (6, 1, 1)], &[(4096, 0)]), Some((At::Run(1), Fault::Order)));
    assert_eq!(refused(&[(4, 1, 1), (5, 1, 2), (6, 1, 2)], &[]), Some((At::Run(2), Fault::Order)));
    assert_eq!(refused(&[(0, 1, 1)], &[]), Some((At::Frame(0), Fault::Count)));
    assert_eq!(refused(&[(0, 17, 1)], &[(65536, 0)]), Some((At::Frame(1), Fault::Count)));
    assert_eq!(refused(&[(0, 1, 2)], &[(4096, 0)]), Some((At::Frame(0), Fault::Count)));
    assert_eq!(refused(&[(0, 1, 1)], &[(4096, 0), (0, 1)]), Some((At::Frame(0), Fault::Count)));
    for (frame, fault) in [
        ((4096, 2), Fault::Kind),
        ((8192, 0), Fault::FrameLength),
        ((4095, 0), Fault::FrameLength),
        ((4096, 1), Fault::FrameLength),
        ((0, 1), Fault::FrameLength),
    ] {
        let found = refused(&[(0, 17, 1)], &[(65536, 0), frame]);
        assert_eq!(found, Some((At::Frame(1), fault)), "{frame:?}");
    }
    for stored in [1, 4095] {
        assert_eq!(refused(&[(0, 1, 1)], &[(stored, 1)]), None);
    }
}

#[test]
fn frames_lie_side_by_side_up_to_the_index() {
    let runs = [(0, 17, 1), (99, 1, 1)];
    let frames = [(100, 1), (4096, 0), (7, 1)];
    let index = judged_index(&runs, &frames, 0).unwrap();
    let frame = |window, offset, stored_bytes, codec| index::Frame {
        window,
        offset,
        stored_bytes,
        codec,
        checksum: 0x0606_0606,
    };
    let expected = [
        frame(0, 4096, 100, Codec::Zstd),
        frame(1, 4196, 4096, Codec::Raw),
        frame(6, 8292, 7, Codec::Zstd),
    ];
    assert_eq!(index.frames(), expected);
    assert_eq!(index.frames_end(), 8299);
    assert_eq!(judged_index(&runs, &frames, -1), Err((At::Frame(2), Fault::FrameLength)));
    assert_eq!(judged_index(&runs, &frames, 1), Err((At::Frame(0), Fault::Count)));
    let fault = Damage { offset: 4196, fault: Fault::Checksum };
    assert_eq!(expected[1].check(0x0606_0606), Ok(()));
    assert_eq!(expected[1].check(0), Err(fault));
}

#[test]
fn sections_are_complete_and_as_they_were_sealed() {
    let (index, file) = sample();
    let (tail, footer, _) = index.seal(&about(100 * 4096 + 1)).unwrap();
    let sections = &tail[..tail.len() - FOOTER_BYTES];
    assert_eq!(file[file.len() - tail.len()..], tail);
    let short = Err(Damage { offset: footer.index.offset, fault: Fault::Short });
    assert_eq!(Index::parse(&footer, &sections[1..]), short);
    assert_eq!(Index::parse(&footer, &tail[..=sections.len()]), short);
    for section in [footer.index, footer.table, footer.note] {
        let mut sections = sections.to_vec();
        sections[(section.offset - footer.index.offset) as usize] ^= 1;
        let damage = Damage { offset: section.offset, fault: Fault::Checksum };
        assert_eq!(Index::parse(&footer, &sections), Err(damage));
    }
    for (bytes, is_sealed) in [(64 << 10, true), ((64 << 10) + 1, false)] {
        let sealed = index.seal(&About { note: vec![b' '; bytes], ..about(5000) });
        assert_eq!(sealed.is_ok(), is_sealed);
    }
}

#[test]
fn every_damage_has_words_of_its_own() {
    let faults = [
        Fault::Short,
        Fault::Header,
        Fault::NoFooter,
        Fault::Version(3),
        Fault::BlockSize(3),
        Fault::Checksum,
        Fault::Reserved,
        Fault::FileLength(3),
        Fault::Range,
        Fault::Kind,
        Fault::Place,
        Fault::Name,
        Fault::Order,
        Fault::Count,
        Fault::FrameLength,
    ];
    assert_words_of_their_own(&faults.map(|fault| Damage { offset: 7, fault }));
    let text = Damage { offset: 7, fault: Fault::Kind }.to_string();
    assert!(text.ends_with("unknown kind (byte 7)"), "{text}");
    assert!(index::TooLarge.to_string().contains("64 KiB"));
    assert_eq!(Hex(&[0x0a; 32]).to_string(), "0a".repeat(32));
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
        assert!(stack.pieces().iter().all(|piece| piece.count > 0));
        let covered: u64 = stack.pieces().iter().map(|piece| piece.count).sum();
        assert_eq!(covered, model.iter().flatten().count() as u64);
        for pair in stack.pieces().windows(2) {
            assert!(pair[0].end() <= pair[1].block, "in order");
            assert!(pair[0].end() < pair[1].block || pair[0].origin != pair[1].origin, "joined");
        }
    }
}
