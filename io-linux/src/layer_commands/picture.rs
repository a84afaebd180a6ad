//! The picture of a map: the device in rows of cells, from left to right and from top to bottom, coloured by where
//! its bytes are.
//!
//! A cell that is not all from one place is divided: each colour is as high as its share, and no share is too
//! small to be seen. So is a picture of any device small, and no lonely block is lost in it.

use std::convert::Infallible;
use std::ops::Range;

use anyhow::anyhow;
use glassine_core::limits::BLOCK_BYTES;
use indicatif::BinaryBytes;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters::prelude::*;
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingErrorKind};

const WIDTH: u64 = 1120;
const MARGIN: u64 = 20;
/// For the offsets beside the rows.
const LABELS: u64 = 110;
const HEAD: u64 = 70;
const ROWS_MAX: u64 = 24;
const COLUMNS_MAX: u64 = 512;
/// A short device is not drawn as a few wide cells.
const COLUMNS_MIN: u64 = 32;
const ROW_HEIGHT: u64 = 20;
const ROW_GAP: u64 = 4;
const LEGEND_HEIGHT: u64 = 24;

/// The nearest layers have colours of their own, the others share one.
const LAYERS: usize = 8;
const OTHERS: usize = LAYERS;
const BASE: usize = LAYERS + 1;
const ZERO: usize = LAYERS + 2;
const MISSING: usize = LAYERS + 3;
const KINDS: usize = LAYERS + 4;
const COLOURS: [RGBColor; KINDS] = [
    RGBColor(0, 104, 181),
    RGBColor(230, 120, 20),
    RGBColor(40, 150, 70),
    RGBColor(170, 60, 150),
    RGBColor(215, 180, 30),
    RGBColor(60, 180, 190),
    RGBColor(190, 50, 50),
    RGBColor(130, 100, 70),
    RGBColor(90, 90, 140),
    RGBColor(150, 150, 150),
    RGBColor(232, 236, 240),
    RGBColor(195, 195, 195),
];

/// Where something is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// In a layer; 0 is the topmost.
    Layer(usize),
    /// In the raw image below.
    Base,
    /// Nowhere: it is zero.
    Zero,
    /// In a parent that was not given.
    Missing,
}

impl Kind {
    fn position(self) -> usize {
        match self {
            Self::Layer(layer) => layer.min(OTHERS),
            Self::Base => BASE,
            Self::Zero => ZERO,
            Self::Missing => MISSING,
        }
    }
}

/// What the legend says of a file.
#[derive(Debug)]
pub(super) struct Legend {
    pub(super) name: String,
    pub(super) file_bytes: Option<u64>,
}

/// What is to be drawn.
#[derive(Debug)]
pub(super) struct Picture {
    title: String,
    size_bytes: u64,
    /// The topmost first.
    layers: Vec<Legend>,
    base: Option<Legend>,
    cell_blocks: u64,
    columns: u64,
    /// How many blocks of each cell are of each kind.
    cells: Vec<[u64; KINDS]>,
}

impl Picture {
    /// Of a device: all its blocks, in order.
    pub(super) fn new(
        title: String,
        size_bytes: u64,
        layers: Vec<Legend>,
        base: Option<Legend>,
        runs: impl Iterator<Item = (Range<u64>, Kind)>,
    ) -> Self {
        let blocks = size_bytes.div_ceil(u64::from(BLOCK_BYTES));
        // Powers of two, so that rows begin at round numbers.
        let row_blocks = blocks.div_ceil(ROWS_MAX).next_power_of_two().max(COLUMNS_MIN);
        let columns = row_blocks.min(COLUMNS_MAX);
        let cell_blocks = row_blocks / columns;
        let count = blocks.div_ceil(cell_blocks);
        let mut cells = vec![[0; KINDS]; count as usize];
        for (blocks, kind) in runs {
            let mut start = blocks.start;
            while start < blocks.end {
                let cell = start / cell_blocks;
                let end = blocks.end.min((cell + 1) * cell_blocks);
                if let Some(cell) = cells.get_mut(cell as usize) {
                    cell[kind.position()] += end - start;
                }
                start = end;
            }
        }
        Self { title, size_bytes, layers, base, cell_blocks, columns, cells }
    }

