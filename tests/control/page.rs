//! `docs/control.md`: its commands are run as they are printed, and answer as it says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use glassine_tests::server::{Server, glassine, scratch, text};
use serde_json::Value;

use crate::told::{ask, controlled};

/// A command of the page, and what it is said to print.
#[derive(Debug)]
struct Example {
    command: String,
    answer: String,
}

/// The commands of a page: in blocks marked `console`, behind a `$`.
fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            examples.push(Example { command: command.to_owned(), answer: String::new() });
        } else if inside {
            let example = examples.last_mut().expect("a block begins with a command");
            example.answer += line;
            example.answer += "\n";
        }
    }
    examples
}

/// Whether two values are of one form. What may be null may be so in either.
fn is_alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, value)| other.get(key).is_some_and(|other| is_alike(value, other)))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len()
                && one.iter().zip(other).all(|(one, other)| is_alike(one, other))
        }
        (Value::Null, _) | (_, Value::Null) => true,
        _ => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}

fn check(example: &Example, printed: &str) {
    let Example { command, answer } = example;
    let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
    if let (Some(expected), Some(printed)) = (parsed(answer), parsed(printed)) {
        assert!(is_alike(&expected, &printed), "{command}\n{printed}");
        // What it is about, and how it is refused, is said to the letter.
        for key in ["exports", "export", "error", "durability", "quota_bytes"] {
            let is_said = expected.get(key).is_some_and(|value| !value.is_null());
            assert!(!is_said || expected[key] == printed[key], "{command}\n{printed}");
        }
        return;
    }
    assert_eq!(printed.trim_end(), answer.trim_end(), "{command}");
}

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control.md");
    fs::read_to_string(page).expect("the page is there")
}

#[test]
fn the_commands_of_the_page_work_as_printed() {
    let examples = examples(&page());
    assert!(examples.len() > 12, "{examples:?}");
    let directory = scratch();
    let binary = glassine().canonicalize().expect("it is there");
    let path = std::env::var("PATH").expect("there is one");
    let path = format!("{}:{path}", binary.parent().expect("a directory").display());
    let bash = |line: &str, directory: &Path| {
        let mut command = Command::new("bash");
        command.args(["-c", line]).current_dir(directory).env("PATH", &path);
        command
    };
    let serve = examples[0].command.strip_suffix(" &").expect("it goes to the background");
    let server = Server::spawn(bash(&format!("exec {serve}"), directory.path()), directory);
    for example in &examples[1..] {
        let output = bash(&example.command, server.directory()).output().expect("bash is there");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && err.is_empty(), "{}: {out}{err}", example.command);
        check(example, &out);
    }
    // The last one was to drain it.
    server.stop_after_signal();
}

/// The routes in the table of the page: method, and path without its query.
fn routes(page: &str) -> BTreeSet<(String, String)> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let spans = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let routes = spans.filter_map(|span| span.split_once(' '));
    let routes = routes.filter(|(_, path)| path.starts_with("/v1/"));
    let plain = |path: &str| path.split('?').next().unwrap_or_default().replace("ID", "{id}");
    routes.map(|(method, path)| (method.to_owned(), plain(path))).collect()
}

/// What a command of curl asks for.
fn asked(command: &str) -> Option<(String, String)> {
    let (_, url) = command.split_once("http://localhost")?;
    let path = url.split(['?', ' ', '\'']).next()?;
    let given = command.split_once("-X ").and_then(|(_, rest)| rest.split(' ').next());
    let method = given.unwrap_or(if command.contains(" -d ") { "POST" } else { "GET" });
    Some((method.to_owned(), path.replace("/1", "/{id}")))
}

#[test]
fn the_page_has_every_route_and_an_example_of_each() {
    let page = page();
    let (server, socket) = controlled(&["--size", "1M"]);
    let (_, description) = ask(&socket, "openapi.json", &[]);
    server.stop();
    let mut there = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().expect("it has paths") {
        for method in operations.as_object().expect("they have operations").keys() {
            there.insert((method.to_uppercase(), path.clone()));
        }
    }
    assert_eq!(routes(&page), there);
    let examples: BTreeSet<_> =
        examples(&page).iter().filter_map(|example| asked(&example.command)).collect();
    assert_eq!(examples, there);
}
