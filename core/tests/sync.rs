//! The models see only what goes through the `sync` modules. So nothing else may name a lock or an
//! atomic. (Clippy's `disallowed_types` cannot say so: it looks through re-exports.)

use std::fs;
use std::path::Path;

/// Whether a line of code names a module `sync` that is none of ours.
fn is_foreign(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices("sync").any(|(at, word)| {
        let (before, behind) = (&code[..at], &code[at + word.len()..]);
        let in_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        let whole = !before.ends_with(in_word) && !behind.starts_with(in_word);
        // A file may be synced; that is another word.
        let is_use = code.trim_start().starts_with("use ");
        let is_path = is_use || before.ends_with("::") || behind.starts_with("::");
        let ours = ["crate::", "glassine::", "glassine_core::", "mod "];
        whole && is_path && !ours.iter().any(|prefix| before.ends_with(prefix))
    })
}

fn check(directory: &Path, wrong: &mut Vec<String>) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("a directory can be read").path();
        if path.file_stem().is_some_and(|stem| stem == "sync") {
            continue;
        }
        if path.is_dir() {
            files += check(&path, wrong);
            continue;
        }
        files += 1;
        let text = fs::read_to_string(&path).expect("a source file is text");
        for (index, line) in text.lines().enumerate().filter(|(_, line)| is_foreign(line)) {
            wrong.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
        }
    }
    files
}

#[test]
fn only_the_sync_modules_name_primitives() {
    for line in
        ["use std::sync::Mutex;", "use std::{io, sync};", "    core::sync::atomic::fence();"]
    {
        assert!(is_foreign(line), "{line}");
    }
    for line in [
        "use crate::sync::{Arc, lock};",
        "use glassine::sync::Arc;",
        "pub mod sync;",
        "// sync::x",
        "fdatasync(file)",
        "file.sync()",
    ] {
        assert!(!is_foreign(line), "{line}");
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("core is a member");
    let mut wrong = Vec::new();
    let files: usize = ["core/src", "io-linux/src"]
        .map(|source| check(&workspace.join(source), &mut wrong))
        .iter()
        .sum();
    assert!(files > 30, "the sources were found");
    assert!(wrong.is_empty(), "name it in `sync.rs`, for the models:\n{}", wrong.join("\n"));
}
