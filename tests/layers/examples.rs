//! The examples of `docs/layers.md`, run as they are printed.

use std::path::Path;
use std::process::Command;

use glassine_tests::server::{glassine, scratch, text};

/// The commands of a page's consoles, each with what it is to print.
fn examples(page: &str) -> Vec<(String, String)> {
    let mut examples: Vec<(String, String)> = Vec::new();
    let mut is_console = false;
    for line in page.lines() {
        match line {
            "```console" => is_console = true,
            "```" => is_console = false,
            _ if !is_console => {}
            line => match (line.strip_prefix("$ "), examples.last_mut()) {
                (Some(command), _) => examples.push((command.to_owned(), String::new())),
                (None, Some((_, printed))) => *printed += &format!("{line}\n"),
                (None, None) => panic!("{line:?} is printed by no command"),
            },
        }
    }
    examples
}

/// Text without what is another each time: identities, and the time.
fn normal(printed: &str) -> String {
    let words = printed.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric());
    let word = |word: &str| {
        let is_id = word.len() >= 64 && word.trim_end().bytes().all(|one| one.is_ascii_hexdigit());
        let is_time = word.len() == 11 && word.starts_with('1') && word.ends_with(',');
        if is_id || is_time { "...\n".to_owned() } else { word.to_owned() }
    };
    words.map(word).collect()
}

#[test]
fn the_examples_print_what_the_page_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/layers.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let directory = scratch();
    let binary = glassine();
    let binaries = binary.parent().expect("it is in a directory").display();
    let path = format!("{binaries}:{}", std::env::var("PATH").unwrap_or_default());
    let examples = examples(&page);
    assert!(examples.len() > 15, "{examples:?}");
    for (command, printed) in examples {
        let mut shell = Command::new("timeout");
        shell.args(["60", "sh", "-c", &command]).env("PATH", &path).current_dir(&directory);
        let output = shell.output().expect("coreutils are installed");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(normal(&(out + &err)), normal(&printed), "$ {command}");
    }
}
