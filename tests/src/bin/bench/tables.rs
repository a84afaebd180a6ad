//! Tables of medians with their spread, for the terminal and for Markdown.

use std::fmt::Write;

use crate::machine::Report;
use crate::results::{Entry, Row};
use crate::servers::Kind;
use crate::workloads::{ALL, What};

/// A table of cells, and what is to be said of some.
pub(crate) struct Table {
    pub(crate) group: Group,
    pub(crate) storage: String,
    pub(crate) title: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) notes: Vec<String>,
}

/// Workloads that are shown together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Small,
    Large,
    Many,
    Beside,
    External,
    Latency,
    Cpu,
    Client,
    Calls,
    Memory,
    Start,
    Allocations,
}

impl Group {
    pub(crate) const ALL: [Self; 12] = [
        Self::Small,
        Self::Large,
        Self::Many,
        Self::Beside,
        Self::External,
        Self::Latency,
        Self::Cpu,
        Self::Client,
        Self::Calls,
        Self::Memory,
        Self::Start,
        Self::Allocations,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Small => "Small requests, operations/s",
            Self::Large => "Large requests, MiB/s",
            Self::Many => "Connections and devices, 4 KiB random reads, operations/s",
            Self::Beside => "What a healthy client keeps of its throughput (1 is all)",
            Self::External => "Clients of others",
            Self::Latency => "Latency, microseconds: half of all replies / 99 of 100",
            Self::Cpu => "CPU seconds of the server per million operations",
            Self::Client => "CPU seconds of the client per million operations",
            Self::Calls => "System calls of the server per operation",
            Self::Memory => "Private memory of the server, KiB",
            Self::Start => "Start of a server, milliseconds",
            Self::Allocations => "Allocations per operation",
        }
    }

    /// A name for files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
            Self::Many => "many",
            Self::Beside => "beside",
            Self::External => "external",
            Self::Latency => "latency",
            Self::Cpu => "cpu",
            Self::Client => "client",
            Self::Calls => "calls",
            Self::Memory => "memory",
            Self::Start => "start",
            Self::Allocations => "allocations",
        }
    }

    /// Whether a workload is shown in it.
    pub(crate) fn has(self, workload: &str) -> bool {
        let known = ALL.iter().find(|one| one.name == workload).expect("rows are of workloads");
        let small = matches!(known.what, What::Steady(_, _, 4096, _) | What::FirstTouch);
        let large = matches!(known.what, What::Steady(..)) && !small;
        match self {
            Self::Small => small,
            Self::Large => large,
            Self::Many => matches!(known.what, What::Connections(_) | What::Devices(_)),
            Self::Beside => {
                matches!(known.what, What::Stalled | What::SlowTemplate | What::QuietDevice)
            }
            Self::External => matches!(known.what, What::External(_)),
            Self::Latency => {
                small && known.what != What::FirstTouch || known.what == What::QuietDevice
            }
            Self::Cpu | Self::Client => small || large,
            Self::Calls => matches!(known.what, What::SystemCalls(..)),
            Self::Memory => matches!(known.what, What::IdleMemory | What::TouchedMemory),
            Self::Start => known.what == What::StartUp,
            Self::Allocations => known.what == What::Allocations,
        }
    }

    /// What is shown of a server.
    fn cell(self, entry: &Entry) -> Option<String> {
        match self {
            Self::Latency => {
                let p50 = entry.percentile(|round| round.p50_microseconds)?;
                let p99 = entry.percentile(|round| round.p99_microseconds)?;
                Some(format!("{p50:.0} / {p99:.0}"))
            }
            Self::Cpu => Some(number(entry.cpu(|round| round.server_cpu_seconds)?)),
            Self::Client => Some(number(entry.cpu(|round| round.client_cpu_seconds)?)),
            Self::Calls | Self::Memory | Self::Start | Self::Allocations => {
                Some(number(entry.median()?))
            }
            _ => {
                let (low, median, high) = entry.spread()?;
                Some(format!("{} ({}–{})", number(median), number(low), number(high)))
            }
        }
    }
}

