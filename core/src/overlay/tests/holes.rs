//! Space that is given back, and found again.

use super::*;

/// Space is given back in groups of four slots, and 32 are kept.
fn holes_of_four() -> SpaceLimits {
    let growing = SpaceLimits::growing_by(4);
    SpaceLimits { hole_slots: 4, punch_slots_max: 16, spare_slots: 32, ..growing }
}

fn with_holes(blocks: u64) -> Overlay {
    with_space(blocks, holes_of_four())
}

/// These blocks are written and trimmed, and their slots are free again.
fn fill_and_empty(overlay: &mut Overlay, blocks: u64) {
    change(overlay, &written(0..blocks)).unwrap();
    change(overlay, &zeroed(0..blocks, false)).unwrap();
    overlay.reclaim();
}

fn with_space(blocks: u64, space: SpaceLimits) -> Overlay {
    let size_bytes = blocks * BLOCK;
    Overlay::new(OverlayConfig { size_bytes, template_bytes: 0, quota_bytes: u64::MAX, space })
}

/// One of a thousand blocks, with a hundred slots that are all free.
fn emptied() -> Overlay {
    let mut overlay = with_holes(1000);
    fill_and_empty(&mut overlay, 100);
    overlay
}

fn run(first: u32, count: u32) -> Run {
    Run { first: SlotId(first), count }
}

/// Everything is given back that may be; what it was.
fn punch(overlay: &mut Overlay) -> Vec<Run> {
    let mut runs = Vec::new();
    while let Some(run) = overlay.poll_punch() {
        assert_eq!(overlay.poll_punch(), None, "one at a time");
        overlay.punched(true);
        overlay.audit();
        runs.extend((run.count > 0).then_some(run));
    }
    runs
}

#[test]
fn space_that_nobody_needs_is_given_back_in_whole_groups() {
    let mut overlay = with_holes(1000);
    change(&mut overlay, &written(0..102)).unwrap();
    let total = overlay.counts().total;
    assert_eq!(total, 102);
    assert_eq!(punch(&mut overlay), []);
    // Of the slots 3 to 101, 32 stay, and what is no whole group.
    change(&mut overlay, &zeroed(3..102, false)).unwrap();
    overlay.reclaim();
    let punched = punch(&mut overlay);
    assert_eq!(punched[..2], [run(4, 16), run(20, 16)]);
    let all: u32 = punched.iter().map(|run| run.count).sum();
    assert_eq!((all, overlay.counts().holes), (64, 64));
    assert_eq!(overlay.counts().free, total - 3 - 64);
    // They are used again before the data file grows.
    change(&mut overlay, &written(200..299)).unwrap();
    assert_eq!((overlay.counts().total, overlay.counts().holes), (total, 0));
}

#[test]
fn a_quiet_device_keeps_little_and_begins_small_again() {
    let mut overlay = emptied();
    punch(&mut overlay);
    assert_eq!(overlay.counts().free, 32);
    overlay.tick();
    punch(&mut overlay);
    assert_eq!(overlay.counts().free, 32, "nobody knows yet whether it is quiet");
    overlay.tick();
    punch(&mut overlay);
    assert_eq!(overlay.counts().free, 8);
    assert_eq!(overlay.poll_growth(), None);
    // With the next write it is no longer.
    let before = overlay.counts().holes;
    change(&mut overlay, &written(0..9)).unwrap();
    assert_eq!(overlay.counts().holes, before - 4);
    overlay.tick();
    change(&mut overlay, &written(0..1)).unwrap();
    overlay.tick();
    assert_eq!(punch(&mut overlay), []);
}

#[test]
fn a_device_that_only_rests_keeps_its_space() {
    let space = SpaceLimits { quiet_ticks: 3, ..holes_of_four() };
    let mut overlay = with_space(1000, space);
    fill_and_empty(&mut overlay, 100);
    let rest = |overlay: &mut Overlay, ticks: u32| {
        for _ in 0..ticks {
            overlay.tick();
            punch(overlay);
            assert_eq!(overlay.counts().free, 32);
        }
    };
    rest(&mut overlay, 3);
    // A write in between, and all begins anew.
    fill_and_empty(&mut overlay, 1);
    rest(&mut overlay, 3);
    overlay.tick();
    punch(&mut overlay);
    assert_eq!(overlay.counts().free, 8);
}

#[test]
fn what_a_quiet_device_keeps_goes_by_what_it_grows_by() {
    for step in [4, 8, 16] {
        let space = SpaceLimits { spare_slots: 64, ..SpaceLimits::growing_by(step) };
        let space = SpaceLimits { hole_slots: 4, punch_slots_max: 16, ..space };
        let mut overlay = with_space(1000, space);
        change(&mut overlay, &written(0..100)).unwrap();
        change(&mut overlay, &zeroed(0..100, false)).unwrap();
        overlay.tick();
        overlay.tick();
        punch(&mut overlay);
        assert_eq!(overlay.counts().free, 2 * step);
    }
}

