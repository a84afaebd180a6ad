//! Every bound in one place. A session takes them as a value so that the simulator can shrink them
//! until each boundary is reached; [`Limits::default`] is what production uses.

use core::time::Duration;

use crate::journal::frame::{FRAME_BYTES_MAX, frame_bytes};

/// Bytes of a block of the device, and of a slot of the data file.
pub const BLOCK_BYTES: u32 = 4096;
/// The longest payload of one READ or WRITE in production; advertised to clients.
pub const PAYLOAD_BYTES_MAX: u32 = 64 << 20;
/// NBD W2: no string is longer than this.
pub const NAME_BYTES_MAX: u32 = 4096;
/// The longest option whose data is looked at: a name, and room for every info request.
pub const OPTION_BYTES_MAX: u32 = 8 << 10;
/// The longest option whose data is skipped politely. Beyond it the client is only a burden.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Replies of the handshake that may wait for a client which does not read.
pub const HANDSHAKE_REPLY_BYTES_MAX: usize = 256 << 10;
/// The largest device: block numbers stay far from any overflow.
pub const DEVICE_BYTES_MAX: u64 = 1 << 50;
/// The first extent by which a data file grows; it doubles from there.
pub const GROWTH_SLOTS_MIN: u32 = 256;
/// The largest extent by which a data file grows ahead of need.
pub const GROWTH_SLOTS_MAX: u32 = 16 << 10;
/// Displaced slots (or blocks of dropped map leaves) looked at in one reclaim step.
pub const RECLAIM_SLOTS_PER_STEP: u32 = 4096;
/// Steps that a reservation which is short of slots takes while the data file can grow.
pub const RECLAIM_STEPS_MAX: u32 = 16;

/// Size of each of a sheet's two journal segments, when it is made.
pub const SEGMENT_BYTES: u64 = 8 << 20;
/// The largest segment that is read: recovery holds one in memory.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;

const _: () = assert!(BLOCK_BYTES.is_power_of_two());
// A name with its framing fits an option that is looked at.
const _: () = assert!(OPTION_BYTES_MAX > NAME_BYTES_MAX + 6);
// NBD W6: up to 32 MiB a payload is no attack; NBD Z3: test suites send close to 50 MB.
const _: () = assert!(PAYLOAD_BYTES_MAX >= 50 << 20);
// The largest write must find its slots in one growth step.
const _: () = assert!(GROWTH_SLOTS_MAX >= PAYLOAD_BYTES_MAX / BLOCK_BYTES);

/// How a device gets space for its slots from the file system, and gives it back. [`Self::default`] is what
/// production uses; the simulator takes less of everything, so that both happen often.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpaceLimits {
    /// The first extent by which the data file grows, in slots; it doubles from there.
    pub growth_slots_min: u32,
    /// The largest extent by which it grows ahead of need.
    pub growth_slots_max: u32,
    /// Free slots are given back in aligned groups of so many, a power of two of no more than 64; 0 for never.
    pub hole_slots: u32,
    /// The most that are given back at once; a multiple of [`Self::hole_slots`].
    pub punch_slots_max: u32,
    /// So many free slots are kept while something is written, besides those that are set aside, and one more for every
    /// eight that are live: more than a barrier frees at once and the data file grows by, which would be needed again.
    /// Where nothing is written, twice [`Self::growth_slots_min`] are enough.
    pub spare_slots: u32,
    /// So many ticks without a write between them, at least one, and a device is quiet. A load that only rests would
    /// have to get its space again.
    pub quiet_ticks: u32,
}

impl Default for SpaceLimits {
    fn default() -> Self {
        Self {
            growth_slots_min: GROWTH_SLOTS_MIN,
            growth_slots_max: GROWTH_SLOTS_MAX,
            hole_slots: 16,
            punch_slots_max: 2048,
            spare_slots: 96 << 10,
            quiet_ticks: 12,
        }
    }
}

impl SpaceLimits {
    /// Space is never given back.
    #[must_use]
    pub const fn growing_by(growth_slots_min: u32) -> Self {
        Self {
            growth_slots_min,
            growth_slots_max: GROWTH_SLOTS_MAX,
            hole_slots: 0,
            punch_slots_max: 0,
            spare_slots: 0,
            quiet_ticks: 1,
        }
    }
}