/// A figure with three digits or so.
pub(crate) fn number(figure: f64) -> String {
    match figure {
        _ if figure >= 99_950.0 => format!("{:.0}k", figure / 1000.0),
        _ if figure >= 9_995.0 => format!("{:.1}k", figure / 1000.0),
        _ if figure >= 99.5 || figure == 0.0 => format!("{figure:.0}"),
        _ if figure >= 9.95 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// All tables there are rows for.
pub(crate) fn all(report: &Report) -> Vec<Table> {
    let storages = report.machine.storages.iter().map(|(path, _)| path);
    let one = |storage: &String, group: Group| {
        let of = |row: &&Row| row.storage == *storage && group.has(row.workload);
        let rows: Vec<&Row> = report.rows.iter().filter(of).collect();
        table(storage, group, &rows)
    };
    storages
        .flat_map(|storage| Group::ALL.iter().filter_map(move |group| one(storage, *group)))
        .collect()
}

fn table(storage: &str, group: Group, rows: &[&Row]) -> Option<Table> {
    let servers: Vec<Kind> = rows.first()?.entries.iter().map(|entry| entry.server).collect();
    // A server of which nothing was to be measured has no column.
    let is_shown = |kind: &Kind| {
        rows.iter().filter_map(|row| row.entry(*kind)).any(|entry| {
            group.cell(entry).is_some()
                || entry.failure.as_ref().is_some_and(|why| !is_left_out(why))
        })
    };
    let servers: Vec<Kind> = servers.into_iter().filter(is_shown).collect();
    // Another view of rows that another table has the notes and ratios of.
    let is_view = matches!(group, Group::Latency | Group::Cpu | Group::Client);
    let compares = rows.iter().any(|row| row.unit.is_speed()) && !is_view;
    let mut header = vec![String::new()];
    header.extend(servers.iter().map(|kind| kind.title().to_owned()));
    if compares {
        header.extend(["× best cow peer".into(), "× limit".into()]);
    }
    // A server, what is to be said of it, and in which rows.
    let mut notes: Vec<(Kind, &str, Vec<&str>)> = Vec::new();
    let mut cells = Vec::new();
    for row in rows {
        let unit = if group == Group::External {
            format!(", {}", row.unit.title())
        } else {
            String::new()
        };
        let mut line = vec![format!("{}{unit}", row.title)];
        for kind in &servers {
            let entry = row.entry(*kind);
            line.push(entry.map_or("–".into(), |entry| cell(group, entry)));
            let said = entry.and_then(|entry| entry.failure.as_ref().or(entry.note.as_ref()));
            if let Some(said) = said.filter(|_| !is_view) {
                match notes.iter_mut().find(|(other, known, _)| other == kind && known == said) {
                    Some((.., rows)) => rows.push(&row.title),
                    None => notes.push((*kind, said, vec![&row.title])),
                }
            }
        }
        if compares {
            let ratio =
                |ratio: Option<f64>| ratio.map_or("–".into(), |ratio| format!("{ratio:.2}"));
            line.extend([ratio(row.over_peers()), ratio(row.over_limit())]);
        }
        cells.push(line);
    }
    let note = |(kind, said, rows): (Kind, &str, Vec<&str>)| {
        format!("{}, {}: {said}", kind.title(), rows.join("; "))
    };
    let notes = notes.into_iter().map(note).collect();
    let (storage, title) = (storage.to_owned(), group.title().to_owned());
    Some(Table { group, storage, title, header, rows: cells, notes })
}

/// Whether a server was left out, and did not fail.
pub(crate) fn is_left_out(failure: &str) -> bool {
    failure.starts_with("not measured")
}

fn cell(group: Group, entry: &Entry) -> String {
    match &entry.failure {
        Some(failure) if is_left_out(failure) => "–".into(),
        Some(_) => "failed".into(),
        None => group.cell(entry).unwrap_or_else(|| "–".into()),
    }
}

/// Tables for a terminal.
pub(crate) fn terminal(report: &Report) -> String {
    let mut out = String::new();
    for table in all(report) {
        let lines: Vec<&Vec<String>> = [&table.header].into_iter().chain(&table.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> = (0..table.header.len()).filter_map(width).collect();
        let _ = writeln!(out, "\n{} ({})", table.title, table.storage);
        for line in lines {
            let _ = write!(out, "{:<1$}", line[0], widths[0]);
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                let _ = write!(out, "  {cell:>width$}");
            }
            out.push('\n');
        }
        for note in table.notes {
            let _ = writeln!(out, "  {note}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_three_digits() {
        let shown = [0.0, 0.034, 5.0, 9.96, 57.94, 99.9, 4312.4, 9999.0, 57_930.0, 339_671.0];
        let shown = shown.map(number);
        assert_eq!(shown[..5], ["0", "0.03", "5.00", "10.0", "57.9"]);
        assert_eq!(shown[5..], ["100", "4312", "10.0k", "57.9k", "340k"]);
    }

    #[test]
    fn every_workload_is_shown() {
        for workload in ALL {
            assert!(Group::ALL.iter().any(|group| group.has(workload.name)), "{}", workload.name);
        }
    }
}
