//! libnbd's tools and Python bindings, QEMU's tools, and fio.

use std::fs;
use std::path::Path;

use glassine_tests::server::{Server, make_image, scratch, sha256, text, tool, try_tool};

fn path(path: &Path) -> &str {
    path.to_str().expect("paths here are UTF-8")
}

#[test]
fn nbdinfo_sees_what_is_served() {
    let directory = scratch();
    let image = directory.path().join("t.img");
    make_image(&image, 12_345_677, 1);
    for read_only in [false, true] {
        let arguments: &[&str] = if read_only { &["--read-only"] } else { &[] };
        let server = Server::over(&image, arguments);
        let printed = tool("nbdinfo", &["--json", &server.uri()]);
        let info: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        assert_eq!(info["protocol"], "newstyle-fixed");
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], 12_345_677);
        assert_eq!(export["is_read_only"], read_only);
        assert_eq!(export["can_flush"], true);
        assert_eq!(export["can_fua"], true);
        assert_eq!(export["can_multi_conn"], true);
        assert_eq!(export["can_cache"], true);
        for ability in ["can_trim", "can_zero", "can_fast_zero"] {
            assert_eq!(export[ability], !read_only, "{ability}");
        }
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 64 << 20);
        server.stop();
    }
}

#[test]
fn nbdcopy_copies_a_gigabyte_in_and_out() {
    let directory = scratch();
    let (source, copy) = (directory.path().join("in.img"), directory.path().join("out.img"));
    make_image(&source, 1 << 30, 2);
    let sum = sha256(&source);
    let server = Server::blank("1G", &[]);
    let options = ["--connections=4", "--requests=64"];
    tool("nbdcopy", &[options[0], options[1], path(&source), &server.uri()]);
    tool("nbdcopy", &[options[0], options[1], &server.uri(), path(&copy)]);
    assert_eq!(sha256(&copy), sum);
    server.stop();
    // The other way round: out of a template, on one connection.
    fs::remove_file(&copy).expect("just written");
    let server = Server::over(&source, &[]);
    tool("nbdcopy", &["--connections=1", &server.uri(), path(&copy)]);
    assert_eq!(sha256(&copy), sum);
    server.stop();
}

#[test]
fn a_template_of_any_size_is_served_to_the_byte() {
    let directory = scratch();
    for bytes in [1, 511, 4097, 1_000_003] {
        let (image, copy) = (directory.path().join("t.img"), directory.path().join("c.img"));
        make_image(&image, bytes, 3);
        let server = Server::over(&image, &[]);
        assert_eq!(tool("nbdinfo", &["--size", &server.uri()]).trim(), bytes.to_string());
        tool("nbdcopy", &[&server.uri(), path(&copy)]);
        assert_eq!(sha256(&copy), sha256(&image), "{bytes} bytes");
        server.stop();
    }
}

