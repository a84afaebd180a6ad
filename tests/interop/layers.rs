//! Layers as templates, through the real binary.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use glassine::layer::{About, LayerReader, LayerWriter};
use glassine::template::Template;
use glassine_tests::client::{Client, FLUSH, READ};
use glassine_tests::pattern;
use glassine_tests::server::{Server, glassine, make_image, scratch, sha256, tool};
use tempfile::TempDir;

use crate::command_line::{path, refused, says};

const BLOCK: usize = 4096;
const BASE_BYTES: u64 = 5_000_001;
const BYTES: u64 = 9_000_003;

/// A raw image, three layers over it, and an image that is what they show.
struct Stack {
    directory: TempDir,
}

impl Stack {
    fn new() -> Self {
        let directory = scratch();
        let stack = Self { directory };
        make_image(&stack.at("base.img"), BASE_BYTES, 1);
        let mut model = fs::read(stack.at("base.img")).expect("just written");
        let mut below = stack.at("base.img");
        for (number, bytes) in [(1, BASE_BYTES), (2, BYTES - 100_000), (3, BYTES)] {
            let layer = stack.at(&format!("{number}.glass"));
            add_layer(&layer, &below, number, bytes, &mut model);
            below = layer;
        }
        fs::write(stack.at("model.img"), model).expect("scratch is writable");
        stack
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn model(&self) -> Vec<u8> {
        fs::read(self.at("model.img")).expect("it is there")
    }
}

/// Runs of data, of zeroes and of nothing; the last block is data.
fn add_layer(layer: &Path, below: &Path, number: u64, bytes: u64, model: &mut Vec<u8>) {
    let below = Template::open(below, &[]).expect("it can be served");
    let compress = number.is_multiple_of(2).then_some(1);
    let about = About { virtual_bytes: bytes, parent: Some(below.as_parent()), compress };
    let mut writer = LayerWriter::create(layer, &about).expect("scratch is writable");
    let blocks = bytes.div_ceil(BLOCK as u64);
    model.resize(blocks as usize * BLOCK, 0);
    let mut block = 0;
    while block < blocks {
        let word = pattern::word(number, block);
        let end = blocks.min(block + 1 + word % 40);
        let place = block as usize * BLOCK..end as usize * BLOCK;
        match word >> 32 & 3 {
            0 => {
                writer.zero(block..end).expect("it fits");
                model[place].fill(0);
            }
            1 => {}
            _ => {
                let mut data = vec![0; place.len()];
                pattern::fill(&mut data, number + 10, block * BLOCK as u64);
                writer.data(block, &data).expect("it fits");
                model[place].copy_from_slice(&data);
            }
        }
        block = end;
    }
    writer.finish().expect("scratch has room");
    model.truncate(bytes as usize);
}

#[test]
fn a_stack_over_an_image_is_served_to_the_byte() {
    let stack = Stack::new();
    let copy = stack.at("copy.img");
    for connections in ["--connections=1", "--connections=4"] {
        let server = Server::over(&stack.at("3.glass"), &[]);
        assert_eq!(tool("nbdinfo", &["--size", &server.uri()]).trim(), BYTES.to_string());
        tool("nbdcopy", &[connections, &server.uri(), path(&copy)]);
        assert_eq!(sha256(&copy), sha256(&stack.at("model.img")));
        // Warm by now.
        tool("nbdcopy", &[connections, &server.uri(), path(&copy)]);
        assert_eq!(sha256(&copy), sha256(&stack.at("model.img")));
        server.stop();
    }
    let server = Server::over(&stack.at("3.glass"), &["--read-only"]);
    let model = stack.at("model.img");
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&model), &server.uri()]);
    server.stop();
}

