use std::fs;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::*;
use crate::draw::Draw;
use crate::layer::{About, LayerSummary, LayerWriter};

const BLOCK: usize = 4096;

impl Draw {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8 & self.below(256) as u8).collect()
    }
}

/// Layers in a directory, and what the last one is to show.
struct Pile {
    directory: TempDir,
    model: Vec<u8>,
    draw: Draw,
}

impl Pile {
    fn new(seed: u64) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), model: Vec::new(), draw: Draw(seed) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A raw image.
    fn image(&mut self, name: &str, bytes: usize) {
        self.model = self.draw.bytes(bytes);
        fs::write(self.path(name), &self.model).unwrap();
    }

    /// A layer that changes some of what is below.
    fn layer(&mut self, name: &str, bytes: usize, below: Option<&str>) -> LayerSummary {
        let below = below.map(|below| Template::open(&self.path(below), &[]).unwrap());
        let parent = below.map(|below| below.as_parent());
        let compress = [None, Some(1)][self.draw.below(2) as usize];
        let about = About { virtual_bytes: bytes as u64, parent, compress };
        let mut writer = LayerWriter::create(&self.path(name), &about).unwrap();
        let blocks = bytes.div_ceil(BLOCK);
        self.model.resize(blocks * BLOCK, 0);
        let mut block = 0;
        while block < blocks {
            let most = [2, 9, 40][self.draw.below(3) as usize];
            let end = blocks.min(block + 1 + self.draw.below(most) as usize);
            let place = block * BLOCK..end * BLOCK;
            match self.draw.below(4) {
                0 => {
                    writer.zero(block as u64..end as u64).unwrap();
                    self.model[place].fill(0);
                }
                1 => {
                    let new = self.draw.bytes(place.len());
                    writer.data(block as u64, &new).unwrap();
                    self.model[place].copy_from_slice(&new);
                }
                _ => {}
            }
            block = end;
        }
        self.model.truncate(bytes);
        writer.finish().unwrap()
    }

    fn open(&self, name: &str) -> Template {
        Template::open(&self.path(name), &[]).unwrap()
    }

    fn refused(&self, name: &str, directories: &[PathBuf]) -> String {
        format!("{:#}", Template::open(&self.path(name), directories).unwrap_err())
    }
}

fn read(template: &Template, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    template.fetch(offset, length as u64)?;
    let mut bytes = vec![0xee; length];
    // As the driver does: not by a call that would compose.
    template.file.read_exact_at(&mut bytes, offset).unwrap();
    Ok(bytes)
}

#[test]
fn a_stack_shows_of_each_block_the_topmost_layer_that_has_it() {
    for (seed, sizes) in [
        [300_001, 300_001, 700_000, 700_001],
        [4096, 65_536, 65_537, 1_000_000],
        [1, 4096, 4097, 2_000_000],
        [3_000_000, 3_000_000, 3_000_000, 3_000_000],
    ]
    .into_iter()
    .enumerate()
    {
        for over_image in [true, false] {
            let mut pile = Pile::new(seed as u64);
            if over_image {
                pile.image("base.img", sizes[0]);
            } else {
                pile.layer("base.img", sizes[0], None);
            }
            pile.layer("1.glass", sizes[1], Some("base.img"));
            pile.layer("2.glass", sizes[2], Some("1.glass"));
            pile.layer("3.glass", sizes[3], Some("2.glass"));
            let template = pile.open("3.glass");
            assert_eq!(template.bytes(), sizes[3] as u64);
            for _ in 0..200 {
                let offset = pile.draw.below(sizes[3] as u64);
                let most = (sizes[3] as u64 - offset).min([1, 5000, 400_000][offset as usize % 3]);
                let length = 1 + pile.draw.below(most) as usize;
                let expected = &pile.model[offset as usize..offset as usize + length];
                assert!(read(&template, offset, length).unwrap() == expected, "{offset} {length}");
                assert!(template.is_ready(offset, length as u64, Instant(1)));
                let mut bytes = vec![0xee; length];
                pile.open("3.glass").read(&mut bytes, offset).unwrap();
                assert!(bytes == expected);
            }
            assert!(read(&template, 0, sizes[3]).unwrap() == pile.model);
        }
    }
}

