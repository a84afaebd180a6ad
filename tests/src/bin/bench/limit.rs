//! The limit: the least that a server can do. It serves a mapped file over unix sockets: no
//! copy-on-write, no checks but of bounds, no limits, no errors but EINVAL. A thread a connection;
//! every step is one blocking system call for as many requests as there are. What a real server does
//! in addition is the distance to it. With `--ring` a step of both directions is one call of io_uring: what that would
//! be worth.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use glassine_tests::load::sys::{self, Piece, piece};
use io_uring::{IoUring, opcode, types};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: [u8; 4] = 0x2560_9513u32.to_be_bytes();
const REPLY_MAGIC: [u8; 4] = 0x6744_6698u32.to_be_bytes();
/// Has flags, FLUSH, FUA, multi-conn.
const FLAGS: u16 = 1 | 4 | 8 | 256;
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
const BUFFER: usize = 256 << 10;
/// Replies that one call sends: each is at most two pieces, and Linux takes 1024.
const BATCH: usize = 500;

/// A file in memory. Only the kernel reads it, on behalf of `sendmsg`; clients that write the same
/// place at once race, as they would on a disk.
struct Mapping {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that lives as long as the process; see above for races.
unsafe impl Send for Mapping {}
// SAFETY: the same.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of a file that nobody shrinks: the benchmark made it for us.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, shared, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), bytes })
    }

    /// A part of it for the kernel to read or to write.
    fn part(&self, offset: usize, length: usize) -> Piece {
        assert!(offset + length <= self.bytes);
        // SAFETY: in bounds.
        Piece { iov_base: unsafe { self.start.add(offset) }.cast(), iov_len: length }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        // SAFETY: in bounds; `bytes` is a buffer of the connection's, elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset), bytes.len());
        }
    }
}

/// Serves a file until the process is ended.
pub(crate) fn serve(socket: &Path, file: &Path, ring: bool) -> io::Result<()> {
    let mapping = Arc::new(Mapping::new(file)?);
    let listener = UnixListener::bind(socket)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        let mapping = Arc::clone(&mapping);
        std::thread::spawn(move || {
            // A client that leaves is the end of its connection, whatever it was doing.
            if let Ok(true) = handshake(&mut stream, mapping.bytes as u64) {
                let _ =
                    Connection::new(&mapping, stream.as_raw_fd(), ring).and_then(Connection::run);
            }
        });
    }
}

/// Fixed newstyle with GO, INFO, EXPORT_NAME and ABORT. Answers whether transmission begins.
fn handshake(stream: &mut UnixStream, size: u64) -> io::Result<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut client = [0; 4];
    stream.read_exact(&mut client)?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four"));
        let (option, mut data) = (number(8), vec![0; number(12).min(1 << 16) as usize]);
        stream.read_exact(&mut data)?;
        if header[..8] != OPTION_MAGIC.to_be_bytes() {
            return Ok(false);
        }
        let mut reply = |kind: u32, data: &[u8]| {
            let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            stream.write_all(&bytes)
        };
        let export = [&size.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat();
        match option {
            // EXPORT_NAME: no reply but the export, and 124 zeroes unless both sides said no.
            1 => {
                let zeroes = if client[3] & 2 == 0 { 124 } else { 0 };
                stream.write_all(&[&export[..], &vec![0; zeroes]].concat())?;
                return Ok(true);
            }
            2 => {
                reply(1, &[])?;
                return Ok(false);
            }
            // INFO and GO: the export, then ACK.
            6 | 7 => {
                reply(3, &[&[0, 0], &export[..]].concat())?;
                reply(1, &[])?;
                if option == 7 {
                    return Ok(true);
                }
            }
            // All others are unknown here.
            _ => reply(0x8000_0001, &[])?,
        }
    }
}

/// A connection in transmission.
struct Connection<'a> {
    mapping: &'a Mapping,
    socket: RawFd,
    ring: Option<IoUring>,
    buffer: Vec<u8>,
    /// What was received and not looked at: `buffer[head..tail]`.
    head: usize,
    tail: usize,
    headers: Vec<[u8; REPLY_BYTES]>,
    pieces: Vec<Piece>,
}

