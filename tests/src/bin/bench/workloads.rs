//! The workloads, in the order in which they are measured.

use glassine_tests::load::Pattern;

use crate::results::Unit;

/// What the blocks of a device are before a workload begins, on every server alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// As in the template, and all were read.
    Template,
    /// All were written, through the same connection.
    Written,
}

/// Another's client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    FioRead,
    FioWrite,
    /// Each write is followed by a FLUSH; so many are in flight.
    FioFlush(u32),
    Nbdcopy,
    BenchRead,
    BenchWrite,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A load on one connection, which stays open from workload to workload.
    Steady(Stage, Pattern, u32, u64),
    /// 4 KiB random reads on so many connections.
    Connections(usize),
    /// The same with and without stalled clients beside.
    Stalled,
    /// Each block of a new sheet is written once.
    FirstTouch,
    /// 4 KiB random reads on so many devices, one connection each.
    Devices(usize),
    /// 4 KiB random reads with and without cold reads of a slow template beside.
    SlowTemplate,
    /// Another's client.
    External(Tool),
    /// System calls of the server, counted.
    SystemCalls(Stage, Pattern),
    /// 4 KiB random reads, one at a time, with and without another device that is busy.
    QuietDevice,
    /// How much longer a process takes to start with one device more.
    StartUp,
    /// Private memory of an idle device.
    IdleMemory,
    /// Private memory of a device that is written everywhere.
    TouchedMemory,
    /// What `tests/alloc` counts.
    Allocations,
}

/// A workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    pub(crate) what: What,
}

const fn workload(name: &'static str, title: &'static str, unit: Unit, what: What) -> Workload {
    Workload { name, title, unit, what }
}

const fn steady(
    name: &'static str,
    title: &'static str,
    unit: Unit,
    stage: Stage,
    pattern: Pattern,
    kib: u32,
    depth: u64,
) -> Workload {
    workload(name, title, unit, What::Steady(stage, pattern, kib << 10, depth))
}

/// Requests in flight on each of several connections.
pub(crate) const CONNECTION_DEPTH: u64 = 32;
/// Requests in flight on each of several devices.
pub(crate) const DEVICE_DEPTH: u64 = 8;
/// The part of each device that is read when there are many.
pub(crate) const DEVICE_SPAN: u64 = 8 << 20;
/// The most processes that are started of a server which serves one device.
pub(crate) const PROCESSES_MAX: usize = 16;

use Pattern::{RandomMix, RandomRead, RandomWrite, SequentialRead, SequentialWrite};
use Stage::{Template, Written};
use Unit::{MiB, Operations, Ratio};

#[rustfmt::skip]
pub(crate) const ALL: &[Workload] = &[
    steady("read-4k-qd1", "4 KiB random read, 1 in flight", Operations, Template, RandomRead, 4, 1),
    steady("read-4k-qd32", "4 KiB random read, 32 in flight", Operations, Template, RandomRead, 4, 32),
    steady("read-4k-qd128", "4 KiB random read, 128 in flight", Operations, Template, RandomRead, 4, 128),
    steady("read-64k-qd16", "64 KiB random read, 16 in flight", MiB, Template, RandomRead, 64, 16),
    steady("read-1m-qd8", "1 MiB sequential read, 8 in flight", MiB, Template, SequentialRead, 1024, 8),
    workload("connections-1", "1 connection", Operations, What::Connections(1)),
    workload("connections-4", "4 connections", Operations, What::Connections(4)),
    workload("connections-16", "16 connections", Operations, What::Connections(16)),
    workload("stalled-clients", "beside stalled clients", Ratio, What::Stalled),
    steady("write-4k-qd32", "4 KiB random overwrite, 32 in flight", Operations, Written, RandomWrite, 4, 32),
    steady("write-4k-qd128", "4 KiB random overwrite, 128 in flight", Operations, Written, RandomWrite, 4, 128),
    steady("read-written-4k-qd32", "4 KiB random read of written blocks, 32 in flight", Operations, Written, RandomRead, 4, 32),
    steady("mix-4k-qd32", "4 KiB random, 70 % reads, 32 in flight", Operations, Written, RandomMix(70), 4, 32),
    steady("write-64k-qd16", "64 KiB random overwrite, 16 in flight", MiB, Written, RandomWrite, 64, 16),
    steady("write-1m-qd8", "1 MiB sequential overwrite, 8 in flight", MiB, Written, SequentialWrite, 1024, 8),
    workload("write-4k-qd32-first", "4 KiB scattered first write, 32 in flight", Operations, What::FirstTouch),
    workload("devices-1", "1 device", Operations, What::Devices(1)),
    workload("devices-16", "16 devices", Operations, What::Devices(16)),
    workload("devices-200", "200 devices", Operations, What::Devices(200)),
    workload("slow-template", "beside cold reads of a slow template", Ratio, What::SlowTemplate),
    workload("quiet-device", "on a quiet device, 1 in flight, beside a busy one", Ratio, What::QuietDevice),
    workload("fio-read", "fio, 4 KiB random read, 32 in flight", Operations, What::External(Tool::FioRead)),
    workload("fio-write", "fio, 4 KiB random write, 32 in flight", Operations, What::External(Tool::FioWrite)),
    workload("fio-flush-qd1", "fio, 4 KiB random write, a FLUSH after each, 1 in flight", Operations, What::External(Tool::FioFlush(1))),
    workload("fio-flush-qd32", "fio, 4 KiB random write, a FLUSH after each, 32 in flight", Operations, What::External(Tool::FioFlush(32))),
    workload("nbdcopy", "nbdcopy, whole device to null:", MiB, What::External(Tool::Nbdcopy)),
    workload("qemu-img-read", "qemu-img bench, 4 KiB read, 32 in flight", Operations, What::External(Tool::BenchRead)),
    workload("qemu-img-write", "qemu-img bench, 4 KiB write, 32 in flight", Operations, What::External(Tool::BenchWrite)),
    workload("calls-read", "4 KiB random read, 32 in flight", Unit::Calls, What::SystemCalls(Template, RandomRead)),
    workload("calls-write", "4 KiB random overwrite, 32 in flight", Unit::Calls, What::SystemCalls(Written, RandomWrite)),
    workload("memory-idle", "an idle device", Unit::KiB, What::IdleMemory),
    workload("memory-touched", "written everywhere, per GiB", Unit::KiB, What::TouchedMemory),
    workload("start-up", "one more device at start", Unit::Milliseconds, What::StartUp),
    workload("allocations", "any request, once warm", Unit::Allocations, What::Allocations),
];

/// The workloads that `--check` looks at.
pub(crate) const PROMISED: [&str; 2] = ["read-4k-qd32", "write-4k-qd32"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_stages_come_in_order() {
        let mut names: Vec<_> = ALL.iter().map(|one| one.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(PROMISED.iter().all(|name| names.contains(name)));
        let stages = ALL.iter().filter_map(|one| match one.what {
            What::Steady(stage, ..) => Some(stage),
            _ => None,
        });
        assert!(stages.is_sorted(), "going back means to start all servers anew");
    }
}
