//! What a checker says when it finds a mistake.

use std::fmt;

/// A broken promise: which checker saw it, and what it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The checker, in a word or two.
    pub check: &'static str,
    /// What it saw, in words.
    pub text: String,
}

impl Broken {
    /// The outcome of a check that failed.
    pub fn by<T>(check: &'static str, text: impl Into<String>) -> Result<T, Self> {
        Err(Self { check, text: text.into() })
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.text)
    }
}
