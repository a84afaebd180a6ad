//! Tests of the overlay.

mod holes;

use super::*;
use crate::limits::{RECLAIM_SLOTS_PER_STEP, RECLAIM_STEPS_MAX};
use std::vec;

const KEY: SessionKey = SessionKey(1);
const OTHER: SessionKey = SessionKey(2);

fn overlay(size_bytes: u64, template_bytes: u64, quota_bytes: u64) -> Overlay {
    let space = SpaceLimits::growing_by(crate::limits::GROWTH_SLOTS_MIN);
    Overlay::new(OverlayConfig { size_bytes, template_bytes, quota_bytes, space })
}

/// Blocks that all get slots.
fn written(blocks: Range<u64>) -> Extent {
    Extent { zero: blocks.end..blocks.end, blocks, provision: false }
}

/// Blocks that become zero.
fn zeroed(blocks: Range<u64>, provision: bool) -> Extent {
    Extent { blocks: blocks.clone(), zero: blocks, provision }
}

/// By how many slots the data file is to grow.
fn growth(overlay: &mut Overlay) -> Option<u32> {
    let total = overlay.counts().total;
    overlay.poll_growth().map(|run| {
        assert_eq!(run.first, SlotId(total), "there are no holes");
        run.count
    })
}

/// Reserves; the data file grows as often as it takes.
fn reserve(overlay: &mut Overlay, extent: &Extent) -> Result<(Vec<Run>, Grant), Errno> {
    let mut runs = Vec::new();
    loop {
        match overlay.reserve(extent, KEY, &mut runs)? {
            Reserve::Granted(grant) => return Ok((runs, grant)),
            Reserve::Wait => loop {
                assert!(overlay.poll_growth().is_some());
                overlay.grown(true);
                match &overlay.take_waiting()[..] {
                    [] => assert!(overlay.counts().holes > 0, "there are more holes to fill"),
                    woken => break assert_eq!(woken, [KEY]),
                }
            },
        }
    }
}

fn change(overlay: &mut Overlay, extent: &Extent) -> Result<(), Errno> {
    let (mut runs, grant) = reserve(overlay, extent)?;
    assert!(overlay.publish(extent, &mut runs, grant, [].into_iter()).is_ok());
    overlay.audit();
    Ok(())
}

fn segments(overlay: &Overlay, bytes: Range<u64>) -> Vec<Segment> {
    let mut segments = Vec::new();
    overlay.resolve(bytes, &mut |segment| segments.push(segment));
    segments
}

#[test]
fn neighbouring_blocks_in_neighbouring_slots_are_one_segment() {
    let mut overlay = overlay(1 << 20, 1 << 20, u64::MAX);
    change(&mut overlay, &written(4..20)).unwrap();
    let template = |offset, length| Segment { source: Source::Template { offset }, length };
    let data = |offset, length| Segment { source: Source::Data { offset }, length };
    let expected = [template(100, 16_284), data(0, 65_536), template(81_920, 18_080)];
    assert_eq!(segments(&overlay, 100..100_000), expected);
    // Blocks 10 and 11 get other slots: their old neighbours no longer lie together.
    change(&mut overlay, &written(10..12)).unwrap();
    let expected = [data(0, 6 * BLOCK), data(16 * BLOCK, 2 * BLOCK), data(8 * BLOCK, 8 * BLOCK)];
    assert_eq!(segments(&overlay, 4 * BLOCK..20 * BLOCK), expected);
}

#[test]
fn behind_the_end_of_the_template_everything_is_zero() {
    let ragged = overlay(20_000, 5_000, u64::MAX);
    assert_eq!(ragged.size_bytes(), 20_000);
    let expected = [
        Segment { source: Source::Template { offset: 4_000 }, length: 1_000 },
        Segment { source: Source::Zero, length: 15_000 },
    ];
    assert_eq!(segments(&ragged, 4_000..20_000), expected);
    assert_eq!(ragged.source_of(1, Entry::Template), (Source::Template { offset: 4096 }, 904));
    assert_eq!(ragged.source_of(2, Entry::Template), (Source::Zero, 0));
    let whole = overlay(20_000, 8_192, u64::MAX);
    assert_eq!(whole.source_of(1, Entry::Template).1, 4096);
    assert_eq!(whole.source_of(2, Entry::Template), (Source::Zero, 0));
}