    fn rows(&self) -> u64 {
        (self.cells.len() as u64).div_ceil(self.columns)
    }

    /// What each line of the legend says, and its colour.
    fn legend(&self) -> Vec<(usize, String)> {
        let mut totals = [0; KINDS];
        for cell in &self.cells {
            for (total, blocks) in totals.iter_mut().zip(cell) {
                *total += blocks;
            }
        }
        let share = |kind: usize| {
            let bytes = (totals[kind] * u64::from(BLOCK_BYTES)).min(self.size_bytes);
            let percent = bytes as f64 * 100.0 / self.size_bytes as f64;
            format!("{} of the device ({percent:.1} %)", BinaryBytes(bytes))
        };
        let mut lines = Vec::new();
        for (kind, layer) in self.layers.iter().enumerate().take(LAYERS) {
            let role = if kind == 0 { "this layer" } else { "parent" };
            let file = layer.file_bytes.unwrap_or_default();
            let text = format!(
                "{role} {}: {}, a file of {}",
                short(&layer.name),
                share(kind),
                BinaryBytes(file)
            );
            lines.push((kind, text));
        }
        if let Some(others) = self.layers.len().checked_sub(LAYERS).filter(|others| *others > 0) {
            lines.push((OTHERS, format!("{others} more parents: {}", share(OTHERS))));
        }
        if let Some(base) = &self.base {
            lines.push((BASE, format!("base {}: {}", short(&base.name), share(BASE))));
        }
        if totals[MISSING] > 0 {
            let text = format!("as in the parent, which was not given: {}", share(MISSING));
            lines.push((MISSING, text));
        }
        lines.push((ZERO, format!("zero: {}", share(ZERO))));
        lines
    }

    fn height(&self) -> u64 {
        HEAD + self.rows() * (ROW_HEIGHT + ROW_GAP)
            + MARGIN
            + self.legend().len() as u64 * LEGEND_HEIGHT
            + MARGIN
    }

    fn draw<B: DrawingBackend>(&self, backend: B) -> Result<(), DrawingAreaErrorKind<B::ErrorType>>
    where
        B::ErrorType: 'static,
    {
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        let bytes = |blocks: u64| BinaryBytes(blocks * u64::from(BLOCK_BYTES));
        let row_blocks = self.cell_blocks * self.columns;
        let title = format!("{}: a device of {}", short(&self.title), BinaryBytes(self.size_bytes));
        area.draw(&Text::new(title, at(MARGIN, 14), ("sans-serif", 20)))?;
        let scale = format!("a row is {}, a cell {}", bytes(row_blocks), bytes(self.cell_blocks));
        area.draw(&Text::new(scale, at(MARGIN, 42), ("sans-serif", 14)))?;
        for (row, cells) in (0..).zip(self.cells.chunks(self.columns as usize)) {
            let top = HEAD + row * (ROW_HEIGHT + ROW_GAP);
            let label = bytes(row * row_blocks).to_string();
            area.draw(&Text::new(label, at(MARGIN, top + 3), ("sans-serif", 14)))?;
            let x = |column: u64| {
                let left = MARGIN + LABELS;
                left + column * (WIDTH - left - MARGIN) / self.columns
            };
            let mut column = 0;
            // Cells side by side that look the same are drawn as one.
            for alike in cells.chunk_by(|one, other| heights(one) == heights(other)) {
                let end = column + alike.len() as u64;
                let mut upper = top;
                for (kind, height) in heights(&alike[0]).into_iter().enumerate() {
                    if height > 0 {
                        let corners = [at(x(column), upper), at(x(end), upper + height)];
                        area.draw(&Rectangle::new(corners, COLOURS[kind].filled()))?;
                        upper += height;
                    }
                }
                column = end;
            }
        }
        let mut top = HEAD + self.rows() * (ROW_HEIGHT + ROW_GAP) + MARGIN;
        for (kind, text) in self.legend() {
            let corners = [at(MARGIN, top), at(MARGIN + 16, top + 16)];
            area.draw(&Rectangle::new(corners, COLOURS[kind].filled()))?;
            area.draw(&Text::new(text, at(MARGIN + 26, top), ("sans-serif", 14)))?;
            top += LEGEND_HEIGHT;
        }
        area.present()
    }
}

