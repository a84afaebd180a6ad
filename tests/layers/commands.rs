//! What the commands say, and what they refuse.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use glassine_tests::server::{glassine, tool};
use serde_json::json;

use crate::world::{
    BLOCK, World, answered, assert_content, done, json, parent, path, refused, write_layer,
    write_sparse,
};

/// A base and three layers.
fn sample() -> World {
    let mut world = World::new(77, 500_001);
    for compress in [None, Some(3), None] {
        world.add_layer(compress);
    }
    world
}

/// How many files there are.
fn count(directory: &Path) -> usize {
    fs::read_dir(directory).expect("it is there").count()
}

#[test]
fn inspect_tells_what_a_layer_is() {
    let world = sample();
    let said = done(&["inspect", world.file(2)]);
    let size = world.models[2].len().to_string();
    for part in ["2.glass", &size, "over 1.glass: a layer of", "as in the parent", "footer"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let report = json(&["inspect", world.file(1)], 0);
    let blocks = world.blocks[1].iter().flatten();
    let zero = blocks.clone().filter(|block| block.iter().all(|byte| *byte == 0)).count();
    assert_eq!(report["zero_blocks"], zero);
    assert_eq!(report["data_blocks"], blocks.count() - zero);
    assert_eq!(report["parent"]["kind"], "image");
    assert_eq!(report["parent"]["name"], "base.img");
    assert_eq!(report["parent"]["bytes"], world.models[0].len());
    assert_eq!(report["file_bytes"], fs::metadata(&world.files[1]).expect("it is there").len());
    assert_eq!(report["ratio"], 1.0);
    let last = report["sections"].as_array().expect("there are some").last().cloned();
    assert_eq!(last.expect("there is one")["name"], "footer");
    assert!(report["note"]["creator"].as_str().expect("text").starts_with("glassine"));
    refused(&["inspect", world.file(0)], 1, &["base.img", "raw image", "layer import"]);
    refused(&["inspect", "/nonexistent"], 1, &["/nonexistent", "No such file"]);
    refused(&["inspect", "/dev/null"], 1, &["neither a file nor a disk"]);
}

#[test]
fn verify_names_what_is_damaged() {
    let world = sample();
    let said = done(&["verify", world.file(2)]);
    assert!(said.contains("all is as it was written"), "{said}");
    let frames = json(&["inspect", world.file(1)], 0)["frames"].clone();
    let file = fs::OpenOptions::new().read(true).write(true).open(&world.files[1]);
    let file = file.expect("it is there");
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it is there");
        file.write_all_at(&[byte[0] ^ 1], at).expect("it is writable");
    };
    // The first frame, at its first byte.
    flip(4096);
    let report = json(&["verify", world.file(1)], 1);
    assert_eq!((&report["ok"], &report["damaged_frames"]), (&json!(false), &json!(1)));
    assert_eq!(report["frames"], frames);
    let damage = &report["damage"][0];
    assert_eq!((&damage["frame"], &damage["offset"]), (&json!(0), &json!(4096)));
    let said = answered(&["verify", world.file(1)], 1);
    for part in ["1.glass is damaged", "frame 0", "at 4096", "checksum", "1 of "] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // Who needs that frame is refused, and makes nothing.
    let before = count(world.directory.path());
    let out = world.at("out");
    let arguments = ["export", world.file(1), "--raw", path(&out), "--parent", world.file(0)];
    refused(&arguments, 1, &["1.glass", "byte 4096", "restore"]);
    let merged = ["merge", world.file(1), world.file(2), "--out", path(&out)];
    refused(&merged, 1, &["1.glass", "byte 4096", "restore"]);
    assert_eq!(count(world.directory.path()), before);
    flip(4096);
    done(&["verify", world.file(1)]);
    // Behind the frames: the layer cannot be opened.
    let bytes = fs::metadata(&world.files[1]).expect("it is there").len();
    flip(bytes - 100);
    let report = json(&["verify", world.file(1)], 1);
    let error = report["damage"][0]["error"].as_str().expect("text").to_owned();
    assert!(error.contains("a checksum does not fit") && error.contains("byte"), "{error}");
    flip(bytes - 100);
    file.set_len(bytes - 1).expect("it is writable");
    let said = answered(&["verify", world.file(1)], 1);
    assert!(said.contains("cut short"), "{said}");
    refused(&["verify", "/nonexistent"], 1, &["cannot open"]);
}

