//! A picture of a run.
use crate::scenario::Run;

/// A page.
#[must_use]
pub fn page(_run: &Run, _title: &str) -> String {
    String::new()
}
