//! How long the recovery of a device takes that has much in it.

use std::collections::BTreeMap;
use std::time::Instant;

use glassine_core::journal::recovery::{Recovery, Step, blank};
use glassine_core::journal::superblock::Identity;
use glassine_core::journal::{Action, JournalFile};
use glassine_core::limits::SEGMENT_BYTES;
use glassine_core::overlay::{Extent, Reserve, SessionKey};
use glassine_core::{JournalLimits, Overlay, OverlayConfig, SpaceLimits};

const BLOCK: u64 = 4096;
const KEY: SessionKey = SessionKey(1);

/// A sheet's files in memory: what disks and the page cache take comes on top.
struct Sheet {
    config: OverlayConfig,
    files: BTreeMap<JournalFile, Vec<u8>>,
    slots: u32,
}

impl Sheet {
    fn new(blocks: u64) -> Self {
        let size_bytes = blocks * BLOCK;
        let (template_bytes, template_id) = (size_bytes, [0; 32]);
        let segment_bytes = SEGMENT_BYTES;
        let identity =
            Identity { sheet: 1, size_bytes, template_bytes, template_id, segment_bytes };
        let made = blank(&identity);
        let segment = vec![0; segment_bytes as usize];
        let contents = [made.superblock, made.checkpoint, Vec::new(), segment.clone(), segment];
        let quota_bytes = u64::MAX;
        let config = OverlayConfig {
            size_bytes,
            template_bytes,
            quota_bytes,
            space: SpaceLimits::growing_by(16 << 10),
        };
        Self { config, files: JournalFile::ALL.into_iter().zip(contents).collect(), slots: 0 }
    }

    fn recover(&self) -> Overlay {
        let limits = JournalLimits { carried_slots_max: 0, ..JournalLimits::default() };
        let mut recovery = Recovery::new(self.config.clone(), [0; 32], self.slots, limits);
        while let Some(step) = recovery.poll() {
            let read = match step {
                Step::Read { file, offset, length } => {
                    let bytes = &self.files[&file];
                    let start = bytes.len().min(offset as usize);
                    &bytes[start..bytes.len().min(start + length as usize)]
                }
                // Only ever what is there.
                _ => &[],
            };
            recovery.handle(Ok(read)).expect("it is whole");
        }
        recovery.finish().0
    }

    fn write(&mut self, overlay: &mut Overlay, block: u64, count: u64) {
        let blocks = block..block + count;
        let extent = Extent { zero: blocks.end..blocks.end, provision: false, blocks };
        let mut runs = Vec::new();
        let grant = loop {
            match overlay.reserve(&extent, KEY, &mut runs).expect("there is no quota") {
                Reserve::Granted(grant) => break grant,
                Reserve::Wait => {
                    while let Some(slots) = overlay.poll_growth() {
                        self.slots += slots.count;
                        overlay.grown(true);
                    }
                    let _ = overlay.take_waiting();
                }
            }
        };
        while overlay.publish(&extent, &mut runs, grant, [].into_iter()).is_err() {
            overlay.wait_for_journal(KEY);
            self.work(overlay);
        }
    }

    fn work(&mut self, overlay: &mut Overlay) {
        while let Some(task) = overlay.poll_task() {
            if let Action::Write { file, offset, bytes } = &task.action {
                let file = self.files.get_mut(file).expect("it is there");
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                file.resize(file.len().max(end), 0);
                file[start..end].copy_from_slice(bytes);
            }
            overlay.finished(task, Ok(()));
        }
        while overlay.poll_woken().is_some() {}
    }
}

/// The map names every slot. `GLASSINE_RECOVERY_GIB=100` measures as much as docs/operations.md speaks of.
#[test]
fn recovery_takes_milliseconds_for_each_gib() {
    let gib: u64 = std::env::var("GLASSINE_RECOVERY_GIB").map_or(2, |gib| gib.parse().unwrap());
    let blocks = (gib << 30) / BLOCK;
    for run in [1, 16] {
        let mut sheet = Sheet::new(blocks);
        let mut overlay = sheet.recover();
        // In an order that leaves no two runs side by side: a prime of them further each time.
        let runs = blocks / run;
        for index in 0..runs {
            sheet.write(&mut overlay, index * 7_368_787 % runs * run, run);
        }
        overlay.flush();
        sheet.work(&mut overlay);
        assert_eq!(overlay.tally().slots, blocks);
        let generation = overlay.generation();
        drop(overlay);
        let began = Instant::now();
        let again = sheet.recover();
        let took = began.elapsed();
        assert_eq!((again.tally().slots, again.generation()), (blocks, generation));
        let checkpoint = sheet.files[&JournalFile::Checkpoint(generation % 2 == 1)].len();
        println!(
            "{gib} GiB in scattered runs of {} KiB: recovered in {took:.2?}, from a checkpoint of {} MiB",
            run * 4,
            checkpoint >> 20
        );
        // Others use this machine: ten times what it takes.
        assert!(took.as_millis() < 500 + u128::from(gib) * 200, "{took:?}");
    }
}
