//! The shortest handshake, for servers that may fail: nothing here panics.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::client::info;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const GO: u32 = 7;

/// A connection in transmission.
#[derive(Debug)]
pub struct Connection {
    /// The socket; no byte of it is buffered elsewhere.
    pub stream: UnixStream,
    /// Size of the export.
    pub size: u64,
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
        let size = choose(&mut stream, export)?;
        Ok(Self { stream, size })
    }
}

/// Chooses an export by GO; answers its size.
pub(crate) fn choose(stream: &mut (impl Read + Write), export: &str) -> io::Result<u64> {
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
    let mut size = 0;
    loop {
        let header: [u8; 20] = array(stream)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4"));
        let (kind, mut data) = (number(12), vec![0; number(16).min(1 << 16) as usize]);
        stream.read_exact(&mut data)?;
        match kind {
            1 => return Ok(size),
            3 if data.len() >= 12 && data[..2] == [0, 0] => {
                size = u64::from_be_bytes(data[2..10].try_into().expect("eight bytes"));
            }
            3 => {}
            _ => return Err(io::Error::other(format!("GO was refused: {kind:#x}"))),
        }
    }
}