#[test]
fn a_trimmed_block_never_shows_the_template_again() {
    let mut overlay = overlay(1 << 20, 1 << 20, u64::MAX);
    change(&mut overlay, &written(0..8)).unwrap();
    change(&mut overlay, &zeroed(0..16, false)).unwrap();
    let zero = Segment { source: Source::Zero, length: 65_536 };
    assert_eq!(segments(&overlay, 0..65_536), [zero]);
}

#[test]
fn a_walk_visits_the_whole_device_as_it_is() {
    let mut overlay = overlay(8 * BLOCK, 8 * BLOCK, u64::MAX);
    change(&mut overlay, &written(1..3)).unwrap();
    change(&mut overlay, &zeroed(3..6, false)).unwrap();
    let mut visited = Vec::new();
    overlay.walk(&mut |blocks, entry| {
        blocks.clone().for_each(|block| assert_eq!(overlay.entry(block), entry));
        visited.extend(blocks);
    });
    assert_eq!(visited, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn without_a_journal_nobody_waits_for_durability() {
    let mut overlay = overlay(8 * BLOCK, 0, u64::MAX);
    change(&mut overlay, &written(1..3)).unwrap();
    assert!(!overlay.has_journal());
    assert!(matches!(overlay.durable(overlay.visible(), SessionKey(1)), Ok(Some(_))));
}

#[test]
fn a_terabyte_is_trimmed_at_once_and_its_slots_come_back_bit_by_bit() {
    let mut overlay = overlay(1 << 40, 1 << 40, u64::MAX);
    for block in (0..1u64 << 28).step_by(1 << 20) {
        change_without_audit(&mut overlay, &written(block..block + 3));
    }
    let live = overlay.counts().live;
    assert_eq!(live, 768);
    change_without_audit(&mut overlay, &zeroed(0..1 << 28, false));
    let counts = overlay.counts();
    assert_eq!((counts.live, counts.displaced), (0, live));
    while overlay.counts().displaced > 0 {
        overlay.reclaim();
    }
    assert_eq!(overlay.counts().free, overlay.counts().total);
    overlay.audit();
}

fn change_without_audit(overlay: &mut Overlay, extent: &Extent) {
    let (mut runs, grant) = reserve(overlay, extent).unwrap();
    assert!(overlay.publish(extent, &mut runs, grant, [].into_iter()).is_ok());
}

#[test]
fn a_place_is_private_until_the_publish_and_readable_from_then_on() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    let extent = written(0..1);
    change(&mut overlay, &written(7..9)).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
    let (first, last) = (2 * BLOCK, 3 * BLOCK - 1);
    assert_eq!(runs[0].first.offset(), first);
    let look = |overlay: &Overlay, at| {
        (overlay.is_private(at), overlay.is_readable(at), overlay.slot_state(at))
    };
    assert_eq!(look(&overlay, first), (true, false, SlotState::Filling));
    assert_eq!(look(&overlay, last), (true, false, SlotState::Filling));
    assert_eq!(overlay.publish(&extent, &mut runs, grant, [].into_iter()).map(drop), Ok(()));
    assert_eq!(look(&overlay, first), (false, true, SlotState::Live));
    assert_eq!(look(&overlay, last + 1), (false, false, SlotState::Free));
}

#[test]
fn a_pinned_slot_is_not_used_again_and_a_released_one_is() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    let mut pins = crate::pin::Pins::new(overlay.attach());
    change(&mut overlay, &written(0..1)).unwrap();
    let before = segments(&overlay, 0..4096);
    let pin = pins.take(overlay.epoch());
    for _ in 0..600 {
        change(&mut overlay, &written(0..1)).unwrap();
        assert_ne!(segments(&overlay, 0..4096), before);
    }
    assert!(overlay.counts().displaced >= 600, "everything displaced since then is held back");
    pins.release(pin);
    overlay.reclaim();
    assert_eq!((overlay.counts().displaced, overlay.sessions()), (0, 1));
    overlay.detach(pins.cell());
    assert_eq!(overlay.sessions(), 0);
}

