//! The configuration of a run, itself drawn from the tape: which bounds are tight, which faults are
//! on, and what clients like to do.

use std::time::Duration;

use glassine_core::{JournalLimits, Limits, SpaceLimits};

use crate::choice::{Lane, Tape};

/// One run's configuration.
#[derive(Debug, Clone)]
pub struct Swarm {
    /// Connections at a time.
    pub connections: u64,
    /// Requests a client keeps in flight.
    pub depth: u64,
    /// Requests of the whole run.
    pub requests: u64,
    /// Size of the device.
    pub size_bytes: u64,
    /// Size of the template.
    pub template_bytes: u64,
    /// The quota.
    pub quota_bytes: u64,
    /// How the data file gets space, and gives it back.
    pub space: SpaceLimits,
    /// Most of the requests go to this many blocks.
    pub hot_blocks: u64,
    /// The longest payload.
    pub length_max: u64,
    /// Whether ranges are whole blocks: 0 never, 100 always.
    pub aligned_percent: u64,
    /// How much a client likes READ, WRITE, TRIM, WRITE_ZEROES, FLUSH, CACHE, and nonsense.
    pub weights: [u64; 7],
    /// Room of a pipe from the client, and to it.
    pub pipe_bytes: [u64; 2],
    /// Longest delay of an operation, in steps.
    pub delay_steps: u64,
    /// Operations that do not complete before the faults stop.
    pub never_percent: u64,
    /// Operations on files that fail.
    pub fault_percent: u64,
    /// Growths of the data file that fail.
    pub full_percent: u64,
    /// Steps in ten thousand at which a connection is reset, or its client leaves.
    pub reset_per_10k: u64,
    /// Clients that do not read replies before the faults stop.
    pub deaf_percent: u64,
    /// Clients that fall silent at some byte, for ever.
    pub vanish_percent: u64,
    /// The session's bounds.
    pub limits: Limits,
    /// Whether the time may jump past deadlines.
    pub jumps: bool,
    /// WRITEs whose payload is zero.
    pub zeroes_percent: u64,
    /// How often one connection is to be served while something else stands still.
    pub probes: u64,
    /// What keeps what was flushed; nothing for an ephemeral device.
    pub sheet: Option<Sheet>,
    /// Seals that are taken while there are faults.
    pub seals: u64,
}

/// The journal of a device, and what happens to it.
#[derive(Debug, Clone)]
pub struct Sheet {
    /// Its bounds.
    pub limits: JournalLimits,
    /// Size of each segment.
    pub segment_bytes: u64,
    /// Crashes of the whole run.
    pub crashes: u64,
    /// Tasks in a thousand that fail.
    pub fault_per_1000: u64,
    /// Whether bytes change on the medium, for recovery to find.
    pub rots: bool,
}

impl Sheet {
    /// Draws one, or none.
    pub fn draw(tape: &mut Tape, limits: &Limits) -> Option<Self> {
        const LANE: Lane = Lane::Swarm;
        if !tape.chance(LANE, 70) {
            return None;
        }
        let publish = JournalLimits::publish_entries_max(limits.payload_bytes_max);
        Some(Self {
            limits: JournalLimits {
                queue_entries_max: publish + *tape.pick(LANE, &[0, 20, 1000]),
                fresh_slots_max: *tape.pick(LANE, &[2000, 1, 20, 100]),
                limbo_slots_max: *tape.pick(LANE, &[1000, 1, 10]),
                section_entries: *tape.pick(LANE, &[1020, 1, 7]),
                carried_slots_max: *tape.pick(Lane::Records, &[0, 32, 1, 3]),
            },
            segment_bytes: *tape.pick(LANE, &[64 << 10, 32 << 10, 256 << 10]),
            crashes: *tape.pick(LANE, &[0, 1, 1, 2, 3, 5]),
            fault_per_1000: *tape.pick(LANE, &[0, 0, 0, 3, 20]),
            rots: tape.chance(LANE, 20),
        })
    }
}