impl<'a> Connection<'a> {
    fn new(mapping: &'a Mapping, socket: RawFd, ring: bool) -> io::Result<Self> {
        let (headers, pieces) = (Vec::with_capacity(BATCH), Vec::with_capacity(2 * BATCH));
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        let ring = ring.then(|| builder.build(8)).transpose()?;
        let buffer = vec![1; BUFFER];
        Ok(Self { mapping, socket, ring, buffer, head: 0, tail: 0, headers, pieces })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            while self.tail - self.head >= REQUEST_BYTES {
                if !self.request()? {
                    return self.send();
                }
            }
            self.buffer.copy_within(self.head..self.tail, 0);
            (self.head, self.tail) = (0, self.tail - self.head);
            match self.exchange()? {
                0 => return Ok(()),
                got => self.tail += got,
            }
        }
    }

    /// Answers the next request; false when it is the last.
    fn request(&mut self) -> io::Result<bool> {
        let header = &self.buffer[self.head..self.head + REQUEST_BYTES];
        let offset = u64::from_be_bytes(header[16..24].try_into().expect("eight bytes"));
        let length = u32::from_be_bytes(header[24..28].try_into().expect("four bytes"));
        let (magic, command) = (header[..4] == REQUEST_MAGIC, header[7]);
        let mut reply = [0; REPLY_BYTES];
        reply[..4].copy_from_slice(&REPLY_MAGIC);
        reply[8..].copy_from_slice(&header[8..16]);
        self.head += REQUEST_BYTES;
        let inside = offset
            .checked_add(length.into())
            .is_some_and(|end| usize::try_from(end).is_ok_and(|end| end <= self.mapping.bytes));
        let (at, length) = (offset as usize, length as usize);
        match command {
            _ if !magic => return Ok(false),
            0 if inside => {
                self.push(reply);
                self.pieces.push(self.mapping.part(at, length));
            }
            1 if inside => {
                self.payload(at, length)?;
                self.push(reply);
            }
            2 => return Ok(false),
            3 => self.push(reply),
            // A WRITE beyond the end is not worth its drain: nobody here sends one.
            1 => return Ok(false),
            _ => {
                reply[4..8].copy_from_slice(&22u32.to_be_bytes());
                self.push(reply);
            }
        }
        if self.headers.len() == BATCH {
            self.send()?;
        }
        Ok(true)
    }

    /// A WRITE's payload: what is here is copied, and what is not is received to its place, with the
    /// next request's header behind it.
    fn payload(&mut self, mut at: usize, mut length: usize) -> io::Result<()> {
        let here = length.min(self.tail - self.head);
        self.mapping.write(at, &self.buffer[self.head..self.head + here]);
        self.head += here;
        (at, length) = (at + here, length - here);
        if length > 0 {
            // Nobody waits for replies while this waits for bytes.
            self.send()?;
            (self.head, self.tail) = (0, 0);
        }
        while length > 0 {
            // A small payload comes with what is behind it, for few calls; a large one without, so
            // that the next goes to its place too.
            let behind = if length < 16 << 10 { BUFFER } else { REQUEST_BYTES };
            let behind = piece(&self.buffer[..behind]);
            let mut pieces = [self.mapping.part(at, length), behind];
            // SAFETY: a part of the mapping, and a part of `buffer` that holds nothing.
            let got = unsafe { sys::receive_pieces(self.socket, &mut pieces)? };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let placed = got.min(length);
            (at, length) = (at + placed, length - placed);
            self.tail = got - placed;
        }
        Ok(())
    }

    fn push(&mut self, header: [u8; REPLY_BYTES]) {
        // Never grows beyond BATCH, so that no header moves while a piece names it.
        self.headers.push(header);
        let header = piece(self.headers.last().expect("just pushed"));
        match self.pieces.last_mut() {
            // Replies without payload, one behind the other, are one piece.
            Some(last)
                if last.iov_base.cast::<u8>().wrapping_add(last.iov_len)
                    == header.iov_base.cast() =>
            {
                last.iov_len += REPLY_BYTES;
            }
            _ => self.pieces.push(header),
        }
    }

    /// Sends all replies, and receives what there is, at least a byte; 0 at the end.
    fn exchange(&mut self) -> io::Result<usize> {
        let Some(ring) = &mut self.ring else {
            self.send()?;
            return sys::receive(self.socket, &mut self.buffer[self.tail..]);
        };
        let socket = types::Fd(self.socket);
        // SAFETY: all zeroes is a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len();
        let expected: usize = self.pieces.iter().map(|piece| piece.iov_len).sum();
        // It goes on until all is sent.
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let send = opcode::SendMsg::new(socket, &raw const message).flags(flags).build();
        let room = &mut self.buffer[self.tail..];
        let receive = opcode::Recv::new(socket, room.as_mut_ptr(), room.len() as u32).build();
        let sends = usize::from(expected > 0);
        let entries = [send.user_data(1), receive.user_data(0)];
        // SAFETY: what they name rests until both have ended: pieces, headers, the mapping, and the buffer's end.
        unsafe { ring.submission().push_multiple(&entries[1 - sends..]) }
            .map_err(io::Error::other)?;
        let (mut left, mut received) = (1 + sends, 0);
        while left > 0 {
            // Not for both: a send that goes on in parts would not be woken.
            match ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => drop(result?),
            }
            for completion in ring.completion() {
                let count = usize::try_from(completion.result())
                    .map_err(|_| io::Error::from_raw_os_error(-completion.result()))?;
                match completion.user_data() {
                    0 => received = count,
                    _ if count < expected => return Err(io::ErrorKind::WriteZero.into()),
                    _ => {}
                }
                left -= 1;
            }
        }
        self.pieces.clear();
        self.headers.clear();
        Ok(received)
    }

    fn send(&mut self) -> io::Result<()> {
        // SAFETY: the pieces are headers that rest, and parts of the mapping that only the kernel reads.
        let sent = unsafe { sys::send_all(self.socket, &mut self.pieces) };
        self.pieces.clear();
        self.headers.clear();
        sent
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use glassine_tests::load::{Connection as Client, Load, Pattern, make_template};
    use glassine_tests::server::scratch;

    /// Also the test of the load generator: what it writes is what it finds, and it finds what is wrong.
    #[test]
    fn every_load_finds_what_was_written_last() {
        [false, true].into_iter().for_each(loads_find_what_was_written_last);
    }

    fn loads_find_what_was_written_last(ring: bool) {
        let directory = scratch();
        let (socket, file) = (directory.path().join("x.sock"), directory.path().join("disk"));
        let span = 8 << 20;
        make_template(&file, span, 1);
        let there = socket.clone();
        // It serves until the process ends.
        std::thread::spawn(move || super::serve(&there, &file, ring));
        while !socket.exists() {
            std::thread::yield_now();
        }
        let open = || Client::open(&socket, "any").expect("it takes clients");
        let (one, many) = ([open()], [open(), open(), open()]);
        assert_eq!(one[0].size, span);
        let time = Duration::from_millis(50);
        let load =
            |pattern, bytes, depth, version| Load { pattern, bytes, depth, time, span, version };
        let all = |pattern, bytes, version| {
            let load = Load { time: Duration::from_secs(30), ..load(pattern, bytes, 8, version) };
            // A connection each: one on which a load failed is of no more use.
            load.try_run(&[open()], 1)
        };
        let count =
            all(Pattern::EachRead, 4096, 1).expect("the template is there").microseconds.len();
        assert_eq!(count as u64, span / 4096);
        for (bytes, version) in [(4096, 2), (64 << 10, 3), (1 << 20, 4)] {
            all(Pattern::EachWrite, bytes, version).expect("it can be written");
            for bytes in [4096, 64 << 10, 1 << 20] {
                all(Pattern::EachRead, bytes, version).expect("it is there");
                let wrong = all(Pattern::EachRead, bytes, 9).expect_err("it is another version");
                assert!(wrong.to_string().starts_with("wrong bytes"), "{wrong}");
            }
            load(Pattern::RandomMix(70), 4096, 32, version).try_run(&one, 2).expect("a mix");
            load(Pattern::RandomRead, 4096, 32, version).try_run(&many, 2).expect("three at once");
            let deep = load(Pattern::RandomWrite, 4096, 700, version);
            deep.try_run(&one, 2).expect("more than it answers at once");
        }
    }
}
