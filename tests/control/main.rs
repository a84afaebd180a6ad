//! The control socket, from outside: the commands of `docs/control.md` as they are printed there, what is wrong
//! with requests, clients that mean no good, and what the commands do to clients of NBD.

mod page;
mod socket;
mod told;
