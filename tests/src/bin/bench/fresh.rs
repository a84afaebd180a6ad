//! Workloads that start servers for themselves: first writes, and many devices.

use std::io;
use std::time::Duration;

use glassine_tests::load::{Connection, Load, Pattern};

use crate::measure::{Storage, explain, measure};
use crate::results::Row;
use crate::servers::{InPlace, Kind, Server};
use crate::workloads::{DEVICE_DEPTH, DEVICE_SPAN, PROCESSES_MAX, Stage, Workload};

/// Every block of a new overlay is written once. The template was read before, but by no server of
/// this round; servers without copy-on-write write to a new sparse file.
pub(crate) fn first_touch(storage: &Storage, workload: &Workload) -> Row {
    let mut row = storage.row(workload);
    let load = storage.load(Stage::Written, Pattern::EachWrite, 4096, 32);
    // All of it: its end is what ends it, so that every server does the same.
    let load = Load { time: Duration::from_secs(60), ..load };
    storage.interleave(&mut row, |entry, round| {
        let server = entry.server.start(&storage.setup(1, InPlace::Sparse))?;
        measure(&server, &[server.open(0)?], &load, workload.unit, round)
    });
    row
}

/// Random reads on many devices over one template, a connection each. What can serve only one device
/// is started once for each; where that is too many processes, it is left out.
pub(crate) fn devices(storage: &Storage, workload: &Workload, count: usize) -> Row {
    let mut row = storage.row(workload);
    let load = storage.load(Stage::Template, Pattern::RandomRead, 4096, DEVICE_DEPTH);
    let load = Load { span: DEVICE_SPAN.min(storage.span), ..load };
    let mut running: Vec<(Kind, Vec<Connection>, Server)> = Vec::new();
    for entry in &mut row.entries {
        let kind = entry.server;
        if !kind.is_peer() && !kind.serves_many() {
            entry.failure = Some("not measured: it has no template that devices share".into());
        } else if !kind.serves_many() && count > PROCESSES_MAX {
            entry.failure = Some(format!("not measured: {count} processes"));
        } else {
            match start(storage, kind, count, &load) {
                Ok((connections, server)) => running.push((kind, connections, server)),
                Err(error) => entry.failure = Some(explain(&error)),
            }
            if !kind.serves_many() && count > 1 {
                entry.note = Some(format!("{count} processes"));
            }
        }
    }
    storage.interleave(&mut row, |entry, round| {
        let found = running.iter().find(|(kind, ..)| *kind == entry.server);
        let (_, connections, server) = found.expect("what does not run has failed");
        if round == 0 {
            let _ = Load { time: storage.time / 4, ..load }.try_run(connections, 0)?;
        }
        measure(server, connections, &load, workload.unit, round + 1)
    });
    row
}

fn start(
    storage: &Storage,
    kind: Kind,
    count: usize,
    load: &Load,
) -> io::Result<(Vec<Connection>, Server)> {
    let server = kind.start(&storage.setup(count, InPlace::Copy))?;
    let connections: Vec<_> =
        (0..count).map(|device| server.open(device)).collect::<Result<_, _>>()?;
    let all = Load { pattern: Pattern::EachRead, bytes: 1 << 20, depth: 4, ..*load };
    let all = Load { time: Duration::from_secs(60), ..all };
    for connection in &connections {
        let _ = all.try_run(std::slice::from_ref(connection), 0)?;
    }
    Ok((connections, server))
}
