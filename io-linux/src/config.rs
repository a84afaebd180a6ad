//! What to serve, from a file or from the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// Everything a server needs to know.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen: `unix:PATH` or `tcp:HOST:PORT`.
    pub listen: Vec<Listen>,
    /// Where to be controlled, if at all: `unix:PATH`.
    pub control: Option<Listen>,
    /// Threads that serve connections; one per core if not given.
    pub workers: Option<usize>,
    /// Whether a write of nothing but zeroes gives its space back instead of taking some.
    #[serde(default = "yes")]
    pub detect_zeroes: bool,
    /// Where layers look for their parents, apart from beside themselves.
    #[serde(default)]
    pub layer_dirs: Vec<PathBuf>,
    /// Whether raw templates are read in full at the start: see [`Template::digest`](crate::template::Template::digest).
    #[serde(default)]
    pub verify_templates: bool,
    /// The devices.
    #[serde(rename = "device")]
    pub devices: Vec<DeviceConfig>,
}

fn yes() -> bool {
    true
}

/// One device.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// The NBD export name.
    #[serde(default)]
    pub export: String,
    /// Text for clients that list exports.
    #[serde(default)]
    pub description: String,
    /// The raw image or layer below.
    pub template: Option<PathBuf>,
    /// The size; that of the template if not given.
    #[serde(default, rename = "size", deserialize_with = "size")]
    pub size_bytes: Option<u64>,
    /// The directory of the sheet; a temporary one if not given.
    pub sheet: Option<PathBuf>,
    /// The most bytes the sheet may hold.
    #[serde(default, rename = "quota", deserialize_with = "size")]
    pub quota_bytes: Option<u64>,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the sheet need not survive its process: then it has no journal.
    #[serde(default)]
    pub ephemeral: bool,
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// A unix socket.
    Unix(PathBuf),
    /// A host and port.
    Tcp(String),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) if address.contains(':') => Ok(Self::Tcp(address.to_owned())),
            _ => Err(format!("{text:?} is neither unix:PATH nor tcp:HOST:PORT")),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Reads a size such as `512`, `64M` or `10GiB`; K, M, G and T are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| format!("{text:?} is no size ({error}); write for example 512M or 10G"))
}

fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(u64),
        Text(String),
    }
    match Option::<Size>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Size::Number(bytes)) => Ok(Some(bytes)),
        Some(Size::Text(text)) => parse_size(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

impl Config {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read configuration {shown}"))?;
        toml::from_str(&text).with_context(|| format!("configuration {shown} is not valid"))
    }

    /// Finds what no single field shows.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.listen.is_empty(),
            "nowhere to listen; give --listen unix:PATH or tcp:HOST:PORT"
        );
        ensure!(
            !self.devices.is_empty(),
            "nothing to serve; add a [[device]] to the configuration"
        );
        if let Some(Listen::Tcp(address)) = &self.control {
            bail!(
                "whoever reaches the control socket owns the server: tcp:{address} will not do; give unix:PATH"
            );
        }
        ensure!(
            self.control.as_ref().is_none_or(|control| !self.listen.contains(control)),
            "the control socket is no place for NBD clients; give it a path of its own"
        );
        ensure!(self.workers != Some(0), "0 workers serve nobody; give 1 or more");
        for (index, device) in self.devices.iter().enumerate() {
            let name = &device.export;
            ensure!(
                name.len() <= 4096 && !name.contains('\0'),
                "export name {name:?} is longer than 4096 bytes, or contains NUL"
            );
            if self.devices[..index].iter().any(|other| other.export == *name) {
                bail!("export {name:?} is there twice; give each device its own export name");
            }
            let same =
                |other: &&DeviceConfig| device.sheet.is_some() && other.sheet == device.sheet;
            if let Some(other) = self.devices[..index].iter().find(same) {
                bail!("exports {:?} and {name:?} use one sheet; give each its own", other.export);
            }
            if device.template.is_none() && device.size_bytes.is_none() {
                bail!(
                    "export {name:?} has neither template nor size; give --template FILE or --size SIZE"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1.5M"), Ok(3 << 19));
        assert!(parse_size("much").unwrap_err().contains("write for example"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let text = "listen = ['unix:/x']\n[[device]]\nsize = '1G'\nqutoa = '1G'\n";
        let error = toml::from_str::<Config>(text).unwrap_err().to_string();
        assert!(error.contains("qutoa"), "{error}");
    }

    #[test]
    fn a_control_socket_is_a_unix_socket_of_its_own() {
        let config = |control: &str| {
            let listen = "listen = ['unix:/x', 'tcp:[::1]:1']";
            let device = "[[device]]\nsize = '1G'\n";
            let text = format!("{listen}\ncontrol = '{control}'\n{device}");
            toml::from_str::<Config>(&text).unwrap().check().map_err(|error| error.to_string())
        };
        assert_eq!(config("unix:/c"), Ok(()));
        assert!(config("tcp:[::1]:2").unwrap_err().contains("unix:PATH"));
        assert!(config("unix:/x").unwrap_err().contains("a path of its own"));
    }

    #[test]
    fn a_place_to_listen_is_unix_or_tcp() {
        assert_eq!("unix:/run/x".parse(), Ok(Listen::Unix("/run/x".into())));
        assert_eq!("tcp:127.0.0.1:1".parse(), Ok(Listen::Tcp("127.0.0.1:1".into())));
        assert!("/run/x".parse::<Listen>().is_err());
        assert!("unix:".parse::<Listen>().is_err());
    }
}
