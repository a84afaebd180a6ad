//! The command as its users and supervisors meet it: start, refusals, signals, several devices.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use glassine_tests::client::{Client, FLUSH, READ, TRIM};
use glassine_tests::server::{Server, Tmpfs, glassine, make_image, scratch, text, tool, try_tool};

/// Runs `glassine serve`, which is to refuse; answers what it said.
pub(crate) fn refused(arguments: &[&str], code: i32) -> String {
    let mut command = Command::new("timeout");
    command.arg("10").arg(glassine()).arg("serve").args(arguments);
    let output: Output = command.output().expect("coreutils are installed");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The refusal is one sentence that holds all of these.
pub(crate) fn says(said: &str, parts: &[&str]) {
    let line = said.lines().find(|line| line.starts_with("glassine: ")).unwrap_or_default();
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing in: {said}");
    }
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn templates_that_cannot_be_served_are_named() {
    let directory = scratch();
    let listen = format!("unix:{}", directory.path().join("x").display());
    let missing = directory.path().join("missing.img");
    let said = refused(&["--template", path(&missing), "--listen", &listen], 1);
    says(&said, &[path(&missing), "No such file", "name a readable raw disk image"]);
    let empty = directory.path().join("empty.img");
    fs::write(&empty, b"").expect("scratch is writable");
    let said = refused(&["--template", path(&empty), "--listen", &listen], 1);
    says(&said, &[path(&empty), "is empty", "--size"]);
    let said = refused(&["--template", path(directory.path()), "--listen", &listen], 1);
    says(&said, &["is a directory"]);
    let image = directory.path().join("t.img");
    make_image(&image, 10_000, 1);
    let said = refused(&["--template", path(&image), "--size", "9999", "--listen", &listen], 1);
    says(&said, &["9999", "10000", "--size"]);
    assert!(!directory.path().join("x").exists(), "a refusal leaves no socket behind");
}

#[test]
fn wrong_arguments_are_explained() {
    refused(&["--listen", "unix:/tmp/x"], 2);
    refused(&["--size", "1G"], 2);
    assert!(refused(&["--size", "much", "--listen", "unix:/tmp/x"], 2).contains("512M"));
    assert!(refused(&["--size", "1G", "--listen", "/tmp/x"], 2).contains("unix:PATH"));
    assert!(
        refused(&["--size", "1G", "--listen", "unix:/tmp/x", "--sise", "2"], 2).contains("--sise")
    );
    let said = refused(&["--size", "0", "--listen", "unix:/tmp/glassine-no-size"], 1);
    says(&said, &["no size"]);
}

#[test]
fn a_sheet_has_one_owner_and_one_template() {
    let directory = scratch();
    let (one, other) = (directory.path().join("1.img"), directory.path().join("2.img"));
    make_image(&one, 10_000, 1);
    make_image(&other, 10_000, 2);
    let sheet = directory.path().join("sheet");
    let server = Server::over(&one, &["--sheet", path(&sheet)]);
    // It listens before it takes the sheet, and serves after.
    drop(Client::open(&server.socket()));
    let listen = format!("unix:{}", directory.path().join("x").display());
    let said =
        refused(&["--template", path(&one), "--sheet", path(&sheet), "--listen", &listen], 1);
    says(&said, &[path(&sheet), "in use", &server.pid().to_string(), "another --sheet"]);
    server.stop();
    let said =
        refused(&["--template", path(&other), "--sheet", path(&sheet), "--listen", &listen], 1);
    says(&said, &[path(&sheet), path(&one), path(&other), "another --sheet"]);
    make_image(&one, 10_001, 1);
    let said =
        refused(&["--template", path(&one), "--sheet", path(&sheet), "--listen", &listen], 1);
    says(&said, &["10000", "10001"]);
    // Where the note says nothing, the superblock does.
    fs::write(sheet.join("sheet.json"), b"nonsense").expect("the sheet is writable");
    let said =
        refused(&["--template", path(&one), "--sheet", path(&sheet), "--listen", &listen], 1);
    says(&said, &["10000", "10001"]);
    make_image(&one, 10_000, 1);
    Server::over(&one, &["--sheet", path(&sheet)]).stop();
    let note = fs::read_to_string(sheet.join("sheet.json")).expect("it is there");
    assert!(note.contains(path(&one)), "{note}");
    let throwaway = directory.path().join("throwaway");
    fs::create_dir(&throwaway).expect("scratch is writable");
    fs::write(throwaway.join("sheet.json"), b"nonsense").expect("the sheet is writable");
    let said = refused(
        &[
            "--template",
            path(&one),
            "--sheet",
            path(&throwaway),
            "--ephemeral",
            "--listen",
            &listen,
        ],
        1,
    );
    says(&said, &["sheet.json", "cannot be read"]);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = scratch();
    let socket = directory.path().join("x");
    let listen = format!("unix:{}", socket.display());
    drop(UnixListener::bind(&socket).expect("scratch is writable"));
    assert!(socket.exists(), "a process that is gone leaves its socket");
    let mut command = Command::new(glassine());
    command.args(["serve", "--size", "1M", "--listen", &listen]);
    let home = scratch();
    command.args(["--listen", &format!("unix:{}", home.path().join("x.sock").display())]);
    let server = Server::spawn(command, home);
    assert_eq!(Client::open(&socket).read(0, 16), [0; 16]);
    let said = refused(&["--size", "1M", "--listen", &listen], 1);
    says(&said, &[path(&socket), "another process listens there"]);
    assert_eq!(Client::open(&socket).read(0, 16), [0; 16], "the live one is unharmed");
    server.stop();
    assert!(!socket.exists(), "all sockets go with the server");
    let file = directory.path().join("file");
    fs::write(&file, b"precious").expect("scratch is writable");
    let said = refused(&["--size", "1M", "--listen", &format!("unix:{}", file.display())], 1);
    says(&said, &[path(&file), "no socket"]);
    assert_eq!(fs::read(&file).expect("still there"), b"precious");
}

#[test]
fn a_taken_port_is_an_error_and_tcp_is_served() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = taken.local_addr().expect("bound").port();
    let listen = format!("tcp:127.0.0.1:{port}");
    let said = refused(&["--size", "1M", "--listen", &listen], 1);
    says(&said, &[&listen, "taken"]);
    drop(taken);
    let server = Server::blank("1M", &["--listen", &listen]);
    let size = tool("nbdinfo", &["--size", &format!("nbd://127.0.0.1:{port}")]);
    assert_eq!(size.trim(), (1 << 20).to_string());
    server.stop();
}

