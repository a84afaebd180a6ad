//! What recovery makes of files, and which it refuses.

use super::*;
use crate::journal::frame::tests::buffer_of;
use crate::journal::frame::{self, FrameHeader, FrameKind};
use crate::journal::superblock::Superblock;

/// Two records; answers the files, and the length of the first.
fn two_records() -> (Files, usize) {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    for blocks in [0..4, 100..101] {
        files.change(&mut overlay, &written(blocks));
        overlay.flush();
        files.work(&mut overlay);
    }
    (files, PAGE_BYTES)
}

#[test]
fn a_torn_last_record_is_cut_and_a_hole_before_the_last_is_a_refusal() {
    let (files, length) = two_records();
    let mut torn = files.clone();
    torn.file(JournalFile::Segment(false))[length + 70] ^= 1;
    let (overlay, report) = torn.recover().unwrap();
    assert_eq!((report.records, report.cut), (1, true));
    assert_eq!(overlay.entry(100), Entry::Template);
    let mut holed = files.clone();
    holed.file(JournalFile::Segment(false))[70] ^= 1;
    let damage = Damage::Hole { next: length as u64 };
    let refusal = Refusal::Damaged { file: JournalFile::Segment(false), offset: 0, damage };
    assert_eq!(holed.recover().unwrap_err(), refusal);
    let text = "journal.0: damaged at byte 0: no whole record is here, but there is one behind it, \
                at byte 4096";
    assert_eq!(std::format!("{refusal}"), text);
}

/// Found by fuzzing: a record that the checkpoint had half of was taken for one that a crash cut.
#[test]
fn the_records_that_a_checkpoint_needs_must_be_there_be_they_the_last() {
    let segment = JournalFile::Segment(true);
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    let write = |files: &mut Files, overlay: &mut Overlay, blocks| {
        files.change(overlay, &written(blocks));
        overlay.flush();
        files.work_on_barriers(overlay);
    };
    while !overlay.is_checkpointing() {
        write(&mut files, &mut overlay, 0..1);
    }
    write(&mut files, &mut overlay, 100..101);
    // Both records are in the checkpoint that is begun again; the one that comes then is not.
    let (mut overlay, report) = files.recover().unwrap();
    assert_eq!(report.generation, 0);
    files.work(&mut overlay);
    let newest = Superblock::newest(files.file(JournalFile::Superblock)).unwrap();
    assert_eq!((newest.generation, newest.needs), (1, newest.number + 2));
    for (there, damaged) in [(0, 0), (PAGE_BYTES, PAGE_BYTES), (PAGE_BYTES, 2 * PAGE_BYTES - 1)] {
        let mut files = files.clone();
        files.file(segment)[there..].fill(0);
        files.file(segment)[damaged] ^= 1;
        let damage = Damage::Missing;
        let refusal = Refusal::Damaged { file: segment, offset: there as u64, damage };
        assert_eq!(files.recover().unwrap_err(), refusal);
        let text = std::format!(
            "journal.1: damaged at byte {there}: no whole record is here, but the checkpoint needs one"
        );
        assert_eq!(std::format!("{refusal}"), text);
    }
    let before = map_of(&overlay);
    write(&mut files, &mut overlay, 200..201);
    files.file(segment)[2 * PAGE_BYTES + 70] ^= 1;
    let (overlay, report) = files.recover().unwrap();
    assert_eq!((report.generation, report.records, report.cut), (1, 2, true));
    assert!(map_of(&overlay) == before);
}

#[test]
fn recovery_writes_the_last_record_and_both_superblocks_once_more() {
    let (mut files, length) = two_records();
    let before = files.files.clone();
    let mut recovery = Recovery::new(config(), [7; 32], files.data.len() as u32, limits());
    let mut written = Vec::new();
    while let Some(step) = recovery.poll() {
        let mut read = Vec::new();
        match step {
            Step::Read { file, .. } => read = files.file(file).clone(),
            Step::Write { file, offset, bytes } => {
                assert!(before[&file][offset as usize..].starts_with(&bytes), "as it was");
                written.push((file, offset, bytes.len()));
            }
            Step::Sync { file } => assert_eq!(file, written.last().unwrap().0),
            Step::WriteData { .. } => unreachable!("nothing is carried"),
        }
        recovery.handle(Ok(&read)).unwrap();
    }
    let record = (JournalFile::Segment(false), length as u64, PAGE_BYTES);
    assert_eq!(written, [(JournalFile::Superblock, 0, 2 * PAGE_BYTES), record]);
}

