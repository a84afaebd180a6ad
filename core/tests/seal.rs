//! What sealing costs a device with much in it.

use std::time::{Duration, Instant};

use glassine_core::overlay::{Extent, Reserve, SessionKey};
use glassine_core::{Overlay, OverlayConfig};

const BLOCK: u64 = 4096;

fn write(overlay: &mut Overlay, blocks: std::ops::Range<u64>) {
    let extent = Extent { zero: blocks.end..blocks.end, provision: false, blocks };
    let mut runs = Vec::new();
    let grant = loop {
        match overlay.reserve(&extent, SessionKey(1), &mut runs).expect("there is no quota") {
            Reserve::Granted(grant) => break grant,
            Reserve::Wait => {
                while overlay.poll_growth().is_some() {
                    overlay.grown(true);
                }
                let _ = overlay.take_waiting();
            }
        }
    };
    let _ = overlay.publish(&extent, &mut runs, grant, std::iter::empty()).expect("nobody else");
}

/// A seal is one step whatever was written, and what it leaves to be copied is a few KiB a write: here 64 GiB in
/// 16 million slots, sealed a thousand times, with a write to another place after each.
#[test]
fn a_seal_of_64_gib_takes_no_time() {
    const BLOCKS: u64 = (64 << 30) / BLOCK;
    let mut overlay = Overlay::new(OverlayConfig {
        size_bytes: BLOCKS * BLOCK,
        template_bytes: 0,
        quota_bytes: u64::MAX,
        space: glassine_core::SpaceLimits::growing_by(16 << 10),
    });
    for first in (0..BLOCKS).step_by(16 << 10) {
        write(&mut overlay, first..first + (16 << 10));
    }
    assert_eq!(overlay.tally().slots, BLOCKS);
    let (mut seals, mut writes, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..1000 {
        let began = Instant::now();
        let seal = overlay.seal();
        seals.push(began.elapsed());
        // A prime of blocks further each time: hardly ever the same leaf.
        let block = round * 1_000_003 % BLOCKS;
        let began = Instant::now();
        write(&mut overlay, block..block + 1);
        writes.push(began.elapsed());
        let began = Instant::now();
        let map = overlay.unseal(seal);
        ends.push(began.elapsed());
        drop(map);
    }
    for (what, times) in [("seal", &mut seals), ("first write", &mut writes), ("unseal", &mut ends)]
    {
        times.sort_unstable();
        let (half, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("{what:<12} median {half:?}, p99 {p99:?}, longest {:?}", times[times.len() - 1]);
        // Others use this machine: whoever takes longest may have been interrupted.
        assert!(half < Duration::from_millis(1), "{what}: {half:?}");
    }
    overlay.reclaim();
    assert_eq!(overlay.counts().sealed, 0);
}
