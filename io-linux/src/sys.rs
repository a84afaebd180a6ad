//! System calls, as thin as they can be made without `unsafe` at the caller.
//!
//! An [`IoVec`] may point into a mapping of a file. Only the kernel follows such a pointer: a bad
//! page is then an errno of the call (`EFAULT`), and never a signal.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

/// The most pieces one vectored call takes (`IOV_MAX`).
pub const IOVECS_MAX: usize = 1024;

/// A piece of memory for the kernel to read or write.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct IoVec(libc::iovec);

// SAFETY: an `IoVec` is a pointer and a length for system calls; nothing in this process follows it.
unsafe impl Send for IoVec {}

impl IoVec {
    /// A piece of ordinary memory to be read by the kernel. The caller keeps it alive until the call.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::at(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// A piece of ordinary memory to be written by the kernel. The caller keeps it alive until the call.
    #[must_use]
    pub fn of_mut(bytes: &mut [u8]) -> Self {
        Self::at(bytes.as_mut_ptr(), bytes.len())
    }

    /// A piece of a mapping.
    #[must_use]
    pub fn at(start: *mut u8, length: usize) -> Self {
        Self(libc::iovec { iov_base: start.cast(), iov_len: length })
    }

    /// Where it starts.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Its length.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.iov_len
    }
}

fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn check_int(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn count(iovecs: &[IoVec]) -> usize {
    assert!(iovecs.len() <= IOVECS_MAX);
    iovecs.len()
}

/// Sends what a socket takes without waiting.
pub fn send(socket: BorrowedFd<'_>, iovecs: &[IoVec]) -> io::Result<usize> {
    // SAFETY: zero is a valid value of every field.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut().cast();
    message.msg_iovlen = count(iovecs);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the message and its pieces outlive the call, and the kernel only reads them.
    check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// Sends pages of a file as they are, as many as the socket takes without waiting; 0 at the end of the
/// file. Needs a socket that never waits.
pub fn send_file(
    socket: BorrowedFd<'_>,
    file: &File,
    offset: u64,
    length: u64,
) -> io::Result<usize> {
    let mut offset = offset as libc::off_t;
    let (socket, file) = (socket.as_raw_fd(), file.as_raw_fd());
    // SAFETY: `offset` is valid for the call.
    check(unsafe { libc::sendfile(socket, file, &raw mut offset, length as usize) })
}

/// Whether the other end of a unix socket could read our files anyway: it is our own user, or root. Pages
/// sent without copying reach the reader as they are, and the kernel has had bugs by which readers changed
/// such pages.
#[must_use]
pub fn is_trusted(socket: BorrowedFd<'_>) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let place = (&raw mut peer).cast();
    // SAFETY: `peer` and `size` are valid for the call.
    let got = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, place, &raw mut size) };
    // SAFETY: takes no memory.
    let us = unsafe { libc::geteuid() };
    // TCP has no such thing: it fails, or the user is nobody.
    got == 0 && (peer.uid == us || peer.uid == 0)
}

/// Receives what a socket has without waiting; 0 is the end of the stream.
pub fn receive(socket: BorrowedFd<'_>, iovecs: &[IoVec]) -> io::Result<usize> {
    // SAFETY: zero is a valid value of every field.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut().cast();
    message.msg_iovlen = count(iovecs);
    // SAFETY: the message and its pieces outlive the call; the callers pass pieces that nothing
    // else in this process refers to while the kernel writes them.
    check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
}

/// Writes pieces to a place in a file.
pub fn write_at(file: &File, iovecs: &[IoVec], offset: u64) -> io::Result<usize> {
    let (pieces, count) = (iovecs.as_ptr().cast(), count(iovecs) as libc::c_int);
    // SAFETY: the pieces outlive the call, and the kernel only reads them.
    check(unsafe { libc::pwritev(file.as_raw_fd(), pieces, count, offset as libc::off_t) })
}