#[test]
fn every_refusal_says_what_is_wrong_and_where() {
    let (files, _) = two_records();
    let refusal = |change: &dyn Fn(&mut Files)| {
        let mut files = files.clone();
        change(&mut files);
        files.recover().map(|_| ()).unwrap_err()
    };
    let damaged = |file, offset, damage| Refusal::Damaged { file, offset, damage };
    let checkpoint = JournalFile::Checkpoint(false);
    let checksum = Damage::Frame(FrameError::Checksum);
    assert_eq!(
        refusal(&|files| files.file(JournalFile::Superblock)[500] = 1),
        Refusal::Superblock(SuperblockError::Checksum)
    );
    assert_eq!(
        refusal(&|files| files.file(checkpoint)[4095] = 1),
        damaged(checkpoint, 0, checksum)
    );
    assert_eq!(
        refusal(&|files| files.file(checkpoint).clear()),
        damaged(checkpoint, 0, Damage::Frame(FrameError::Short))
    );
    assert_eq!(
        refusal(&|files| files.file(JournalFile::Segment(true)).truncate(5)),
        damaged(JournalFile::Segment(true), 5, Damage::Frame(FrameError::Short))
    );
    assert_eq!(
        refusal(&|files| files.data.truncate(2)),
        Refusal::DataShort { needed: 5, there: 2 }
    );
    let other = files.clone();
    let mut recovery = Recovery::new(config(), [8; 32], 16, limits());
    assert_eq!(recovery.handle(Ok(&other.files[&JournalFile::Superblock])), Err(Refusal::Template));
    let mut recovery = Recovery::new(config(), [7; 32], 16, limits());
    let storage = Refusal::Storage { file: JournalFile::Superblock, error: Errno::Io };
    assert_eq!(recovery.handle(Err(Errno::Io)), Err(storage));
}

#[test]
fn records_of_a_segments_previous_life_do_not_count() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    while overlay.generation() < 3 {
        files.change(&mut overlay, &written(0..1));
        overlay.flush();
        files.work(&mut overlay);
    }
    let segment = files.file(JournalFile::Segment(true));
    let pages = segment.chunks(PAGE_BYTES).filter_map(|page| Frame::parse(page).ok());
    let lives: Vec<_> = pages.map(|frame| frame.header.generation).collect();
    assert!(lives.contains(&1) && lives.contains(&3), "{lives:?}");
    let (again, _) = files.recover().unwrap();
    assert!(map_of(&again) == map_of(&overlay));
}

#[test]
fn a_name_for_each_file() {
    let names = JournalFile::ALL.map(|file| std::format!("{file}"));
    assert_eq!(names, ["superblock", "checkpoint.0", "checkpoint.1", "journal.0", "journal.1"]);
}

const HEADER: FrameHeader =
    FrameHeader { kind: FrameKind::Section, sheet: 4711, generation: 0, number: 0, chain: 0 };

fn slots(block: u64, count: u64, first: u32) -> frame::Entry {
    frame::Entry { block, count, content: Content::Slots(SlotId(first)) }
}

/// A frame, and its checksum.
fn frame(header: FrameHeader, entries: &[frame::Entry]) -> (Vec<u8>, u32) {
    buffer_of(entries).finish(&header)
}

/// A checkpoint of three sections, each of one block; the header of one of them is changed.
fn checkpoint(changed: u64, change: impl Fn(&mut FrameHeader)) -> Vec<u8> {
    let mut file = Vec::new();
    let mut chain = 0;
    for number in 0..3 {
        let kind = if number == 2 { FrameKind::LastSection } else { FrameKind::Section };
        let mut header = FrameHeader { kind, number, chain, ..HEADER };
        if number == changed {
            change(&mut header);
        }
        let (bytes, checksum) = frame(header, &[slots(10 * number, 1, number as u32)]);
        file.extend(bytes);
        chain = checksum;
    }
    file
}

