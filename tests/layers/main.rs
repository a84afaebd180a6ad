//! `glassine layer`, through the real binary.

mod chains;
mod commands;
mod examples;
mod world;
