//! What the commands do, and to whom.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use glassine_tests::client::{Client, READ, TRIM, info};
use glassine_tests::server::{Server, glassine, scratch, text};
use serde_json::Value;

const NO_SPACE: u32 = 28;

/// Serves at `x.sock`, with these arguments and a control socket; answers where that is.
pub(crate) fn controlled(arguments: &[&str]) -> (Server, PathBuf) {
    let directory = scratch();
    let socket = directory.path().join("g.ctl");
    let mut command = Command::new(glassine());
    command.arg("serve").args(arguments);
    command.arg("--listen").arg(format!("unix:{}", directory.path().join("x.sock").display()));
    command.arg("--control").arg(format!("unix:{}", socket.display()));
    (Server::spawn(command, directory), socket)
}

/// Asks by curl; answers status and answer.
pub(crate) fn ask(socket: &Path, path: &str, arguments: &[&str]) -> (u16, Value) {
    let mut command = Command::new("curl");
    command.args(["-s", "--max-time", "60", "-w", "\n%{http_code}", "--unix-socket"]).arg(socket);
    command.args(arguments).arg(format!("http://localhost/v1/{path}"));
    let output = command.output().expect("curl is installed");
    let out = text(&output.stdout);
    let (answer, status) = out.rsplit_once('\n').expect("a status");
    let answer = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {out}"));
    (status.parse().expect("a number"), answer)
}

/// Runs a command that is to fail with 1; answers what it said.
pub(crate) fn refused(arguments: &[&str]) -> String {
    let mut command = Command::new("timeout");
    let output = command.arg("20").arg(glassine()).args(arguments).output().expect("coreutils");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Runs a command of the command line; it must succeed.
fn command(socket: &Path, name: &str, arguments: &[&str]) -> String {
    let control = format!("unix:{}", socket.display());
    let mut command = Command::new("timeout");
    command.arg("60").arg(glassine()).args([name, "--control", &control]).args(arguments);
    let output = command.output().expect("coreutils are installed");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name} {arguments:?}: {out}{err}");
    out
}

fn status(socket: &Path, export: &str) -> Value {
    let out = command(socket, "status", &["--export", export, "--json"]);
    serde_json::from_str(&out).expect("it says JSON")
}

/// A client of an export.
fn open(server: &Server, export: &str) -> Client {
    let mut client = Client::connect(&server.socket());
    client.greet(3);
    client.go(export);
    client
}

/// Two devices with sheets, `a & b` and the nameless one, and where the first one's sheet is.
fn two() -> (Server, PathBuf, PathBuf) {
    let home = scratch();
    let at = |name: &str| home.path().join(name);
    let (config, socket, sheet) = (at("c.toml"), at("g.ctl"), at("sheet"));
    let text = format!(
        "listen = ['unix:{}']\ncontrol = 'unix:{}'\n\
         [[device]]\nexport = 'a & b'\nsize = '64M'\nsheet = '{}'\n\
         [[device]]\nsize = '64M'\nsheet = '{}'\n",
        at("x.sock").display(),
        socket.display(),
        sheet.display(),
        at("other").display(),
    );
    fs::write(&config, text).expect("scratch is writable");
    let mut command = Command::new(glassine());
    command.args(["serve", "--config"]).arg(config);
    (Server::spawn(command, home), socket, sheet)
}

#[test]
fn status_counts_what_clients_do() {
    let (server, socket, _) = two();
    let all = command(&socket, "status", &[]);
    assert_eq!(all.lines().count(), 2, "{all}");
    let mut clients = [open(&server, "a & b"), open(&server, "a & b")];
    assert_eq!(clients[0].write(4096, &[7; 8192]), 0);
    let status = status(&socket, "a & b");
    assert_eq!((&status["connections"], &status["written_bytes"]), (&2.into(), &8192.into()));
    assert_eq!(
        (&status["slots"]["live_bytes"], &status["journal_failed"]),
        (&8192.into(), &false.into())
    );
    let slots = status["slots"].as_object().expect("an object").values();
    let sum: u64 = slots.map(|bytes| bytes.as_u64().expect("a number")).sum();
    assert_eq!(status["data_file_bytes"], sum);
    let data = fs::metadata(server.directory().join("sheet/data")).expect("it is there");
    assert_eq!(status["data_file_bytes"], data.len());
    server.stop();
}