#[test]
fn qemu_img_compares_converts_and_maps() {
    let directory = scratch();
    let image = directory.path().join("t.img");
    make_image(&image, 96 << 20, 4);
    let server = Server::over(&image, &[]);
    let uri = server.uri();
    let compare = ["compare", "-f", "raw", "-F", "raw", path(&image), &uri];
    tool("qemu-img", &compare);
    for format in ["raw", "qcow2"] {
        let out = directory.path().join(format);
        tool("qemu-img", &["convert", "-f", "raw", "-O", format, &uri, path(&out)]);
        tool("qemu-img", &["compare", "-f", format, "-F", "raw", path(&out), path(&image)]);
    }
    let map = tool("qemu-img", &["map", "-f", "raw", "--output=json", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let extents = map.as_array().expect("a list").iter();
    let mapped: u64 = extents.map(|extent| extent["length"].as_u64().expect("a number")).sum();
    assert_eq!(mapped, 96 << 20);
    tool("qemu-io", &["-f", "raw", &uri, "-c", "write -P 77 5M 1000"]);
    let output = try_tool("qemu-img", &compare);
    assert_eq!(output.status.code(), Some(1), "a write is seen: {}", text(&output.stdout));
    // Back to what it was, from an image of another format.
    let qcow2 = directory.path().join("qcow2");
    tool("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", path(&qcow2), &uri]);
    tool("qemu-img", &compare);
    server.stop();
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_patterns() {
    let directory = scratch();
    let image = directory.path().join("t.img");
    fs::write(&image, vec![0xaa; 8 << 20]).expect("scratch has room");
    let server = Server::over(&image, &[]);
    let commands = [
        "read -P 0xaa 0 8M",
        // Unaligned, across blocks, with both neighbours unharmed.
        "write -P 1 1000 10000",
        "read -P 0xaa 0 1000",
        "read -P 1 1000 10000",
        "read -P 0xaa 11000 4000",
        "write -z 2000 5000",
        "read -P 1 1000 1000",
        "read -P 0 2000 5000",
        "read -P 1 7000 4000",
        "write -z -u 1M 1M",
        "read -P 0 1M 1M",
        "discard 2M 1M",
        "read -P 0 2M 1M",
        "read -P 0xaa 3M 5M",
        "write -f -P 9 3M 64k",
        "flush",
        "read -P 9 3M 64k",
        "write -P 3 2M 512",
        "read -P 3 2M 512",
        "read -P 0 2097664 3584",
        "aio_write -P 5 4M 1M",
        "aio_write -P 6 5M 1M",
        "aio_flush",
        "read -P 5 4M 1M",
        "read -P 6 5M 1M",
    ];
    let uri = server.uri();
    let mut arguments = vec!["-f", "raw", &uri];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    let printed = tool("qemu-io", &arguments);
    // qemu-io reports a wrong pattern, but exits with success.
    assert!(!printed.contains("failed"), "{printed}");
    assert_eq!(printed.matches("ops;").count(), commands.len() - 2, "{printed}");
    server.stop();
}

#[test]
fn fio_verifies_mixed_blocks_at_depth_64_with_4_jobs() {
    let server = Server::blank("512M", &[]);
    let uri = format!("--uri={}", server.uri());
    let printed = tool(
        "fio",
        &[
            "--name=mixed",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bssplit=512/10:4k/40:13k/15:64k/25:256k/10",
            "--blockalign=512",
            "--iodepth=64",
            "--numjobs=4",
            "--size=96M",
            "--offset_increment=128M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--thread",
            "--output-format=json",
        ],
    );
    let start = printed.find('{').expect("JSON");
    let report: serde_json::Value = serde_json::from_str(&printed[start..]).expect("JSON");
    let jobs = report["jobs"].as_array().expect("a list");
    assert_eq!(jobs.len(), 4);
    for job in jobs {
        assert_eq!(job["error"], 0);
        assert!(
            job["read"]["io_bytes"].as_u64() >= Some(40 << 20),
            "what was written is read back"
        );
    }
    let trimmed = tool(
        "fio",
        &[
            "--name=trim",
            "--ioengine=nbd",
            &uri,
            "--rw=randtrim",
            "--bs=64k",
            "--size=64M",
            "--iodepth=16",
        ],
    );
    assert!(trimmed.contains("err= 0"), "{trimmed}");
    server.stop();
}

#[test]
fn libnbd_sends_illegal_requests_and_gets_the_protocols_errors() {
    let directory = scratch();
    let image = directory.path().join("t.img");
    make_image(&image, 4 << 20, 5);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/illegal.py");
    let (writable, read_only) = (Server::over(&image, &[]), Server::over(&image, &["--read-only"]));
    let (writable_socket, read_only_socket) = (writable.socket(), read_only.socket());
    let sockets = [path(&writable_socket), path(&read_only_socket)];
    // Debian's own Python: the binding is for no other.
    let printed = tool("/usr/bin/python3", &[path(&script), sockets[0], sockets[1]]);
    let checks: u32 = printed
        .trim()
        .strip_suffix(" checks passed")
        .and_then(|count| count.rsplit('\n').next())
        .and_then(|count| count.parse().ok())
        .expect("the script counts");
    assert!(checks >= 40, "{printed}");
    writable.stop();
    read_only.stop();
}