/// Recovers from a checkpoint of which no read answers more than so many bytes.
fn recover_from(checkpoint: &[u8], most: usize) -> Result<(Overlay, Recovered), Refusal> {
    let mut files = Files::new();
    let mut recovery = Recovery::new(config(), [7; 32], 3, limits());
    while let Some(step) = recovery.poll() {
        let mut read = Vec::new();
        if let Step::Read { file, offset, length } = step {
            read.clone_from(files.file(file));
            if file == JournalFile::Checkpoint(false) {
                assert_eq!(length, 2 << 20);
                let start = checkpoint.len().min(offset as usize);
                read = checkpoint[start..checkpoint.len().min(start + most)].to_vec();
            }
        }
        recovery.handle(Ok(&read))?;
    }
    Ok(recovery.finish())
}

#[test]
fn a_checkpoint_is_read_in_parts_and_every_section_has_its_place() {
    for most in [4096, 6000, 8192, 1 << 20] {
        let (overlay, report) = recover_from(&checkpoint(9, |_| ()), most).unwrap();
        assert_eq!((report.sections, report.checkpoint_entries), (3, 3));
        assert_eq!([0, 10, 20].map(|block| overlay.entry(block)), [0, 1, 2].map(entry_of));
        let changes: [fn(&mut FrameHeader); 5] = [
            |header| header.sheet += 1,
            |header| header.generation += 1,
            |header| header.number += 1,
            |header| header.chain += 1,
            |header| header.kind = FrameKind::Record,
        ];
        for (change, section) in changes.into_iter().zip([0u64, 1, 2, 1, 0]) {
            let refusal = Refusal::Damaged {
                file: JournalFile::Checkpoint(false),
                offset: section * 4096,
                damage: Damage::Foreign,
            };
            let found = recover_from(&checkpoint(section, change), most).map(|_| ());
            assert_eq!(found, Err(refusal));
        }
        let mut cut = checkpoint(9, |_| ());
        cut.truncate(9000);
        let damage = Damage::Frame(FrameError::Short);
        let file = JournalFile::Checkpoint(false);
        let refusal = Refusal::Damaged { file, offset: 8192, damage };
        assert_eq!(recover_from(&cut, most).map(|_| ()), Err(refusal));
    }
}

fn entry_of(slot: u32) -> Entry {
    Entry::Slot(SlotId(slot))
}

#[test]
fn the_longest_write_must_fit_a_segment() {
    for (queue_entries_max, found) in [(4092, Ok(())), (4093, Err(Refusal::SegmentTooSmall))] {
        let limits = JournalLimits { queue_entries_max, ..limits() };
        let mut recovery = Recovery::new(config(), [7; 32], 16, limits);
        assert_eq!(recovery.handle(Ok(&Files::new().files[&JournalFile::Superblock])), found);
    }
}

#[test]
fn the_data_file_must_have_the_highest_slot_however_few_there_are() {
    let (mut files, _) = two_records();
    let (mut overlay, _) = files.recover().unwrap();
    files.change(&mut overlay, &zeroed(0..4, false));
    overlay.flush();
    files.work(&mut overlay);
    assert_eq!((overlay.entry(100), overlay.counts().live), (entry_of(4), 1));
    files.data.truncate(4);
    let refusal = Refusal::DataShort { needed: 5, there: 4 };
    assert_eq!(files.clone().recover().map(|_| ()), Err(refusal));
    files.data.push(0);
    assert!(files.recover().is_ok());
}

