//! From a damaged checkpoint back to the one before.

use super::*;
use crate::journal::superblock::Superblock;

/// The newest checkpoint of [`generations`], and the segments behind it and behind the one before.
const CHECKPOINT: JournalFile = JournalFile::Checkpoint(false);
const NEWEST: JournalFile = JournalFile::Segment(false);
const BEFORE: JournalFile = JournalFile::Segment(true);

/// A sheet with checkpoints of generations 1 and 2, and records behind both that carry blocks.
fn generations() -> (Files, Overlay) {
    let mut files = carrying(4);
    let (mut overlay, _) = files.recover().unwrap();
    let mut version = 0;
    while overlay.generation() < 2 || version % 8 != 0 {
        version += 1;
        let block = u64::from(version) % 7 * 30;
        write(&mut files, &mut overlay, block..block + 1 + u64::from(version) % 3, version);
        overlay.flush();
        files.work(&mut overlay);
    }
    assert_eq!(overlay.generation(), 2);
    (files, overlay)
}

fn write(files: &mut Files, overlay: &mut Overlay, blocks: Range<u64>, version: u8) {
    files.change(overlay, &written(blocks.clone()));
    for block in blocks {
        let Entry::Slot(slot) = overlay.entry(block) else { panic!("it was written") };
        files.data[slot.0 as usize] = version;
    }
}

fn go_back(files: &mut Files) -> Result<(Overlay, Recovered), Refusal> {
    let (slots, limits) = (files.data.len() as u32, files.limits.clone());
    files.run(Recovery::new(config(), [7; 32], slots, limits).going_back())
}

/// It must fail, and change nothing.
fn no_way_back(files: &Files) -> Refusal {
    let mut after = files.clone();
    let refusal = go_back(&mut after).expect_err("there is no way back");
    assert!(after.files == files.files && after.data == files.data);
    refusal
}

#[test]
fn whatever_happens_to_the_newest_checkpoint_the_one_before_has_the_same_device() {
    let (files, overlay) = generations();
    let before = shown(&overlay, &files.data);
    let damages: [fn(&mut Vec<u8>); 4] = [
        |checkpoint| checkpoint[70] ^= 1,
        |checkpoint| checkpoint.truncate(100),
        Vec::clear,
        |checkpoint| checkpoint.fill(0),
    ];
    for damage in damages {
        let mut files = files.clone();
        damage(files.file(CHECKPOINT));
        let refusal = files.recover().unwrap_err();
        assert!(matches!(refusal, Refusal::Damaged { file: CHECKPOINT, offset: 0, .. }));
        let (mut again, report) = go_back(&mut files).unwrap();
        again.audit();
        assert!(shown(&again, &files.data) == before);
        assert!(report.generation == 1 && report.records > 3 && report.restored > 0 && !report.cut);
        // It counts from now on; and once the checkpoint is written anew, the newer one does.
        let (_, served) = files.recover().unwrap();
        assert_eq!((served.generation, served.records), (1, report.records));
        files.work(&mut again);
        assert_eq!(again.generation(), 2);
        let (again, served) = files.recover().unwrap();
        assert!(served.generation == 2 && shown(&again, &files.data) == before);
    }
}

#[test]
fn a_sheet_goes_back_though_nothing_is_wrong_with_it_and_after_a_power_cut() {
    let (mut files, overlay) = generations();
    let before = shown(&overlay, &files.data);
    files.cut_power();
    let (again, _) = go_back(&mut files).unwrap();
    assert!(shown(&again, &files.data) == before);
}

#[test]
fn there_is_no_way_back_once_the_next_generation_has_begun() {
    let (mut files, mut overlay) = generations();
    while !overlay.is_checkpointing() {
        files.change(&mut overlay, &written(5..6));
        overlay.flush();
        files.work_on_barriers(&mut overlay);
    }
    assert_eq!(overlay.generation(), 2);
    let (_, report) = files.recover().unwrap();
    assert!(report.records > 1, "{report:?}");
    let Refusal::Damaged { file: BEFORE, offset: 0, damage: Damage::Hole { .. } } =
        no_way_back(&files)
    else {
        panic!("the first record of the generation before was overwritten");
    };
    // Its records may all have been.
    let bytes = files.file(BEFORE);
    let first = Frame::parse(bytes).unwrap().bytes.len();
    bytes[first..].fill(0);
    let refusal = Refusal::NotAllThere { file: BEFORE };
    assert_eq!(no_way_back(&files), refusal);
    let text = "journal.1: the records of the generation before are not all there any more";
    assert_eq!(std::format!("{refusal}"), text);
}

#[test]
fn all_records_of_the_generation_before_must_be_there_however_few_came_after_them() {
    let (files, _) = generations();
    let mut at = 0;
    while let Ok(frame) = Frame::parse(&files.files[&BEFORE][at..])
        && frame.header.generation == 1
    {
        // One of them is damaged: the last looks like one that a crash cut.
        let (mut files, length) = (files.clone(), frame.bytes.len());
        files.file(BEFORE)[at + 70] ^= 1;
        let refusal = no_way_back(&files);
        at += length;
        let is_last = !matches!(Frame::parse(&files.files[&BEFORE][at..]),
            Ok(next) if next.header.generation == 1);
        assert_eq!(refusal == Refusal::NotAllThere { file: BEFORE }, is_last, "{refusal}");
        // Though nothing shows that there was anything after it.
        files.file(NEWEST).fill(0);
        assert_eq!(no_way_back(&files), refusal);
    }
    assert!(at > 0);
}

#[test]
fn so_must_those_that_the_newest_checkpoint_was_made_with() {
    let (mut files, _) = generations();
    let newest = Superblock::newest(files.file(JournalFile::Superblock)).unwrap();
    assert!(newest.needs > newest.number);
    files.file(CHECKPOINT).fill(0);
    let (mut at, mut number) = (0, newest.number);
    while let Ok(frame) = Frame::parse(&files.files[&NEWEST][at..])
        && frame.header.generation == 2
    {
        // Nothing is there from this record on: whether that was a crash is known.
        let (mut files, length) = (files.clone(), frame.bytes.len());
        files.file(NEWEST)[at..].fill(0);
        if number < newest.needs {
            let (offset, damage) = (at as u64, Damage::Missing);
            assert_eq!(no_way_back(&files), Refusal::Damaged { file: NEWEST, offset, damage });
        } else {
            go_back(&mut files).unwrap();
        }
        (at, number) = (at + length, number + 1);
    }
    assert!(number > newest.needs);
}

#[test]
fn there_is_no_way_back_without_a_superblock_of_the_generation_before() {
    let alone = Refusal::Superblock(SuperblockError::Alone);
    let mut new = Files::new();
    new.recover().unwrap();
    assert_eq!(no_way_back(&new), alone);
    let (mut files, _) = generations();
    files.file(JournalFile::Superblock)[Superblock::offset(1) as usize + 30] ^= 1;
    assert!(files.recover().is_ok());
    assert_eq!(no_way_back(&files), alone);
    // The newer copy is gone when the sheet went back: there is no further way.
    let (mut files, _) = generations();
    go_back(&mut files).unwrap();
    assert_eq!(no_way_back(&files), alone);
}