#[test]
fn what_counts_as_ready_is_right_however_many_compose() {
    let mut pile = Pile::new(9);
    let bytes = 6_000_001;
    pile.image("base.img", 2_000_000);
    pile.layer("1.glass", bytes, Some("base.img"));
    pile.layer("2.glass", bytes, Some("1.glass"));
    let template = pile.open("2.glass");
    let model = &pile.model;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let template = &template;
            scope.spawn(move || {
                let mut draw = Draw(thread);
                let mut bytes_read = vec![0; 200_000];
                for step in 0..2000 {
                    let offset = draw.below(bytes as u64 - 200_000);
                    let length = 1 + draw.below(200_000) as usize;
                    if !template.is_ready(offset, length as u64, Instant(step)) {
                        if draw.below(2) == 0 {
                            continue;
                        }
                        template.fetch(offset, length as u64).unwrap();
                    }
                    template.file.read_exact_at(&mut bytes_read[..length], offset).unwrap();
                    let place = offset as usize..offset as usize + length;
                    assert!(bytes_read[..length] == model[place]);
                }
            });
        }
    });
}

#[test]
fn a_damaged_frame_is_an_error_until_it_is_restored() {
    let mut pile = Pile::new(3);
    pile.image("base.img", 500_000);
    pile.layer("1.glass", 500_000, Some("base.img"));
    let template = pile.open("1.glass");
    let composed = template.composed().unwrap();
    let frame = composed.chain().top().index().frames()[2];
    let file = fs::OpenOptions::new().read(true).write(true).open(pile.path("1.glass")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, frame.offset + 50).unwrap();
    file.write_all_at(&[byte[0] ^ 1], frame.offset + 50).unwrap();
    let damaged = frame.window * 65_536;
    for _ in 0..2 {
        assert_eq!(read(&template, damaged, 65_536), Err(Errno::Io));
        assert!(!template.is_ready(damaged, 1, Instant(1)));
    }
    let behind = damaged as usize + 65_536;
    assert!(read(&template, behind as u64, 4096).unwrap() == pile.model[behind..behind + 4096]);
    file.write_all_at(&byte, frame.offset + 50).unwrap();
    assert!(read(&template, 0, 500_000).unwrap() == pile.model);
}

#[test]
fn an_image_below_that_shrank_is_an_error_and_no_zeroes() {
    let mut pile = Pile::new(4);
    pile.image("base.img", 400_000);
    pile.layer("1.glass", 400_000, Some("base.img"));
    let template = pile.open("1.glass");
    let file = fs::OpenOptions::new().write(true).open(pile.path("base.img")).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(read(&template, 0, 400_000), Err(Errno::Io));
}