#[test]
fn a_quota_is_changed_under_a_client() {
    let (server, socket) = controlled(&["--size", "1M", "--quota", "8K"]);
    let mut client = Client::open(&server.socket());
    let quota = |size: &str| command(&socket, "quota", &[size]);
    assert_eq!(client.write(0, &[1; 8192]), 0);
    assert_eq!(client.write(8192, &[1; 4096]), NO_SPACE);
    assert!(quota("16K").contains("quota 16384 bytes"));
    assert_eq!(client.write(8192, &[1; 8192]), 0);
    quota("4K");
    assert_eq!(client.read(0, 16384), [1; 16384], "nothing is lost");
    assert_eq!(client.write(16384, &[2; 4096]), NO_SPACE);
    assert_eq!(client.write(0, &[2; 16384]), 0, "overwriting needs no more");
    assert_eq!(client.ask(0, TRIM, 0, 16384), 0, "nor does a trim");
    assert_eq!(client.write(0, &[3; 4096]), 0);
    assert_eq!(client.write(4096, &[3; 4096]), NO_SPACE);
    assert!(quota("none").contains("no quota"));
    assert_eq!(client.write(0, &[4; 65536]), 0);
    server.stop();
}

#[test]
fn a_closed_export_is_durable_and_free_for_another_server() {
    let (server, socket, sheet) = two();
    let (mut client, mut other) = (open(&server, "a & b"), open(&server, ""));
    // Chosen before the close, and not yet used.
    let mut listing = Client::connect(&server.socket());
    listing.greet(3);
    assert_eq!(client.write(0, &[7; 65536]), 0);
    let arguments = ["--size", "64M", "--sheet", sheet.to_str().expect("UTF-8")];
    let listen = format!("unix:{}", server.directory().join("y").display());
    let serve = [&["serve", "--listen", &listen][..], &arguments].concat();
    assert!(refused(&serve).contains("in use"));
    assert_eq!(command(&socket, "close", &["--export", "a & b"]).trim(), "closed");
    assert!(client.is_closed(), "its client is let go");
    assert_eq!(other.write(0, &[8; 4096]), 0, "the others are served");
    let mut late = Client::connect(&server.socket());
    late.greet(3);
    assert_eq!(late.ask_option(7, &info(b"a & b", &[])), 1 << 31 | 6, "NBD_REP_ERR_UNKNOWN");
    // Who had begun to choose before is let go as well.
    listing.option(7, &info(b"a & b", &[]));
    while let Ok(bytes) = listing.try_take(1) {
        assert_eq!(bytes.len(), 1);
    }
    // What was never flushed is there.
    let another = Server::blank("64M", &arguments[2..]);
    assert_eq!(Client::open(&another.socket()).read(0, 65536), [7; 65536]);
    another.stop();
    let said = refused(&[
        "close",
        "--control",
        &format!("unix:{}", socket.display()),
        "--export",
        "a & b",
    ]);
    assert!(said.contains("no export"), "{said}");
    // The empty name means the only export there is, also once that is so.
    assert_eq!(open(&server, "").read(0, 4096), [8; 4096]);
    assert_eq!(command(&socket, "close", &[]).trim(), "closed");
    assert_eq!(command(&socket, "status", &[]).trim(), "no exports: all of them were closed");
    server.stop();
}

/// Has a client that asks for much, and takes nothing.
fn glutton(server: &Server, export: &str) -> Client {
    let mut client = open(server, export);
    for cookie in 0..8 {
        client.request(0, READ, cookie, 0, 16 << 20);
    }
    client.flush();
    std::thread::sleep(Duration::from_millis(200));
    client
}

