//! Plots: bars of medians, a group of bars for each workload, with lines from the lowest to the
//! highest round.

use std::io;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::machine::Report;
use crate::results::Row;
use crate::servers::Kind;
use crate::tables::{Group, number};

const WIDTH: u32 = 1200;
const HEIGHT: u32 = 520;
const MARGIN: u32 = 14;
const LABELS: u32 = 72;
const RIGHT: u32 = 16;

/// Whether there is a plot of a group.
pub(crate) fn is_drawn(group: Group) -> bool {
    use Group::{Beside, Cpu, External, Large, Many, Small};
    matches!(group, Small | Large | Many | Beside | External | Cpu)
}

/// The file of a plot: a storage's path without slashes is part of it.
pub(crate) fn file_name(group: Group, storage: &str) -> String {
    format!("{}-{}.svg", group.name(), storage.trim_matches('/').replace('/', "-"))
}

/// Draws all plots there are rows for.
pub(crate) fn draw(report: &Report, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (storage, kind) in &report.machine.storages {
        for group in Group::ALL.into_iter().filter(|group| is_drawn(*group)) {
            let of = |row: &&Row| row.storage == *storage && group.has(row.workload);
            let rows: Vec<&Row> = report.rows.iter().filter(of).collect();
            if rows.is_empty() {
                continue;
            }
            let path = directory.join(file_name(group, storage));
            let title = format!("{}, on {storage} ({kind})", group.title());
            let title = match group {
                Group::Cpu => title + ": all rounds",
                _ => title + ": median; line from lowest to highest round",
            };
            bars(&path, &title, group, &rows)
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
    }
    Ok(())
}

/// Glassine stands out, peers with copy-on-write are warm, those without are grey.
fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::Glassine => RGBColor(0, 104, 181),
        Kind::GlassineJournal => RGBColor(102, 168, 217),
        Kind::QemuQcow2 => RGBColor(214, 96, 20),
        Kind::NbdkitCow => RGBColor(240, 165, 50),
        Kind::NbdServerCow => RGBColor(165, 60, 60),
        Kind::QemuRaw => RGBColor(110, 110, 110),
        Kind::NbdkitFile => RGBColor(150, 150, 150),
        Kind::NbdkitMemory => RGBColor(190, 190, 190),
        Kind::Limit | Kind::LimitRing => RGBColor(30, 30, 30),
    }
}

/// Lowest, middle and highest of a bar.
fn bar(group: Group, row: &Row, kind: Kind) -> Option<(f64, f64, f64)> {
    let entry = row.entry(kind).filter(|entry| entry.failure.is_none())?;
    if group == Group::Cpu {
        let cpu = entry.cpu(|round| round.server_cpu_seconds)?;
        return Some((cpu, cpu, cpu));
    }
    entry.spread()
}

type Failure = Box<dyn std::error::Error>;

fn bars(path: &Path, title: &str, group: Group, rows: &[&Row]) -> Result<(), Failure> {
    let has_bar = |kind: &Kind| rows.iter().any(|row| bar(group, row, *kind).is_some());
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(has_bar).collect();
    // CPU time of large requests would hide that of small ones.
    let small = |row: &&&Row| group != Group::Cpu || Group::Small.has(row.workload);
    let rows: Vec<&Row> = rows.iter().filter(small).copied().collect();
    let all = rows.iter().flat_map(|row| kinds.iter().filter_map(|kind| bar(group, row, *kind)));
    let top = all.map(|(.., high)| high).fold(0.0, f64::max) * 1.08;
    if top <= 0.0 {
        return Ok(());
    }
    let root = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(64);
    head.draw(&Text::new(title.to_owned(), (16, 8), ("sans-serif", 20)))?;
    legend(&head, &kinds)?;
    let (body, foot) = rest.split_vertically(HEIGHT - 64 - 44);
    let count = rows.len() as f64;
    let mut chart = ChartBuilder::on(&body)
        .margin_right(RIGHT)
        .margin_left(MARGIN)
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .build_cartesian_2d(0.0..count, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(WHITE)
        .y_label_formatter(&|figure| number(*figure))
        .y_desc(unit(group))
        .label_style(("sans-serif", 14))
        .draw()?;
    let width = 0.84 / kinds.len() as f64;
    for (row, at) in rows.iter().zip(0u32..) {
        for (kind, index) in kinds.iter().zip(0u32..) {
            let Some((low, median, high)) = bar(group, row, *kind) else { continue };
            let left = f64::from(at) + 0.08 + f64::from(index) * width;
            let corners = [(left, 0.0), (left + width * 0.9, median)];
            let middle = left + width * 0.45;
            chart.draw_series([Rectangle::new(corners, colour(*kind).filled())])?;
            if high > low {
                let line = vec![(middle, low), (middle, high)];
                let style = RGBColor(90, 200, 90).stroke_width(2);
                chart.draw_series([PathElement::new(line, style)])?;
            }
        }
    }
    let left = f64::from(MARGIN + LABELS);
    let per = (f64::from(WIDTH - RIGHT) - left) / count;
    let style = TextStyle::from(("sans-serif", 13)).pos(Pos::new(HPos::Center, VPos::Top));
    for (row, at) in rows.iter().zip(0u32..) {
        let middle = left + (f64::from(at) + 0.5) * per;
        for (line, number) in wrapped(&row.title, (per / 7.0) as usize).iter().zip(0i32..) {
            let place = (middle as i32, 4 + number * 14);
            foot.draw(&Text::new(line.clone(), place, style.clone()))?;
        }
    }
    root.present()?;
    Ok(())
}

fn unit(group: Group) -> &'static str {
    match group {
        Group::Small | Group::Many => "operations/s",
        Group::Large => "MiB/s",
        Group::External => "operations/s (nbdcopy: MiB/s)",
        Group::Beside => "with / without",
        _ => "CPU seconds per million operations",
    }
}

fn legend<B: DrawingBackend>(
    head: &DrawingArea<B, plotters::coord::Shift>,
    kinds: &[Kind],
) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    for (kind, index) in kinds.iter().zip(0i32..) {
        let left = 16 + index * 140;
        let corners = [(left, 42), (left + 12, 54)];
        head.draw(&Rectangle::new(corners, colour(*kind).filled()))?;
        head.draw(&Text::new(kind.title(), (left + 18, 41), ("sans-serif", 14)))?;
    }
    Ok(())
}

/// Words in lines of at most so many letters.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_wrapped_between_words() {
        assert_eq!(wrapped("4 KiB random read", 12), ["4 KiB random", "read"]);
        assert_eq!(wrapped("unbreakable", 4), ["unbreakable"]);
    }
}
