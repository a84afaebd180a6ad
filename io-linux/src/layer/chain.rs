//! A layer and everything below it: finds the parents, and believes none that is not the right one; and reads what
//! they make together.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use glassine_core::layer::footer::{self, FOOTER_BYTES, Parent, ParentKind};
use glassine_core::layer::stack::{DEPTH_MAX, Origin, Stack};
use glassine_core::layer::{Hex, WINDOW_BLOCKS, WINDOW_BYTES};
use glassine_core::limits::BLOCK_BYTES;

use super::LayerReader;
use crate::template::fingerprint;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Layers are found by this ending, where their name does not help.
const ENDING: &str = "glass";

/// A raw image below the lowest layer.
#[derive(Debug)]
pub struct Base {
    /// Where it was found.
    pub path: PathBuf,
    /// It, open.
    pub file: File,
    /// Its size to the byte.
    pub bytes: u64,
}

impl Base {
    /// Reads from a place on; what lies beyond its end is left as it is.
    pub fn read(&self, into: &mut [u8], offset: u64) -> anyhow::Result<()> {
        let there = self.bytes.saturating_sub(offset).min(into.len() as u64) as usize;
        self.file.read_exact_at(&mut into[..there], offset).with_context(|| {
            let shown = self.path.display();
            format!("cannot read {there} bytes at byte {offset} of {shown}; it must not change while it is used: restore it")
        })
    }
}

/// Reads a window of some layers, the lowest first, over a raw image or nothing. `stack` is that of the layers, and
/// `bytes` are zero before.
pub fn read_window(
    layers: &[LayerReader],
    stack: &Stack,
    base: Option<&Base>,
    window: u64,
    bytes: &mut [u8; WINDOW_BYTES],
) -> anyhow::Result<()> {
    let mut inherited = u16::MAX;
    // A frame is read once, however its blocks lie.
    let mut parts: Vec<(u16, u16)> = Vec::new();
    for (origin, blocks) in stack.window(window) {
        inherited &= !blocks;
        if let Origin::Layer(layer) = origin {
            match parts.iter_mut().find(|part| part.0 == layer) {
                Some(part) => part.1 |= blocks,
                None => parts.push((layer, blocks)),
            }
        }
    }
    for (layer, blocks) in parts {
        layers[usize::from(layer)].read_blocks(window, blocks, bytes)?;
    }
    let Some(base) = base else { return Ok(()) };
    let all = 0..WINDOW_BLOCKS as usize;
    let shows = |position: &usize| inherited & 1 << position != 0;
    let mut start = 0;
    while let Some(from) = (start..all.end).find(shows) {
        let end = (from..all.end).find(|at| !shows(at)).unwrap_or(all.end);
        let offset = window * WINDOW_BYTES as u64 + (from * BLOCK) as u64;
        base.read(&mut bytes[from * BLOCK..end * BLOCK], offset)?;
        start = end;
    }
    Ok(())
}

/// A layer and all of its parents. There are no cycles: an identity covers that of the parent.
#[derive(Debug)]
pub struct Chain {
    /// The layers, the lowest first.
    pub layers: Vec<LayerReader>,
    /// What is below them; nothing means zeroes.
    pub base: Option<Base>,
}

impl Chain {
    /// Opens a layer, and its parents. Each is looked for beside the layers over it, and then in `directories`: by
    /// the name that was noted, and a layer also by its identity, among all files there that end in `.glass`.
    pub fn open(path: &Path, directories: &[PathBuf]) -> anyhow::Result<Self> {
        let mut search = Search { directories, beside: Vec::new(), known: HashMap::new() };
        let mut layers = vec![LayerReader::open(path)?];
        let mut base = None;
        while let Some(parent) = layers[layers.len() - 1].footer().parent.clone() {
            let child = layers[layers.len() - 1].path().to_owned();
            match parent.kind {
                ParentKind::Image => {
                    base = Some(search.image(&child, &parent)?);
                    break;
                }
                ParentKind::Layer if layers.len() == DEPTH_MAX => bail!(
                    "{} has more than {DEPTH_MAX} layers in all; merge some of them into one",
                    path.display()
                ),
                ParentKind::Layer => layers.push(search.layer(&child, &parent)?),
            }
        }
        layers.reverse();
        Ok(Self { layers, base })
    }

    /// The layer it was opened for.
    #[must_use]
    pub fn top(&self) -> &LayerReader {
        &self.layers[self.layers.len() - 1]
    }
}