/// Reserves space in a file, and lengthens it: afterwards a write there finds room.
pub fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (offset as libc::off_t, length as libc::off_t);
    // SAFETY: takes no memory.
    check_int(unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, length) }).map(drop)
}

/// Gives the space of a range back; it reads zero from then on.
pub fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (offset as libc::off_t, length as libc::off_t);
    // SAFETY: takes no memory.
    check_int(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) }).map(drop)
}

/// Makes a file that has no name yet, on the file system of `directory`. Not every file system can.
pub fn nameless_file(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).mode(0o666).custom_flags(libc::O_TMPFILE);
    let file = options.open(directory)?;
    // Its name will be given by way of this.
    Path::new(&descriptor_path(&file)).metadata()?;
    Ok(file)
}

/// Gives a file that has no name one. Fails if something has that name.
pub fn give_name(file: &File, name: &Path) -> io::Result<()> {
    let from = CString::new(descriptor_path(file))?;
    let to = CString::new(name.as_os_str().as_bytes())?;
    let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: both are strings that end with a zero and live until the call is over.
    check_int(unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), follow) }).map(drop)
}

fn descriptor_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Whether a file is in memory, where a sync has nothing to wait for.
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid value, and the kernel fills it in.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` lives for the call.
    check_int(unsafe { libc::fstatfs(file.as_raw_fd(), &mut stat) })?;
    Ok(stat.f_type == libc::TMPFS_MAGIC)
}

/// The next bytes of a file, from a place on, that are no hole; none if there is only a hole. A file system that
/// knows nothing of holes has none.
pub fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |offset: u64, whence| {
        // SAFETY: takes no memory.
        let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let start = match seek(from, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Some(from..end)),
        Err(error) => return Err(error),
    };
    if start >= end {
        return Ok(None);
    }
    Ok(Some(start..seek(start, libc::SEEK_HOLE)?.min(end)))
}

/// A number that nobody can foresee.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: `bytes` has room for as many as it says.
    let got = check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) })?;
    assert_eq!(got, bytes.len(), "so few bytes come at once");
    Ok(u64::from_ne_bytes(bytes))
}

/// Asks the kernel to read a part of a file ahead.
pub fn will_need(file: &File, offset: u64, length: u64) {
    let (offset, length) = (offset as libc::off_t, length as libc::off_t);
    // It is advice: an error changes nothing.
    // SAFETY: takes no memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, length, libc::POSIX_FADV_WILLNEED) };
}

/// Whether all pages of a piece of a mapping are in the page cache. `start` is page-aligned, and
/// `pages` has a byte for every page of `length`.
pub(crate) fn is_resident(start: *mut u8, length: usize, pages: &mut [u8]) -> bool {
    assert!(pages.len() >= length.div_ceil(4096));
    // SAFETY: the range is mapped (the caller is `mapping`), and `pages` is long enough.
    let result = unsafe { libc::mincore(start.cast(), length, pages.as_mut_ptr()) };
    result == 0 && pages[..length.div_ceil(4096)].iter().all(|page| page & 1 == 1)
}

/// Takes an exclusive lock on an open file, which goes with the process; `false` if another has it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: takes no memory.
    match check_int(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends a connection in both directions; of a listening socket, makes every `accept` fail.
pub fn shut_down(socket: BorrowedFd<'_>) {
    // SAFETY: takes no memory.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Lets this process have as many descriptors as it may.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result, and a valid argument.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Tells the kernel that this process writes back other processes' data, so that it may use memory
/// reserves and is not throttled behind the very pages it is to clean. Needs a privilege; without
/// it nothing changes.
pub fn become_io_flusher() -> bool {
    /// From `linux/prctl.h`; the libc crate does not have it.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: takes no memory.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 }
}

/// Lets this thread give way to others, for the processor and for disks: it gets about a quarter of a core
/// that another one wants.
pub fn lower_priority() {
    const NICE: libc::c_int = 5;
    /// From `linux/ioprio.h`; the libc crate does not have them: this thread, and the idle class.
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_IDLE: libc::c_int = 3 << 13;
    // What is refused changes nothing but speed.
    // SAFETY: takes no memory; on Linux both are about the calling thread alone.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE);
    }
}

/// An edge-triggered epoll instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

/// What epoll found about one socket.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// The number given with the socket.
    pub token: u64,
    /// Something can be received, or the stream has ended.
    pub readable: bool,
    /// The other side will send no more: receive until the end shows.
    pub ended: bool,
    /// Something can be sent, or sending will fail.
    pub writable: bool,
}

/// Room for the events of one wait.
pub type Events = [libc::epoll_event; 128];

/// An empty [`Events`].
#[must_use]
pub fn no_events() -> Events {
    [libc::epoll_event { events: 0, u64: 0 }; 128]
}

impl Epoll {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no memory; a descriptor it returns is ours alone.
        let fd = check_int(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: just created, and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches a socket for everything.
    pub fn add(&self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        self.watch(socket, token, events)
    }

    /// Watches an event counter. Not for room: there is always some, and every reset would be news.
    pub fn add_signal(&self, signal: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.watch(signal, token, libc::EPOLLIN | libc::EPOLLET)
    }

    fn watch(&self, socket: BorrowedFd<'_>, token: u64, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        let (epoll, socket) = (self.0.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: `event` is valid for the call.
        check_int(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &raw mut event) })
            .map(drop)
    }

    /// Waits until something is ready or the time is up; hands each to `visit`.
    pub fn wait(
        &self,
        events: &mut Events,
        timeout_ms: Option<u32>,
        mut visit: impl FnMut(Ready),
    ) -> io::Result<()> {
        let timeout = timeout_ms.map_or(-1, |ms| ms.min(i32::MAX as u32) as i32);
        let (fd, room) = (self.0.as_raw_fd(), events.len() as i32);
        // SAFETY: `events` has room for as many as it says.
        let found = unsafe { libc::epoll_wait(fd, events.as_mut_ptr(), room, timeout) };
        let found = match check_int(found) {
            Ok(found) => found as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..found] {
            let bits = event.events as i32;
            let has = |mask: i32| bits & mask != 0;
            let broken = has(libc::EPOLLERR | libc::EPOLLHUP);
            visit(Ready {
                token: event.u64,
                readable: broken || has(libc::EPOLLIN | libc::EPOLLRDHUP),
                ended: broken || has(libc::EPOLLRDHUP),
                writable: broken || has(libc::EPOLLOUT),
            });
        }
        Ok(())
    }
}

/// A counter that wakes an epoll wait.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no memory.
        let fd = check_int(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: just created, and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The descriptor, for epoll.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }

    /// Wakes the waiter.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // It can only fail by being full, and then the waiter is awake.
        // SAFETY: eight valid bytes.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the signal back.
    pub fn clear(&self) {
        let mut value = [0u8; 8];
        // SAFETY: eight valid bytes.
        unsafe { libc::read(self.0.as_raw_fd(), value.as_mut_ptr().cast(), value.len()) };
    }
}

/// A TCP socket should notice a peer that is gone, and send small replies at once (W3).
pub fn tune_tcp(socket: BorrowedFd<'_>) {
    for (level, name) in
        [(libc::IPPROTO_TCP, libc::TCP_NODELAY), (libc::SOL_SOCKET, libc::SO_KEEPALIVE)]
    {
        set_option(socket, level, name, 1);
    }
}

/// A unix socket with a small buffer would make every large reply several calls.
pub fn enlarge_buffers(socket: BorrowedFd<'_>) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 2 << 20);
}

fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) {
    let size = size_of::<i32>() as libc::socklen_t;
    // Only speed depends on it: an error changes nothing.
    // SAFETY: `value` is valid for the call.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), size)
    };
}
