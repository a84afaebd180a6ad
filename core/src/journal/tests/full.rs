//! A checkpoint that finds the disk full.

use super::*;

/// Does what the journal wants; there is no space for sections of a checkpoint. Answers how many there would be.
fn work_without_space(files: &mut Files, overlay: &mut Overlay) -> u32 {
    let mut sections = 0;
    while let Some(mut task) = overlay.poll_task() {
        let is_section =
            matches!(task.action, Action::Write { file: JournalFile::Checkpoint(_), .. });
        assert_eq!(task.may_fail_with(Errno::NoSpace), is_section);
        assert!(!task.may_fail_with(Errno::Io));
        if is_section {
            sections += 1;
            overlay.finished(task, Err(Errno::NoSpace));
        } else {
            files.perform(&mut task);
            overlay.finished(task, Ok(()));
        }
        overlay.audit();
    }
    sections
}

/// Publishes a block, if the journal takes it in.
fn publish(files: &mut Files, overlay: &mut Overlay, block: u64) -> Result<(), Conflict> {
    let (extent, mut runs) = (written(block..block + 1), Vec::new());
    let grant = files.reserve(overlay, &extent, &mut runs);
    let published = overlay.publish(&extent, &mut runs, grant, [].into_iter()).map(|_| ());
    if published.is_err() {
        overlay.release(&mut runs, grant);
    }
    published
}

/// A sheet whose next checkpoint waits for space.
fn waiting() -> (Files, Overlay) {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    for block in 0.. {
        publish(&mut files, &mut overlay, block).unwrap();
        overlay.flush();
        let sections = work_without_space(&mut files, &mut overlay);
        assert_eq!(sections, u32::from(overlay.checkpoint_waits()));
        if sections > 0 {
            break;
        }
    }
    assert!(overlay.is_checkpointing() && !overlay.has_failed());
    (files, overlay)
}

/// Pages of the segment in use that no record has.
fn pages_left(files: &Files) -> u32 {
    let pages = files.files[&JournalFile::Segment(true)].chunks(PAGE_BYTES);
    pages.filter(|page| page.iter().all(|byte| *byte == 0)).count() as u32
}

/// Publishes and flushes until nothing is taken in any more; answers how often, and why.
fn fill_segment(files: &mut Files, overlay: &mut Overlay) -> (u32, Conflict) {
    for count in 0.. {
        if let Err(conflict) = publish(files, overlay, 7) {
            return (count, conflict);
        }
        overlay.flush();
        assert_eq!(work_without_space(files, overlay), 0, "it waits for a tick");
    }
    unreachable!("a segment ends");
}

#[test]
fn it_is_written_with_the_first_tick_that_finds_space() {
    let (mut files, mut overlay) = waiting();
    for round in 0..3 {
        overlay.tick();
        assert!(!overlay.checkpoint_waits());
        assert_eq!(work_without_space(&mut files, &mut overlay), 1);
        assert!(overlay.checkpoint_waits());
        // Meanwhile all goes on.
        publish(&mut files, &mut overlay, 100 + round).unwrap();
        overlay.flush();
        assert_eq!(work_without_space(&mut files, &mut overlay), 0);
    }
    let (again, report) = files.recover().unwrap();
    assert!(map_of(&again) == map_of(&overlay) && report.generation == 0);
    overlay.tick();
    files.work(&mut overlay);
    assert!(overlay.generation() == 1 && !overlay.checkpoint_waits());
    let (again, report) = files.recover().unwrap();
    assert!(map_of(&again) == map_of(&overlay) && report.generation == 1);
}

