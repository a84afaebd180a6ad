use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::draw::Draw;

const BLOCK: usize = 4096;

/// What a layer is to say of each block; and a place to make it.
struct Case {
    directory: TempDir,
    blocks: Vec<Option<Vec<u8>>>,
    size: u64,
}

impl Draw {
    /// A block: noise, text, or zero.
    fn block(&mut self) -> Vec<u8> {
        match self.below(5) {
            0 => vec![0; BLOCK],
            1 => vec![self.below(256) as u8; BLOCK],
            _ => (0..BLOCK).map(|_| self.below(256) as u8).collect(),
        }
    }
}

impl Case {
    /// Runs of data, of zeroes, and of nothing, all over a device.
    fn draw(seed: u64, size: u64) -> Self {
        let mut draw = Draw(seed);
        let count = size.div_ceil(BLOCK as u64);
        let mut blocks = Vec::new();
        while blocks.len() < count as usize {
            let most = [3, 20, 60][draw.below(3) as usize];
            let run = 1 + draw.below(most);
            let kind = draw.below(4);
            for _ in 0..run.min(count - blocks.len() as u64) {
                blocks.push(match kind {
                    0 => None,
                    1 => Some(vec![0; BLOCK]),
                    _ => Some(draw.block()),
                });
            }
        }
        Self { directory: tempfile::tempdir().unwrap(), blocks, size }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("a.glass")
    }

    /// Makes the layer, by calls of any length.
    fn write(&self, seed: u64, compress: Option<i32>) -> LayerSummary {
        let mut draw = Draw(seed);
        // Over a parent, zeroes are noted.
        let parent = Some(parent(ParentKind::Image, [1; 32], self.size, "base".as_ref()));
        let about = About { virtual_bytes: self.size, parent, compress };
        let mut writer = LayerWriter::create(&self.path(), &about).unwrap();
        let mut block = 0;
        while block < self.blocks.len() {
            let rest = &self.blocks[block..];
            let most = 1 + draw.below(70) as usize;
            let run: Vec<_> = rest.iter().take(most).map_while(|one| one.as_ref()).collect();
            let zero = rest.iter().take_while(|one| **one == Some(vec![0; BLOCK])).count();
            if zero > 0 && draw.below(2) == 0 {
                writer.zero(block as u64..(block + zero) as u64).unwrap();
                block += zero;
            } else if run.is_empty() {
                block += 1;
            } else {
                let bytes: Vec<u8> = run.iter().copied().flatten().copied().collect();
                writer.data(block as u64, &bytes).unwrap();
                block += run.len();
            }
        }
        writer.finish().unwrap()
    }

    /// Every window as it was written; or an error.
    fn check(&self, reader: &LayerReader) -> anyhow::Result<()> {
        let tail = (self.size % BLOCK as u64) as usize;
        for window in 0..self.blocks.len().div_ceil(16) {
            let mut bytes = [0xee; WINDOW_BYTES];
            let found = reader.index().window(window as u64);
            reader.read_blocks(window as u64, u16::MAX, &mut bytes)?;
            for (position, bytes) in bytes.chunks_exact(BLOCK).enumerate() {
                let number = window * 16 + position;
                let has = |mask: u16| mask & 1 << position != 0;
                match self.blocks.get(number).and_then(Option::as_ref) {
                    None => assert!(!has(found.data | found.zero) && bytes == [0xee; BLOCK]),
                    Some(expected) => {
                        let mut expected = expected.clone();
                        if number + 1 == self.blocks.len() && tail > 0 {
                            expected[tail..].fill(0);
                        }
                        let is_right =
                            bytes == expected || has(found.zero) && bytes == [0xee; BLOCK];
                        assert!(is_right, "block {number}");
                        assert_eq!(has(found.zero), expected.iter().all(|byte| *byte == 0));
                        assert!(has(found.zero) != has(found.data));
                    }
                }
            }
        }
        Ok(())
    }
}

#[test]
fn a_layer_of_any_size_reads_as_it_was_written() {
    for (seed, size) in [1, 4096, 4097, 65_536, 65_537, 1_000_001, 20_000_000].iter().enumerate() {
        for compress in [None, Some(1), Some(9)] {
            let case = Case::draw(seed as u64, *size);
            let summary = case.write(seed as u64, compress);
            let reader = LayerReader::open(&case.path()).unwrap();
            case.check(&reader).unwrap();
            assert_eq!(reader.id(), summary.id);
            assert_eq!(reader.footer().data_blocks, summary.data_blocks);
            assert_eq!(fs::metadata(case.path()).unwrap().len(), summary.file_bytes);
            assert!(is_layer(&fs::File::open(case.path()).unwrap()).unwrap());
            assert!(reader.note().starts_with(b"{"));
        }
    }
}

#[test]
fn compression_makes_it_smaller_where_that_pays() {
    let case = Case {
        directory: tempfile::tempdir().unwrap(),
        blocks: (0..64).map(|block| Some(vec![block as u8 | 1; BLOCK])).collect(),
        size: 64 * BLOCK as u64,
    };
    let summary = case.write(1, Some(3));
    assert!(summary.file_bytes < 20_000, "{summary:?}");
    case.check(&LayerReader::open(&case.path()).unwrap()).unwrap();
}