#[test]
fn holes_are_filled_ahead_of_need_though_there_is_a_slot_for_every_block() {
    let mut overlay = with_holes(100);
    change(&mut overlay, &written(0..100)).unwrap();
    assert_eq!(overlay.poll_growth(), None);
    change(&mut overlay, &zeroed(0..100, false)).unwrap();
    overlay.reclaim();
    punch(&mut overlay);
    assert_eq!((overlay.counts().total, overlay.counts().free), (100, 32));
    assert_eq!(overlay.poll_growth(), None);
    change(&mut overlay, &written(0..32)).unwrap();
    assert!(overlay.poll_growth().is_some_and(|run| run.first.0 < 100));
}

#[test]
fn the_more_is_live_the_more_is_kept() {
    let mut overlay = with_holes(2000);
    change(&mut overlay, &written(0..1000)).unwrap();
    change(&mut overlay, &zeroed(804..1000, false)).unwrap();
    overlay.reclaim();
    punch(&mut overlay);
    let kept = 32 + 804 / 8;
    let free = overlay.counts().free;
    assert!((kept..kept + 4).contains(&free), "{free} and not {kept}");
}

/// Found by fuzzing: one gave back what the other asked for, for ever.
#[test]
fn what_was_asked_for_ahead_of_need_is_not_given_back() {
    for growth_slots_min in [1, 4, 256] {
        let space = SpaceLimits {
            hole_slots: 1,
            punch_slots_max: 64,
            ..SpaceLimits::growing_by(growth_slots_min)
        };
        let mut overlay = with_space(1000, space);
        for block in 0..200 {
            change(&mut overlay, &written(block..block + 1)).unwrap();
            while overlay.poll_growth().is_some() {
                overlay.grown(true);
            }
            assert_eq!(overlay.poll_punch(), None);
        }
    }
}

/// Found by fuzzing: what somebody had waited for was given back before he came, again and again.
#[test]
fn what_somebody_was_woken_for_is_not_given_back() {
    let space = SpaceLimits { hole_slots: 4, punch_slots_max: 16, ..SpaceLimits::growing_by(4) };
    let mut overlay = with_space(1000, space);
    let (next, mut runs) = (written(0..100), Vec::new());
    assert_eq!(overlay.reserve(&next, KEY, &mut runs), Ok(Reserve::Wait));
    assert_eq!(growth(&mut overlay), Some(100));
    overlay.grown(true);
    assert_eq!(overlay.poll_punch(), None);
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert_eq!(overlay.poll_punch(), None);
    let Ok(Reserve::Granted(grant)) = overlay.reserve(&next, KEY, &mut runs) else {
        panic!("it is still there");
    };
    overlay.release(&mut runs, grant);
    assert!(overlay.poll_punch().is_some());
    overlay.punched(true);
    // Whoever does not come has no claim on it for ever.
    assert_eq!(overlay.reserve(&written(0..200), KEY, &mut runs), Ok(Reserve::Wait));
    while overlay.poll_growth().is_some() {
        overlay.grown(true);
    }
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert_eq!(overlay.poll_punch(), None);
    overlay.tick();
    assert!(overlay.poll_punch().is_some());
}

#[test]
fn what_a_trim_cut_off_is_given_back_though_nothing_else_happens() {
    let blocks = 10 * u64::from(RECLAIM_SLOTS_PER_STEP);
    let mut overlay = with_holes(blocks);
    change(&mut overlay, &written(0..blocks)).unwrap();
    change(&mut overlay, &zeroed(0..blocks, false)).unwrap();
    assert_eq!(overlay.counts().free, 0);
    overlay.tick();
    while overlay.poll_punch().is_some() {
        overlay.punched(true);
    }
    overlay.audit();
    assert_eq!((overlay.counts().free, overlay.counts().displaced), (32, 0));
}

/// The first step frees less than is kept: that is no reason to stop.
#[test]
fn steps_go_on_though_there_is_nothing_to_give_back_yet() {
    let step = RECLAIM_SLOTS_PER_STEP;
    let blocks = 4 * u64::from(step);
    let growing = SpaceLimits::growing_by(4);
    let spare_slots = 2 * step;
    let space = SpaceLimits { hole_slots: 4, punch_slots_max: 16, spare_slots, ..growing };
    let mut overlay = with_space(blocks, space);
    change(&mut overlay, &written(0..blocks)).unwrap();
    change(&mut overlay, &zeroed(0..blocks, false)).unwrap();
    overlay.tick();
    while overlay.poll_punch().is_some() {
        overlay.punched(true);
    }
    overlay.audit();
    assert_eq!((overlay.counts().free, overlay.counts().displaced), (spare_slots, 0));
}