#[test]
fn a_frame_behind_the_end_is_a_hole_only_if_it_is_a_later_record_of_this_life() {
    let (files, _) = two_records();
    let later = FrameHeader { kind: FrameKind::Record, number: 2, ..HEADER };
    let recovered = |header: FrameHeader| {
        let mut files = files.clone();
        files.write(JournalFile::Segment(false), 5 * 4096, &frame(header, &[]).0);
        files.recover().map(|(_, report)| report.records)
    };
    for header in [
        FrameHeader { sheet: 4712, ..later },
        FrameHeader { generation: 2, ..later },
        FrameHeader { kind: FrameKind::LastSection, ..later },
        FrameHeader { number: 1, ..later },
    ] {
        assert_eq!(recovered(header), Ok(2), "{header:?}");
    }
    for number in [2, 3] {
        let damage = Damage::Hole { next: 5 * 4096 };
        let file = JournalFile::Segment(false);
        let refusal = Refusal::Damaged { file, offset: 2 * 4096, damage };
        assert_eq!(recovered(FrameHeader { number, ..later }), Err(refusal));
    }
}

/// What recovery makes of a sheet with one record, which has these entries and carries a block.
fn recover_carrying(
    entries: &[frame::Entry],
    data_slots: usize,
) -> Result<(Overlay, Recovered), Refusal> {
    let header = FrameHeader { kind: FrameKind::Record, ..HEADER };
    let (mut bytes, _) = buffer_of(entries).finish_carrying(&header, 1);
    bytes[4096..].fill(9);
    let checksum = crc32c::crc32c(&bytes[4096..]);
    bytes[52..56].copy_from_slice(&checksum.to_le_bytes());
    let mut files = Files { data: vec![0; data_slots], ..Files::new() };
    files.write(JournalFile::Segment(false), 0, &bytes);
    let recovered = files.recover()?;
    assert_eq!(files.data.contains(&9), recovered.1.restored > 0);
    Ok(recovered)
}

#[test]
fn a_record_carries_a_block_for_each_slot_it_names() {
    let zero = frame::Entry { block: 0, count: 9, content: Content::Zero };
    let damage = Damage::Frame(FrameError::Length);
    let file = JournalFile::Segment(false);
    let refusal = Err(Refusal::Damaged { file, offset: 0, damage });
    for entries in [&[slots(0, 2, 0)][..], &[slots(0, 1, 0), slots(5, 1, 1)], &[zero]] {
        assert_eq!(recover_carrying(entries, 2).map(|_| ()), refusal);
    }
    let (overlay, report) = recover_carrying(&[zero, slots(0, 1, 1)], 2).unwrap();
    assert_eq!((overlay.entry(0), report.restored, report.edits), (entry_of(1), 1, 2));
}

#[test]
fn a_carried_block_that_nothing_names_any_more_is_not_put_back() {
    let zero = frame::Entry { block: 0, count: 9, content: Content::Zero };
    // Though its slot is there, and though it is not.
    for data_slots in [2, 1] {
        let (_, report) = recover_carrying(&[slots(0, 1, 1), zero], data_slots).unwrap();
        assert_eq!((report.records, report.restored), (1, 0));
    }
}

#[test]
fn a_checkpoint_that_was_cut_short_is_taken_up_again() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    let flush = |files: &mut Files, overlay: &mut Overlay, block: u64| {
        files.change(overlay, &written(block..block + 1));
        overlay.flush();
        files.work_on_barriers(overlay);
    };
    for block in 0..9 {
        flush(&mut files, &mut overlay, block);
    }
    let before = files.files[&JournalFile::Segment(true)].clone();
    assert_ne!(before, vec![0; SEGMENT_BYTES as usize], "the next segment is in use");
    // What comes after a restart goes behind what is there, in both segments' order.
    for block in 20..23 {
        let (mut again, report) = files.recover().unwrap();
        assert_eq!(report.generation, 0);
        assert_eq!(report.records, 9 + block - 20);
        flush(&mut files, &mut again, block);
        overlay = again;
    }
    let (mut again, report) = files.recover().unwrap();
    assert!(map_of(&again) == map_of(&overlay));
    assert_eq!(report.records, 12);
    // Once it may, the checkpoint is completed.
    files.work(&mut again);
    let (last, report) = files.recover().unwrap();
    assert!(map_of(&last) == map_of(&overlay));
    assert_eq!((report.generation, report.records), (1, 4));
}