#[test]
fn map_prints_and_draws_what_is_where() {
    let world = sample();
    let (svg, png) = (world.at("map.svg"), world.at("map.png"));
    let mut arguments = vec!["map", world.file(3), "--svg", path(&svg), "--png", path(&png)];
    arguments.extend(world.parents(3));
    let said = done(&arguments);
    for part in
        ["  data, frame at ", "  data in 1.glass, frame at ", "  base in base.img", "  zero"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    let picture = fs::read_to_string(&svg).expect("it was drawn");
    for part in ["<svg", "this layer 3.glass", "parent 2.glass", "parent 1.glass", "base base.img"]
    {
        assert!(picture.contains(part), "{part} in the picture");
    }
    assert!(fs::read(&png).expect("it was drawn").starts_with(b"\x89PNG"));
    refused(&arguments, 1, &["map.svg", "exists", "another name"]);
    // What is below need not be given.
    let said = done(&["map", world.file(3)]);
    assert!(said.contains("  parent") && !said.contains("1.glass"), "{said}");
    let wrong = ["map", world.file(3), "--parent", world.file(1)];
    refused(&wrong, 1, &["1.glass", "is not what layer", "2.glass, or what it is called now"]);
}

#[test]
fn merge_takes_only_layers_that_lie_upon_each_other() {
    let world = sample();
    let out = world.at("out.glass");
    let merge = |files: &[&str]| {
        let all: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        [&["merge".to_owned()], &all[..], &["--out".to_owned(), path(&out).to_owned()]].concat()
    };
    let refuse = |files: &[&str], parts: &[&str]| {
        let all = merge(files);
        refused(&all.iter().map(String::as_str).collect::<Vec<_>>(), 1, parts);
        assert!(!out.exists());
    };
    refuse(&[world.file(2), world.file(1)], &["2.glass", "is not what layer", "1.glass"]);
    refuse(&[world.file(1), world.file(3)], &["1.glass", "is not what layer", "3.glass"]);
    refuse(&[world.file(0), world.file(1)], &["base.img", "raw image", "layer import"]);
    let arguments = ["merge", world.file(1), world.file(2), "--out", world.file(3)];
    refused(&arguments, 1, &["3.glass", "exists", "never replaced"]);
    let code = |arguments: &[&str]| crate::world::layer(arguments).status.code();
    assert_eq!(code(&["merge", world.file(1), "--out", path(&out)]), Some(2));
    for wrong in ["zstd", "zstd:x", "zstd:99", "lz4"] {
        let arguments =
            ["merge", world.file(1), world.file(2), "--out", path(&out), "--compress", wrong];
        assert_eq!(code(&arguments), Some(2), "{wrong}");
    }
    let nowhere = world.at("no/out.glass");
    let arguments = ["merge", world.file(1), world.file(2), "--out", path(&nowhere)];
    refused(&arguments, 1, &["directory must be there"]);
}

#[test]
fn a_chain_must_be_whole_and_right() {
    let world = sample();
    let out = world.at("out.img");
    let export = |parents: &[usize], parts: &[&str]| {
        let parents = parents.iter().flat_map(|position| ["--parent", world.file(*position)]);
        let arguments = ["export", world.file(2), "--raw", path(&out)].into_iter().chain(parents);
        refused(&arguments.collect::<Vec<_>>(), 1, parts);
        assert!(!out.exists());
    };
    export(&[], &["2.glass is over has not been given", "1.glass, or what it is called now"]);
    export(&[1], &["1.glass is over has not been given", "base.img, or what it is called now"]);
    export(&[0], &["base.img (a raw image of", "is not what layer", "a layer of"]);
    export(&[1, 0, 1], &["base.img is a raw image, with nothing below it"]);
    let other = world.at("other.img");
    let mut model = world.models[0].clone();
    model[0] ^= 1;
    write_sparse(&other, &model);
    let arguments = ["export", world.file(1), "--raw", path(&out), "--parent", path(&other)];
    refused(&arguments, 1, &["other.img", "is not what layer", "base.img, or what"]);
    write_sparse(&other, &model[1..]);
    refused(&arguments, 1, &["500000 bytes", "500001 bytes"]);
    let lonely = world.at("lonely.glass");
    write_layer(&lonely, 4096, None, &vec![None], None);
    let arguments = ["export", path(&lonely), "--raw", path(&out), "--parent", path(&other)];
    refused(&arguments, 1, &["lonely.glass has no parent", "leave"]);
    fs::write(&out, b"precious").expect("scratch is writable");
    let arguments = ["export", path(&lonely), "--raw", path(&out)];
    refused(&arguments, 1, &["out.img exists", "never replaced"]);
    assert_eq!(fs::read(&out).expect("it is there"), b"precious");
}

#[test]
fn an_exported_image_has_holes() {
    let world = World::new(1, 1);
    let (file, out) = (world.at("a.glass"), world.at("out.img"));
    let mut blocks = vec![None; 100_000];
    blocks[50_000] = Some(vec![7; BLOCK]);
    let size = 100_000 * BLOCK - 5;
    write_layer(&file, size, None, &blocks, None);
    let report = json(&["export", path(&file), "--raw", path(&out)], 0);
    assert_eq!(report["size_bytes"], size);
    assert_eq!(report["written_bytes"], BLOCK);
    let taken = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&out).expect("it is there"));
    assert!(taken * 512 <= 64 << 10, "{taken}");
    assert_eq!(fs::metadata(&out).expect("it is there").len(), size as u64);
}