/// The bounds of one session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Requests a client may have in flight: parsed, and their reply not yet with the kernel.
    pub requests_max: u16,
    /// Bytes of the receive buffer. Holds at least one header and one handshake option header.
    pub staging_bytes: u32,
    /// A payload with more bytes than this still to come is received straight into its slots.
    pub direct_bytes_min: u32,
    /// The longest payload of one READ or WRITE.
    pub payload_bytes_max: u32,
    /// No further READ is resolved while this many payload bytes wait to be sent.
    pub unsent_bytes_max: u32,
    /// Whether a WRITE of nothing but zeroes, received in one piece, edits the map and needs no slots.
    pub detect_zeroes: bool,
    /// A client gets this long to finish its handshake.
    pub handshake_time_max: Duration,
    /// A client that has begun a request gets this long between two bytes of it.
    pub stall_time_max: Duration,
    /// A draining session gets this long to hand over its replies.
    pub drain_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 256,
            staging_bytes: 256 << 10,
            direct_bytes_min: 32 << 10,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            unsent_bytes_max: 1 << 20,
            detect_zeroes: true,
            handshake_time_max: Duration::from_secs(10),
            stall_time_max: Duration::from_secs(60),
            drain_time_max: Duration::from_secs(5),
        }
    }
}

/// The bounds of one device's journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JournalLimits {
    /// Edits of the map that may wait for a barrier; each is 16 bytes. This bounds a record, and with it
    /// what is encoded under the device's lock. At least [`Self::publish_entries_max`] of the longest payload.
    pub queue_entries_max: u32,
    /// Slots that the edits may name which wait for a barrier: the work of one capture. At three quarters of
    /// it, or of the queue, a barrier begins by itself.
    pub fresh_slots_max: u32,
    /// Slots that may wait for a record before they are used again, until a barrier begins by itself; and one
    /// more for every eight that are live.
    pub limbo_slots_max: u32,
    /// Runs of the map that one section of a checkpoint looks at: the bound on one step of it.
    pub section_entries: u32,
    /// A record of no more slots than this carries their blocks, so that one sync makes it durable and not
    /// two, one after the other; 0 for never.
    pub carried_slots_max: u32,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self {
            queue_entries_max: QUEUE_ENTRIES_MAX,
            fresh_slots_max: 1 << 20,
            limbo_slots_max: 64 << 10,
            section_entries: 1020,
            carried_slots_max: 32,
        }
    }
}

impl JournalLimits {
    /// The most edits of one publish: a run for every block, and the zeroes between them.
    #[must_use]
    pub const fn publish_entries_max(payload_bytes_max: u32) -> u32 {
        payload_bytes_max / BLOCK_BYTES + 4
    }
}

/// Edits that may wait for a barrier in production: as many as fit a frame.
const QUEUE_ENTRIES_MAX: u32 = 131_000;

// The largest publish fits the queue, a whole queue one record, and two of those half a segment.
const _: () = assert!(QUEUE_ENTRIES_MAX >= JournalLimits::publish_entries_max(PAYLOAD_BYTES_MAX));
const _: () = assert!(frame_bytes(QUEUE_ENTRIES_MAX as usize) <= FRAME_BYTES_MAX);
const _: () = assert!(SEGMENT_BYTES >= 4 * frame_bytes(QUEUE_ENTRIES_MAX as usize) as u64);

#[cfg(test)]
mod tests {
    use super::*;

    /// In figures, so that none changes unnoticed.
    #[test]
    fn production_has_these_bounds() {
        assert_eq!((PAYLOAD_BYTES_MAX, DEVICE_BYTES_MAX), (67_108_864, 1_125_899_906_842_624));
        assert_eq!((OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX), (8192, 1_048_576));
        assert_eq!(HANDSHAKE_REPLY_BYTES_MAX, 262_144);
        assert_eq!((SEGMENT_BYTES, SEGMENT_BYTES_MAX), (8_388_608, 67_108_864));
        assert_eq!((GROWTH_SLOTS_MIN, GROWTH_SLOTS_MAX), (256, 16_384));
        let Limits { staging_bytes, direct_bytes_min, unsent_bytes_max, .. } = Limits::default();
        assert_eq!(
            (staging_bytes, direct_bytes_min, unsent_bytes_max),
            (262_144, 32_768, 1_048_576)
        );
        let SpaceLimits { hole_slots, punch_slots_max, spare_slots, quiet_ticks, .. } =
            SpaceLimits::default();
        assert_eq!((hole_slots, punch_slots_max, spare_slots, quiet_ticks), (16, 2048, 98_304, 12));
        let JournalLimits { fresh_slots_max, limbo_slots_max, .. } = JournalLimits::default();
        assert_eq!((fresh_slots_max, limbo_slots_max), (1_048_576, 65_536));
        // A run for every block, the zeroes between them, and both ends.
        assert_eq!(JournalLimits::publish_entries_max(8 * 4096), 12);
        assert_eq!(SpaceLimits::growing_by(7).growth_slots_max, 16_384);
        assert_eq!(SpaceLimits::growing_by(7).hole_slots, 0);
    }
}
