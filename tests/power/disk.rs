//! The guest's disk: an NBD server inside the test, with a cache that a power cut takes.
//!
//! What is written lies in the cache until a FLUSH, as on a real disk. QEMU passes on what its guest asks for,
//! and caches nothing itself.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;

use glassine_tests::client::{DISC, FLUSH, READ, WRITE};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
/// NBD_FLAG_HAS_FLAGS and NBD_FLAG_SEND_FLUSH.
const FLAGS: u16 = 1 | 4;

/// A medium keeps or loses these as a whole.
const SECTOR: usize = 512;
/// The second sector of ext4's superblock. A mount, and e2fsck before it replays the journal, need both of one
/// writing: ext4 relies on a medium that never parts them, so that a cut which did would show nothing of a sheet.
const SUPERBLOCK_TAIL: usize = 3 * SECTOR;

/// A disk, as it is between two requests.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// What a power cut leaves for certain.
    durable: Vec<u8>,
    /// Writes that were answered since the last FLUSH, in order.
    cached: Vec<(usize, Vec<u8>)>,
}

impl Disk {
    pub(crate) fn new(durable: Vec<u8>) -> Self {
        Self { durable, cached: Vec::new() }
    }

    /// How many writes a power cut may take.
    pub(crate) fn cached(&self) -> usize {
        self.cached.len()
    }

    /// The disk after a power cut, and how many sectors of the cache did not make it. Any of them may: none,
    /// some or most, in whole writes or in single sectors.
    pub(crate) fn cut(mut self, rng: &mut ChaCha8Rng) -> (Vec<u8>, usize) {
        let kept_of_100 = [0, 0, 30, 60, 90][rng.random_range(0..5)];
        let tears = rng.random_range(0..2) == 0;
        let mut lost = 0;
        for (offset, bytes) in self.cached {
            let unit = if tears { SECTOR } else { bytes.len() };
            let mut kept = false;
            for (index, piece) in bytes.chunks(unit).enumerate() {
                let at = offset + index * unit;
                if at != SUPERBLOCK_TAIL {
                    kept = rng.random_range(0..100) < kept_of_100;
                }
                if kept {
                    self.durable[at..][..piece.len()].copy_from_slice(piece);
                } else {
                    lost += piece.len() / SECTOR;
                }
            }
        }
        (self.durable, lost)
    }

    fn flush(&mut self) {
        for (offset, bytes) in self.cached.drain(..) {
            self.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// What a reader sees. The cache is looked through from its beginning: it is short.
    fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut out = self.durable[offset..offset + length].to_vec();
        for (at, bytes) in &self.cached {
            let (first, end) = (offset.max(*at), (offset + length).min(at + bytes.len()));
            if first < end {
                out[first - offset..end - offset].copy_from_slice(&bytes[first - at..end - at]);
            }
        }
        out
    }

    /// Serves until the peer is gone, or `before` breaks off. It is asked before each WRITE and each FLUSH, and told
    /// whether it is a FLUSH.
    pub(crate) fn serve(
        mut self,
        stream: &mut UnixStream,
        mut before: impl FnMut(&Self, bool) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.greet(stream)?;
        loop {
            let request: [u8; 28] = array(stream)?;
            assert_eq!(be32(&request, 0), REQUEST_MAGIC, "QEMU keeps in step");
            let (offset, length) = (be64(&request, 16) as usize, be32(&request, 24) as usize);
            let command = u16::from_be_bytes([request[6], request[7]]);
            let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
            reply.extend([0; 4]);
            reply.extend(&request[8..16]);
            let mut payload = vec![0; if command == WRITE { length } else { 0 }];
            stream.read_exact(&mut payload)?;
            if matches!(command, WRITE | FLUSH) && before(&self, command == FLUSH).is_break() {
                return Ok(());
            }
            match command {
                READ => reply.extend(self.read(offset, length)),
                WRITE => self.cached.push((offset, payload)),
                FLUSH => self.flush(),
                DISC => return Ok(()),
                _ => panic!("QEMU asks for what was not offered: {command}"),
            }
            stream.write_all(&reply)?;
        }
    }

    /// Offers one disk, by GO; whatever else is asked for, there is not.
    fn greet(&self, stream: &mut UnixStream) -> io::Result<()> {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        array::<4>(stream)?;
        loop {
            let header: [u8; 16] = array(stream)?;
            assert_eq!(be64(&header, 0), OPTION_MAGIC, "QEMU keeps in step");
            let option = be32(&header, 8);
            stream.read_exact(&mut vec![0; be32(&header, 12) as usize])?;
            let mut reply = |kind: u32, data: &[u8]| {
                let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                for number in [option, kind, data.len() as u32] {
                    bytes.extend(number.to_be_bytes());
                }
                bytes.extend(data);
                stream.write_all(&bytes)
            };
            if option != GO {
                reply(REPLY_UNSUPPORTED, &[])?;
                continue;
            }
            let mut export = vec![0, 0];
            export.extend((self.durable.len() as u64).to_be_bytes());
            export.extend(FLAGS.to_be_bytes());
            reply(REPLY_INFO, &export)?;
            return reply(REPLY_ACK, &[]);
        }
    }
}

fn array<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[test]
fn cuts_part_any_two_sectors_but_those_of_the_superblock() {
    use rand::SeedableRng;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut parted = [0; 8];
    for _ in 0..1000 {
        let mut disk = Disk::new(vec![0; 8 * SECTOR]);
        disk.cached.push((0, vec![1; 8 * SECTOR]));
        let (left, _) = disk.cut(&mut rng);
        for (sector, parted) in parted.iter_mut().enumerate().skip(1) {
            let at = sector * SECTOR;
            *parted += i32::from(left[at] != left[at - 1]);
        }
    }
    let tail = SUPERBLOCK_TAIL / SECTOR;
    assert_eq!(parted[tail], 0, "{parted:?}");
    assert_eq!(parted[1..].iter().filter(|parted| **parted > 0).count(), 6, "{parted:?}");
}