#[test]
fn a_pin_holds_what_a_trim_cut_off() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let mut pins = crate::pin::Pins::new(overlay.attach());
    change_without_audit(&mut overlay, &written(0..512));
    let pin = pins.take(overlay.epoch());
    change_without_audit(&mut overlay, &zeroed(0..512, false));
    overlay.reclaim();
    assert_eq!(overlay.counts().displaced, 512);
    pins.release(pin);
    overlay.reclaim();
    assert_eq!(overlay.counts().displaced, 0);
}

/// Found by fuzzing: the space was there when it was asked for, and a trim and others took it.
#[test]
fn no_more_space_is_set_aside_than_there_is() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let zeroes = |provision| Extent { blocks: 0..1, zero: 0..1, provision };
    change(&mut overlay, &zeroes(true)).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &zeroes(true)).unwrap();
    change(&mut overlay, &zeroes(false)).unwrap();
    let free = u64::from(overlay.counts().free);
    change(&mut overlay, &written(1..1 + free)).unwrap();
    assert_eq!(overlay.counts().free, 0);
    let outcome = overlay.publish(&zeroes(true), &mut runs, grant, [].into_iter());
    assert_eq!(outcome, Err(Conflict::Short));
    overlay.release(&mut runs, grant);
    overlay.audit();
    assert_eq!((overlay.charged(), overlay.tally().reserved), (0, 0));
}

#[test]
fn a_publish_is_refused_when_its_predecessor_was_replaced() {
    let mut overlay = overlay(1 << 20, 1 << 20, u64::MAX);
    let extent = written(3..4);
    let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
    let merged = Predecessor { block: 3, entry: overlay.entry(3) };
    change(&mut overlay, &extent).unwrap();
    let outcome = overlay.publish(&extent, &mut runs, grant, [merged].into_iter());
    assert_eq!(outcome, Err(Conflict::Replaced(3)));
    assert_eq!(runs.len(), 1, "the slots are still the caller's");
    let merged = Predecessor { block: 3, entry: overlay.entry(3) };
    assert!(overlay.publish(&extent, &mut runs, grant, [merged].into_iter()).is_ok());
    overlay.audit();
}

#[test]
fn a_quota_counts_what_is_written_set_aside_or_under_way() {
    let mut overlay = overlay(1 << 20, 0, 10 * BLOCK);
    change(&mut overlay, &written(0..4)).unwrap();
    change(&mut overlay, &zeroed(4..7, true)).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &written(10..13)).unwrap();
    assert_eq!(overlay.charged(), 3);
    assert_eq!(reserve(&mut overlay, &written(20..21)).unwrap_err(), Errno::NoSpace);
    assert_eq!(reserve(&mut overlay, &zeroed(20..21, true)).unwrap_err(), Errno::NoSpace);
    // Overwriting, and writing where space is set aside, needs no more of it.
    change(&mut overlay, &written(0..7)).unwrap();
    overlay.release(&mut runs, grant);
    change(&mut overlay, &written(20..23)).unwrap();
    change(&mut overlay, &zeroed(0..7, false)).unwrap();
    change(&mut overlay, &written(30..37)).unwrap();
    assert_eq!(overlay.charged(), 0);
}

#[test]
fn a_quota_can_be_raised_and_lowered_under_way() {
    let mut overlay = overlay(1 << 20, 0, 4 * BLOCK);
    change(&mut overlay, &written(0..4)).unwrap();
    assert_eq!(change(&mut overlay, &written(4..5)), Err(Errno::NoSpace));
    overlay.set_quota(6 * BLOCK + 1);
    assert_eq!(overlay.quota_bytes(), 6 * BLOCK + 1);
    change(&mut overlay, &written(4..6)).unwrap();
    assert_eq!(change(&mut overlay, &written(6..7)), Err(Errno::NoSpace));
    overlay.set_quota(u64::MAX);
    change(&mut overlay, &written(6..16)).unwrap();
    overlay.set_quota(16 * BLOCK);
    assert_eq!(change(&mut overlay, &written(16..17)), Err(Errno::NoSpace));
}

