//! Glassine.
