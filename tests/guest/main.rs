//! The Linux kernel as a client: a QEMU guest with Debian's kernel, its nbd.ko and Glassine.

use std::path::Path;
use std::process::Command;

use glassine_tests::server::glassine;

#[test]
fn the_kernel_mounts_runs_trims_and_checks_a_device_with_one_and_four_connections() {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/run");
    let status = Command::new(run).arg(glassine()).status().expect("bash is installed");
    assert!(status.success(), "the guest failed: {status}; its console is printed above");
}