#[test]
fn a_quota_below_what_is_used_loses_nothing_and_lets_trims_make_room() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    change(&mut overlay, &written(0..8)).unwrap();
    change(&mut overlay, &zeroed(8..10, true)).unwrap();
    let before = segments(&overlay, 0..10 * BLOCK);
    overlay.set_quota(4 * BLOCK);
    overlay.audit();
    assert_eq!(segments(&overlay, 0..10 * BLOCK), before);
    assert_eq!(change(&mut overlay, &written(10..11)), Err(Errno::NoSpace));
    assert_eq!(change(&mut overlay, &zeroed(10..11, true)), Err(Errno::NoSpace));
    // A write of old and new blocks needs more; one of old blocks does not, and space set aside is there.
    assert_eq!(change(&mut overlay, &written(9..11)), Err(Errno::NoSpace));
    change(&mut overlay, &written(0..10)).unwrap();
    assert_eq!(overlay.tally(), Tally { slots: 10, reserved: 0 });
    // What a trim takes away does not come back before there is room below the quota.
    change(&mut overlay, &zeroed(4..10, false)).unwrap();
    assert_eq!(change(&mut overlay, &written(4..5)), Err(Errno::NoSpace));
    change(&mut overlay, &zeroed(0..1, false)).unwrap();
    change(&mut overlay, &written(4..5)).unwrap();
    assert_eq!(overlay.tally().provisioned(), 4);
}

#[test]
fn a_quota_that_is_lowered_keeps_what_writes_under_way_were_granted() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    let (one, other) = (written(0..4), written(4..8));
    let (mut runs, grant) = reserve(&mut overlay, &one).unwrap();
    let (mut given_up, its_grant) = reserve(&mut overlay, &other).unwrap();
    overlay.set_quota(0);
    overlay.audit();
    assert!(overlay.publish(&one, &mut runs, grant, [].into_iter()).is_ok());
    overlay.release(&mut given_up, its_grant);
    overlay.audit();
    assert_eq!(overlay.tally().slots, 4);
    assert_eq!(change(&mut overlay, &written(4..5)), Err(Errno::NoSpace));
}

#[test]
fn a_publish_whose_blocks_were_trimmed_meanwhile_asks_a_lowered_quota_again() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    let extent = written(0..4);
    change(&mut overlay, &extent).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
    change(&mut overlay, &zeroed(0..4, false)).unwrap();
    overlay.set_quota(3 * BLOCK);
    let refused = overlay.publish(&extent, &mut runs, grant, [].into_iter()).map(drop);
    assert_eq!(refused, Err(Conflict::NoSpace));
    overlay.set_quota(4 * BLOCK);
    assert!(overlay.publish(&extent, &mut runs, grant, [].into_iter()).is_ok());
    overlay.audit();
}

#[test]
fn space_that_is_set_aside_is_found_whatever_else_there_is() {
    let mut overlay = overlay(1 << 30, 0, 256 * BLOCK);
    change(&mut overlay, &zeroed(0..256, true)).unwrap();
    assert_eq!((overlay.counts().total, overlay.counts().free), (256, 256));
    // Once more costs nothing, and neither quota nor data file need to grow for a write.
    change(&mut overlay, &zeroed(0..256, true)).unwrap();
    change(&mut overlay, &written(0..256)).unwrap();
    assert_eq!((overlay.counts().total, overlay.counts().free), (256, 0));
    assert_eq!(overlay.tally(), Tally { slots: 256, reserved: 0 });
}

#[test]
fn a_write_that_is_given_up_sets_aside_only_what_it_had_used() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    change(&mut overlay, &zeroed(0..2, true)).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &written(0..3)).unwrap();
    overlay.release(&mut runs, grant);
    assert_eq!(overlay.tally().reserved, 2);
}

#[test]
fn who_gives_up_sets_aside_what_it_had_used_and_nothing_that_others_had() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    change(&mut overlay, &zeroed(0..4, true)).unwrap();
    let (mut first, first_grant) = reserve(&mut overlay, &written(0..2)).unwrap();
    let (mut second, second_grant) = reserve(&mut overlay, &written(0..4)).unwrap();
    overlay.release(&mut second, second_grant);
    assert_eq!(overlay.tally().reserved, 2);
    overlay.release(&mut first, first_grant);
    assert_eq!(overlay.tally().reserved, 4);
    overlay.audit();
}

