//! Snapshots of the real server under load: each is one moment of the device, whatever goes on beside it.
//!
//! `GLASSINE_SNAPSHOT_MIB=4096 cargo test -p glassine-tests --test snapshot cost -- --nocapture` measures what a
//! snapshot of so much costs, and its clients.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use glassine_tests::changes::{batch, lock};
use glassine_tests::client::{Client, FLUSH};
use glassine_tests::history::{BLOCK, BLOCKS, History};
use glassine_tests::pattern;
use glassine_tests::server::{Server, glassine, make_image, scratch, tool};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BYTES: usize = BLOCKS * BLOCK;

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are UTF-8")
}

/// A server with a sheet and a control socket, over a template of half its size.
fn serve(directory: &Path) -> Server {
    let template = directory.join("t.img");
    if !template.exists() {
        make_image(&template, BYTES as u64 / 2, 7);
    }
    let control = format!("unix:{}", directory.join("control").display());
    let sheet = directory.join("sheet");
    let arguments = ["--template", text(&template), "--sheet", text(&sheet), "--control", &control];
    Server::blank(&BYTES.to_string(), &arguments)
}

/// The command that takes a snapshot.
fn snapshot(directory: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(glassine());
    let control = format!("unix:{}", directory.join("control").display());
    command.args(["snapshot", "--control", &control, "--export", "", "--json"]);
    command.arg("--out").arg(out).args(more).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// What the command says, once it has succeeded.
fn done(command: &mut Command) -> serde_json::Value {
    let output = command.output().expect("it can be started");
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the snapshot failed: {err}");
    serde_json::from_slice(out).expect("it prints JSON")
}

/// All that a device shows.
fn image(server: &Server) -> Vec<u8> {
    let mut client = Client::open(&server.socket());
    let bytes = client.size.try_into().expect("devices here are small");
    client.read(0, bytes)
}

/// All that a device over a layer shows; what the layer is over lies beside it.
fn image_of(layer: &Path) -> Vec<u8> {
    let server = Server::over(layer, &[]);
    let image = image(&server);
    server.stop();
    image
}

/// Clients change the device and flush it while snapshots are taken, one or two at a time. What was answered before one was asked
/// for is in it, and nothing of it is half there, or there without what came before it.
#[test]
fn a_snapshot_is_one_moment_of_a_busy_device() {
    let directory = scratch();
    let mut server = serve(directory.path());
    let history = Mutex::new(History::new(image(&server)));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let ways: [&[&str]; 3] = [&[], &["--flush"], &["--compress", "zstd:3"]];
    let mut taken = 0;
    for round in 0..8 {
        let over = AtomicBool::new(false);
        let time = Duration::from_micros(rng.random_range(1000..80_000));
        let mut clients = [(); 2].map(|()| Client::open(&server.socket()));
        let layers = thread::scope(|scope| {
            let mut rng = ChaCha8Rng::seed_from_u64(round);
            let (history, over) = (&history, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    for client in &mut clients {
                        let errors = batch(client, history, &mut rng).expect("the server is there");
                        assert!(errors.is_empty(), "nothing fails: {errors:?}");
                    }
                }
            });
            thread::sleep(time);
            let take = |number: u64| {
                let out = directory.path().join(format!("{round}-{number}.glass"));
                let asked = lock(history).now();
                done(&mut snapshot(directory.path(), &out, ways[(round + number) as usize % 3]));
                (asked, out)
            };
            // In every other round, a second one is asked for while the first is under way.
            let second = (round % 2 == 1).then(|| scope.spawn(move || take(1)));
            let first = take(0);
            let second = second.map(|second| second.join().expect("it succeeds"));
            over.store(true, Ordering::Relaxed);
            [Some(first), second]
        });
        for (asked, layer) in layers.into_iter().flatten() {
            let mut seen = lock(&history).clone();
            // What was answered by then must be there.
            seen.settle(asked);
            if let Err(broken) = seen.check(image_of(&layer)) {
                panic!("{}: {broken}", layer.display());
            }
            taken += 1;
        }
        if round % 4 == 3 {
            // The seals are gone with the process, and took nothing with them.
            server.signal(libc::SIGKILL);
            drop(server);
            server = serve(directory.path());
        }
        lock(&history).check(image(&server)).unwrap_or_else(|broken| panic!("{broken}"));
    }
    assert_eq!(taken, 12);
    // When nobody writes, a snapshot is the device to the byte.
    let out = directory.path().join("last.glass");
    done(&mut snapshot(directory.path(), &out, &[]));
    assert!(image_of(&out) == image(&server), "the snapshot differs from the device");
    server.stop();
}

