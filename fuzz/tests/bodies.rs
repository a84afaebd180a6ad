//! The fuzz bodies under bolero, on the stable toolchain: a bounded search in every test run.

use std::time::Duration;

#[test]
fn nothing_a_client_sends_in_the_handshake_breaks_a_session() {
    bolero::check!().with_test_time(Duration::from_secs(5)).for_each(glassine_fuzz::handshake);
}

#[test]
fn nothing_a_client_sends_as_requests_breaks_a_session() {
    bolero::check!().with_test_time(Duration::from_secs(5)).for_each(glassine_fuzz::requests);
}

/// Random bytes seldom begin with a magic: this one builds requests with arbitrary fields.
#[test]
fn no_fields_of_requests_break_a_session() {
    type Fields = (u16, u8, u64, u32, u8);
    bolero::check!()
        .with_type::<(u8, Vec<Fields>)>()
        .with_test_time(Duration::from_secs(10))
        .for_each(|(piece, requests)| {
            let mut bytes = vec![*piece];
            for (flags, command, offset, length, near) in requests {
                // Most offsets and lengths near the device, so that something happens.
                let (offset, length) = match near % 4 {
                    0 => (*offset, *length),
                    1 => (offset % 41_000, *length),
                    _ => (offset % 41_000, length % 20_000),
                };
                bytes.extend(0x2560_9513u32.to_be_bytes());
                bytes.extend((flags & 0x13).to_be_bytes());
                bytes.extend(u16::from(command % 9).to_be_bytes());
                bytes.extend(7u64.to_be_bytes());
                bytes.extend(offset.to_be_bytes());
                bytes.extend(length.to_be_bytes());
                if command % 9 == 1 {
                    bytes.extend(vec![*near; length as usize % 30_000]);
                }
            }
            glassine_fuzz::requests(&bytes);
        });
}

#[test]
fn no_tape_breaks_a_world() {
    bolero::check!().with_test_time(Duration::from_secs(10)).for_each(glassine_fuzz::world);
}

/// A FLUSH whose offset and length wrap: libFuzzer found the sum being made all the same.
#[test]
fn a_flush_with_a_wrapping_range_is_answered() {
    let mut bytes = vec![3];
    bytes.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3]);
    bytes.extend([0xff; 20]);
    glassine_fuzz::requests(&bytes);
}