#[test]
fn a_configuration_serves_several_devices_and_rejects_what_it_does_not_know() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    make_image(&at("t.img"), 1 << 20, 1);
    let listen = format!("listen = ['unix:{}']\n", at("x.sock").display());
    let template = at("t.img");
    let template = path(&template);
    let devices = format!(
        "[[device]]\nexport = 'a'\ntemplate = '{template}'\ndescription = 'the first'\n\
         [[device]]\nexport = 'b'\ntemplate = '{template}'\nsheet = '{}'\nquota = '1M'\n\
         [[device]]\nexport = 'c'\nsize = '5M'\n",
        at("sheet-b").display()
    );
    let config = at("glassine.toml");
    fs::write(&config, listen.clone() + &devices).expect("scratch is writable");
    let mut command = Command::new(glassine());
    command.args(["serve", "--config", path(&config)]);
    // The server's socket is where the harness looks for it.
    let server = Server::spawn(command, directory);
    let printed = tool("nbdinfo", &["--list", "--json", &server.uri()]);
    let list: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let exports = list["exports"].as_array().expect("a list");
    let names: Vec<_> = exports.iter().map(|one| one["export-name"].as_str()).collect();
    assert_eq!(names, [Some("a"), Some("b"), Some("c")]);
    assert_eq!(exports[0]["description"], "the first");
    assert_eq!(exports[2]["export-size"], 5 << 20);
    // Two devices over one template do not see each other's writes.
    let open = |name: &str| {
        let mut client = Client::connect(&server.socket());
        client.greet(3);
        client.go(name);
        client
    };
    let (mut a, mut b) = (open("a"), open("b"));
    let before = b.read(0, 4096);
    assert_eq!(a.write(0, &[0x5a; 4096]), 0);
    assert_eq!(a.read(0, 4096), [0x5a; 4096]);
    assert!(b.read(0, 4096) == before);
    drop((a, b));
    let other = scratch();
    let bad = other.path().join("bad.toml");
    for (text, parts) in [
        (listen.clone() + "qutoa = 1\n" + &devices, "qutoa"),
        (listen.clone() + "[[device]]\nsize = '1M'\nqutoa = '1M'\n", "qutoa"),
        (listen.clone() + "[[device]]\nsize = '1M'\n[[device]]\nsize = '2M'\n", "there twice"),
        (listen.clone() + "[[device]]\nexport = 'x'\n", "neither template nor size"),
        ("listen = ['/x']\n".to_owned() + &devices, "unix:PATH"),
    ] {
        fs::write(&bad, text).expect("scratch is writable");
        let said = refused(&["--config", path(&bad)], 1);
        assert!(said.contains(parts), "{parts:?} is missing in: {said}");
    }
    server.stop();
}