impl Swarm {
    /// Draws one. The first of every list is the plainest.
    pub fn draw(tape: &mut Tape) -> Self {
        const LANE: Lane = Lane::Swarm;
        let blocks = *tape.pick(LANE, &[1, 2, 3, 8, 32, 64, 200, 600, 1100]);
        let tail = *tape.pick(LANE, &[0, 0, 1, 511, 512, 2048, 4095]);
        let size_bytes = blocks * 4096 + tail;
        let template_bytes = match tape.draw(LANE, 4) {
            0 => 0,
            1 => size_bytes,
            _ => tape.draw(LANE, size_bytes + 1),
        };
        let quota_bytes = match tape.draw(LANE, 3) {
            2 => tape.draw(LANE, size_bytes + 1),
            _ => u64::MAX,
        };
        let faults = tape.chance(LANE, 60);
        let percent = |tape: &mut Tape, most: u64| {
            let drawn = tape.draw(LANE, most + 1);
            if faults { drawn } else { 0 }
        };
        let limits = Limits {
            requests_max: *tape.pick(LANE, &[16, 1, 2, 5, 128, 256]),
            staging_bytes: *tape.pick(LANE, &[16 << 10, 8208, 9000, 64 << 10, 256 << 10]),
            direct_bytes_min: *tape.pick(LANE, &[32 << 10, 0, 100, 5000, 1 << 20]),
            payload_bytes_max: *tape.pick(LANE, &[1 << 20, 5000, 40_000]),
            unsent_bytes_max: *tape.pick(LANE, &[64 << 10, 1, 4096, 1 << 20]),
            detect_zeroes: true,
            handshake_time_max: Duration::from_secs(10),
            stall_time_max: Duration::from_secs(60),
            drain_time_max: Duration::from_secs(5),
        };
        Self {
            connections: tape.between(LANE, 1, 8),
            depth: *tape.pick(LANE, &[1, 2, 4, 16, 128]),
            requests: tape.between(LANE, 1, 160),
            size_bytes,
            template_bytes,
            quota_bytes,
            space: draw_space(tape),
            hot_blocks: *tape.pick(LANE, &[1, 2, 4, 1000]),
            length_max: *tape.pick(LANE, &[4096, 600, 20_000, 300_000]),
            aligned_percent: *tape.pick(LANE, &[100, 0, 50, 90]),
            weights: std::array::from_fn(|_| *tape.pick(LANE, &[0, 1, 1, 4, 12])),
            pipe_bytes: std::array::from_fn(|_| *tape.pick(LANE, &[100_000, 40, 1000, 5000])),
            delay_steps: *tape.pick(LANE, &[0, 3, 30, 300]),
            never_percent: percent(tape, 8),
            fault_percent: percent(tape, 15),
            full_percent: if tape.chance(LANE, 30) { percent(tape, 100) } else { 0 },
            reset_per_10k: percent(tape, 40),
            deaf_percent: percent(tape, 40),
            vanish_percent: percent(tape, 20),
            limits,
            jumps: tape.chance(LANE, 10) && faults,
            probes: tape.draw(LANE, 3),
            zeroes_percent: *tape.pick(LANE, &[0, 0, 10, 50]),
            sheet: None,
            seals: *tape.pick(Lane::Seals, &[0, 0, 1, 3, 20]),
        }
    }
}

fn draw_space(tape: &mut Tape) -> SpaceLimits {
    let growth_slots_min = *tape.pick(Lane::Swarm, &[256, 1, 4, 16]);
    let hole_slots = *tape.pick(Lane::Space, &[0, 1, 2, 4, 16]);
    let punch_slots_max = hole_slots * *tape.pick(Lane::Space, &[1, 4, 64]);
    let spare_slots = *tape.pick(Lane::Space, &[0, 0, 4, 64]);
    let growth_slots_max = growth_slots_min * *tape.pick(Lane::Space, &[64, 1, 1, 1, 4]);
    SpaceLimits {
        growth_slots_min,
        growth_slots_max,
        hole_slots,
        punch_slots_max,
        spare_slots,
        quiet_ticks: 1,
    }
}