#[test]
fn small_reads_and_writes_over_a_stack_are_those_of_the_model() {
    let stack = Stack::new();
    let mut model = stack.model();
    let server = Server::over(&stack.at("3.glass"), &[]);
    let mut client = Client::open(&server.socket());
    for step in 0..3000 {
        let word = pattern::word(99, step);
        let offset = word % BYTES;
        let length = (1 + (word >> 40) % 20_000).min(BYTES - offset);
        let place = offset as usize..(offset + length) as usize;
        if step % 3 == 0 {
            // Blocks covered in part are completed from the layers.
            let bytes = vec![step as u8; length as usize];
            assert_eq!(client.write(offset, &bytes), 0);
            model[place].copy_from_slice(&bytes);
        } else {
            assert!(client.read(offset, length as u32) == model[place], "{offset} {length}");
        }
    }
    server.stop();
}

#[test]
fn devices_share_a_layer_and_a_configuration_says_where_its_parents_are() {
    let stack = Stack::new();
    let parents = stack.at("parents");
    fs::create_dir(&parents).expect("scratch is writable");
    for name in ["base.img", "1.glass", "2.glass"] {
        fs::rename(stack.at(name), parents.join(name)).expect("it can be moved");
    }
    let directory = scratch();
    let template = stack.at("3.glass");
    let config = directory.path().join("glassine.toml");
    let device =
        |name| format!("[[device]]\nexport = '{name}'\ntemplate = '{}'\n", path(&template));
    let text = format!(
        "listen = ['unix:{}']\nlayer_dirs = ['{}']\n{}{}",
        directory.path().join("x.sock").display(),
        path(&parents),
        device("a"),
        device("b"),
    );
    fs::write(&config, text).expect("scratch is writable");
    let mut command = Command::new(glassine());
    command.args(["serve", "--config", path(&config)]);
    let server = Server::spawn(command, directory);
    let model = stack.model();
    for name in ["a", "b"] {
        let mut client = Client::connect(&server.socket());
        client.greet(3);
        client.go(name);
        assert!(client.read(0, BYTES as u32) == model);
    }
    assert_eq!(server.log().matches("opened layers").count(), 1, "{}", server.log());
    server.stop();
    let elsewhere = Server::over(&template, &["--layer-dir", path(&parents)]);
    assert!(Client::open(&elsewhere.socket()).read(0, BYTES as u32) == model);
    elsewhere.stop();
}

#[test]
fn a_damaged_layer_costs_an_error_and_nothing_else() {
    let stack = Stack::new();
    let layer = stack.at("2.glass");
    // A frame of it that shows in part.
    let model = stack.model();
    let server = Server::blank(&BYTES.to_string(), &["--template", path(&stack.at("3.glass"))]);
    let frames = LayerReader::open(&layer).expect("it is whole").index().frames().to_vec();
    let file = fs::OpenOptions::new().read(true).write(true).open(&layer).expect("writable");
    let damage = |frame: &glassine::layer::Frame| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, frame.offset + 9).expect("readable");
        file.write_all_at(&[byte[0] ^ 4], frame.offset + 9).expect("writable");
    };
    frames.iter().for_each(damage);
    let mut client = Client::open(&server.socket());
    let windows = 0..BYTES.div_ceil(65_536);
    let read = |client: &mut Client, window: u64| {
        let offset = window * 65_536;
        let length = (BYTES - offset).min(65_536);
        match client.ask(0, READ, offset, length as u32) {
            0 => {
                let expected = &model[offset as usize..(offset + length) as usize];
                assert!(client.take(length as usize) == expected, "never a wrong byte");
                0
            }
            error => error,
        }
    };
    let failed: Vec<_> = windows.clone().filter(|one| read(&mut client, *one) != 0).collect();
    assert!(failed.len() > 10, "{failed:?}");
    assert_eq!(read(&mut client, failed[0]), 5, "EIO, again");
    let log = server.log();
    for part in ["2.glass", "the frame of window", "at byte", "is damaged"] {
        assert!(log.contains(part), "{part:?} is missing in: {log}");
    }
    frames.iter().for_each(damage);
    for window in windows {
        assert_eq!(read(&mut client, window), 0, "it is restored");
    }
    server.stop();
}