/// Where parents are looked for.
struct Search<'a> {
    directories: &'a [PathBuf],
    /// Where the layers are that were found so far.
    beside: Vec<PathBuf>,
    /// For each directory that was gone through, the layers in it by their identity.
    known: HashMap<PathBuf, HashMap<[u8; 32], PathBuf>>,
}

impl Search<'_> {
    fn layer(&mut self, child: &Path, parent: &Parent) -> anyhow::Result<LayerReader> {
        let is_it = |path: &PathBuf| id_of(path) == Some(parent.id);
        let places = self.places(child);
        let named = (!parent.name.is_empty())
            .then(|| places.iter().map(|place| place.join(&parent.name)).find(is_it))
            .flatten();
        let found = named.or_else(|| {
            places.iter().find_map(|place| {
                let known = self.known.entry(place.clone()).or_insert_with(|| layers_in(place));
                known.get(&parent.id).cloned()
            })
        });
        let Some(found) = found else { bail!("{}", missing(child, parent, &places)) };
        let layer = LayerReader::open(&found)?;
        // Another file may have taken its name since.
        if layer.id() != parent.id || layer.footer().size_bytes != parent.bytes {
            bail!("{}", missing(child, parent, &places));
        }
        Ok(layer)
    }

    fn image(&mut self, child: &Path, parent: &Parent) -> anyhow::Result<Base> {
        let places = self.places(child);
        for place in places.iter().filter(|_| !parent.name.is_empty()) {
            let path = place.join(&parent.name);
            let Ok(file) = File::open(&path) else { continue };
            let shown = path.display();
            let bytes = file.metadata().with_context(|| format!("cannot stat {shown}"))?.len();
            if bytes == parent.bytes
                && fingerprint(&file, bytes).with_context(|| format!("cannot read {shown}"))?
                    == parent.id
            {
                return Ok(Base { path, file, bytes });
            }
        }
        bail!("{}", missing(child, parent, &places))
    }

    /// The directories to look in, in order: beside this layer, beside those above it, and those that were given.
    fn places(&mut self, child: &Path) -> Vec<PathBuf> {
        let mut places = Vec::new();
        // A link may lead to where its parents are.
        for path in [child.to_owned(), child.canonicalize().unwrap_or_default()] {
            places.push(match path.parent() {
                Some(place) if place != Path::new("") => place.to_owned(),
                _ => PathBuf::from("."),
            });
        }
        for place in self.beside.iter().chain(self.directories) {
            places.push(place.clone());
        }
        let mut seen = HashSet::new();
        places.retain(|place| seen.insert(place.canonicalize().unwrap_or_else(|_| place.clone())));
        self.beside =
            places.iter().filter(|place| !self.directories.contains(place)).cloned().collect();
        places
    }
}

/// The identity that a file has if it is a layer, from its last page alone.
fn id_of(path: &Path) -> Option<[u8; 32]> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    let mut page = [0; FOOTER_BYTES];
    file.read_exact_at(&mut page, bytes.checked_sub(FOOTER_BYTES as u64)?).ok()?;
    footer::is_layer(&[], &page).then(|| footer::identity(&page))
}

fn layers_in(place: &Path) -> HashMap<[u8; 32], PathBuf> {
    // A directory that cannot be read has none: the refusal will name it.
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let layers = paths.filter(|path| path.extension().is_some_and(|ending| ending == ENDING));
    layers.filter_map(|path| Some((id_of(&path)?, path))).collect()
}

/// What is missing, where it was looked for, and what to do.
fn missing(child: &Path, parent: &Parent, places: &[PathBuf]) -> String {
    let (child, id, bytes) = (child.display(), Hex(&parent.id), parent.bytes);
    let name = if parent.name.is_empty() {
        "whose name was not noted".to_owned()
    } else {
        format!("named {:?} when the layer was made", parent.name)
    };
    let all: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    let all = all.join(", ");
    let others: Vec<_> = places
        .iter()
        .map(|place| place.join(&parent.name))
        .filter(|path| path.is_file())
        .map(|path| format!("{} is another file; ", path.display()))
        .collect();
    let others = others.concat();
    match parent.kind {
        ParentKind::Layer => format!(
            "layer {child} needs its parent, layer {id} ({bytes} bytes, {name}), which is not in {all}: {others}put it there, or name its directory with --layer-dir"
        ),
        ParentKind::Image => format!(
            "layer {child} needs its parent, a raw image of {bytes} bytes with fingerprint {id}, {name}, which is not in {all}: {others}put it there under that name, or name its directory with --layer-dir"
        ),
    }
}