#[test]
fn rebase_refuses_what_would_change_the_device() {
    let world = sample();
    let out = world.at("out.glass");
    let rebase = ["rebase", world.file(2), "--out", path(&out), "--onto"];
    let with = |more: &[&'static str]| [&rebase[..], more].concat();
    let refuse = |arguments: Vec<&str>, parts: &[&str]| {
        refused(&arguments, 1, parts);
        assert!(!out.exists());
    };
    // The old parents, or those of the new one, are not known.
    refuse([&with(&[])[..], &[world.file(0)]].concat(), &["2.glass is over has not been given"]);
    let below = world.parents(2);
    refuse(
        [&with(&[])[..], &[world.file(1)], &below].concat(),
        &["1.glass is over has not been given"],
    );
    // The new one is larger than the device.
    let large = world.at("large.img");
    write_sparse(&large, &vec![1; world.models[2].len() + 1]);
    refuse(
        [&with(&[])[..], &[path(&large)], &below].concat(),
        &["large.img", "not larger", "2.glass"],
    );
    let lonely = world.at("lonely.glass");
    write_layer(&lonely, world.models[0].len(), None, &vec![None; 5], None);
    let arguments =
        ["rebase", path(&lonely), "--onto", world.file(0), "--out", path(&out), "--unsafe"];
    refuse(arguments.to_vec(), &["has no parent", "leave --unsafe out"]);
    // Over something, what was nowhere has to be said to be zero.
    done(&arguments[..6]);
    let raw = world.at("raw.img");
    done(&["export", path(&out), "--raw", path(&raw), "--parent", world.file(0)]);
    assert_content(&raw, &vec![0; world.models[0].len()], "zeroes");
    assert_eq!(parent(&world.files[0]).bytes, world.models[0].len() as u64);
}

#[test]
fn import_takes_raw_images_and_qcow2() {
    let world = sample();
    let model = &world.models[3][..world.models[3].len() / 512 * 512];
    let (raw, qcow2) = (world.at("raw.img"), world.at("disk.qcow2"));
    write_sparse(&raw, model);
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", path(&raw), path(&qcow2)]);
    let (out, back) = (world.at("out.glass"), world.at("back.img"));
    let before = count(world.directory.path());
    done(&["import", path(&qcow2), "--out", path(&out), "--compress", "zstd:3"]);
    assert_eq!(count(world.directory.path()), before + 1, "the raw image in between is gone");
    done(&["export", path(&out), "--raw", path(&back)]);
    assert_content(&back, model, "qcow2");
    refused(&["import", path(&raw), "--out", path(&out)], 1, &["exists"]);
    fs::remove_file(&out).expect("it was made");
    refused(&["import", world.file(1), "--out", path(&out)], 1, &["a layer already"]);
    refused(&["import", "/nonexistent", "--out", path(&out)], 1, &["No such file"]);
    let empty = world.at("empty");
    fs::write(&empty, b"").expect("scratch is writable");
    refused(&["import", path(&empty), "--out", path(&out)], 1, &["is empty"]);
    // A qcow2 image that is none, and no tool for one.
    let broken = world.at("broken.qcow2");
    fs::write(&broken, b"QFI\xfb nonsense").expect("scratch is writable");
    let before = count(world.directory.path());
    refused(
        &["import", path(&broken), "--out", path(&out)],
        1,
        &["qemu-img cannot convert", "broken.qcow2", "qemu-img check"],
    );
    let mut command = Command::new(glassine());
    command
        .args(["layer", "import", path(&qcow2), "--out", path(&out)])
        .env("PATH", "/nonexistent");
    let output = command.output().expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("qemu-utils") && said.contains("disk.qcow2"), "{said}");
    assert_eq!(count(world.directory.path()), before, "a refusal leaves nothing behind");
}