#[test]
fn parents_are_found_by_name_by_directory_and_by_identity() {
    let mut pile = Pile::new(5);
    pile.image("base.img", 100_000);
    pile.layer("1.glass", 100_000, Some("base.img"));
    pile.layer("2.glass", 100_000, Some("1.glass"));
    let elsewhere = pile.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // Another name, and another file under its own.
    fs::rename(pile.path("1.glass"), pile.path("renamed.glass")).unwrap();
    fs::copy(pile.path("2.glass"), pile.path("1.glass")).unwrap();
    assert!(read(&pile.open("2.glass"), 0, 100_000).unwrap() == pile.model);
    // Another directory.
    fs::rename(pile.path("renamed.glass"), elsewhere.join("x.glass")).unwrap();
    let said = pile.refused("2.glass", &[]);
    for part in ["2.glass needs its parent", "\"1.glass\"", "another file", "--layer-dir"] {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    let elsewhere = [elsewhere];
    let template = Template::open(&pile.path("2.glass"), &elsewhere).unwrap();
    assert!(read(&template, 0, 100_000).unwrap() == pile.model);
    // The image: missing, of another size, of other content.
    fs::rename(pile.path("base.img"), pile.path("away.img")).unwrap();
    let said = pile.refused("2.glass", &elsewhere);
    for part in ["x.glass needs", "raw image of 100000 bytes", "\"base.img\"", "elsewhere"] {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    for bytes in [99_999, 100_000] {
        fs::write(pile.path("base.img"), vec![9; bytes]).unwrap();
        assert!(pile.refused("2.glass", &elsewhere).contains("is another file"));
    }
    fs::copy(pile.path("away.img"), elsewhere[0].join("base.img")).unwrap();
    let template = Template::open(&pile.path("2.glass"), &elsewhere).unwrap();
    assert!(read(&template, 0, 100_000).unwrap() == pile.model);
}

#[test]
fn a_template_knows_what_a_layer_over_it_must_say() {
    let mut pile = Pile::new(6);
    pile.image("base.img", 10_000);
    let image = pile.open("base.img").as_parent();
    assert_eq!((image.kind, image.bytes, &*image.name), (ParentKind::Image, 10_000, "base.img"));
    let made = pile.layer("1.glass", 20_000, Some("base.img"));
    let template = pile.open("1.glass");
    let layer = template.as_parent();
    assert_eq!((layer.kind, layer.bytes, &*layer.name), (ParentKind::Layer, 20_000, "1.glass"));
    assert_eq!((layer.id, template.fingerprint()), (made.id, made.id));
    assert_eq!(identity(&pile.path("1.glass")).unwrap(), template.identity());
}

#[test]
fn a_window_that_is_zero_takes_neither_work_nor_space() {
    let mut pile = Pile::new(7);
    pile.image("base.img", 1 << 20);
    let parent = Some(pile.open("base.img").as_parent());
    let about = About { virtual_bytes: 1 << 40, parent, compress: None };
    let mut writer = LayerWriter::create(&pile.path("1.glass"), &about).unwrap();
    // All but the first and the last window of the image.
    writer.zero(16..(1 << 20) / 4096 - 1).unwrap();
    writer.data((1 << 28) - 1, &[7; BLOCK]).unwrap();
    writer.finish().unwrap();
    let template = pile.open("1.glass");
    assert!(template.is_ready(65_536, (1 << 20) - 2 * 65_536, Instant(1)));
    assert!(template.is_ready(1 << 20, (1 << 30) - 1, Instant(1)));
    for offset in [0, (1 << 20) - 1, (1 << 40) - 1] {
        assert!(!template.is_ready(offset, 1, Instant(1)));
    }
    assert!(read(&template, (1 << 40) - 4096, 4096).unwrap() == [7; BLOCK]);
    assert!(read(&template, 0, 65_536).unwrap() == pile.model[..65_536]);
    let zeroes = (1 << 20) - 65_536 - 4096;
    assert!(read(&template, 65_536, zeroes).unwrap() == vec![0; zeroes]);
    assert!(template.file.metadata().unwrap().blocks() < 1 << 10, "it is sparse");
}

#[test]
fn more_layers_than_a_stack_has_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |number: usize| directory.path().join(format!("{number}.glass"));
    let mut parent = None;
    for number in 0..=1024 {
        let about = About { virtual_bytes: 4096, parent, compress: None };
        let made = LayerWriter::create(&path(number), &about).unwrap().finish().unwrap();
        let name = format!("{number}.glass");
        parent = Some(Parent { kind: ParentKind::Layer, id: made.id, bytes: 4096, name });
    }
    sys::raise_descriptor_limit();
    assert_eq!(
        Template::open(&path(1023), &[]).unwrap().composed().unwrap().chain().layers.len(),
        1024
    );
    let said = format!("{:#}", Template::open(&path(1024), &[]).unwrap_err());
    assert!(said.contains("more than 1024 layers"), "{said}");
}
