//! A full disk and a journal: a write that waits for slots which a barrier frees is woken, even if there is nothing
//! to record.

use glassine_core::journal::recovery::{Recovery, Step};
use glassine_core::journal::superblock::Identity;
use glassine_core::judge::{self, Bug};
use glassine_core::limits::SEGMENT_BYTES;
use glassine_core::overlay::{Extent, Reserve, SessionKey};
use glassine_core::{JournalLimits, Overlay, OverlayConfig, SpaceLimits};
use sim::disk::{Disk, DiskFile};

const KEY: SessionKey = SessionKey(1);
const SIZE_BYTES: u64 = 1 << 20;

/// A new sheet.
fn sheet() -> Overlay {
    let template_id = [0; 32];
    let identity = Identity {
        sheet: 1,
        size_bytes: SIZE_BYTES,
        template_bytes: 0,
        template_id,
        segment_bytes: SEGMENT_BYTES,
    };
    let mut disk = Disk::new(false);
    disk.put_blank(&identity);
    let config = OverlayConfig {
        size_bytes: SIZE_BYTES,
        template_bytes: 0,
        quota_bytes: u64::MAX,
        space: SpaceLimits::growing_by(16),
    };
    let mut recovery = Recovery::new(config, template_id, 0, JournalLimits::default());
    while let Some(step) = recovery.poll() {
        let read = match step {
            Step::Read { file, offset, length } => {
                disk.read(DiskFile::Journal(file), offset, length).to_vec()
            }
            _ => Vec::new(),
        };
        recovery.handle(Ok(&read)).expect("a new sheet is whole");
    }
    recovery.finish().0
}

fn written(blocks: std::ops::Range<u64>) -> Extent {
    Extent { zero: blocks.end..blocks.end, blocks, provision: false }
}

fn write(overlay: &mut Overlay, extent: &Extent) {
    let mut runs = Vec::new();
    let grant = loop {
        match overlay.reserve(extent, KEY, &mut runs).expect("there is space") {
            Reserve::Granted(grant) => break grant,
            Reserve::Wait => {
                assert!(overlay.poll_growth().is_some());
                overlay.grown(true);
                overlay.take_waiting();
            }
        }
    };
    overlay.publish(extent, &mut runs, grant, [].into_iter()).map(drop).expect("nothing conflicts");
}

fn flush(overlay: &mut Overlay) {
    overlay.flush();
    while let Some(task) = overlay.poll_task() {
        overlay.finished(task, Ok(()));
    }
}

/// Whether the wait ends.
fn is_woken() -> bool {
    let mut overlay = sheet();
    write(&mut overlay, &written(0..16));
    flush(&mut overlay);
    let seal = overlay.seal();
    write(&mut overlay, &written(0..16));
    flush(&mut overlay);
    // This changes nothing, but nobody knows yet whether it is durable.
    write(&mut overlay, &written(0..0));
    drop(overlay.unseal(seal));
    let next = written(100..101 + u64::from(overlay.counts().free));
    assert_eq!(overlay.reserve(&next, KEY, &mut Vec::new()), Ok(Reserve::Wait));
    while overlay.poll_growth().is_some() {
        overlay.grown(false);
    }
    assert_eq!(overlay.take_waiting(), []);
    assert!(overlay.poll_task().is_none());
    overlay.take_waiting() == [KEY]
}

#[test]
fn a_wait_for_a_barrier_with_nothing_to_record_ends() {
    assert!(is_woken());
}

#[test]
fn that_such_a_wait_is_forgotten_is_found_for_certain() {
    judge::plant(Some(Bug::SettledUnnoticed));
    let woken = is_woken();
    judge::plant(None);
    assert!(!woken);
}