#[test]
fn diff_says_by_its_exit_code_what_it_found() {
    let world = sample();
    let said = done(&["diff", world.file(0), world.file(0)]);
    assert!(said.contains("they read the same"), "{said}");
    let mut model = world.models[0].clone();
    model[500_000] ^= 1;
    let other = world.at("other.img");
    write_sparse(&other, &model);
    let said = answered(&["diff", world.file(0), path(&other)], 1);
    assert!(said.contains("289 bytes read differently, runs of blocks: 1"), "{said}");
    assert!(said.contains("          499712              289"), "{said}");
    let longer = world.at("longer.img");
    write_sparse(&longer, &[&world.models[0][..], &[0]].concat());
    let said = answered(&["diff", world.file(0), path(&longer)], 1);
    assert!(said.contains("500001 and 500002 bytes"), "{said}");
    refused(&["diff", world.file(0), "/nonexistent"], 2, &["No such file"]);
    refused(&["diff", world.file(1), world.file(0)], 2, &["has not been given"]);
    let qcow2 = world.at("disk.qcow2");
    fs::write(&qcow2, b"QFI\xfb").expect("scratch is writable");
    refused(&["diff", world.file(0), path(&qcow2)], 2, &["disk.qcow2", "layer import"]);
}

#[test]
fn an_interrupted_or_killed_command_leaves_nothing() {
    let world = World::new(1, 1);
    let (image, out) = (world.at("large.img"), world.at("out.glass"));
    // Noise that compresses badly, at a level that takes long.
    let mut bytes = vec![0; 64 << 20];
    glassine_tests::pattern::fill(&mut bytes, 1, 0);
    fs::write(&image, &bytes).expect("scratch has room");
    let before = count(world.directory.path());
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let mut command = Command::new(glassine());
        command.args(["layer", "import", path(&image), "--out", path(&out)]);
        command.args(["--compress", "zstd:22"]).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it can be started");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !makes_a_file(child.id(), world.directory.path()) {
            assert!(Instant::now() < deadline, "it does not begin");
            std::thread::sleep(Duration::from_millis(1));
        }
        // It handles signals before it reads a byte; but it has only just begun.
        std::thread::sleep(Duration::from_millis(50));
        let pid = i32::try_from(child.id()).expect("a pid");
        // SAFETY: takes no memory; the process is our child and not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        let status = child.wait().expect("a child can be waited for");
        let mut said = String::new();
        let stderr = child.stderr.as_mut().expect("it is a pipe");
        std::io::Read::read_to_string(stderr, &mut said).expect("it is text");
        if signal == libc::SIGTERM {
            assert_eq!(status.code(), Some(1), "{said}");
            assert!(said.contains("interrupted; nothing was made"), "{said}");
        }
        assert_eq!(count(world.directory.path()), before);
    }
}

/// Whether a process has a file open in a directory that has no name there.
fn makes_a_file(pid: u32, directory: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there");
    let files = open.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let mut files = files.filter(|file| file.starts_with(directory));
    files.any(|file| !file.exists())
}
