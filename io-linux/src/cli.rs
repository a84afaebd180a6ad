//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, DeviceConfig, Listen, parse_size};

pub mod layer;

/// Copy-on-write block devices over NBD: a read-only template below, a thin writable sheet above.
#[derive(Debug, Parser)]
#[command(name = "glassine", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look.
    #[arg(long, value_enum, default_value = "human", global = true)]
    pub log: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text for people.
    Human,
    /// A JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one device (or several, with --config) to NBD clients.
    #[command(after_help = EXAMPLES)]
    Serve(Serve),
    /// Check the sheet of a device that is not being served, and tell what is in it. Changes nothing.
    Check(Check),
    /// Repair a sheet that cannot be served, if nothing is lost by it; otherwise tell why not, and change nothing.
    Repair(Repair),
    /// Tell how the devices of a running server are.
    Status(Status),
    /// Change the quota of a device that is being served.
    Quota(Quota),
    /// Write what a device holds at one moment to a layer, while it is being served.
    Snapshot(Snapshot),
    /// Close one export: its clients get their replies and are let go, and the server goes on.
    Close(Close),
    /// Have a server answer what is in flight, and end, as SIGTERM does.
    Drain(Drain),
    /// Work on sealed layers: look at them, check, merge, compare and convert them.
    Layer(layer::Layer),
}

impl Command {
    /// The exit code if it fails: 1, but for `layer diff`, which says by 1 that there is a difference.
    #[must_use]
    pub fn failure_code(&self) -> u8 {
        match self {
            Self::Layer(layer::Layer { command: layer::LayerCommand::Diff(_), .. }) => 2,
            _ => 1,
        }
    }
}

/// Which server.
#[derive(Debug, Args)]
pub struct Target {
    /// The control socket of the server: what it was given as --control.
    #[arg(long, value_name = "unix:PATH", value_parser = parse_control)]
    pub control: PathBuf,
}

/// The arguments of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Which server.
    #[command(flatten)]
    pub target: Target,
    /// Tell all about this export, instead of a little about every one.
    #[arg(long, value_name = "NAME")]
    pub export: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `quota`.
#[derive(Debug, Args)]
pub struct Quota {
    /// Which server.
    #[command(flatten)]
    pub target: Target,
    /// Which export.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
    /// The most its sheet may hold, such as 2G; or none. Less than it holds is allowed: then overwrites and
    /// trims go on, and what needs more space is refused.
    #[arg(value_name = "SIZE|none", value_parser = parse_quota)]
    pub quota: QuotaSize,
}

/// A quota, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaSize(pub Option<u64>);

/// The arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// Which server.
    #[command(flatten)]
    pub target: Target,
    /// Which export.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
    /// The file to write. The server writes it.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Flush the device first, so that what the layer holds is durable on the device as well.
    #[arg(long)]
    pub flush: bool,
    /// How to compress: zstd:LEVEL, with a level from 1 to 22.
    #[arg(long, value_name = "zstd:LEVEL")]
    pub compress: Option<String>,
    /// Print what came of it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `close`.
#[derive(Debug, Args)]
pub struct Close {
    /// Which server.
    #[command(flatten)]
    pub target: Target,
    /// Which export.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
}

/// The arguments of `drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// Which server.
    #[command(flatten)]
    pub target: Target,
}

/// The arguments of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The directory that was given as --sheet.
    pub sheet: PathBuf,
    /// Print what every block is, as runs: offset, bytes, and where they are.
    #[arg(long)]
    pub map: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `repair`.
#[derive(Debug, Args)]
pub struct Repair {
    /// The directory that was given as --sheet.
    pub sheet: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Serve the devices of this TOML file instead of one from the command line.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["template", "size", "sheet", "listen", "export", "read_only", "quota", "ephemeral"])]
    pub config: Option<PathBuf>,
    /// The raw disk image or layer below the device; it is never written to.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["size", "config"])]
    pub template: Option<PathBuf>,
    /// Where to look for the parents of a layer, apart from beside it. May be given several times.
    #[arg(long = "layer-dir", value_name = "DIR")]
    pub layer_dirs: Vec<PathBuf>,
    /// Read the whole template first, and refuse a sheet that was made over another by any bit. The sheet remembers
    /// the SHA-256; it takes as long as reading the file.
    #[arg(long)]
    pub verify_template: bool,
    /// The size of the device, such as 10G; without --template the device is blank.
    #[arg(long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// The directory for what is written. Without it, a temporary one that goes with the process.
    #[arg(long, value_name = "DIR")]
    pub sheet: Option<PathBuf>,
    /// Where to listen: unix:PATH or tcp:HOST:PORT. May be given several times.
    #[arg(long, value_name = "ADDRESS", required_unless_present = "config")]
    pub listen: Vec<Listen>,
    /// The NBD export name.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
    /// Refuse writes.
    #[arg(long)]
    pub read_only: bool,
    /// The most the sheet may hold, such as 2G; writes beyond it get "no space left".
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub quota: Option<u64>,
    /// The sheet need not survive the process: it has no journal, and FLUSH costs nothing. So it is for
    /// every device without --sheet.
    #[arg(long)]
    pub ephemeral: bool,
    /// Whether a write of nothing but zeroes gives its space back instead of taking some.
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    pub detect_zeroes: Option<bool>,
    /// A unix socket to control the server through, only for its own user: unix:PATH. See docs/control.md.
    #[arg(long, value_name = "unix:PATH")]
    pub control: Option<Listen>,
    /// Threads that serve connections; one per core if not given.
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

