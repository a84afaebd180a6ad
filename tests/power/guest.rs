//! A QEMU guest that serves a sheet from a disk until its power goes.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the guest is to do with its syncs: `all` happen, `none`, or only those of the `journal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syncs {
    All,
    None,
    Journal,
}

/// How a guest is booted.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// Where vmlinuz and power.cpio are.
    pub(crate) cache: &'a Path,
    /// For the console.
    pub(crate) scratch: &'a Path,
    /// The socket of the disk; somebody listens there.
    pub(crate) disk: &'a Path,
    pub(crate) size: usize,
    /// Options of ext4.
    pub(crate) mount: &'a str,
    pub(crate) syncs: Syncs,
}

/// A running guest; its power goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    child: Mutex<Child>,
    console: PathBuf,
    /// Where its server is reached.
    pub(crate) address: SocketAddr,
}

impl Guest {
    pub(crate) fn boot(boot: &Boot<'_>) -> Self {
        // A port that nobody uses; QEMU takes it next.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|one| one.local_addr());
        let address = port.expect("loopback has ports");
        let console = boot.scratch.join("console");
        // Not to be taken for that of the boot before.
        fs::write(&console, b"").expect("scratch is writable");
        let syncs = match boot.syncs {
            Syncs::All => "all",
            Syncs::None => "none",
            Syncs::Journal => "journal",
        };
        let mut command = Command::new("qemu-system-x86_64");
        command.args("-accel tcg,thread=multi -machine q35 -cpu max -smp 2 -m 512".split(' '));
        command.args("-nographic -no-reboot -nodefaults -monitor none".split(' '));
        command.arg("-kernel").arg(boot.cache.join("vmlinuz"));
        command.arg("-initrd").arg(boot.cache.join("power.cpio"));
        command.args([
            "-append",
            &format!(
                "console=ttyS0 panic=-1 quiet loglevel=4 size={} mount={} syncs={syncs}",
                boot.size, boot.mount
            ),
        ]);
        command.args(["-serial", &format!("file:{}", console.display())]);
        // The guest sees a disk with a cache, and QEMU has none of its own.
        command.args([
            "-drive",
            &format!("file=nbd+unix:///?socket={},format=raw,if=virtio", boot.disk.display()),
        ]);
        command.args(["-netdev", &format!("user,id=net,restrict=on,hostfwd=tcp:{address}-:10809")]);
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.expect("qemu-system-x86_64 is installed: run tests/setup");
        Self { child: Mutex::new(child), console, address }
    }

    /// Waits until its server is ready; false if the power goes before.
    pub(crate) fn wait(&self) -> Result<bool, String> {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            let is_off = self.is_off();
            let console = self.console();
            if console.contains("POWER FAILED") || Instant::now() > deadline {
                return Err("the server in the guest does not get ready".to_owned());
            }
            if is_off || console.contains("ready: export") {
                return Ok(!is_off);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it said.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Takes its power away.
    pub(crate) fn cut(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is gone already needs no more.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Whether it has no power any more.
    pub(crate) fn is_off(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().expect("a child can be waited for").is_some()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.cut();
    }
}