#[test]
fn zeroes_with_ragged_ends_over_what_is_there_need_no_more_of_the_quota() {
    let ragged = Extent { blocks: 0..4, zero: 1..3, provision: false };
    for set_aside in [false, true] {
        let mut overlay = overlay(1 << 20, 0, 2 * BLOCK);
        for block in [0..1, 3..4] {
            let there = if set_aside { zeroed(block, true) } else { written(block) };
            change(&mut overlay, &there).unwrap();
        }
        change(&mut overlay, &ragged).unwrap();
        assert_eq!(overlay.tally(), Tally { slots: 2, reserved: 0 });
    }
}

#[test]
fn what_a_trim_gave_back_may_be_gone_when_a_write_is_published() {
    for (others, outcome) in [(1, Ok(())), (2, Err(Conflict::NoSpace))] {
        let mut overlay = overlay(1 << 20, 0, 4 * BLOCK);
        change(&mut overlay, &written(0..2)).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &written(0..3)).unwrap();
        assert_eq!(overlay.charged(), 1, "two of its blocks are there already");
        change(&mut overlay, &zeroed(0..2, false)).unwrap();
        change(&mut overlay, &written(9..9 + others)).unwrap();
        let published = overlay.publish(&written(0..3), &mut runs, grant, [].into_iter());
        assert_eq!(published.map(drop), outcome);
        if outcome.is_err() {
            overlay.release(&mut runs, grant);
        }
        overlay.audit();
        assert_eq!(overlay.charged(), 0);
    }
}

#[test]
fn zeroes_that_set_space_aside_take_what_a_trim_gave_back_if_it_is_still_there() {
    let extent = zeroed(0..2, true);
    for (there, others, outcome) in [
        (written(0..2), 2, Ok(())),
        (written(0..2), 3, Err(Conflict::NoSpace)),
        (zeroed(0..2, true), 2, Ok(())),
    ] {
        let mut overlay = overlay(1 << 20, 0, 4 * BLOCK);
        change(&mut overlay, &there).unwrap();
        let (mut runs, grant) = reserve(&mut overlay, &extent).unwrap();
        assert_eq!(overlay.charged(), 0);
        change(&mut overlay, &zeroed(0..2, false)).unwrap();
        change(&mut overlay, &written(9..9 + others)).unwrap();
        let published = overlay.publish(&extent, &mut runs, grant, [].into_iter());
        assert_eq!(published.map(drop), outcome);
        if outcome.is_err() {
            overlay.release(&mut runs, grant);
        }
        overlay.audit();
    }
}

#[test]
fn space_that_somebody_is_about_to_set_aside_is_left_alone() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let first = zeroed(0..1, true);
    change(&mut overlay, &first).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &first).unwrap();
    change(&mut overlay, &zeroed(0..1, false)).unwrap();
    change(&mut overlay, &written(1..256)).unwrap();
    let second = zeroed(300..301, true);
    let (mut none, setting) = reserve(&mut overlay, &second).unwrap();
    assert_eq!((overlay.counts().total, overlay.counts().free), (256, 1));
    let outcome = overlay.publish(&first, &mut runs, grant, [].into_iter());
    assert_eq!(outcome, Err(Conflict::Short));
    overlay.release(&mut runs, grant);
    assert_eq!(overlay.publish(&second, &mut none, setting, [].into_iter()).map(drop), Ok(()));
    overlay.audit();
}

#[test]
fn slots_are_reclaimed_in_bounded_steps_and_all_of_them_when_they_run_short() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let step = u64::from(RECLAIM_SLOTS_PER_STEP);
    for start in [0, step, 2 * step, 3 * step] {
        change_without_audit(&mut overlay, &written(start..start + step));
    }
    let total = overlay.counts().total;
    let displaced = |overlay: &Overlay| u64::from(overlay.counts().displaced);
    change_without_audit(&mut overlay, &zeroed(0..2 * step, false));
    assert_eq!(displaced(&overlay), 2 * step);
    overlay.reclaim();
    assert_eq!(displaced(&overlay), step);
    // What was displaced one by one goes first, and uses up the step.
    change_without_audit(&mut overlay, &written(2 * step..3 * step));
    change_without_audit(&mut overlay, &zeroed(2 * step..4 * step, false));
    let before = displaced(&overlay);
    overlay.reclaim();
    assert_eq!(displaced(&overlay), before - step);
    let all = u64::from(total);
    for _ in 0..2 {
        change_without_audit(&mut overlay, &written(0..all));
        assert_eq!((overlay.counts().total, overlay.counts().free), (total, 0));
        change_without_audit(&mut overlay, &zeroed(0..all, false));
    }
    overlay.audit();
}

