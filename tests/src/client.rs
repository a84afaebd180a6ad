//! A client of our own: it can send anything, and keeps many requests in flight with few system
//! calls. Replies are simple replies.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::load::handshake;

/// NBD_CMD_READ.
pub const READ: u16 = 0;
/// NBD_CMD_WRITE.
pub const WRITE: u16 = 1;
/// NBD_CMD_DISC.
pub const DISC: u16 = 2;
/// NBD_CMD_FLUSH.
pub const FLUSH: u16 = 3;
/// NBD_CMD_TRIM.
pub const TRIM: u16 = 4;
/// NBD_CMD_CACHE.
pub const CACHE: u16 = 5;
/// NBD_CMD_WRITE_ZEROES.
pub const WRITE_ZEROES: u16 = 6;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Anything that takes longer is an error.
const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

/// A connection, at any stage of the protocol.
#[derive(Debug)]
pub struct Client<S = UnixStream> {
    stream: S,
    out: Vec<u8>,
    inbox: Vec<u8>,
    head: usize,
    tail: usize,
    /// Size of the export, once one was chosen.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
}

/// A reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// Which option it answers.
    pub option: u32,
    /// The kind of reply; bit 31 says error.
    pub kind: u32,
    /// Its data.
    pub data: Vec<u8>,
}

/// The header of a reply to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// 0, or an errno.
    pub error: u32,
    /// Whose reply it is.
    pub cookie: u64,
}

impl Client {
    /// Connects, and does nothing else.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the server listens");
        stream.set_read_timeout(LIMIT).expect("a limit can be set");
        stream.set_write_timeout(LIMIT).expect("a limit can be set");
        Self::over(stream)
    }

    /// Connects, and chooses the default export by GO.
    #[must_use]
    pub fn open(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        client.greet(3);
        client.go("");
        client
    }

    /// The socket itself.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

impl Client<TcpStream> {
    /// Connects by TCP and chooses the default export by GO, if there is a server.
    pub fn try_open(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(LIMIT)?;
        stream.set_write_timeout(LIMIT)?;
        let (size, _) = handshake::choose(&mut stream, "")?;
        Ok(Self { size, ..Self::over(stream) })
    }
}

impl<S: Read + Write> Client<S> {
    fn over(stream: S) -> Self {
        Self {
            stream,
            out: Vec::with_capacity(1 << 20),
            inbox: vec![0; 1 << 20],
            head: 0,
            tail: 0,
            size: 0,
            flags: 0,
        }
    }

    /// Reads the greeting and answers with these flags.
    pub fn greet(&mut self, flags: u32) {
        assert_eq!(self.take(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.take(2), [0, 3]);
        self.put(&flags.to_be_bytes());
        self.flush();
    }

    /// Chooses an export by GO.
    pub fn go(&mut self, name: &str) {
        self.option(7, &info(name.as_bytes(), &[]));
        loop {
            let reply = self.option_reply();
            assert_eq!(reply.kind & 1 << 31, 0, "GO was refused: {reply:?}");
            if reply.kind == 1 {
                return;
            }
            if reply.data[..2] == [0, 0] {
                self.size = u64::from_be_bytes(reply.data[2..10].try_into().expect("eight bytes"));
                self.flags = u16::from_be_bytes(reply.data[10..12].try_into().expect("two bytes"));
            }
        }
    }

    /// Sends an option.
    pub fn option(&mut self, option: u32, data: &[u8]) {
        self.put(&OPTION_MAGIC.to_be_bytes());
        self.put(&option.to_be_bytes());
        self.put(&u32::try_from(data.len()).expect("short").to_be_bytes());
        self.put(data);
        self.flush();
    }

    /// Reads a reply to an option.
    pub fn option_reply(&mut self) -> OptionReply {
        let header: [u8; 20] = self.take(20).try_into().expect("twenty bytes");
        assert_eq!(header[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four"));
        let data = self.take(number(16) as usize).to_vec();
        OptionReply { option: number(8), kind: number(12), data }
    }

    /// Sends an option and answers the kind of its last reply.
    pub fn ask_option(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data);
        loop {
            let reply = self.option_reply();
            assert_eq!(reply.option, option);
            if reply.kind != 2 && reply.kind != 3 {
                return reply.kind;
            }
        }
    }

    /// Queues bytes to be sent.
    pub fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Queues a request header.
    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        self.put(&REQUEST_MAGIC.to_be_bytes());
        self.put(&flags.to_be_bytes());
        self.put(&command.to_be_bytes());
        self.put(&cookie.to_be_bytes());
        self.put(&offset.to_be_bytes());
        self.put(&length.to_be_bytes());
    }

    /// Queues a WRITE, its payload filled in by the caller.
    pub fn write_with(
        &mut self,
        cookie: u64,
        offset: u64,
        length: u32,
        fill: impl FnOnce(&mut [u8]),
    ) {
        self.request(0, WRITE, cookie, offset, length);
        let start = self.out.len();
        self.out.resize(start + length as usize, 0);
        fill(&mut self.out[start..]);
    }

    /// Sends what is queued.
    pub fn flush(&mut self) {
        self.try_flush().expect("the server takes what is sent");
    }

    /// Sends what is queued, if the server takes it.
    pub fn try_flush(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.out);
        self.out.clear();
        sent
    }

