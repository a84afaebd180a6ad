//! Errors by who is at fault: the peer's end a session with a [`CloseReason`] or answer one request
//! with an [`Errno`]; storage's answer one request; our own are assertions.

use core::fmt;

/// The error values NBD allows in a reply (C7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted: a write to a read-only export.
    Perm = 1,
    /// Input/output error: storage failed.
    Io = 5,
    /// Invalid argument: the request breaks a rule of the protocol.
    Invalid = 22,
    /// No space left: quota spent, disk full, or a write beyond the end.
    NoSpace = 28,
    /// Not supported: a fast zero that would not be fast.
    NotSupported = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

impl Errno {
    /// The value on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloseReason {
    /// The client said NBD_CMD_DISC.
    Disconnected,
    /// The client said NBD_OPT_ABORT.
    Aborted,
    /// The client closed its sending side between two requests.
    EndOfStream,
    /// The client closed its sending side in the middle of a request or option.
    EndedMidRequest,
    /// The connection broke.
    ConnectionLost,
    /// The server is shutting down, or closes the export, and everything outstanding was answered.
    Drained,
    /// The server is shutting down, or closes the export, and the client did not take its replies in time.
    DrainTimedOut,
    /// The handshake took too long.
    HandshakeTimedOut,
    /// The client stopped sending in the middle of a request.
    Stalled,
    /// The client set handshake flags that the server did not offer (H3).
    UnknownClientFlags,
    /// An option without the option magic (H5).
    BadOptionMagic,
    /// A request without the request magic.
    BadRequestMagic,
    /// NBD_OPT_EXPORT_NAME named no export, and has no way to be told so (E1).
    UnknownExport,
    /// An option far longer than any option is.
    OptionTooLong,
    /// The client sends options and does not read the replies.
    RepliesNotRead,
    /// Storage failed after the header of a successful reply had been sent (r1).
    ReadFailedMidReply,
    /// No memory for the unsent rest of replies.
    OutOfMemory,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected => "the client said goodbye",
            Self::Aborted => "the client aborted the handshake",
            Self::EndOfStream => "the client closed the connection",
            Self::EndedMidRequest => "the client closed the connection in the middle of a request",
            Self::ConnectionLost => "the connection broke",
            Self::Drained => {
                "the server or the export is shutting down; every request was answered"
            }
            Self::DrainTimedOut => {
                "the server or the export is shutting down; the client did not take its replies"
            }
            Self::HandshakeTimedOut => "the client did not finish the handshake in time",
            Self::Stalled => "the client stopped sending in the middle of a request",
            Self::UnknownClientFlags => "the client set handshake flags that were not offered",
            Self::BadOptionMagic => "an option did not begin with the option magic",
            Self::BadRequestMagic => "a request did not begin with the request magic",
            Self::UnknownExport => "the client asked for an export that does not exist",
            Self::OptionTooLong => "the client sent an option far longer than any option is",
            Self::RepliesNotRead => "the client sends options without reading the replies",
            Self::ReadFailedMidReply => "storage failed after a reply had begun",
            Self::OutOfMemory => "no memory is left for replies the client does not take",
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::string::{String, ToString};

    /// Every one of these says something, and no two say the same.
    pub(crate) fn assert_words_of_their_own(errors: &[impl fmt::Display]) {
        let texts: HashSet<String> = errors.iter().map(ToString::to_string).collect();
        assert!(texts.iter().all(|text| text.len() > 10), "{texts:?}");
        assert_eq!(texts.len(), errors.len(), "{texts:?}");
    }

    #[test]
    fn every_end_of_a_session_has_words_of_its_own() {
        assert_words_of_their_own(&[
            CloseReason::Disconnected,
            CloseReason::Aborted,
            CloseReason::EndOfStream,
            CloseReason::EndedMidRequest,
            CloseReason::ConnectionLost,
            CloseReason::Drained,
            CloseReason::DrainTimedOut,
            CloseReason::HandshakeTimedOut,
            CloseReason::Stalled,
            CloseReason::UnknownClientFlags,
            CloseReason::BadOptionMagic,
            CloseReason::BadRequestMagic,
            CloseReason::UnknownExport,
            CloseReason::OptionTooLong,
            CloseReason::RepliesNotRead,
            CloseReason::ReadFailedMidReply,
            CloseReason::OutOfMemory,
        ]);
    }
}
