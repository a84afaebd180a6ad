//! Chains of layers that are drawn at random, and what the commands make of them, against arrays of bytes.

use std::path::Path;

use rand::Rng;
use serde_json::{Value, json};

use crate::world::{BLOCK, World, apply, assert_content, content, done, json, path, write_sparse};

const DEPTH: usize = 5;
/// None is a multiple of a window, and few are of a block.
const SIZES: [usize; 6] = [300_001, 1_000_003, 70_000, 4096 * 33, 4095, 65_537];

fn worlds() -> impl Iterator<Item = World> {
    (0..12).map(|seed| {
        let mut world = World::new(seed, SIZES[seed as usize % SIZES.len()]);
        for number in 0..DEPTH {
            let compress = [None, Some(1), Some(9)][(number + seed as usize) % 3];
            world.add_layer(compress);
        }
        world
    })
}

/// Exports a layer, with options that name what is below it, and looks at every byte.
fn check(world: &World, file: &Path, parents: &[&str], model: &[u8], what: &str) {
    let out = world.at("export.img");
    let arguments = [&["export", path(file), "--raw", path(&out)], parents].concat();
    done(&arguments);
    assert_content(&out, model, what);
    std::fs::remove_file(out).expect("it was made");
}

#[test]
fn every_layer_of_a_chain_is_exported_to_the_byte() {
    for world in worlds() {
        for top in 1..=DEPTH {
            check(&world, &world.files[top], &world.parents(top), &world.models[top], "export");
        }
    }
}

#[test]
fn merged_layers_read_as_the_topmost() {
    for mut world in worlds() {
        let low = world.draw.random_range(1..DEPTH);
        let high = world.draw.random_range(low + 1..=DEPTH);
        for compress in [None, Some("zstd:3"), Some("none")] {
            let out = world.at(&format!("merged-{compress:?}.glass"));
            let mut arguments = vec!["merge"];
            arguments.extend((low..=high).map(|position| world.file(position)));
            arguments.extend(["--out", path(&out)]);
            arguments.extend(compress.into_iter().flat_map(|how| ["--compress", how]));
            done(&arguments);
            check(&world, &out, &world.parents(low), &world.models[high], "merge");
            let [merged, lowest] =
                [path(&out), world.file(low)].map(|file| json(&["inspect", file], 0));
            assert_eq!(merged["parent"], lowest["parent"]);
            if compress == Some("none") {
                assert_eq!(merged["compressed_frames"], 0);
            }
        }
    }
}

#[test]
fn merged_down_to_no_parent_nothing_is_a_tombstone() {
    for world in worlds() {
        let lowest = world.at("lowest.glass");
        done(&["import", world.file(0), "--out", path(&lowest)]);
        let second = world.at("second.glass");
        let arguments = ["rebase", world.file(1), "--onto", path(&lowest), "--out", path(&second)];
        done(&[&arguments[..], &world.parents(1)].concat());
        let out = world.at("merged.glass");
        done(&["merge", path(&lowest), path(&second), "--out", path(&out)]);
        let report = json(&["inspect", path(&out)], 0);
        assert_eq!((&report["parent"], &report["zero_blocks"]), (&Value::Null, &json!(0)));
        check(&world, &out, &[], &world.models[1], "merge without a parent");
    }
}

#[test]
fn a_layer_over_another_parent_reads_as_before() {
    for mut world in worlds() {
        let layer = world.draw.random_range(1..=DEPTH);
        // The same image with a few changes, shorter or longer.
        let mut other = world.models[0].clone();
        let room = world.models[layer].len();
        other.resize(world.draw.random_range(1..=room), 7);
        let fresh = content(&mut world.draw, other.len());
        for (mine, fresh) in other.chunks_mut(BLOCK).zip(fresh.chunks(BLOCK)) {
            if world.draw.random_bool(0.2) {
                mine.copy_from_slice(fresh);
            }
        }
        let changed = world.at("changed.img");
        write_sparse(&changed, &other);
        let out = world.at("rebased.glass");
        let arguments =
            ["rebase", world.file(layer), "--onto", path(&changed), "--out", path(&out)];
        done(&[&arguments[..], &world.parents(layer)].concat());
        let model = &world.models[layer];
        check(&world, &out, &["--parent", path(&changed)], model, "rebase");
        // Without looking, the device has what the new parent has.
        let out = world.at("unsafe.glass");
        let onto = ["--onto", path(&changed), "--out", path(&out), "--unsafe"];
        done(&[&["rebase", world.file(layer)], &onto[..]].concat());
        let model = apply(&other, room, &world.blocks[layer]);
        check(&world, &out, &["--parent", path(&changed)], &model, "rebase --unsafe");
    }
}

