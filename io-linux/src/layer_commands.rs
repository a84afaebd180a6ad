//! `glassine layer`: what can be done with sealed layers while nobody serves them.
//!
//! `chain` is a layer over its parents, seen as one device, and read block by block; every command that needs
//! the content of a device reads it there. `output` says what was made, `progress` says how far a command is, and ends it
//! when it is interrupted. The others are a command each.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use self::progress::Progress;
use crate::cli::layer::{Layer, LayerCommand};

mod chain;
mod diff;
mod export;
mod import;
mod inspect;
mod map;
mod merge;
mod output;
mod picture;
mod progress;
mod rebase;
#[cfg(test)]
mod tests;
mod verify;

/// What is to be printed, and the exit code.
#[derive(Debug)]
pub struct Answer {
    /// A report, for people or as JSON.
    pub text: String,
    /// 0, or what the command says by another one.
    pub code: u8,
}

/// Runs a command to its end.
pub fn run(layer: &Layer) -> anyhow::Result<Answer> {
    let (json, progress) = (layer.json, &mut Progress::start()?);
    match &layer.command {
        LayerCommand::Inspect(arguments) => answer(&inspect::inspect(arguments)?, json, 0),
        LayerCommand::Verify(arguments) => {
            let report = verify::verify(arguments, progress)?;
            answer(&report, json, u8::from(!report.ok))
        }
        LayerCommand::Map(arguments) => answer(&map::map(arguments)?, json, 0),
        LayerCommand::Merge(arguments) => answer(&merge::merge(arguments, progress)?, json, 0),
        LayerCommand::Rebase(arguments) => answer(&rebase::rebase(arguments, progress)?, json, 0),
        LayerCommand::Export(arguments) => answer(&export::export(arguments, progress)?, json, 0),
        LayerCommand::Import(arguments) => answer(&import::import(arguments, progress)?, json, 0),
        LayerCommand::Diff(arguments) => {
            let report = diff::diff(arguments, progress)?;
            answer(&report, json, u8::from(!report.same))
        }
    }
}

fn answer(
    report: &(impl Serialize + fmt::Display),
    json: bool,
    code: u8,
) -> anyhow::Result<Answer> {
    let text = if json { serde_json::to_string_pretty(report)? } else { report.to_string() };
    Ok(Answer { text, code })
}

/// Text from a file, without what would steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// A path as text, for a report.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The last part of a path, for people.
fn name(path: &Path) -> String {
    printable(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
}
