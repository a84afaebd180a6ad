//! The stream of requests, any bytes, cut anywhere: a parser of its own predicts what each request is
//! answered, and a model of the device what it shows.

use std::time::Duration;

use glassine_core::{CloseReason, Limits, SpaceLimits};

use crate::driver::{Driver, Setup};
use crate::input::{Choices, Cuts};

/// Anything a client may send after it has chosen an export. The first bytes say what device and what
/// bounds there are, and where the stream is cut; the rest is the stream, but for cookies, of which
/// each request gets one of its own.
pub fn requests(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let setup = setup(&mut choices);
    let mut cuts = Cuts::new(choices.byte());
    let (stream, expected) = with_cookies(choices.rest());
    let mut driver = Driver::new(setup);
    driver.says(&stream);
    let reason = driver.run_out(&mut cuts);
    assert_eq!(reason, expected);
}

/// A device of six blocks, and bounds that its requests reach. Zeroes are the plainest.
pub(crate) fn setup(choices: &mut Choices<'_>) -> Setup {
    let seconds = Duration::from_secs;
    Setup {
        size_bytes: choices.pick(&[21_000, 24_576, 4096, 1]),
        template_bytes: 0,
        quota_bytes: choices.pick(&[u64::MAX, 1 << 40, 12_288, 4096, 0]),
        space: SpaceLimits::growing_by(choices.pick(&[1, 4, 256])),
        read_only: choices.below(8) == 7,
        limits: Limits {
            requests_max: choices.pick(&[4, 1, 2, 16]),
            staging_bytes: choices.pick(&[8208, 9000, 16_384]),
            direct_bytes_min: choices.pick(&[100, 0, 5000, 1 << 20]),
            payload_bytes_max: choices.pick(&[9000, 20_000, 100]),
            unsent_bytes_max: choices.pick(&[4096, 1, 1 << 16]),
            detect_zeroes: true,
            handshake_time_max: seconds(10),
            stall_time_max: seconds(60),
            drain_time_max: seconds(5),
        },
    }
    .with_template(choices.below(4))
}

/// The same stream with a cookie of its own in every request, and why a session of it must end.
fn with_cookies(stream: &[u8]) -> (Vec<u8>, CloseReason) {
    let mut stream = stream.to_vec();
    let mut at = 0;
    for serial in 0u32.. {
        let Some(header) = stream.get_mut(at..at + 28) else { break };
        if header[..4] != [0x25, 0x60, 0x95, 0x13] {
            return (stream, CloseReason::BadRequestMagic);
        }
        let command = [header[6], header[7]];
        if command == [0, 2] {
            return (stream, CloseReason::Disconnected);
        }
        header[12..16].copy_from_slice(&serial.to_be_bytes());
        let length = u32::from_be_bytes(header[24..].try_into().expect("four bytes"));
        at += 28 + if command == [0, 1] { length as usize } else { 0 };
    }
    let is_cut = at != stream.len();
    (stream, if is_cut { CloseReason::EndedMidRequest } else { CloseReason::EndOfStream })
}