#[test]
fn sigterm_answers_what_is_in_flight_and_a_second_one_aborts() {
    let server = Server::blank("64M", &[]);
    let mut client = Client::open(&server.socket());
    for cookie in 0..50 {
        client.request(0, READ, cookie, 0, 1 << 20);
    }
    client.flush();
    // The server has taken the requests when it has begun to answer.
    assert_eq!(client.reply().error, 0);
    client.take(1 << 20);
    server.signal(libc::SIGTERM);
    for _ in 1..50 {
        assert_eq!(client.reply().error, 0);
        client.take(1 << 20);
    }
    assert!(client.is_closed());
    server.stop_after_signal();

    let mut server = Server::blank("64M", &[]);
    let mut deaf = Client::open(&server.socket());
    for cookie in 0..50 {
        deaf.request(0, READ, cookie, 0, 4 << 20);
    }
    deaf.flush();
    std::thread::sleep(Duration::from_millis(200));
    server.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(200));
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait(Duration::from_secs(2)).code(), Some(3));
}

#[test]
fn a_client_that_takes_nothing_does_not_hold_up_the_end() {
    let server = Server::blank("64M", &[]);
    let mut deaf = Client::open(&server.socket());
    for cookie in 0..50 {
        deaf.request(0, READ, cookie, 0, 4 << 20);
    }
    deaf.flush();
    std::thread::sleep(Duration::from_millis(200));
    // Within the limit for draining, and with exit code 0.
    server.stop();
}

#[test]
fn a_template_that_shrinks_costs_an_error_and_nothing_else() {
    let directory = scratch();
    let image = directory.path().join("t.img");
    make_image(&image, 4 << 20, 1);
    let server = Server::blank("4M", &["--template", path(&image)]);
    let mut client = Client::open(&server.socket());
    let first = client.read(0, 4096);
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .expect("writable")
        .set_len(1 << 20)
        .expect("shrinks");
    assert_eq!(client.ask(0, READ, 2 << 20, 4096), 5, "EIO, and no SIGBUS");
    assert_eq!(client.ask(0, READ, 0, 4 << 20), 5);
    assert_eq!(client.read(0, 4096), first, "the connection goes on");
    assert_eq!(client.write(2 << 20, &[1; 4096]), 0, "writing needs no template");
    assert_eq!(client.read(2 << 20, 4096), [1; 4096]);
    assert!(server.log().contains("shorter"), "{}", server.log());
    server.stop();
}

#[test]
fn a_full_disk_is_enospc_and_goes_away_with_its_cause() {
    // A journal takes its space when the sheet is made; what is left is for data.
    for (size, mode) in [("8M", &["--ephemeral"][..]), ("25M", &[])] {
        fill_a_disk(size, mode);
    }
}

fn fill_a_disk(size: &str, mode: &[&str]) {
    let disk = Tmpfs::mount(size);
    let sheet = disk.path().join("sheet");
    let mut arguments = vec!["--sheet", path(&sheet)];
    arguments.extend(mode);
    let server = Server::blank("64M", &arguments);
    let mut client = Client::open(&server.socket());
    let mut written = 0u64;
    while client.write(written, &[7; 64 << 10]) == 0 {
        written += 64 << 10;
        assert!(written < 9 << 20, "the disk has an end");
    }
    assert!(written >= 5 << 20, "the disk was used: {written}");
    assert_eq!(client.write(written, &[7; 64 << 10]), 28, "ENOSPC");
    // Reads, flushes, trims and zeroes are served; and a write again, once there is room.
    assert!(client.read(0, 1 << 20).iter().all(|byte| *byte == 7));
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    assert_eq!(client.ask(0, TRIM, 0, 1 << 20), 0);
    assert_eq!(client.write(written, &[8; 64 << 10]), 0, "trimmed space is used again");
    assert!(client.read(written, 64 << 10).iter().all(|byte| *byte == 8));
    assert!(client.read(1 << 20, 1 << 20).iter().all(|byte| *byte == 7));
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    server.stop();
    if mode.is_empty() {
        // The full disk holds all that was acknowledged.
        let server = Server::blank("64M", &arguments);
        let mut client = Client::open(&server.socket());
        assert!(client.read(written, 64 << 10).iter().all(|byte| *byte == 8));
        assert!(client.read(0, 1 << 20).iter().all(|byte| *byte == 0));
        assert!(client.read(1 << 20, 1 << 20).iter().all(|byte| *byte == 7));
        server.stop();
    }
}

