//! Sealed layers as files: [`LayerWriter`] makes one, [`LayerReader`] opens one, `chain` one
//! with everything below it. The format, and all that can
//! be decided about it without the bytes of its blocks, is in the core (`glassine_core::layer`).

use std::path::Path;

pub mod chain;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use glassine_core::layer::footer::{Footer, Parent, ParentKind};
pub use glassine_core::layer::index::{Content, Frame, Index, Run, Window};
pub use glassine_core::layer::{Hex, WINDOW_BLOCKS, WINDOW_BYTES};
pub use reader::{LayerReader, is_layer};
pub use writer::{About, LayerSummary, LayerWriter, alike};

/// What a layer has to say of a file that it is made over.
#[must_use]
pub fn parent(kind: ParentKind, id: [u8; 32], bytes: u64, path: &Path) -> Parent {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // It is a hint: a name that cannot be noted is left out.
    let name = if glassine_core::layer::footer::is_file_name(name) { name } else { "" };
    Parent { kind, id, bytes, name: name.to_owned() }
}
