//! Clients nobody here wrote, through the real binary.

mod clients;
mod command_line;
mod layers;