#[test]
fn a_damaged_byte_is_an_error_and_never_a_wrong_byte() {
    for compress in [None, Some(1)] {
        let case = Case::draw(5, 300_000);
        case.write(5, compress);
        let whole = fs::read(case.path()).unwrap();
        let mut draw = Draw(6);
        let mut refused = 0;
        // Most bytes of the first page of frames, of the sections and of the footer, and some between.
        let places: Vec<usize> = (0..whole.len())
            .filter(|at| {
                let is_near = (4000..4300).contains(at) || *at > whole.len() - 4700;
                draw.below(if is_near { 10 } else { 2000 }) == 0
            })
            .collect();
        let file = fs::OpenOptions::new().write(true).open(case.path()).unwrap();
        for at in &places {
            let damaged = whole[*at] ^ 1 << draw.below(8);
            file.write_all_at(&[damaged], *at as u64).unwrap();
            let read = LayerReader::open(&case.path()).and_then(|reader| case.check(&reader));
            file.write_all_at(&whole[*at..=*at], *at as u64).unwrap();
            if let Err(error) = read {
                refused += 1;
                let error = format!("{error:#}");
                assert!(error.contains("a.glass") && error.contains("byte"), "{error}");
            }
        }
        assert!(refused > 100);
        assert_eq!(refused, places.len());
    }
}

#[test]
fn a_layer_cut_short_or_extended_is_refused_by_name() {
    let case = Case::draw(7, 300_000);
    case.write(7, None);
    let whole = fs::read(case.path()).unwrap();
    for length in [0, 100, 4096, 8192, whole.len() / 2, whole.len() - 1] {
        fs::write(case.path(), &whole[..length]).unwrap();
        let error = format!("{:#}", LayerReader::open(&case.path()).unwrap_err());
        assert!(error.contains("a.glass") && error.contains("restore it"), "{error}");
        let is_layer = is_layer(&fs::File::open(case.path()).unwrap()).unwrap();
        assert_eq!(is_layer, length >= 4096, "what begins like a layer is no image");
    }
    fs::write(case.path(), [&whole[..], &[0]].concat()).unwrap();
    let error = format!("{:#}", LayerReader::open(&case.path()).unwrap_err());
    assert!(error.contains("something was appended"), "{error}");
}

#[test]
fn an_unfinished_layer_leaves_nothing_and_no_layer_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("a.glass");
    let about = About { virtual_bytes: 1 << 20, parent: None, compress: None };
    let mut writer = LayerWriter::create(&out, &about).unwrap();
    writer.data(0, &[7; BLOCK]).unwrap();
    assert!(!out.exists());
    drop(writer);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    // Somebody else is faster.
    let writer = LayerWriter::create(&out, &about).unwrap();
    fs::write(&out, b"precious").unwrap();
    let error = format!("{:#}", writer.finish().unwrap_err());
    assert!(error.contains("never replaced"), "{error}");
    let error = format!("{:#}", LayerWriter::create(&out, &about).unwrap_err());
    assert!(error.contains("exists"), "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn without_a_parent_what_is_zero_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("a");
    let about = About { virtual_bytes: 1 << 20, parent: None, compress: None };
    let mut writer = LayerWriter::create(&out, &about).unwrap();
    writer.zero(3..20).unwrap();
    writer.data(20, &[[0; BLOCK], [7; BLOCK], [0; BLOCK]].concat()).unwrap();
    let summary = writer.finish().unwrap();
    assert_eq!((summary.data_blocks, summary.zero_blocks), (1, 0));
    let reader = LayerReader::open(&out).unwrap();
    assert_eq!(reader.index().window(1), Window { data: 1 << 5, zero: 0 });
}

#[test]
fn zeroes_are_told_from_data_block_by_block() {
    let bytes = [[0; 4096], [0; 4096], [1; 4096], [0; 4096]].concat();
    let lengths = |bytes: &[u8]| -> Vec<_> {
        alike(bytes).map(|run| (run.is_zero, run.bytes.len())).collect()
    };
    assert_eq!(lengths(&bytes), [(true, 8192), (false, 4096), (true, 4096)]);
    assert_eq!(lengths(&bytes[..8193 + 4096]), [(true, 8192), (false, 4096), (true, 1)]);
    assert_eq!(lengths(&[]), []);
}

#[test]
fn blocks_out_of_order_or_beyond_the_end_are_refused_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let about = About { virtual_bytes: 10 * 4096 - 1, parent: None, compress: None };
    let begin = |name: &str| LayerWriter::create(&directory.path().join(name), &about).unwrap();
    for wrong in [4..5, 9..11, 11..12, 7..u64::MAX] {
        let mut writer = begin("a");
        writer.data(4, &[7; BLOCK]).unwrap();
        assert!(writer.zero(wrong.clone()).is_err(), "{wrong:?}");
        assert!(writer.zero(6..7).is_err(), "it does not go on");
        assert!(writer.finish().is_err());
    }
    let mut writer = begin("a");
    assert!(writer.data(0, &[7; 100]).is_err());
    assert!(writer.finish().is_err());
    begin("a").finish().unwrap();
    let reader = LayerReader::open(&directory.path().join("a")).unwrap();
    assert_eq!(reader.footer().data_blocks + reader.footer().zero_blocks, 0);
}