impl Serve {
    /// The configuration these arguments mean.
    pub fn config(self) -> anyhow::Result<Config> {
        if let Some(path) = &self.config {
            let mut config = Config::read(path)?;
            config.control = self.control.or(config.control);
            config.workers = self.workers.or(config.workers);
            config.detect_zeroes = self.detect_zeroes.unwrap_or(config.detect_zeroes);
            config.verify_templates |= self.verify_template;
            config.layer_dirs.extend(self.layer_dirs);
            return Ok(config);
        }
        let device = DeviceConfig {
            export: self.export,
            description: String::new(),
            template: self.template,
            size_bytes: self.size,
            sheet: self.sheet,
            quota_bytes: self.quota,
            read_only: self.read_only,
            ephemeral: self.ephemeral,
        };
        Ok(Config {
            listen: self.listen,
            control: self.control,
            workers: self.workers,
            detect_zeroes: self.detect_zeroes.unwrap_or(true),
            layer_dirs: self.layer_dirs,
            verify_templates: self.verify_template,
            devices: vec![device],
        })
    }
}

fn parse_control(text: &str) -> Result<PathBuf, String> {
    match text.parse() {
        Ok(Listen::Unix(path)) => Ok(path),
        _ => Err(format!("{text:?} is no unix:PATH")),
    }
}

fn parse_quota(text: &str) -> Result<QuotaSize, String> {
    if text == "none" {
        return Ok(QuotaSize(None));
    }
    parse_size(text).map(|bytes| QuotaSize(Some(bytes)))
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

const EXAMPLES: &str = "Examples:
  # A writable device over an image, for this host
  glassine serve --template disk.img --sheet ./sheet --listen unix:/run/disk.sock
  # A blank 10 GiB device, over TCP as well
  glassine serve --size 10G --listen unix:/run/blank.sock --listen tcp:127.0.0.1:10809
  # Many devices from a file
  glassine serve --config glassine.toml

Stop it with SIGTERM or SIGINT: requests in flight are answered first. A second signal aborts.";

const EXIT_CODES: &str = "Exit codes:
  0  stopped by a signal, after every request in flight was answered
  1  could not start: a file, directory, address or the configuration (the message says which);
     or a sheet that was checked cannot be served, or not be repaired; or a server did not do what it was told;
     or a layer is damaged, or layers differ
  2  the command line is wrong
  3  aborted by a second signal; requests in flight were not answered";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_device_on_the_command_line_becomes_a_configuration() {
        let line = "glassine serve --size 1G --listen unix:/a --listen tcp:[::1]:0 --quota 5M \
                    --detect-zeroes off";
        let Command::Serve(serve) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("it says serve")
        };
        let config = serve.config().unwrap();
        config.check().unwrap();
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.devices[0].size_bytes, Some(1 << 30));
        assert_eq!(config.devices[0].quota_bytes, Some(5 << 20));
        assert!(!config.detect_zeroes);
    }

    #[test]
    fn a_running_server_is_named_by_its_control_socket() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        let Command::Quota(quota) = parse("glassine quota --control unix:/c 2G").unwrap().command
        else {
            panic!("it says quota")
        };
        assert_eq!(quota.target.control, PathBuf::from("/c"));
        assert_eq!((quota.export.as_str(), quota.quota), ("", QuotaSize(Some(2 << 30))));
        assert_eq!(parse_quota("none"), Ok(QuotaSize(None)));
        for wrong in ["tcp:[::1]:1", "/c"] {
            assert!(parse(&format!("glassine status --control {wrong}")).is_err());
        }
        assert!(parse("glassine status").is_err());
    }
}
