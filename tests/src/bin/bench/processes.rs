//! What the kernel tells of processes: their children, CPU time and memory.

use std::collections::HashMap;
use std::fs;

/// The fields of /proc/PID/stat behind the name, which may hold spaces: the state is first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let behind = text.rsplit_once(')')?.1;
    Some(behind.split_whitespace().map(str::to_owned).collect())
}

/// These processes and all that descend from them.
pub(crate) fn tree(roots: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").expect("Linux has /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) else {
            continue;
        };
        children.entry(parent).or_default().push(pid);
    }
    let mut all = roots.to_vec();
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children.get(pid).into_iter().flatten());
        at += 1;
    }
    all
}

/// When a process began, in ticks since the machine did: with its id, this names it for good.
pub(crate) fn began(pid: u32) -> Option<String> {
    stat(pid)?.get(19).cloned()
}

/// Whether a process is there, and no mere remains that nobody has waited for.
pub(crate) fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z"))
}

/// CPU time that processes have used so far, in user and in kernel mode, with all their threads and
/// with children that have ended.
pub(crate) fn cpu_seconds(pids: &[u32]) -> f64 {
    // SAFETY: takes no memory.
    let tick = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let one = |pid: &u32| {
        let fields = stat(*pid)?;
        let ticks: u64 = fields.get(11..15)?.iter().filter_map(|one| one.parse::<u64>().ok()).sum();
        Some(ticks as f64 / tick)
    };
    pids.iter().filter_map(one).sum()
}

/// Private memory of processes in bytes: pages of files do not count.
pub(crate) fn private_bytes(pids: &[u32]) -> u64 {
    let one = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    pids.iter().filter_map(one).sum::<u64>() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_child_uses_time_and_memory() {
        let mut child = std::process::Command::new("sleep").arg("10").spawn().expect("coreutils");
        let (this, other) = (std::process::id(), child.id());
        assert!(tree(&[this]).contains(&other));
        assert_eq!(tree(&[other]), [other]);
        let began = std::time::Instant::now();
        let before = cpu_seconds(&[this]);
        while began.elapsed().as_millis() < 300 {}
        // Other jobs may run meanwhile, and other tests of this process.
        assert!(cpu_seconds(&[this]) > before);
        assert!(private_bytes(&[this]) > 100_000);
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }
}
