//! The byte format of NBD: magics, numbers and the fixed-size headers. Everything is big-endian (W1).

use alloc::vec::Vec;

/// `NBDMAGIC`, the first eight bytes a server sends (H1).
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, in the greeting and before every option (H5).
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option (H6).
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before every simple reply (C1).
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Bytes of a request header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of an option header.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of the client's handshake flags.
pub const CLIENT_FLAGS_BYTES: usize = 4;

/// Handshake flag: options after the first get replies.
pub const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: EXPORT_NAME is not padded.
pub const HANDSHAKE_NO_ZEROES: u16 = 2;

/// NBD_OPT_EXPORT_NAME.
pub const OPT_EXPORT_NAME: u32 = 1;
/// NBD_OPT_ABORT.
pub const OPT_ABORT: u32 = 2;
/// NBD_OPT_LIST.
pub const OPT_LIST: u32 = 3;
/// NBD_OPT_INFO.
pub const OPT_INFO: u32 = 6;
/// NBD_OPT_GO.
pub const OPT_GO: u32 = 7;

/// NBD_REP_ACK.
pub const REP_ACK: u32 = 1;
/// NBD_REP_SERVER.
pub const REP_SERVER: u32 = 2;
/// NBD_REP_INFO.
pub const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
/// NBD_REP_ERR_UNSUP.
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
/// NBD_REP_ERR_INVALID.
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
/// NBD_REP_ERR_UNKNOWN.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
/// NBD_REP_ERR_SHUTDOWN.
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR | 7;
/// NBD_REP_ERR_TOO_BIG.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;

/// NBD_INFO_EXPORT.
pub const INFO_EXPORT: u16 = 0;
/// NBD_INFO_NAME.
pub const INFO_NAME: u16 = 1;
/// NBD_INFO_DESCRIPTION.
pub const INFO_DESCRIPTION: u16 = 2;
/// NBD_INFO_BLOCK_SIZE.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// NBD_FLAG_HAS_FLAGS.
pub const FLAG_HAS_FLAGS: u16 = 1 << 0;
/// NBD_FLAG_READ_ONLY.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// NBD_FLAG_SEND_FLUSH.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// NBD_FLAG_SEND_FUA.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// NBD_FLAG_SEND_TRIM.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// NBD_FLAG_SEND_WRITE_ZEROES.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// NBD_FLAG_CAN_MULTI_CONN.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// NBD_FLAG_SEND_CACHE.
pub const FLAG_SEND_CACHE: u16 = 1 << 10;
/// NBD_FLAG_SEND_FAST_ZERO.
pub const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

/// NBD_CMD_READ.
pub const CMD_READ: u16 = 0;
/// NBD_CMD_WRITE.
pub const CMD_WRITE: u16 = 1;
/// NBD_CMD_DISC.
pub const CMD_DISC: u16 = 2;
/// NBD_CMD_FLUSH.
pub const CMD_FLUSH: u16 = 3;
/// NBD_CMD_TRIM.
pub const CMD_TRIM: u16 = 4;
/// NBD_CMD_CACHE.
pub const CMD_CACHE: u16 = 5;
/// NBD_CMD_WRITE_ZEROES.
pub const CMD_WRITE_ZEROES: u16 = 6;

/// NBD_CMD_FLAG_FUA.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// NBD_CMD_FLAG_NO_HOLE.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// NBD_CMD_FLAG_FAST_ZERO.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// A request header, as parsed: nothing about it has been judged yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Must be [`REQUEST_MAGIC`].
    pub magic: u32,
    /// Command flags. R1: 16 bits of their own, never read together with the command.
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// Opaque to the server; echoed in the reply (R2).
    pub cookie: u64,
    /// First byte of the device that is meant.
    pub offset: u64,
    /// How many bytes are meant.
    pub length: u32,
}

impl RequestHeader {
    /// Reads the fields out of the 28 bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Self {
        Self {
            magic: be32(bytes, 0),
            flags: be16(bytes, 4),
            command: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            length: be32(bytes, 24),
        }
    }

    /// The 28 bytes a client sends.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&self.magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// The 16 bytes of a simple reply; `error` 0 is success.
#[must_use]
pub fn simple_reply(error: u32, cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Appends the greeting (H1, H2).
pub fn put_greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES).to_be_bytes());
}

/// Appends a reply to an option (H6). `parts` together are its data.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("option replies are short");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The big-endian 16-bit number at `at`.
#[must_use]
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian 32-bit number at `at`.
#[must_use]
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// The big-endian 64-bit number at `at`.
#[must_use]
pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_command_are_separate_numbers() {
        let header = RequestHeader {
            magic: REQUEST_MAGIC,
            flags: CMD_FLAG_FUA,
            command: CMD_WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1112_1314_1516_1718,
            length: 0x2122_2324,
        };
        let bytes = header.encode();
        assert_eq!(bytes[4..8], [0, 1, 0, 1]);
        assert_eq!(RequestHeader::parse(&bytes), header);
    }

    #[test]
    fn numbers_are_those_of_the_protocol() {
        let errors =
            [REP_ERR_UNSUP, REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_ERR_SHUTDOWN, REP_ERR_TOO_BIG];
        assert_eq!(errors.map(|error| error ^ 0x8000_0000), [1, 3, 6, 7, 9]);
        assert_eq!((REP_ACK, REP_SERVER, REP_INFO), (1, 2, 3));
        assert_eq!([OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO], [1, 2, 3, 6, 7]);
        assert_eq!([CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_FAST_ZERO], [1, 2, 16]);
        let commands =
            [CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES];
        assert_eq!(commands, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(REQUEST_MAGIC.to_be_bytes(), [0x25, 0x60, 0x95, 0x13]);
    }

    #[test]
    fn a_simple_reply_is_magic_error_cookie() {
        let bytes = simple_reply(28, 7);
        assert_eq!(bytes, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 7]);
    }
}
