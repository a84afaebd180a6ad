//! Layers whose content is known, and the command that is run on them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use glassine::layer::{About, LayerWriter, Parent, ParentKind};
use glassine::template::Template;
use glassine_tests::pattern;
use glassine_tests::server::{glassine, scratch, text};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const BLOCK: usize = 4096;

/// Runs `glassine layer` to its end.
pub(crate) fn layer(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("120").arg(glassine()).arg("layer").args(arguments);
    command.output().expect("coreutils are installed")
}

/// Runs it, and it must do what it was asked. Answers what it printed.
pub(crate) fn done(arguments: &[&str]) -> String {
    answered(arguments, 0)
}

/// The same, where it says something by its exit code.
pub(crate) fn answered(arguments: &[&str], code: i32) -> String {
    let output = layer(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "layer {}: {out}{err}", arguments.join(" "));
    assert_eq!(err, "", "layer {}", arguments.join(" "));
    out
}

/// Runs it with `--json`.
pub(crate) fn json(arguments: &[&str], code: i32) -> Value {
    let all = [arguments, &["--json"]].concat();
    serde_json::from_str(&answered(&all, code)).expect("it is JSON")
}

/// Runs it, and it must refuse, in one line that holds all of these.
pub(crate) fn refused(arguments: &[&str], code: i32, parts: &[&str]) {
    let output = layer(arguments);
    let said = text(&output.stderr);
    let shown = arguments.join(" ");
    assert_eq!(output.status.code(), Some(code), "layer {shown}: {said}");
    assert_eq!(text(&output.stdout), "", "layer {shown}");
    assert!(said.starts_with("glassine: ") && said.lines().count() == 1, "layer {shown}: {said}");
    for part in parts {
        assert!(said.contains(part), "layer {shown}: {part:?} is missing in: {said}");
    }
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What a layer has of each block: nothing, or bytes.
pub(crate) type Blocks = Vec<Option<Vec<u8>>>;

/// A directory with a raw image, and layers above it; and what each of them is to read as.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) draw: ChaCha8Rng,
    /// The raw image first.
    pub(crate) files: Vec<PathBuf>,
    /// What each reads as.
    pub(crate) models: Vec<Vec<u8>>,
    /// What each layer has; nothing for the image.
    pub(crate) blocks: Vec<Blocks>,
}

impl World {
    /// An image of some bytes, and nothing above it.
    pub(crate) fn new(seed: u64, bytes: usize) -> Self {
        let mut draw = ChaCha8Rng::seed_from_u64(seed);
        let directory = scratch();
        let model = content(&mut draw, bytes);
        let base = directory.path().join("base.img");
        write_sparse(&base, &model);
        Self { directory, draw, files: vec![base], models: vec![model], blocks: vec![Vec::new()] }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn file(&self, position: usize) -> &str {
        path(&self.files[position])
    }

    /// Puts a layer on top, of as many bytes, or a few more.
    pub(crate) fn add_layer(&mut self, compress: Option<i32>) {
        let number = self.files.len();
        let below = self.models[number - 1].clone();
        let grown = if self.draw.random_bool(0.3) { self.draw.random_range(1..100_000) } else { 0 };
        let size = below.len() + grown;
        let blocks = changes(&mut self.draw, size);
        let out = self.at(&format!("{number}.glass"));
        let parent = parent(&self.files[number - 1]);
        write_layer(&out, size, Some(parent), &blocks, compress);
        self.models.push(apply(&below, size, &blocks));
        self.blocks.push(blocks);
        self.files.push(out);
    }

    /// Options that name everything below a layer.
    pub(crate) fn parents(&self, of: usize) -> Vec<&str> {
        self.below(of, "--parent")
    }

    pub(crate) fn below(&self, of: usize, option: &'static str) -> Vec<&str> {
        (0..of).rev().flat_map(|position| [option, self.file(position)]).collect()
    }
}

/// A device's bytes: noise, text, and zeroes.
pub(crate) fn content(draw: &mut ChaCha8Rng, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    let mut at = 0;
    while at < bytes {
        let end = bytes.min(at + BLOCK * draw.random_range(1..40));
        fill(draw, &mut all[at..end]);
        at = end;
    }
    all
}

fn fill(draw: &mut ChaCha8Rng, bytes: &mut [u8]) {
    match draw.random_range(0..3) {
        0 => bytes.fill(0),
        1 => bytes.fill(draw.random()),
        _ => pattern::fill(bytes, draw.random(), 0),
    }
}

/// What a layer of so many bytes might have.
pub(crate) fn changes(draw: &mut ChaCha8Rng, bytes: usize) -> Blocks {
    let count = bytes.div_ceil(BLOCK);
    let mut blocks = Vec::new();
    while blocks.len() < count {
        let kind = draw.random_range(0..5);
        for _ in 0..draw.random_range(1..30) {
            let mut block = vec![0; BLOCK];
            if kind > 3 {
                fill(draw, &mut block);
            }
            blocks.push((kind > 2).then_some(block));
        }
    }
    blocks.truncate(count);
    blocks
}

/// What a layer reads as over something.
pub(crate) fn apply(below: &[u8], bytes: usize, blocks: &Blocks) -> Vec<u8> {
    let mut all = below.to_vec();
    all.resize(blocks.len() * BLOCK, 0);
    for (place, block) in all.chunks_mut(BLOCK).zip(blocks) {
        if let Some(block) = block {
            place.copy_from_slice(block);
        }
    }
    all.truncate(bytes);
    all
}

/// How a layer names a file as its parent.
pub(crate) fn parent(file: &Path) -> Parent {
    let name = path(Path::new(file.file_name().expect("it has a name"))).to_owned();
    if file.extension().is_some_and(|extension| extension == "glass") {
        let layer = glassine::layer::LayerReader::open(file).expect("it was made here");
        let (kind, bytes) = (ParentKind::Layer, layer.footer().size_bytes);
        return Parent { kind, id: layer.id(), bytes, name };
    }
    let image = Template::open(file, &[]).expect("it was made here");
    Parent { kind: ParentKind::Image, id: image.fingerprint(), bytes: image.bytes(), name }
}

pub(crate) fn write_layer(
    out: &Path,
    size: usize,
    parent: Option<Parent>,
    blocks: &Blocks,
    compress: Option<i32>,
) {
    let about = About { virtual_bytes: size as u64, parent, compress };
    let mut writer = LayerWriter::create(out, &about).expect("scratch is writable");
    for (number, block) in (0..).zip(blocks) {
        if let Some(block) = block {
            writer.data(number, block).expect("scratch has room");
        }
    }
    writer.finish().expect("scratch has room");
}

/// A raw image with holes where it is zero.
pub(crate) fn write_sparse(out: &Path, bytes: &[u8]) {
    let file = File::create(out).expect("scratch is writable");
    file.set_len(bytes.len() as u64).expect("scratch has room");
    for (block, offset) in bytes.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, offset).expect("scratch has room");
        }
    }
}

/// Whether a file has these bytes.
pub(crate) fn assert_content(file: &Path, model: &[u8], what: &str) {
    let found = fs::read(file).expect("it is there");
    assert_eq!(found.len(), model.len(), "{what}: length");
    let wrong = found.iter().zip(model).position(|(found, expected)| found != expected);
    assert_eq!(wrong, None, "{what}: the first wrong byte");
}
