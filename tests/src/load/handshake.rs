//! The shortest handshake, for servers that may fail: nothing here panics.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::lane::{REPLY_BYTES, header};
use crate::client::{FLUSH, info};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const GO: u32 = 7;
const SEND_FLUSH: u16 = 1 << 2;

/// A connection in transmission.
#[derive(Debug)]
pub struct Connection {
    /// The socket; no byte of it is buffered elsewhere.
    pub stream: UnixStream,
    /// Size of the export.
    pub size: u64,
    /// What it can do: transmission flags.
    flags: u16,
}

fn array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Connection {
    /// Connects and chooses an export by GO. Anything that takes over 30 seconds is an error.
    pub fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let (size, flags) = choose(&mut stream, export)?;
        Ok(Self { stream, size, flags })
    }

    /// Has everything made durable, by a server that offers to. Nothing else may be under way.
    pub fn flush(&self) -> io::Result<()> {
        if self.flags & SEND_FLUSH == 0 {
            return Ok(());
        }
        (&self.stream).write_all(&header(FLUSH, 0, 0, 0))?;
        let reply: [u8; REPLY_BYTES] = array(&mut &self.stream)?;
        match u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")) {
            0 => Ok(()),
            error => Err(io::Error::other(format!("FLUSH failed: error {error}"))),
        }
    }
}

/// Chooses an export by GO; answers its size and its transmission flags.
pub(crate) fn choose(stream: &mut (impl Read + Write), export: &str) -> io::Result<(u64, u16)> {
    let greeting: [u8; 18] = array(stream)?;
    if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
        return Err(io::Error::other("no NBD server"));
    }
    let data = info(export.as_bytes(), &[]);
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut out = 3u32.to_be_bytes().to_vec();
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(GO.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(data);
    stream.write_all(&out)?;
    let mut chosen = (0, 0);
    loop {
        let header: [u8; 20] = array(stream)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4"));
        let (kind, mut data) = (number(12), vec![0; number(16).min(1 << 16) as usize]);
        stream.read_exact(&mut data)?;
        match kind {
            1 => return Ok(chosen),
            3 if data.len() >= 12 && data[..2] == [0, 0] => {
                let size = u64::from_be_bytes(data[2..10].try_into().expect("eight bytes"));
                chosen = (size, u16::from_be_bytes([data[10], data[11]]));
            }
            3 => {}
            _ => return Err(io::Error::other(format!("GO was refused: {kind:#x}"))),
        }
    }
}