#[test]
fn a_layer_moves_onto_another_layer_of_its_chain() {
    for mut world in worlds() {
        let layer = world.draw.random_range(2..=DEPTH);
        let onto = world.draw.random_range(1..layer);
        let out = world.at("rebased.glass");
        let mut arguments = vec!["rebase", world.file(layer), "--onto", world.file(onto)];
        arguments.extend(["--out", path(&out)]);
        arguments.extend(world.parents(layer));
        arguments.extend(world.below(onto, "--onto-parent"));
        done(&arguments);
        let parents = [vec!["--parent", world.file(onto)], world.parents(onto)].concat();
        check(&world, &out, &parents, &world.models[layer], "rebase onto a layer");
        // Onto its own parent: nothing is added, and nothing lost.
        let out = world.at("again.glass");
        let mut arguments = vec!["rebase", world.file(layer), "--onto", world.file(layer - 1)];
        arguments.extend(["--out", path(&out)]);
        arguments.extend(world.parents(layer));
        arguments.extend(world.below(layer - 1, "--onto-parent"));
        done(&arguments);
        let [before, after] =
            [world.file(layer), path(&out)].map(|file| json(&["inspect", file], 0));
        for what in ["data_blocks", "zero_blocks", "frames", "parent"] {
            assert_eq!(before[what], after[what], "{what}");
        }
    }
}

#[test]
fn every_difference_is_listed_and_no_other() {
    for mut world in worlds() {
        let one = world.draw.random_range(0..=DEPTH);
        let other = world.draw.random_range(0..=DEPTH);
        let (mut mine, mut theirs) = (world.models[one].clone(), world.models[other].clone());
        let is_same = mine == theirs;
        let lengths = [mine.len(), theirs.len()];
        let size = mine.len().max(theirs.len());
        mine.resize(size, 0);
        theirs.resize(size, 0);
        let mut runs: Vec<[usize; 2]> = Vec::new();
        let pairs = mine.chunks(BLOCK).zip(theirs.chunks(BLOCK));
        for ((mine, theirs), offset) in pairs.zip((0..).step_by(BLOCK)) {
            match runs.last_mut() {
                _ if mine == theirs => {}
                Some([start, bytes]) if *start + *bytes == offset => *bytes += mine.len(),
                _ => runs.push([offset, mine.len()]),
            }
        }
        let mut arguments = vec!["diff", world.file(one), world.file(other)];
        arguments.extend(world.below(one, "--parent-a"));
        arguments.extend(world.below(other, "--parent-b"));
        let report = json(&arguments, i32::from(!is_same));
        let listed = runs.iter().map(|[offset, bytes]| json!({ "offset": offset, "bytes": bytes }));
        let expected = json!({
            "same": is_same,
            "a_bytes": lengths[0],
            "b_bytes": lengths[1],
            "different_bytes": runs.iter().map(|run| run[1]).sum::<usize>(),
            "different_runs": runs.len(),
            "runs": listed.collect::<Vec<_>>(),
        });
        assert_eq!(report, expected);
    }
}

#[test]
fn what_is_imported_is_exported_to_the_byte() {
    for world in worlds() {
        let (raw, out) = (world.at("raw.img"), world.at("imported.glass"));
        let model = &world.models[DEPTH];
        // Once with holes, once with written zeroes.
        for (number, compress) in ["none", "zstd:1", "zstd:19"].into_iter().enumerate() {
            match number {
                0 => write_sparse(&raw, model),
                _ => std::fs::write(&raw, model).expect("scratch has room"),
            }
            let report =
                json(&["import", path(&raw), "--out", path(&out), "--compress", compress], 0);
            let is_data = |block: &&[u8]| block.iter().any(|byte| *byte != 0);
            assert_eq!(report["data_blocks"], model.chunks(BLOCK).filter(is_data).count());
            assert_eq!(report["zero_blocks"], 0);
            check(&world, &out, &[], model, "import");
            done(&["diff", path(&out), path(&raw)]);
            std::fs::remove_file(&out).expect("it was made");
        }
    }
}

#[test]
fn a_map_says_of_every_block_whose_it_is() {
    for world in worlds() {
        let arguments = [&["map", world.file(DEPTH)][..], &world.parents(DEPTH)].concat();
        let report = json(&arguments, 0);
        let mut next = 0;
        let runs = report["runs"].as_array().expect("there are runs");
        for pair in runs.windows(2) {
            let what = |run: &Value| (run["is"].clone(), run["file"].clone());
            assert_ne!(what(&pair[0]), what(&pair[1]), "runs are as long as can be");
        }
        for run in runs {
            let (offset, bytes) = (run["offset"].as_u64().unwrap(), run["bytes"].as_u64().unwrap());
            assert_eq!(offset, next, "runs leave nothing out");
            next = offset + bytes;
            for block in offset as usize / BLOCK..(next as usize).div_ceil(BLOCK) {
                let has =
                    |layer: &usize| world.blocks[*layer].get(block).is_some_and(Option::is_some);
                let owner = (1..=DEPTH).rev().find(has);
                let file = |layer: usize| match layer {
                    DEPTH => Value::Null,
                    layer => json!(world.file(layer)),
                };
                let at = block * BLOCK;
                let is_zero = |model: &[u8]| {
                    let there = model.len().saturating_sub(at).min(BLOCK);
                    model.iter().skip(at).take(there).all(|byte| *byte == 0)
                };
                let expected = match owner {
                    Some(layer) if !is_zero(&world.models[layer]) => ("data", file(layer)),
                    // Not every file system makes a hole of every block of zeroes.
                    None if !is_zero(&world.models[0]) => ("base", file(0)),
                    None if run["is"] == "base" && at < world.models[0].len() => ("base", file(0)),
                    _ => ("zero", Value::Null),
                };
                assert_eq!((run["is"].as_str().unwrap(), run["file"].clone()), expected, "{block}");
            }
        }
        assert_eq!(next, world.models[DEPTH].len() as u64);
    }
}