#[test]
fn a_reservation_looks_at_what_it_needs_and_at_some_steps_while_the_data_file_can_grow() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let (all, step) = (1 << 18, u64::from(RECLAIM_SLOTS_PER_STEP));
    change_without_audit(&mut overlay, &written(0..all));
    change_without_audit(&mut overlay, &zeroed(0..all, false));
    let looked_at = |overlay: &Overlay| all - u64::from(overlay.counts().displaced);
    change_without_audit(&mut overlay, &written(0..1));
    // What holds the leaves counts as one.
    let once = step - 512;
    assert_eq!(looked_at(&overlay), once);
    let outcome = overlay.reserve(&written(0..all), KEY, &mut Vec::new());
    assert_eq!(outcome, Ok(Reserve::Wait));
    assert_eq!(looked_at(&overlay), once + (1 + u64::from(RECLAIM_STEPS_MAX)) * step);
}

#[test]
fn a_reservation_does_not_look_for_ever_at_what_a_pin_holds() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let mut pins = crate::pin::Pins::new(overlay.attach());
    change_without_audit(&mut overlay, &written(0..200));
    let pin = pins.take(overlay.epoch());
    change_without_audit(&mut overlay, &zeroed(0..512, false));
    let next = written(0..100);
    assert_eq!(overlay.reserve(&next, KEY, &mut Vec::new()), Ok(Reserve::Wait));
    while overlay.poll_growth().is_some() {
        overlay.grown(false);
    }
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert_eq!(overlay.reserve(&next, KEY, &mut Vec::new()), Err(Errno::NoSpace));
    pins.release(pin);
    let mut runs = Vec::new();
    assert!(matches!(overlay.reserve(&next, KEY, &mut runs), Ok(Reserve::Granted(_))));
}

#[test]
fn what_only_a_seal_named_comes_back_in_bounded_steps() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let step = u64::from(RECLAIM_SLOTS_PER_STEP);
    change_without_audit(&mut overlay, &written(0..4 * step));
    assert_eq!(overlay.seals(), 0);
    let seals = [overlay.seal(), overlay.seal()];
    assert_eq!(overlay.seals(), 2);
    assert_eq!((seals[0].blocks(), seals[0].tally().slots), (1 << 18, 4 * step));
    for block in (0..4 * step).step_by(2) {
        change_without_audit(&mut overlay, &written(block..block + 1));
    }
    let sealed = |overlay: &Overlay| u64::from(overlay.counts().sealed);
    for seal in seals {
        assert_eq!(sealed(&overlay), 2 * step);
        drop(overlay.unseal(seal));
    }
    assert_eq!(overlay.seals(), 0);
    // The second seal keeps what the first one does, until it is looked at.
    let mut steps = 0;
    while sealed(&overlay) > 0 {
        let before = sealed(&overlay);
        overlay.reclaim();
        assert!(before - sealed(&overlay) <= step, "a step is bounded");
        steps += 1;
    }
    assert!(steps >= 2);
    overlay.audit();
}

#[test]
fn a_growth_by_what_is_needed_is_not_tried_twice() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let extent = written(0..300);
    assert_eq!(overlay.reserve(&extent, KEY, &mut Vec::new()), Ok(Reserve::Wait));
    assert_eq!(growth(&mut overlay), Some(300));
    overlay.grown(false);
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert_eq!(overlay.reserve(&extent, KEY, &mut Vec::new()), Err(Errno::NoSpace));
}

