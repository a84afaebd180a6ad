use std::fs;
use std::ops::Range;

use super::chain::{Run, Source, by_windows, over};
use super::output::write_file;
use super::picture::{self, Kind, Legend, Picture};
use super::{name, printable};
use crate::draw::Draw;
use crate::new_file::NewFile;

impl Draw {
    /// Runs with gaps between some of them, and the same as an array.
    fn runs(&mut self, blocks: u64) -> (Vec<Run>, Vec<Option<Source>>) {
        let (mut runs, mut flat) = (Vec::new(), Vec::new());
        while (flat.len() as u64) < blocks {
            let (start, length) = (flat.len() as u64, 1 + self.below(9));
            let source = match self.below(4) {
                0 => None,
                1 => Some(Source::Base),
                2 => Some(Source::Zero),
                _ => Some(Source::Layer(self.below(3) as u16)),
            };
            if let Some(source) = source {
                runs.push(Run { blocks: start..start + length, source });
            }
            flat.resize((start + length) as usize, source);
        }
        flat.truncate(blocks as usize);
        (runs, flat)
    }
}

#[test]
fn two_lists_of_runs_are_gone_over_together() {
    let mut draw = Draw(1);
    for _ in 0..500 {
        let blocks = draw.below(60);
        let (upper, above) = draw.runs(blocks);
        let (lower, below) = draw.runs(blocks);
        let (mut next, mut found) = (0, Vec::new());
        over(&upper, &lower, blocks, &mut |piece, mine, theirs| {
            assert_eq!(piece.start, next, "none is left out");
            assert!(!piece.is_empty());
            next = piece.end;
            found.extend(piece.map(|_| (mine, theirs)));
        });
        let expected: Vec<_> = above.into_iter().zip(below).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn blocks_are_cut_at_windows() {
    let cut = |blocks: Range<u64>| -> Vec<_> {
        by_windows(blocks).map(|part| (part.start, part.end)).collect()
    };
    assert_eq!(cut(3..3), []);
    assert_eq!(cut(3..7), [(3, 7)]);
    assert_eq!(cut(0..16), [(0, 16)]);
    assert_eq!(cut(15..33), [(15, 16), (16, 32), (32, 33)]);
}

#[test]
fn a_new_file_replaces_none_and_leaves_nothing_unfinished() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("a");
    drop(NewFile::create(&out).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let late = NewFile::create(&out).unwrap();
    write_file(&out, b"precious").unwrap();
    let error = format!("{:#}", late.finish().unwrap_err());
    assert!(error.contains("never replaced"), "{error}");
    let error = format!("{:#}", write_file(&out, b"other").unwrap_err());
    assert!(error.contains("exists"), "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    std::os::unix::fs::symlink("nowhere", directory.path().join("link")).unwrap();
    let error = NewFile::create(&directory.path().join("link")).unwrap_err();
    assert!(format!("{error:#}").contains("exists"), "a link is not followed");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn no_file_name_steers_a_terminal() {
    assert_eq!(printable("a\u{1b}[2Jb\u{9b}ä"), "a\u{fffd}[2Jb\u{fffd}ä");
    assert_eq!(name("/x/a\nb".as_ref()), "a\u{fffd}b");
}

/// A picture of a device that has everything.
fn sample(blocks: u64, layers: usize) -> Picture {
    let legend = |number: usize| Legend { name: format!("l{number}<&"), file_bytes: Some(1 << 20) };
    let quarter = blocks / 4;
    let runs = [
        (0..1, Kind::Layer(0)),
        (1..quarter, Kind::Base),
        (quarter..2 * quarter, Kind::Layer(1)),
        (2 * quarter..3 * quarter, Kind::Layer(layers - 1)),
        (3 * quarter..blocks, Kind::Zero),
    ];
    let base = Some(Legend { name: "base.img".to_owned(), file_bytes: None });
    let layers = (0..layers).map(legend).collect();
    Picture::new("top.glass".to_owned(), blocks * 4096, layers, base, runs.into_iter())
}

#[test]
fn a_picture_shows_every_kind_however_large_the_device() {
    for (blocks, layers) in [(4, 2), (1000, 3), (1 << 38, 500)] {
        let picture = sample(blocks, layers);
        let svg = picture::svg(&picture).unwrap();
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
        for part in ["top.glass", "this layer l0&lt;&amp;", "parent l1", "base base.img", "zero:"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.contains("492 more parents"), layers == 500);
        // The lonely block of this layer is there, beside its square in the legend.
        assert!(svg.matches("#0068B5").count() >= 2, "{svg}");
        let mut reader = png::Decoder::new(std::io::Cursor::new(picture::png(&picture).unwrap()))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let count = |colour: [u8; 3]| pixels.chunks(3).filter(|pixel| *pixel == colour).count();
        // More than the square of the legend; some text; mostly ground.
        assert!(count([0, 104, 181]) > 17 * 17, "{}", count([0, 104, 181]));
        assert!(count([150, 150, 150]) > 17 * 17);
        assert!(count([0, 0, 0]) > 100);
        assert!(count([255, 255, 255]) > pixels.len() / 12);
    }
}
