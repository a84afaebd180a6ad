//! The socket: whose it is, and what it bears.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use glassine_tests::client::Client;
use glassine_tests::server::{Server, scratch};

use crate::told::{ask, controlled, refused};

/// A client of the control socket that has sent this much.
fn client(socket: &Path, sent: &[u8]) -> UnixStream {
    let mut client = UnixStream::connect(socket).expect("the server listens");
    client.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit can be set");
    client.write_all(sent).expect("the server takes what is sent");
    client
}

/// What comes until the server closes the connection.
fn rest(mut client: &UnixStream) -> String {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => {}
        // It closed while there was something to receive.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server does not close the connection: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn only_its_own_user_may_connect_and_only_one_server_listens() {
    let directory = scratch();
    let socket = directory.path().join("g.ctl");
    let control = format!("unix:{}", socket.display());
    drop(UnixListener::bind(&socket).expect("scratch is writable"));
    let server = Server::blank("1M", &["--control", &control]);
    assert_eq!(ask(&socket, "exports", &[]).0, 200, "a stale socket is replaced");
    let mode = fs::symlink_metadata(&socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listen = format!("unix:{}", directory.path().join("other").display());
    let said = refused(&["serve", "--size", "1M", "--listen", &listen, "--control", &control]);
    assert!(said.contains("another process listens there"), "{said}");
    assert!(!directory.path().join("other").exists(), "a refusal leaves no socket behind");
    assert_eq!(ask(&socket, "exports", &[]).0, 200, "the live one is unharmed");
    server.stop();
    assert!(!socket.exists(), "the control socket goes with the server");
    fs::write(&socket, b"precious").expect("scratch is writable");
    let said = refused(&["serve", "--size", "1M", "--listen", &listen, "--control", &control]);
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read(&socket).expect("still there"), b"precious");
    let tcp = "tcp:127.0.0.1:0";
    let said = refused(&["serve", "--size", "1M", "--listen", &listen, "--control", tcp]);
    assert!(said.contains("unix:PATH"), "{said}");
    let said = refused(&["serve", "--size", "1M", "--listen", &listen, "--control", &listen]);
    assert!(said.contains("a path of its own"), "{said}");
}

#[test]
fn bad_requests_are_refused_and_harm_nobody() {
    let (server, socket) = controlled(&["--size", "1M"]);
    let wrong: [(&str, &[&str], u16); 6] = [
        ("nothing", &[], 404),
        ("status", &[], 400),
        ("status?export=b", &[], 404),
        ("quota", &["-X", "PUT", "-d", "{"], 400),
        ("close", &["-d", r#"{"export":"b"}"#], 404),
        ("drain", &["-X", "DELETE"], 405),
    ];
    for (path, arguments, status) in wrong {
        let (found, answer) = ask(&socket, path, arguments);
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer["error"].as_str().is_some_and(|text| text.len() > 20), "{answer}");
    }
    let body = server.directory().join("body");
    fs::write(&body, vec![b' '; 1 << 20]).expect("scratch is writable");
    let long = format!("@{}", body.display());
    let (status, answer) = ask(&socket, "close", &["--data-binary", &long, "-H", "Expect:"]);
    assert_eq!(status, 413, "{answer}");
    let (status, answer) = ask(
        &socket,
        "close",
        &["--data-binary", &long, "-H", "Expect:", "-H", "Transfer-Encoding: chunked"],
    );
    assert_eq!(status, 413, "whether it says its length or not: {answer}");
    // What is no HTTP, or has no end.
    for bytes in [&b"NBDMAGICIHAVEOPT\r\n\r\n"[..], &[0; 64], &[b'x'; 64 << 10]] {
        let mut client = client(&socket, b"");
        // The server may close before it has taken all.
        let _ = client.write_all(bytes);
        let answer = rest(&client);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let endless = format!("GET /v1/exports HTTP/1.1\r\nx: {}", "y".repeat(64 << 10));
    let mut client = client(&socket, b"");
    let _ = client.write_all(endless.as_bytes());
    let answer = rest(&client);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(ask(&socket, "exports", &[]).0, 200);
    assert_eq!(Client::open(&server.socket()).read(0, 16), [0; 16]);
    server.stop();
}

#[test]
fn half_open_clients_are_let_go_and_others_have_their_turn() {
    let (server, socket) = controlled(&["--size", "1M"]);
    assert_eq!(ask(&socket, "exports", &[]).0, 200);
    let before = (server.memory_kib(), server.descriptors());
    let began = Instant::now();
    // More than there are places for: silent ones, and such that stop in the middle.
    let halves: [&[u8]; 4] = [
        b"",
        b"GET /v1/exports HT",
        b"GET /v1/exports HTTP/1.1\r\nhost: x\r\n",
        b"POST /v1/close HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ];
    let clients: Vec<_> = (0..60).map(|index| client(&socket, halves[index % 4])).collect();
    // Who is served by NBD does not notice.
    let mut nbd = Client::open(&server.socket());
    for _ in 0..1000 {
        assert_eq!(nbd.read(0, 4096), [0; 4096]);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "all that while they were there");
    let (status, answer) = ask(&socket, "exports", &[]);
    assert_eq!(status, 200, "{answer}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let after = (server.memory_kib(), server.descriptors());
    assert!(after.0 < before.0 + 4096, "{before:?} {after:?} KiB");
    let (mut silent, mut late) = (0, 0);
    for client in &clients {
        let answer = rest(client);
        silent += usize::from(answer.is_empty());
        late += usize::from(answer.starts_with("HTTP/1.1 408"));
    }
    assert_eq!(silent + late, clients.len());
    assert!(late >= 15, "whoever has sent a header is told: {late}");
    // One that trickles is no better off.
    let mut trickle = client(&socket, b"GET /v1/exports HTTP/1.1\r\n");
    let began = Instant::now();
    while trickle.write_all(b"x").is_ok() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(clients);
    assert_eq!(ask(&socket, "exports", &[]).0, 200);
    server.stop();
}

#[test]
fn a_client_that_does_not_let_go_does_not_hold_up_the_end() {
    let (server, socket) = controlled(&["--size", "1M"]);
    let _silent = client(&socket, b"");
    let _half = client(&socket, b"POST /v1/close HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n");
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}