#[test]
fn who_finds_room_after_a_growth_failed_may_wait_for_the_next() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let (mut others, grant) = reserve(&mut overlay, &written(0..256)).unwrap();
    let (extent, mut runs) = (written(300..500), Vec::new());
    let third = SessionKey(3);
    for key in [KEY, third] {
        assert_eq!(overlay.reserve(&extent, key, &mut runs), Ok(Reserve::Wait));
    }
    for wanted in [512, 200] {
        assert_eq!(growth(&mut overlay), Some(wanted));
        overlay.grown(false);
    }
    assert_eq!(overlay.take_waiting(), [KEY, third]);
    overlay.release(&mut others, grant);
    assert!(matches!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Granted(_))));
    let next = written(500..700);
    assert_eq!(overlay.reserve(&next, KEY, &mut Vec::new()), Ok(Reserve::Wait));
    // The other one has not heard of the failure yet.
    assert_eq!(overlay.reserve(&next, third, &mut Vec::new()), Err(Errno::NoSpace));
}

#[test]
fn what_is_set_aside_survives_a_write_that_is_given_up() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    change(&mut overlay, &zeroed(0..4, true)).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &written(1..3)).unwrap();
    overlay.release(&mut runs, grant);
    overlay.audit();
    assert_eq!(overlay.tally(), Tally { slots: 0, reserved: 4 });
}

#[test]
fn what_a_trim_took_is_not_set_aside_again_by_a_write_that_is_given_up() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    change(&mut overlay, &zeroed(0..4, true)).unwrap();
    let (mut runs, grant) = reserve(&mut overlay, &written(0..4)).unwrap();
    assert_eq!(overlay.tally(), Tally::default());
    assert_eq!(overlay.entry(1), Entry::ZeroClaimed);
    change(&mut overlay, &zeroed(1..2, false)).unwrap();
    overlay.release(&mut runs, grant);
    overlay.audit();
    assert_eq!(overlay.tally(), Tally { slots: 0, reserved: 3 });
    assert_eq!(overlay.entry(1), Entry::Zero);
}

#[test]
fn who_waits_is_woken_when_slots_become_free_before_the_data_file_grows() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    let all = written(0..256);
    let (mut runs, grant) = reserve(&mut overlay, &all).unwrap();
    let all_taken = overlay.counts().free == 0;
    assert!(all_taken);
    assert_eq!(overlay.reserve(&written(0..9), OTHER, &mut Vec::new()), Ok(Reserve::Wait));
    overlay.release(&mut runs, grant);
    assert_eq!(growth(&mut overlay), None);
    assert_eq!(overlay.take_waiting(), [OTHER]);
}

#[test]
fn a_full_disk_is_told_to_those_who_waited_and_tried_again_for_others() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    let (extent, mut runs) = (written(0..300), Vec::new());
    assert_eq!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Wait));
    // First a comfortable extent, then only what is needed, then no.
    for _ in 0..2 {
        if let Some(slots) = growth(&mut overlay) {
            assert!(slots >= 300);
            overlay.grown(false);
        }
    }
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert_eq!(overlay.reserve(&extent, KEY, &mut runs), Err(Errno::NoSpace));
    // Somebody else's request, or the next one: the disk may have room by now.
    for key in [OTHER, KEY] {
        assert_eq!(overlay.reserve(&extent, key, &mut runs), Ok(Reserve::Wait));
    }
    assert!(growth(&mut overlay).is_some());
    overlay.grown(true);
    assert_eq!(overlay.take_waiting(), vec![OTHER, KEY]);
    assert!(matches!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Granted(_))));
}

#[test]
fn the_data_file_grows_ahead_of_need_by_extents_that_double() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    assert_eq!(growth(&mut overlay), None, "a device nobody writes to needs no slots");
    change_without_audit(&mut overlay, &written(0..1));
    assert_eq!(overlay.counts().total, 256);
    let mut next = 1;
    for step in [512, 1024, 2048, 4096, 8192, 16_384, 16_384, 16_384] {
        // As long as a quarter of the next extent is free, there is time.
        let plenty = next + u64::from(overlay.counts().free - step / 4);
        change_without_audit(&mut overlay, &written(next..plenty));
        assert_eq!(growth(&mut overlay), None);
        change_without_audit(&mut overlay, &written(plenty..plenty + 1));
        next = plenty + 1;
        assert_eq!(growth(&mut overlay), Some(step));
        assert_eq!(growth(&mut overlay), None, "one growth at a time");
        overlay.grown(true);
    }
}