#[test]
fn nobody_goes_on_looking_at_what_is_pinned() {
    let mut overlay = with_holes(1000);
    change(&mut overlay, &written(0..10)).unwrap();
    let mut pins = crate::pin::Pins::new(overlay.attach());
    let at = pins.take(overlay.epoch());
    change(&mut overlay, &zeroed(0..10, false)).unwrap();
    overlay.tick();
    assert_eq!((overlay.poll_punch(), overlay.counts().displaced), (None, 10));
    pins.release(at);
    overlay.detach(pins.cell());
}

#[test]
fn a_step_that_gives_nothing_back_says_nothing_of_what_can_be() {
    let mut overlay = with_holes(1000);
    // Every second slot is free: no group is whole.
    change(&mut overlay, &written(0..200)).unwrap();
    for block in (0..200).step_by(2) {
        change(&mut overlay, &zeroed(block..block + 1, false)).unwrap();
    }
    overlay.reclaim();
    assert_eq!(overlay.poll_punch().map(|run| run.count), Some(0));
    overlay.punched(false);
    change(&mut overlay, &zeroed(0..200, false)).unwrap();
    overlay.reclaim();
    assert_ne!(punch(&mut overlay), []);
    change(&mut overlay, &written(0..200)).unwrap();
    assert_eq!(overlay.counts().holes, 0, "each was one that can be had");
}

#[test]
fn what_is_being_set_aside_keeps_its_space() {
    let mut overlay = emptied();
    let extent = zeroed(200..260, true);
    let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
    punch(&mut overlay);
    let free = overlay.counts().free;
    assert!((60 + 32..60 + 36).contains(&free), "{free}");
    assert!(overlay.publish(&extent, &mut runs, grant, [].into_iter()).is_ok());
    overlay.audit();
}

#[test]
fn what_is_set_aside_keeps_its_space() {
    let mut overlay = with_holes(1000);
    change(&mut overlay, &written(0..100)).unwrap();
    for (blocks, provision, set_aside) in [(0..90, true, 90), (0..60, false, 30)] {
        change(&mut overlay, &zeroed(blocks, provision)).unwrap();
        overlay.reclaim();
        assert_ne!(punch(&mut overlay), []);
        let free = overlay.counts().free;
        assert!((set_aside + 33..set_aside + 37).contains(&free), "{free} of {set_aside}");
    }
}

#[test]
fn a_full_disk_has_no_space_for_holes() {
    let mut overlay = emptied();
    punch(&mut overlay);
    let holes = overlay.counts().holes;
    let free = u64::from(overlay.counts().free);
    let outcome = overlay.reserve(&written(0..free + 30), KEY, &mut Vec::new());
    assert_eq!(outcome, Ok(Reserve::Wait));
    // With all that are wanted, and then with one group: all holes are alike.
    let asked = core::iter::from_fn(|| {
        let run = overlay.poll_growth()?;
        overlay.grown(false);
        Some(run.count)
    });
    assert_eq!(asked.collect::<Vec<_>>(), [16, 4]);
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert_eq!(overlay.counts().holes, holes);
    overlay.audit();
}

#[test]
fn on_a_full_disk_every_hole_that_may_have_space_is_asked() {
    let mut overlay = emptied();
    assert_eq!(overlay.poll_punch(), Some(run(0, 16)));
    overlay.punched(false);
    let next = written(0..u64::from(overlay.counts().free) + 4);
    assert_eq!(overlay.reserve(&next, KEY, &mut Vec::new()), Ok(Reserve::Wait));
    for (asked, ok) in [(run(0, 8), false), (run(0, 4), false), (run(4, 4), true)] {
        assert_eq!(overlay.poll_growth(), Some(asked));
        assert_eq!(overlay.take_waiting(), []);
        overlay.grown(ok);
        overlay.audit();
    }
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert!(matches!(overlay.reserve(&next, KEY, &mut Vec::new()), Ok(Reserve::Granted(_))));
}

#[test]
fn where_nothing_can_be_given_back_it_is_not_tried_again() {
    let mut overlay = emptied();
    assert_eq!(overlay.poll_punch(), Some(run(0, 16)));
    overlay.punched(false);
    assert_eq!(overlay.poll_punch(), None);
    assert_eq!(overlay.counts().holes, 16);
    overlay.audit();
    change(&mut overlay, &written(0..100)).unwrap();
    assert_eq!((overlay.counts().total, overlay.counts().holes), (100, 0));
}
