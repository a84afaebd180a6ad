//! The `glassine` command.

#[cfg(loom)]
compile_error!("with --cfg loom there are models, and no server");

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use glassine::check;
use glassine::cli::{Check, Cli, Command, LogFormat, Serve};
use glassine::config::Listen;
use glassine::device::Device;
use glassine::server::Server;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log);
    abort_on_panic();
    let outcome = match cli.command {
        Command::Serve(serve) => run(serve),
        Command::Check(arguments) => check(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        // Every cause on one line: what failed, and why.
        eprintln!("glassine: {error:#}");
        ExitCode::from(1)
    })
}

fn run(serve: Serve) -> anyhow::Result<ExitCode> {
    let config = serve.config()?;
    let signals = Signals::new([SIGTERM, SIGINT]).context("cannot handle signals")?;
    let server = Server::start(&config)?;
    announce(&server);
    Ok(wait(server, signals))
}

fn check(arguments: &Check) -> anyhow::Result<ExitCode> {
    let report = check::check(&arguments.sheet, arguments.map)?;
    let text =
        if arguments.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("cannot print the report")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// A panic means that an assertion of ours failed. Nothing can be trusted then, and half a server that
/// goes on is worse than none: its clients would wait for ever.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Says what is served where, and how to use it.
fn announce(server: &Server) {
    for device in &server.shared().devices() {
        for address in server.addresses() {
            let name = &device.export.name;
            let bytes = device.export.size_bytes;
            let sheet = if device.export.read_only || device.is_durable() {
                ""
            } else {
                "; the sheet is lost when this process ends"
            };
            tracing::info!(
                "ready: export {name:?} ({bytes} bytes, {}) at {address}{sheet}",
                device.describe()
            );
            tracing::info!("connect: {}", connect(device, address));
        }
    }
}

/// How three common clients reach a device.
fn connect(device: &Device, address: &Listen) -> String {
    let name = &device.export.name;
    match address {
        Listen::Unix(path) => {
            let path = path.display();
            let uri = format!("nbd+unix:///{name}?socket={path}");
            format!(
                "nbdinfo '{uri}' | qemu-img info '{uri}' | nbd-client -unix {path} -N '{name}' /dev/nbd0"
            )
        }
        Listen::Tcp(address) => {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "10809"));
            let uri = format!("nbd://{address}/{name}");
            format!(
                "nbdinfo '{uri}' | qemu-img info '{uri}' | nbd-client {host} {port} -N '{name}' /dev/nbd0"
            )
        }
    }
}

/// Serves until a signal, then drains; a second signal aborts.
fn wait(server: Server, mut signals: Signals) -> ExitCode {
    signals.forever().next();
    tracing::info!("draining: requests in flight are answered, new connections refused");
    server.drain();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            tracing::warn!("aborted by a second signal; requests in flight are not answered");
            std::process::exit(3);
        }
    });
    server.join();
    tracing::info!("drained: every request in flight was answered");
    ExitCode::SUCCESS
}
