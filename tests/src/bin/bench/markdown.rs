//! The generated part of docs/benchmarks.md.

use std::fmt::Write;
use std::io;
use std::path::Path;

use crate::machine::Report;
use crate::plots;
use crate::tables;

const BEGIN: &str = "<!-- figures: tests/bench/run writes from here -->";
const END: &str = "<!-- to here -->";

/// Replaces what is between the markers of a file.
pub(crate) fn replace(report: &Report, path: &Path, plots: Option<&Path>) -> io::Result<()> {
    let text = std::fs::read_to_string(path)?;
    let markers = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let Some((before, after)) = markers else {
        let what = format!("{} has no lines \"{BEGIN}\" and \"{END}\"", path.display());
        return Err(io::Error::other(what));
    };
    let plots = plots.map(|directory| relative(directory, path));
    let figures = figures(report, plots.as_deref());
    std::fs::write(path, format!("{before}{BEGIN}\n\n{figures}\n{END}{after}"))
}

/// A directory as a link from a file beside or above it.
fn relative(directory: &Path, file: &Path) -> String {
    let home = file.parent().unwrap_or(Path::new(""));
    directory.strip_prefix(home).unwrap_or(directory).display().to_string()
}

fn figures(report: &Report, plots: Option<&str>) -> String {
    let mut out = String::new();
    machine(report, &mut out);
    for (storage, kind) in &report.machine.storages {
        let _ = writeln!(out, "\n### On {storage} ({kind})");
        for table in tables::all(report).iter().filter(|table| table.storage == *storage) {
            let _ = writeln!(out, "\n#### {}\n", table.title);
            if let Some(plots) = plots.filter(|_| plots::is_drawn(table.group)) {
                let file = plots::file_name(table.group, storage);
                let _ = writeln!(out, "![{}]({plots}/{file})\n", table.title);
            }
            let _ = writeln!(out, "|{}|", table.header.join("|"));
            let _ = writeln!(out, "|---|{}", "---:|".repeat(table.header.len() - 1));
            for row in &table.rows {
                let _ = writeln!(out, "|{}|", row.join("|"));
            }
            if !table.notes.is_empty() {
                out.push('\n');
            }
            for note in &table.notes {
                let _ = writeln!(out, "- {note}");
            }
        }
    }
    out
}

fn machine(report: &Report, out: &mut String) {
    let machine = &report.machine;
    let _ = writeln!(out, "| | |\n|---|---|");
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "|{name}|{value}|");
    };
    line("date", &machine.date);
    line("commit", &machine.commit);
    line("command", &format!("`{}`", report.command));
    line("CPU", &format!("{}, {} cores", machine.cpu, machine.cores));
    line("memory", &format!("{} MiB", machine.memory_mib));
    line("system", &format!("{}, {}", machine.system, machine.kernel));
    line("load average before", &machine.load_before);
    let (rounds, seconds) = (report.rounds, report.seconds);
    line("rounds", &format!("{rounds} of {seconds} s"));
    line("device", &format!("{} MiB", report.device_bytes >> 20));
    for (program, version) in &machine.versions {
        line(program, version);
    }
    if report.commands.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nCommand lines (DIR is the server's own directory):\n");
    let _ = writeln!(out, "| server | command |\n|---|---|");
    for (kind, command) in &report.commands {
        let _ = writeln!(out, "|{}|`{command}`|", kind.title());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_begin_where_the_file_is() {
        let link = |directory, file| relative(Path::new(directory), Path::new(file));
        assert_eq!(link("docs/benchmarks", "docs/benchmarks.md"), "benchmarks");
        assert_eq!(link("plots", "x.md"), "plots");
    }
}