/// How high each colour of a cell is: its share, but high enough to be seen if it is there at all.
fn heights(cell: &[u64; KINDS]) -> [u64; KINDS] {
    let total: u64 = cell.iter().sum();
    let kinds = cell.iter().filter(|blocks| **blocks > 0).count() as u64;
    // All that is small takes half of the cell at most.
    let least = (ROW_HEIGHT / (2 * kinds.max(1))).max(1);
    let share = |blocks: &u64| match blocks {
        0 => 0,
        blocks => (blocks * ROW_HEIGHT / total).max(least),
    };
    let mut heights = [0; KINDS];
    for (height, blocks) in heights.iter_mut().zip(cell) {
        *height = share(blocks);
    }
    // The greatest one gives what the small ones took, and takes what rounding left.
    let sum: u64 = heights.iter().sum();
    if let Some(greatest) = heights.iter_mut().max()
        && sum > 0
    {
        *greatest = (*greatest + ROW_HEIGHT).saturating_sub(sum);
    }
    heights
}

fn at(x: u64, y: u64) -> (i32, i32) {
    let number = |one: u64| i32::try_from(one).unwrap_or(i32::MAX);
    (number(x), number(y))
}

/// A name that fits a line.
fn short(name: &str) -> String {
    const LETTERS: usize = 40;
    if name.chars().count() <= LETTERS {
        return name.to_owned();
    }
    name.chars().take(LETTERS - 2).chain("..".chars()).collect()
}

/// The picture as SVG.
pub(super) fn svg(picture: &Picture) -> anyhow::Result<String> {
    let mut text = String::new();
    let size = (WIDTH as u32, picture.height() as u32);
    let drawn = picture.draw(SVGBackend::with_string(&mut text, size));
    drawn.map_err(|error| anyhow!("cannot draw the map: {error}"))?;
    Ok(text)
}

/// The picture as PNG.
pub(super) fn png(picture: &Picture) -> anyhow::Result<Vec<u8>> {
    let (width, height) = (WIDTH as u32, picture.height() as u32);
    let mut pixels = vec![255; width as usize * height as usize * 3];
    let drawn = picture.draw(Pixels { width, height, pixels: &mut pixels });
    drawn.map_err(|error| anyhow!("cannot draw the map: {error}"))?;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(bytes)
}

/// Pixels to draw on. Text is in a font of its own, so that it needs none of the system's.
struct Pixels<'a> {
    width: u32,
    height: u32,
    /// Red, green and blue of each.
    pixels: &'a mut [u8],
}

impl DrawingBackend for Pixels<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn draw_pixel(
        &mut self,
        (x, y): BackendCoord,
        colour: BackendColor,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let inside = |at: i32, size: u32| u32::try_from(at).ok().filter(|at| *at < size);
        if let (Some(x), Some(y)) = (inside(x, self.width), inside(y, self.height)) {
            let place = (y as usize * self.width as usize + x as usize) * 3;
            let (red, green, blue) = colour.rgb;
            for (pixel, new) in self.pixels[place..place + 3].iter_mut().zip([red, green, blue]) {
                let mixed =
                    f64::from(*pixel) * (1.0 - colour.alpha) + f64::from(new) * colour.alpha;
                *pixel = mixed.round() as u8;
            }
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): BackendCoord,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let height = if style.size() > 16.0 { RasterHeight::Size20 } else { RasterHeight::Size16 };
        let step = get_raster_width(FontWeight::Regular, height) as i32;
        for (letter, left) in text.chars().zip((x..).step_by(step as usize)) {
            let known = |letter| get_raster(letter, FontWeight::Regular, height);
            let Some(letter) = known(letter).or_else(|| known('?')) else { continue };
            for (row, y) in letter.rows().zip(y..) {
                for (strength, x) in row.iter().zip(left..) {
                    let alpha = f64::from(*strength) / 255.0;
                    self.draw_pixel((x, y), BackendColor { alpha, ..style.color() })?;
                }
            }
        }
        Ok(())
    }
}
