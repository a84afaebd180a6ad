//! The system calls of the load generator that the standard library does not offer.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A piece of what is sent, or of where to receive to.
pub type Piece = libc::iovec;

/// A piece that is these bytes.
#[must_use]
pub fn piece(bytes: &[u8]) -> Piece {
    Piece { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// A message header over these pieces.
fn message(pieces: &mut [Piece]) -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`: null pointers with lengths of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}

/// Sends all of the pieces, which it shortens on the way: one call, if the socket takes them at once.
///
/// # Safety
/// Every piece must be readable memory that nobody changes during the call. (The kernel only reads
/// it: memory that is mapped from a file is fine.)
pub unsafe fn send_all(socket: RawFd, mut pieces: &mut [Piece]) -> io::Result<()> {
    while !pieces.is_empty() {
        // Linux takes at most 1024 pieces.
        let now = pieces.len().min(1024);
        let message = message(&mut pieces[..now]);
        // SAFETY: the header names `now` pieces, and the caller vouches for their memory.
        let sent = count(unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) });
        match sent {
            Ok(sent) => pieces = advance(pieces, sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is left of the pieces after so many bytes.
pub fn advance(mut pieces: &mut [Piece], mut bytes: usize) -> &mut [Piece] {
    while let Some(first) = pieces.first_mut() {
        if bytes < first.iov_len {
            // SAFETY: stays within the piece.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(bytes).cast() };
            first.iov_len -= bytes;
            break;
        }
        bytes -= first.iov_len;
        pieces = &mut pieces[1..];
    }
    pieces
}

/// Receives into the pieces, in one call; 0 is the end of the stream.
///
/// # Safety
/// Every piece must be writable memory that nobody else uses during the call.
pub unsafe fn receive_pieces(socket: RawFd, pieces: &mut [Piece]) -> io::Result<usize> {
    let mut message = message(pieces);
    loop {
        // SAFETY: the header names the pieces, and the caller vouches for their memory.
        match count(unsafe { libc::recvmsg(socket, &raw mut message, 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Receives into a buffer, in one call; 0 is the end of the stream.
pub fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the buffer is as long as is said.
        let got = unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        match count(got) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Waits for one of many sockets.
#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// Waits for none yet.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no memory.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(Self { epoll: unsafe { OwnedFd::from_raw_fd(epoll) } })
    }

    /// Adds a socket that is waited for until it can be read.
    pub fn add(&self, socket: RawFd, name: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: name };
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: the event lives through the call.
        let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &raw mut event) };
        if added < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits up to so many milliseconds, and calls back with the name of every socket that can be read.
    pub fn wait(
        &self,
        milliseconds: i32,
        mut ready: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: there is room for 64 events.
        let got = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 64, milliseconds) };
        let got = match count(got as isize) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        };
        if got == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for event in &events[..got] {
            ready(event.u64)?;
        }
        Ok(())
    }
}