    /// Reads a reply's header.
    pub fn reply(&mut self) -> Reply {
        let header: [u8; 16] = self.take(16).try_into().expect("sixteen bytes");
        assert_eq!(header[..4], REPLY_MAGIC.to_be_bytes(), "the stream is out of step");
        Reply {
            error: u32::from_be_bytes(header[4..8].try_into().expect("four bytes")),
            cookie: u64::from_be_bytes(header[8..16].try_into().expect("eight bytes")),
        }
    }

    /// Whether a whole reply header has been received already.
    #[must_use]
    pub fn has_reply(&self) -> bool {
        self.tail - self.head >= 16
    }

    /// Reads bytes.
    pub fn take(&mut self, count: usize) -> &[u8] {
        self.try_take(count).expect("the server sends what it has to")
    }

    /// Reads bytes, if the server sends them.
    pub fn try_take(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
        if self.head + count > self.inbox.len() {
            self.inbox.copy_within(self.head..self.tail, 0);
            (self.head, self.tail) = (0, self.tail - self.head);
            if count > self.inbox.len() {
                self.inbox.resize(count, 0);
            }
        }
        while self.tail - self.head < count {
            match self.stream.read(&mut self.inbox[self.tail..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.tail += read,
            }
        }
        self.head += count;
        Ok(&self.inbox[self.head - count..self.head])
    }

    /// Sends one request without payload and answers its error.
    pub fn ask(&mut self, flags: u16, command: u16, offset: u64, length: u32) -> u32 {
        self.request(flags, command, 1, offset, length);
        self.flush();
        self.reply().error
    }

    /// Reads a range.
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.ask(0, READ, offset, length), 0);
        self.take(length as usize).to_vec()
    }

    /// Reads a range, if the server is there and can.
    pub fn try_read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.request(0, READ, 1, offset, length);
        self.try_flush()?;
        if self.try_take(16)?[4..8] != [0; 4] {
            return Err(io::Error::other("a READ failed"));
        }
        Ok(self.try_take(length as usize)?.to_vec())
    }

    /// Writes a range and answers the error.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> u32 {
        let length = u32::try_from(bytes.len()).expect("short");
        self.write_with(1, offset, length, |payload| payload.copy_from_slice(bytes));
        self.flush();
        self.reply().error
    }

    /// Whether the server has closed the connection, after sending nothing more.
    #[must_use]
    pub fn is_closed(&mut self) -> bool {
        match self.try_take(1) {
            Ok(_) => false,
            Err(error) => {
                !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
            }
        }
    }
}

/// The data of INFO and GO.
#[must_use]
pub fn info(name: &[u8], requests: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
    data.extend(name);
    data.extend(u16::try_from(requests.len()).expect("few").to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}