/// A map that many trims cut up takes more space in a checkpoint than what was set aside for it with its few slots.
#[test]
fn a_checkpoint_that_finds_the_disk_full_waits_for_space_and_loses_nothing() {
    let disk = Tmpfs::mount("40M");
    let (sheet, directory) = (disk.path().join("sheet"), scratch());
    let image = directory.path().join("1.img");
    make_image(&image, 64 << 20, 1);
    let serve = || Server::over(&image, &["--sheet", path(&sheet)]);
    let server = serve();
    let mut client = Client::open(&server.socket());
    for block in (0..16 << 10).step_by(2) {
        assert_eq!(client.ask(0, TRIM, block * 4096, 4096), 0);
    }
    assert_eq!(client.write(4096, &[1; 4096]), 0);
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    let filler = disk.fill();
    let mut overwrite = |round: u32| {
        let error = client.write(4096, &[(round % 251) as u8; 4096]);
        assert_eq!(client.ask(0, FLUSH, 0, 0), 0, "what was answered is durable");
        error
    };
    // Writes go on, for as long as the journal has room beside the checkpoint.
    let refused = (0..).find(|round| overwrite(*round) != 0).expect("a journal has an end");
    assert!((1500..4096).contains(&refused), "{refused}");
    assert!(server.log().contains("a checkpoint waits for space"), "{}", server.log());
    assert_eq!(overwrite(refused), 28, "ENOSPC");
    let kept = [((refused - 1) % 251) as u8; 4096];
    let mut other = Client::open(&server.socket());
    assert_eq!(other.read(4096, 4096), kept);
    assert_eq!(other.ask(0, TRIM, 4096, 4096), 28, "a trim takes room in the journal as well");
    // The sheet can be served again as it is.
    server.stop();
    let server = serve();
    let mut client = Client::open(&server.socket());
    assert_eq!(client.read(4096, 4096), kept);
    assert_eq!(client.write(4096, &[9; 4096]), 28);
    fs::remove_file(filler).expect("there");
    let began = Instant::now();
    while client.write(4096, &[9; 4096]) != 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", server.log());
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    server.stop();
    let server = serve();
    let mut client = Client::open(&server.socket());
    assert_eq!(client.read(4096, 4096), [9; 4096]);
    assert_eq!(client.read(8192, 4096), [0; 4096]);
    server.stop();
}

#[test]
fn a_sheet_page_that_cannot_be_had_costs_an_error_and_no_signal() {
    let disk = Tmpfs::mount("8M");
    let sheet = disk.path().join("sheet");
    let server = Server::blank("64M", &["--sheet", path(&sheet), "--ephemeral"]);
    let mut client = Client::open(&server.socket());
    assert_eq!(client.write(0, &[7; 4096]), 0);
    // Somebody takes the reserved space of the sheet away: its pages can no longer be had.
    tool("fallocate", &["-p", "-o", "0", "-l", "1M", path(&sheet.join("data"))]);
    let filler = disk.fill();
    assert_eq!(client.write(4096, &[8; 4096]), 28, "ENOSPC, and no SIGBUS");
    // Received straight into its slots, the fault is the kernel's.
    assert_eq!(client.write(8192, &[8; 128 << 10]), 28);
    fs::remove_file(filler).expect("there");
    assert_eq!(client.write(4096, &[9; 4096]), 0, "the connection goes on");
    assert_eq!(client.read(4096, 4096), [9; 4096]);
    server.stop();
}