#[test]
fn a_client_that_takes_no_replies_delays_a_close_by_five_seconds() {
    let (server, socket, _) = two();
    let _glutton = glutton(&server, "a & b");
    let began = Instant::now();
    let (close, again) = std::thread::scope(|scope| {
        let close = scope.spawn(|| ask(&socket, "close", &["-d", r#"{"export":"a & b"}"#]));
        std::thread::sleep(Duration::from_secs(1));
        // The socket answers meanwhile, and closes nothing twice.
        let again = ask(&socket, "close", &["-d", r#"{"export":"a & b"}"#]);
        assert_eq!(ask(&socket, "exports", &[]).1["exports"].as_array().map(Vec::len), Some(1));
        (close.join().expect("it answers"), again)
    });
    assert_eq!((close.0, again.0), (200, 409), "{close:?} {again:?}");
    let seconds = began.elapsed().as_secs_f64();
    assert!((4.0..10.0).contains(&seconds), "{seconds} s");
    server.stop();
}

#[test]
fn a_server_that_ends_while_it_closes_an_export_does_both() {
    let (server, socket, _) = two();
    let _glutton = glutton(&server, "a & b");
    std::thread::scope(|scope| {
        scope.spawn(|| ask(&socket, "close", &["-d", r#"{"export":"a & b"}"#]));
        std::thread::sleep(Duration::from_millis(500));
        server.stop();
    });
}

#[test]
fn a_signal_after_a_drain_is_the_first_one() {
    let (server, socket, _) = two();
    let _glutton = glutton(&server, "");
    assert_eq!(command(&socket, "drain", &[]).trim(), "draining");
    std::thread::sleep(Duration::from_millis(500));
    // Else it would end with 3, and its clients without their replies.
    server.stop();
}

#[test]
fn a_second_signal_aborts_whatever_the_socket_said_before() {
    for drains in [["drain", "signal"], ["signal", "drain"]] {
        let (mut server, socket, _) = two();
        let _glutton = glutton(&server, "");
        for drain in drains {
            match drain {
                // Behind a signal the socket is gone, or about to go.
                "drain" => assert!(ask_to_drain(&socket).status.success() || drains[0] == "signal"),
                _ => server.signal(libc::SIGTERM),
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        server.signal(libc::SIGTERM);
        let status = server.wait(Duration::from_secs(3));
        assert_eq!(status.code(), Some(3), "{drains:?}: {}", server.log());
    }
}

fn ask_to_drain(socket: &Path) -> std::process::Output {
    let control = format!("unix:{}", socket.display());
    let mut command = Command::new("timeout");
    command.arg("20").arg(glassine()).args(["drain", "--control", &control]);
    command.output().expect("coreutils are installed")
}

#[test]
fn a_snapshot_that_cannot_be_says_why_and_exits_with_1() {
    let (server, socket, _) = two();
    let control = format!("unix:{}", socket.display());
    let snapshot = |arguments: &[&str]| {
        refused(
            &[&["snapshot", "--control", &control, "--out", "/proc/none"][..], arguments].concat(),
        )
    };
    let said = snapshot(&["--export", "b"]);
    assert!(said.contains("there is no export \"b\""), "{said}");
    let said = snapshot(&["--compress", "gzip"]);
    assert!(said.contains("zstd:LEVEL"), "{said}");
    let said = snapshot(&["--export", "a & b", "--json"]);
    assert!(said.lines().any(|line| line.starts_with("glassine: ")), "{said}");
    let (_, all) = ask(&socket, "snapshots", &[]);
    let all = all["snapshots"].as_array().expect("a list");
    assert_eq!((all.len(), &all[0]["state"]), (1, &"failed".into()));
    server.stop();
    let said = snapshot(&[]);
    assert!(said.contains("cannot reach") && said.contains("--control"), "{said}");
}
