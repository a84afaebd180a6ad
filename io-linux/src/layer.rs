//! Sealed layers as files: [`LayerWriter`] makes one, [`LayerReader`] opens one, `chain` one
//! with everything below it. The format, and all that can
//! be decided about it without the bytes of its blocks, is in the core (`glassine_core::layer`).

pub mod chain;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use glassine_core::layer::footer::{Footer, Parent, ParentKind, is_file_name};
pub use glassine_core::layer::index::{Content, Frame, Index, Run, Window};
pub use glassine_core::layer::{Hex, WINDOW_BLOCKS, WINDOW_BYTES};
pub use reader::{LayerReader, is_layer};
pub use writer::{About, LayerSummary, LayerWriter};
