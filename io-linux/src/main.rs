//! The `glassine` command.

#[cfg(loom)]
compile_error!("with --cfg loom there are models, and no server");

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use glassine::check;
use glassine::cli::{Check, Cli, Command, LogFormat, Repair, Serve};
use glassine::command::{self, print, print_report};
use glassine::config::Listen;
use glassine::control::Control;
use glassine::device::Device;
use glassine::layer_commands;
use glassine::listener::Listener;
use glassine::repair;
use glassine::server::Server;
use glassine::sync::Arc;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log);
    abort_on_panic();
    let failure_code = cli.command.failure_code();
    let mut code = 0;
    let outcome = match cli.command {
        Command::Serve(serve) => run(serve),
        Command::Check(Check { sheet, map, json }) => {
            check::check(&sheet, map).and_then(|report| print_report(&report, json))
        }
        Command::Repair(Repair { sheet, json }) => {
            repair::repair(&sheet).and_then(|report| print_report(&report, json))
        }
        Command::Status(arguments) => command::status(&arguments),
        Command::Quota(arguments) => command::quota(&arguments),
        Command::Snapshot(arguments) => command::snapshot(&arguments),
        Command::Close(arguments) => command::close(&arguments),
        Command::Drain(arguments) => command::drain(&arguments),
        Command::Layer(layer) => layer_commands::run(&layer).and_then(|answer| {
            code = answer.code;
            print(&answer.text)
        }),
    };
    match outcome {
        Ok(()) => ExitCode::from(code),
        Err(error) => {
            // Every cause on one line: what failed, and why.
            eprintln!("glassine: {error:#}");
            ExitCode::from(failure_code)
        }
    }
}

fn run(serve: Serve) -> anyhow::Result<()> {
    let config = serve.config()?;
    config.check()?;
    let signals = Signals::new(STOPS).context("cannot handle signals")?;
    let control = match &config.control {
        Some(Listen::Unix(path)) => Some(Listener::bind_private(path)?),
        Some(Listen::Tcp(_)) | None => None,
    };
    // A file at the limit for its size is "no space left" to whoever needed more, and no reason to die.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).context("cannot handle signals")?;
    let server = Server::start(&config)?;
    let start = |listener| {
        let signals = signals.handle();
        Control::start(listener, server.shared().clone(), move || signals.close())
    };
    let control = control.map(start).transpose()?;
    announce(&server);
    if let Some(path) = &config.control {
        tracing::info!("control: glassine status --control {path}");
    }
    wait(server, control, signals);
    Ok(())
}

/// The signals that drain a server.
const STOPS: [i32; 2] = [SIGTERM, SIGINT];

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

/// Serves until it is to stop, then drains; a second signal aborts.
fn wait(server: Server, control: Option<Control>, mut signals: Signals) {
    // The control socket closes them to have the server drain.
    let by_signal = signals.forever().next().is_some();
    tracing::info!("draining: requests in flight are answered, new connections refused");
    server.drain();
    // Whoever drains by the control socket may send a signal to make sure: that is the first one.
    let mut left = 2 - usize::from(by_signal);
    std::thread::spawn(move || {
        loop {
            left -= signals.forever().take(left).count();
            if left == 0 {
                tracing::warn!("aborted by a second signal; requests in flight are not answered");
                std::process::exit(3);
            }
            // They were closed, once and for all.
            let Ok(again) = Signals::new(STOPS) else { return };
            signals = again;
        }
    });
    if let Some(control) = control {
        control.finish();
    }
    server.join();
    tracing::info!("drained: every request in flight was answered");
}
