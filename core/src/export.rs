//! What a client can choose from: names, sizes and flags.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire;

/// One device as a client sees it during the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Export {
    /// The NBD export name; may be empty.
    pub name: String,
    /// Human text for LIST and INFO_DESCRIPTION; may be empty.
    pub description: String,
    /// The size to the byte.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Export {
    /// The transmission flags of this export. F13: only of features that exist.
    #[must_use]
    pub fn flags(&self) -> u16 {
        let always = wire::FLAG_HAS_FLAGS
            | wire::FLAG_SEND_FLUSH
            | wire::FLAG_SEND_FUA
            | wire::FLAG_CAN_MULTI_CONN
            | wire::FLAG_SEND_CACHE;
        if self.read_only {
            always | wire::FLAG_READ_ONLY
        } else {
            always | wire::FLAG_SEND_TRIM | wire::FLAG_SEND_WRITE_ZEROES | wire::FLAG_SEND_FAST_ZERO
        }
    }
}

/// The exports of a server, in the order in which they are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Catalog {
    exports: Vec<Export>,
}

impl Catalog {
    /// A catalog of these exports; their positions are how a driver is told which was chosen.
    #[must_use]
    pub fn new(exports: Vec<Export>) -> Self {
        Self { exports }
    }

    /// All exports, in listing order.
    #[must_use]
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// The export of this name. The empty name means the default: the export so named, or the only
    /// one there is.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        let exact = self.exports.iter().position(|export| export.name.as_bytes() == name);
        exact.or((name.is_empty() && self.exports.len() == 1).then_some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_announces_what_it_can_do() {
        let (name, description) = (String::new(), String::new());
        let mut export = Export { name, description, size_bytes: 1, read_only: false };
        // Bits by their numbers in the protocol: flags, FLUSH, FUA, multi-conn, CACHE …
        let always = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10;
        // … and TRIM, WRITE_ZEROES, fast zeroes.
        assert_eq!(export.flags(), always | 1 << 5 | 1 << 6 | 1 << 11);
        export.read_only = true;
        assert_eq!(export.flags(), always | 1 << 1);
    }
    #[test]
    fn the_empty_name_is_the_only_export_or_the_one_so_named() {
        let found = |names: &[&str], name: &[u8]| {
            let exports = names.iter().map(|name| Export {
                name: String::from(*name),
                description: String::new(),
                size_bytes: 1,
                read_only: false,
            });
            Catalog::new(exports.collect()).find(name)
        };
        assert_eq!(
            [&b""[..], b"a", b"b"].map(|name| found(&["a"], name)),
            [Some(0), Some(0), None]
        );
        assert_eq!(found(&["a", "b"], b""), None);
        assert_eq!(found(&["a", ""], b""), Some(1));
    }
}