#[test]
fn all_of_it_is_written_again_though_only_its_last_section_found_no_space() {
    let mut files = Files::new();
    let (mut overlay, _) = files.recover().unwrap();
    for block in 0..120 {
        files.change(&mut overlay, &written(2 * block..2 * block + 1));
    }
    let mut sections = 0;
    let work = |files: &mut Files, overlay: &mut Overlay, sections: &mut u32, fails: u32| {
        while let Some(mut task) = overlay.poll_task() {
            *sections += u32::from(task.may_fail_with(Errno::NoSpace));
            if task.may_fail_with(Errno::NoSpace) && *sections == fails {
                overlay.finished(task, Err(Errno::NoSpace));
            } else {
                files.perform(&mut task);
                overlay.finished(task, Ok(()));
            }
        }
    };
    while !overlay.checkpoint_waits() {
        files.change(&mut overlay, &written(BLOCKS - 1..BLOCKS));
        overlay.flush();
        work(&mut files, &mut overlay, &mut sections, 5);
    }
    overlay.tick();
    work(&mut files, &mut overlay, &mut sections, 0);
    assert_eq!((sections, overlay.generation()), (10, 1));
    assert!(map_of(&files.recover().unwrap().0) == map_of(&overlay));
}

#[test]
fn writes_are_refused_once_the_segment_is_full_and_taken_in_again_with_the_checkpoint() {
    let (mut files, mut overlay) = waiting();
    let left = pages_left(&files);
    assert_eq!(fill_segment(&mut files, &mut overlay), (left, Conflict::NoSpace));
    // What is there is durable and can be read, and a flush of nothing succeeds.
    let visible = overlay.visible();
    assert!(overlay.durable(visible, KEY).unwrap().is_some());
    let (mut again, report) = files.recover().unwrap();
    assert!(map_of(&again) == map_of(&overlay) && report.generation == 0);
    // So it is after a restart: it waits first, since the checkpoint may find space.
    assert_eq!(publish(&mut files, &mut again, 8), Err(Conflict::Backlog));
    assert_eq!(work_without_space(&mut files, &mut again), 1);
    assert_eq!(publish(&mut files, &mut again, 8), Err(Conflict::NoSpace));
    overlay.tick();
    files.work(&mut overlay);
    assert_eq!(publish(&mut files, &mut overlay, 8), Ok(()));
}

#[test]
fn whoever_waits_for_room_hears_that_there_will_be_none() {
    let (mut files, mut overlay) = waiting();
    overlay.tick();
    let section = overlay.poll_task().expect("it is tried again");
    // While it is, what finds no room waits for it.
    let mut count = 0;
    while publish(&mut files, &mut overlay, 7) != Err(Conflict::Backlog) {
        overlay.flush();
        files.work_on_barriers(&mut overlay);
        count += 1;
    }
    assert!(count > 0);
    overlay.wait_for_journal(KEY);
    while overlay.poll_woken().is_some() {}
    overlay.wait_for_journal(KEY);
    overlay.finished(section, Err(Errno::NoSpace));
    assert_eq!(overlay.poll_woken(), Some(KEY));
    assert_eq!(publish(&mut files, &mut overlay, 7), Err(Conflict::NoSpace));
}

#[test]
fn what_is_queued_makes_room_for_a_last_record_before_anybody_is_refused() {
    let (mut files, mut overlay) = waiting();
    for _ in 1..pages_left(&files) {
        publish(&mut files, &mut overlay, 7).unwrap();
        overlay.flush();
        work_without_space(&mut files, &mut overlay);
    }
    // The last page takes 252 edits; a publish may be two.
    let taken = (0..).map(|index| publish(&mut files, &mut overlay, 2 * index));
    let taken: Vec<_> = taken.take_while(Result::is_ok).collect();
    assert_eq!(publish(&mut files, &mut overlay, 2 * BLOCKS / 3), Err(Conflict::Backlog));
    assert_eq!(taken.len(), 250);
    overlay.flush();
    work_without_space(&mut files, &mut overlay);
    assert_eq!(publish(&mut files, &mut overlay, 2 * BLOCKS / 3), Err(Conflict::NoSpace));
}

#[test]
fn any_other_failure_is_final() {
    for error in [Errno::Io, Errno::NoSpace] {
        let (mut files, mut overlay) = waiting();
        overlay.tick();
        while let Some(mut task) = overlay.poll_task() {
            let is_other = !task.may_fail_with(error) && task.lane() == Lane::Checkpoint;
            if is_other || error == Errno::Io {
                overlay.finished(task, Err(error));
                break;
            }
            files.perform(&mut task);
            overlay.finished(task, Ok(()));
        }
        assert!(overlay.has_failed());
    }
}