/// A layer is there when it is complete, or not at all; and a snapshot that came to nothing keeps no space.
#[test]
fn a_kill_or_a_cancel_during_an_export_leaves_no_layer() {
    const LARGE: u64 = 64 << 20;
    let directory = scratch();
    let control = format!("unix:{}", directory.path().join("control").display());
    let sheet = directory.path().join("sheet");
    let arguments = ["--sheet", text(&sheet), "--control", &control];
    let serve = || Server::blank(&LARGE.to_string(), &arguments);
    let server = serve();
    let mut client = Client::open(&server.socket());
    // What can be compressed, with effort.
    let payload: Vec<u8> = (0..LARGE).map(|at| (at * at / 977 % 61) as u8).collect();
    client.write(0, &payload);
    client.ask(0, FLUSH, 0, 0);
    let out = directory.path().join("cut.glass");
    // Slow enough to be met in its middle.
    let slow = ["--compress", "zstd:19"];
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let mut command = snapshot(directory.path(), &out, &slow);
        let mut child = command.spawn().expect("it can be started");
        thread::sleep(Duration::from_millis(300));
        assert!(!out.exists(), "it is not complete yet");
        if signal == libc::SIGKILL {
            server.signal(libc::SIGKILL);
        } else {
            let pid = i32::try_from(child.id()).expect("a pid");
            // SAFETY: takes no memory; the process is our child and not yet waited for.
            assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        }
        assert!(!child.wait().expect("it ends").success(), "it says that there is no snapshot");
        assert!(!out.exists(), "half a layer must not be there");
        for entry in fs::read_dir(directory.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!text(Path::new(&name)).starts_with("cut.glass"), "{name:?} was left");
        }
    }
    drop(server);
    let server = serve();
    done(&mut snapshot(directory.path(), &out, &[]));
    assert!(image_of(&out) == payload);
    assert!(image(&server) == payload);
    server.stop();
}

/// What a name that is taken, or a directory that is not there, is answered with.
#[test]
fn a_snapshot_replaces_nothing_and_makes_no_directory() {
    let directory = scratch();
    let server = serve(directory.path());
    let refused = |out: &Path| {
        let output = snapshot(directory.path(), out, &[]).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let taken = directory.path().join("taken");
    fs::write(&taken, "something else").unwrap();
    assert!(refused(&taken).contains("never replaced"), "{}", refused(&taken));
    assert_eq!(fs::read_to_string(&taken).unwrap(), "something else");
    let nowhere = directory.path().join("nowhere/x.glass");
    assert!(refused(&nowhere).contains("must be there"), "{}", refused(&nowhere));
    server.stop();
}

/// How long a seal holds up a client, and how fast the export is next to `cp`.
#[test]
fn cost_of_a_snapshot() {
    let mib: u64 =
        std::env::var("GLASSINE_SNAPSHOT_MIB").map_or(64, |mib| mib.parse().expect("a number"));
    let directory = scratch();
    let control = format!("unix:{}", directory.path().join("control").display());
    let sheet = directory.path().join("sheet");
    let arguments = ["--sheet", text(&sheet), "--control", &control];
    let server = Server::blank(&format!("{mib}M"), &arguments);
    let mut client = Client::open(&server.socket());
    let mut payload = vec![0; 1 << 20];
    for at in 0..mib {
        pattern::fill(&mut payload, 1, at << 20);
        client.write(at << 20, &payload);
    }
    // A client with one small write at a time, before and beside the snapshot.
    let over = AtomicBool::new(false);
    let gaps = |client: &mut Client, until: &dyn Fn() -> bool| {
        let (mut rng, mut gaps) = (ChaCha8Rng::seed_from_u64(1), Vec::new());
        while !until() {
            let block = rng.random_range(0..mib << 8);
            let asked = Instant::now();
            client.write(block << 12, &payload[..BLOCK]);
            gaps.push(asked.elapsed());
        }
        gaps.sort_unstable();
        gaps
    };
    let rate = |done: &serde_json::Value| {
        let number = |name: &str| done[name].as_f64().expect("a number");
        number("data_bytes") / number("seconds") / 1_048_576.0
    };
    let (data, copy) = (sheet.join("data"), directory.path().join("copy"));
    let out = directory.path().join("out.glass");
    // In turn, so that both meet the same machine.
    let (mut exports, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        exports.push(rate(&done(&mut snapshot(directory.path(), &out, &[]))));
        fs::remove_file(&out).unwrap();
        let began = Instant::now();
        tool("cp", &["--reflink=never", text(&data), text(&copy)]);
        let copied = fs::metadata(&copy).unwrap().len() as f64;
        copies.push(copied / began.elapsed().as_secs_f64() / 1_048_576.0);
        fs::remove_file(&copy).unwrap();
    }
    println!("export alone {exports:.0?} MiB/s, cp {copies:.0?} MiB/s");
    let began = Instant::now();
    let alone = gaps(&mut client, &|| began.elapsed() > Duration::from_secs(1));
    let (beside, taken) = thread::scope(|scope| {
        let beside = scope.spawn(|| gaps(&mut client, &|| over.load(Ordering::Relaxed)));
        let taken = done(&mut snapshot(directory.path(), &out, &[]));
        over.store(true, Ordering::Relaxed);
        (beside.join().expect("writes succeed"), taken)
    });
    for (when, gaps) in [("before", &alone), ("beside", &beside)] {
        let (p99, longest) = (gaps[gaps.len() * 99 / 100], gaps[gaps.len() - 1]);
        println!("{when}: {} writes, 99 of 100 within {p99:?}, longest {longest:?}", gaps.len());
    }
    let number = |name: &str| taken[name].as_f64().expect("a number");
    let overhead = number("file_bytes") / number("data_bytes") - 1.0;
    println!(
        "seal {} us; export {:.0} MiB/s beside that client; {:.2} % larger than its data",
        taken["seal_micros"],
        rate(&taken),
        overhead * 100.0
    );
    assert_eq!(number("data_bytes") as u64, mib << 20);
    assert!(overhead < 0.03);
    server.stop();
}