#[test]
fn a_sheet_with_a_journal_is_refused_whole_and_loses_nothing() {
    let directory = scratch();
    let sheet = directory.path().join("sheet");
    let listen = format!("unix:{}", directory.path().join("x").display());
    let arguments = ["--size", "1M", "--sheet", path(&sheet), "--listen", &listen];
    let serve = || Server::blank("1M", &["--sheet", path(&sheet)]);
    let server = serve();
    let mut client = Client::open(&server.socket());
    assert_eq!(client.write(4096, &[7; 4096]), 0);
    server.stop();
    // Found by hand: the refusal removed the data.
    let ephemeral: Vec<_> = arguments.into_iter().chain(["--ephemeral"]).collect();
    says(&refused(&ephemeral, 1), &["has a journal", "without --ephemeral"]);
    // Every file is needed, and every byte of the journal before its end.
    for name in ["data", "journal.0", "journal.1", "checkpoint.0"] {
        let (there, away) = (sheet.join(name), directory.path().join("away"));
        fs::rename(&there, &away).expect("it is there");
        says(&refused(&arguments, 1), &[name, "needs all of its files"]);
        fs::rename(&away, &there).expect("it is back");
    }
    let server = serve();
    assert_eq!(Client::open(&server.socket()).read(4096, 4096), [7; 4096]);
    let mut client = Client::open(&server.socket());
    for block in 0..3 {
        assert_eq!(client.write(block * 4096, &[8; 4096]), 0);
        assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    }
    server.stop();
    let journal = sheet.join("journal.0");
    let whole = fs::read(&journal).expect("it is there");
    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    fs::write(&journal, &damaged).expect("it is writable");
    says(&refused(&arguments, 1), &["journal.0", "damaged at byte 0", "glassine repair"]);
    assert_eq!(fs::read(&journal).expect("it is there"), damaged, "nothing was changed");
    fs::write(&journal, &whole).expect("it is writable");
    let server = serve();
    assert_eq!(Client::open(&server.socket()).read(0, 12288), [8; 12288]);
    server.stop();
}

/// Changes a byte of a file.
fn spoil(file: &Path, byte: usize) {
    let mut bytes = fs::read(file).expect("it is there");
    bytes[byte] ^= 1;
    fs::write(file, &bytes).expect("it is writable");
}

#[test]
fn a_damaged_checkpoint_is_repaired_without_a_loss_and_a_damaged_record_is_told() {
    let directory = scratch();
    let sheet = directory.path().join("sheet");
    let serve = || Server::blank("1M", &["--sheet", path(&sheet)]);
    let repair = |options: &[&str]| {
        try_tool(path(&glassine()), &[&["repair", path(&sheet)], options].concat())
    };
    let server = serve();
    let mut client = Client::open(&server.socket());
    let mut expected = vec![0; 1 << 20];
    // Each flush takes 8 KiB of a segment that is half full at 4 MiB.
    for round in 0..600u32 {
        let (block, byte) = (round as usize % 50 * 4096, (round % 251) as u8);
        expected[block..][..4096].fill(byte);
        assert_eq!(client.write(block as u64, &[byte; 4096]), 0);
        assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    }
    server.stop();
    let unharmed = repair(&[]);
    assert!(text(&unharmed.stdout).contains("nothing to repair"), "{}", text(&unharmed.stderr));
    spoil(&sheet.join("checkpoint.1"), 70);
    let listen = format!("unix:{}", directory.path().join("x").display());
    let arguments = ["--size", "1M", "--sheet", path(&sheet), "--listen", &listen];
    says(&refused(&arguments, 1), &["checkpoint.1", "damaged at byte 0", "glassine repair"]);
    let repaired = repair(&["--json"]);
    assert!(repaired.status.success(), "{}", text(&repaired.stderr));
    let report: serde_json::Value = serde_json::from_slice(&repaired.stdout).expect("JSON");
    assert_eq!(report["generation"], 0);
    assert!(report["damage"].as_str().is_some_and(|damage| damage.contains("checkpoint.1")));
    assert!(report["records"].as_u64().is_some_and(|records| records >= 600), "{report}");
    assert!(text(&repair(&[]).stdout).contains("nothing to repair"));
    let server = serve();
    assert!(Client::open(&server.socket()).read(0, 1 << 20) == expected);
    server.stop();
    // The checkpoint was written anew; a record between others is what no other file has.
    spoil(&sheet.join("journal.1"), 70);
    let damaged = fs::read(sheet.join("superblock")).expect("it is there");
    let told = repair(&[]);
    assert_eq!(told.status.code(), Some(1));
    let parts = ["cannot be repaired", "journal.1", "damaged at byte 0", "Nothing was changed"];
    says(&text(&told.stderr), &parts);
    assert!(fs::read(sheet.join("superblock")).expect("it is there") == damaged);
    spoil(&sheet.join("journal.1"), 70);
    let server = serve();
    assert!(Client::open(&server.socket()).read(0, 1 << 20) == expected);
    server.stop();
}