#[test]
fn layers_that_cannot_be_served_are_named() {
    let stack = Stack::new();
    let listen = format!("unix:{}", stack.at("x").display());
    let top = stack.at("3.glass");
    let arguments = ["--template", path(&top), "--listen", &listen];
    let (there, away) = (stack.at("1.glass"), stack.at("away"));
    fs::rename(&there, &away).expect("it can be moved");
    let id = LayerReader::open(&away).expect("it is whole").id();
    let id = glassine::layer::Hex(&id).to_string();
    let said = refused(&arguments, 1);
    says(&said, &["2.glass needs its parent", &id, "1.glass", "--layer-dir"]);
    says(&said, &[path(stack.directory.path())]);
    let whole = fs::read(&away).expect("it is there");
    // Another layer with its name.
    fs::copy(stack.at("2.glass"), &there).expect("scratch has room");
    says(&refused(&arguments, 1), &[&id, "1.glass is another file"]);
    // Cut short: it is no raw image either.
    fs::write(&there, &whole[..whole.len() / 2]).expect("scratch is writable");
    let said = refused(&["--template", path(&there), "--listen", &listen], 1);
    says(&said, &["1.glass", "cut short", "restore it"]);
    fs::write(&there, &whole).expect("scratch is writable");
    fs::write(stack.at("base.img"), vec![1; BASE_BYTES as usize]).expect("scratch is writable");
    says(&refused(&arguments, 1), &["1.glass needs", "raw image", "base.img is another file"]);
}

#[test]
fn a_sheet_over_a_layer_survives_a_restart_and_knows_its_layer() {
    let stack = Stack::new();
    let sheet = stack.at("sheet");
    let mut model = stack.model();
    let server = Server::over(&stack.at("3.glass"), &["--sheet", path(&sheet)]);
    let mut client = Client::open(&server.socket());
    assert_eq!(client.write(70_000, &[7; 10_000]), 0);
    model[70_000..80_000].fill(7);
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    server.stop();
    // Moved, it is the same layer.
    fs::rename(stack.at("3.glass"), stack.at("moved.glass")).expect("it can be moved");
    let server = Server::over(&stack.at("moved.glass"), &["--sheet", path(&sheet)]);
    assert!(Client::open(&server.socket()).read(0, BYTES as u32) == model);
    server.stop();
    // One that shows the same bytes, but for one.
    let mut other = stack.model();
    add_layer(&stack.at("other.glass"), &stack.at("2.glass"), 4, BYTES, &mut other);
    let listen = format!("unix:{}", stack.at("x").display());
    let other = stack.at("other.glass");
    let arguments = ["--template", path(&other), "--sheet", path(&sheet), "--listen", &listen];
    says(&refused(&arguments, 1), &["moved.glass", "other.glass", "other content"]);
}

#[test]
fn no_room_to_compose_costs_an_error_until_there_is_some() {
    let stack = Stack::new();
    let mount = stack.at("small");
    fs::create_dir(&mount).expect("scratch is writable");
    tool("mount", &["-t", "tmpfs", "-o", "size=2M", "none", path(&mount)]);
    let directory = scratch();
    let mut command = Command::new("env");
    command.arg(format!("TMPDIR={}", mount.display())).arg(glassine());
    command.args(["serve", "--read-only", "--template", path(&stack.at("3.glass")), "--listen"]);
    command.arg(format!("unix:{}", directory.path().join("x.sock").display()));
    let server = Server::spawn(command, directory);
    let mut client = Client::open(&server.socket());
    let model = stack.model();
    assert!(client.read(0, 65_536) == model[..65_536]);
    assert_eq!(client.ask(0, READ, 0, BYTES as u32), 5, "EIO");
    assert!(client.read(0, 65_536) == model[..65_536], "what was composed is served");
    assert!(server.log().contains("cannot compose"), "{}", server.log());
    tool("mount", &["-o", "remount,size=32M", path(&mount)]);
    assert!(client.read(0, BYTES as u32) == model);
    server.stop();
    tool("umount", &[path(&mount)]);
}