#[test]
fn space_set_aside_counts_as_used_when_the_data_file_grows_ahead_of_need() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    change(&mut overlay, &zeroed(0..128, true)).unwrap();
    assert_eq!((overlay.counts().free, growth(&mut overlay)), (256, None));
    change(&mut overlay, &zeroed(128..129, true)).unwrap();
    assert_eq!((overlay.counts().free, growth(&mut overlay)), (256, Some(512)));
}

#[test]
fn the_data_file_does_not_grow_ahead_of_need_beyond_device_or_quota() {
    let largest = 256 * BLOCK;
    for (size_bytes, quota_bytes) in [(largest, u64::MAX), (1 << 30, largest)] {
        let mut overlay = overlay(size_bytes, 0, quota_bytes);
        change(&mut overlay, &written(0..250)).unwrap();
        assert_eq!((overlay.counts().total, growth(&mut overlay)), (256, None));
    }
}

#[test]
fn what_only_seals_name_is_no_room_for_the_device() {
    let mut overlay = overlay(600 * BLOCK, 0, u64::MAX);
    change(&mut overlay, &written(0..250)).unwrap();
    assert_eq!(growth(&mut overlay), Some(512));
    overlay.grown(true);
    let seals = [overlay.seal(), overlay.seal()];
    assert_eq!(overlay.seals(), 2);
    change(&mut overlay, &written(0..250)).unwrap();
    assert_eq!((overlay.counts().sealed, growth(&mut overlay)), (250, None));
    // 768 slots, of which 250 are for seals alone: too few for 600 blocks.
    change(&mut overlay, &written(250..270)).unwrap();
    assert_eq!((overlay.counts().total, growth(&mut overlay)), (768, Some(1024)));
    for seal in seals {
        drop(overlay.unseal(seal));
    }
    assert_eq!(overlay.seals(), 0);
}

#[test]
fn after_a_growth_that_failed_the_data_file_grows_by_what_is_needed_only() {
    let mut overlay = overlay(1 << 30, 0, u64::MAX);
    change(&mut overlay, &written(0..200)).unwrap();
    assert_eq!(growth(&mut overlay), Some(512));
    overlay.grown(false);
    assert_eq!(growth(&mut overlay), None, "nobody needs it");
    assert_eq!(overlay.take_waiting(), []);
    let (extent, mut runs) = (written(200..300), Vec::new());
    assert_eq!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Wait));
    assert_eq!(overlay.take_waiting(), [], "not before its end is known");
    assert_eq!(growth(&mut overlay), Some(44));
    overlay.grown(true);
    assert_eq!(overlay.take_waiting(), [KEY]);
    assert!(matches!(overlay.reserve(&extent, KEY, &mut runs), Ok(Reserve::Granted(_))));
    // It went well: ahead of need again, from the second extent on.
    assert_eq!(growth(&mut overlay), Some(512));
}

#[test]
fn a_claim_of_neighbours_is_one() {
    let mut overlay = overlay(1 << 20, 0, u64::MAX);
    for blocks in [0..4, 8..12] {
        change(&mut overlay, &zeroed(blocks, true)).unwrap();
    }
    let claimed = |overlay: &Overlay| -> Vec<_> {
        overlay.claims.iter().map(|claim| (claim.blocks.start, claim.blocks.end)).collect()
    };
    let (mut runs, grant) = reserve(&mut overlay, &written(2..10)).unwrap();
    assert_eq!(claimed(&overlay), [(2, 4), (8, 10)]);
    // Another write's blocks are its own, though they lie beside these.
    let (mut others, other) = reserve(&mut overlay, &written(10..12)).unwrap();
    assert_eq!(claimed(&overlay), [(2, 4), (8, 10), (10, 12)]);
    overlay.release(&mut runs, grant);
    assert_eq!(claimed(&overlay), [(10, 12)]);
    overlay.release(&mut others, other);
    assert_eq!(claimed(&overlay), []);
    overlay.audit();
    change(&mut overlay, &written(2..4)).unwrap();
    assert_eq!(claimed(&overlay), [], "it is over as well when it is published");
    assert_eq!([0, 1, 8, 11].map(|block| overlay.entry(block)), [Entry::ZeroProvisioned; 4]);
}