#[test]
fn a_moved_sheet_is_known_by_its_templates_content() {
    let directory = scratch();
    let (one, copy) = (directory.path().join("1.img"), directory.path().join("2.img"));
    make_image(&one, 1 << 20, 1);
    let (here, there) = (directory.path().join("here"), directory.path().join("there"));
    let server = Server::over(&one, &["--sheet", path(&here)]);
    assert_eq!(Client::open(&server.socket()).write(0, &[7; 4096]), 0);
    server.stop();
    fs::rename(&here, &there).expect("it can be moved");
    fs::rename(&one, &copy).expect("it can be moved");
    let server = Server::over(&copy, &["--sheet", path(&there)]);
    assert_eq!(Client::open(&server.socket()).read(0, 4096), [7; 4096]);
    server.stop();
    let out = tool(path(&glassine_tests::server::glassine()), &["check", path(&there), "--map"]);
    for part in ["4096 bytes written", path(&copy), "data at 0", "template"] {
        assert!(out.contains(part), "{part:?} is missing in: {out}");
    }
}

#[test]
fn a_template_that_is_read_in_full_may_not_differ_by_a_bit() {
    let directory = scratch();
    let (image, sheet) = (directory.path().join("1.img"), directory.path().join("sheet"));
    make_image(&image, 4 << 20, 1);
    let listen = format!("unix:{}", directory.path().join("x").display());
    let (template, sheet) = (path(&image), path(&sheet));
    Server::over(&image, &["--sheet", sheet]).stop();
    Server::over(&image, &["--sheet", sheet, "--verify-template"]).stop();
    let note = directory.path().join("sheet/sheet.json");
    let sum = tool("sha256sum", &[template]);
    let sum = sum.split(' ').next().expect("the digits come first");
    let has_sum = || fs::read_to_string(&note).expect("it is there").contains(sum);
    assert!(has_sum());
    // None of the 64 blocks that an image is known by otherwise.
    let mut bytes = fs::read(&image).expect("it is there");
    bytes[(1 << 20) + 12_345] ^= 1;
    fs::write(&image, &bytes).expect("it is writable");
    Server::over(&image, &["--sheet", sheet]).stop();
    assert!(has_sum(), "it is remembered by who does not look");
    let arguments =
        ["--template", template, "--sheet", sheet, "--listen", &listen, "--verify-template"];
    let said = refused(&arguments, 1);
    says(&said, &[sheet, sum, template, "put back", "another --sheet"]);
}

#[test]
fn a_failed_sync_is_final_until_the_restart() {
    let directory = scratch();
    let sheet = directory.path().join("sheet");
    let server = Server::blank("1M", &["--sheet", path(&sheet)]);
    let mut client = Client::open(&server.socket());
    assert_eq!(client.write(0, &[7; 4096]), 0);
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    server.stop();
    let server_directory = scratch();
    let mut command = std::process::Command::new("strace");
    // With -D the server is our child, and strace is not. The first sync of the data fails, and no other.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-P", path(&sheet.join("data"))]);
    command
        .args(["-e", "inject=fdatasync:error=EIO:when=1"])
        .arg(glassine_tests::server::glassine());
    command.args(["serve", "--size", "1M", "--sheet", path(&sheet), "--listen"]);
    command.arg(format!("unix:{}", server_directory.path().join("x.sock").display()));
    let server = Server::spawn(command, server_directory);
    let mut client = Client::open(&server.socket());
    assert_eq!(client.write(0, &[8; 4096]), 0, "visible, and not durable");
    assert_eq!(client.read(0, 4096), [8; 4096]);
    for _ in 0..2 {
        assert_eq!(client.ask(0, FLUSH, 0, 0), 5, "EIO");
    }
    assert_eq!(client.write(4096, &[9; 4096]), 5, "it could never become durable");
    assert_eq!(client.read(0, 4096), [8; 4096], "reads go on");
    let log = server.log();
    assert!(log.contains("the journal failed") && log.contains("sync the data"), "{log}");
    drop(server);
    let server = Server::blank("1M", &["--sheet", path(&sheet)]);
    let mut client = Client::open(&server.socket());
    assert_eq!(client.read(0, 4096), [7; 4096], "what was acknowledged is there");
    assert_eq!(client.write(0, &[9; 4096]), 0);
    assert_eq!(client.ask(0, FLUSH, 0, 0), 0);
    server.stop();
}
