//! Clients of others, one run a round each. They do not know what they read or write, so every
//! workload begins with new servers, which our own client has warmed.

use std::io;
use std::process::{Command, Stdio};
use std::time::Instant;

use glassine_tests::server::text;

use crate::measure::{Storage, explain};
use crate::results::{Round, Row};
use crate::servers::{InPlace, Kind, Server, Setup};
use crate::workloads::{Stage, Tool, Workload};

impl Tool {
    /// The command line, without the server's URI.
    pub(crate) fn command(self, storage: &Storage) -> Vec<String> {
        let seconds = storage.time.as_secs_f64();
        // As many as take about the time of a round.
        let count = ((seconds * 40_000.0) as u64).max(2000);
        let line = match self {
            Self::FioRead | Self::FioWrite | Self::FioFlush(_) => {
                // Its engine refuses `fdatasync=1`; both would be a FLUSH.
                let (how, depth) = match self {
                    Self::FioRead => ("--rw=randread", 32),
                    Self::FioFlush(depth) => ("--rw=randwrite --fsync=1", depth),
                    _ => ("--rw=randwrite", 32),
                };
                let (size, ms) = (storage.span, storage.time.as_millis());
                format!(
                    "fio --name=bench --ioengine=nbd {how} --bs=4k --iodepth={depth} --size={size} \
                     --time_based --runtime={ms}ms --output-format=json --uri="
                )
            }
            Self::Nbdcopy => "nbdcopy URI null:".into(),
            Self::BenchRead => format!("qemu-img bench -f raw -s 4096 -d 32 -c {count} URI"),
            Self::BenchWrite => format!("qemu-img bench -f raw -w -s 4096 -d 32 -c {count} URI"),
        };
        line.split(' ').map(str::to_owned).collect()
    }

    fn run(self, storage: &Storage, uri: &str) -> io::Result<f64> {
        let mut words = self.command(storage);
        for word in &mut words {
            if word == "--uri=" {
                word.push_str(uri);
            } else if word == "URI" {
                uri.clone_into(word);
            }
        }
        let began = Instant::now();
        let mut command = Command::new("timeout");
        let output = command.arg("60").args(words).stdin(Stdio::null()).output()?;
        let seconds = began.elapsed().as_secs_f64();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let bad = || io::Error::other(err.lines().last().unwrap_or("the client failed").to_owned());
        if !output.status.success() {
            return Err(bad());
        }
        let figure = match self {
            Self::FioRead => fio(&out, "read"),
            Self::FioWrite | Self::FioFlush(_) => fio(&out, "write"),
            Self::Nbdcopy => {
                let bytes = storage.setup(1, InPlace::Copy).bytes;
                Some(bytes as f64 / f64::from(1 << 20) / seconds)
            }
            Self::BenchRead | Self::BenchWrite => bench(&out),
        };
        figure.ok_or_else(bad)
    }
}

fn fio(out: &str, direction: &str) -> Option<f64> {
    // Warnings may come before the JSON.
    let json = &out[out.find('{')?..];
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let job = &value["jobs"][0];
    if job["error"] != 0 {
        return None;
    }
    job[direction]["iops"].as_f64()
}

fn bench(out: &str) -> Option<f64> {
    let count: f64 = out.split("Sending ").nth(1)?.split(' ').next()?.parse().ok()?;
    let seconds: f64 = out.split("completed in ").nth(1)?.split(' ').next()?.parse().ok()?;
    Some(count / seconds)
}

/// Measures a workload of another's client.
pub(crate) fn external(storage: &Storage, workload: &Workload, tool: Tool) -> Row {
    let mut row = storage.row(workload);
    let durable = matches!(tool, Tool::FioFlush(_));
    let writes = durable || matches!(tool, Tool::FioWrite | Tool::BenchWrite);
    let stage = if writes { Stage::Written } else { Stage::Template };
    let mut running: Vec<(Kind, Server)> = Vec::new();
    for entry in &mut row.entries {
        if durable && !entry.server.makes_durable() {
            entry.failure = Some("not measured: its FLUSH makes nothing durable".into());
            continue;
        }
        let start = || {
            let setup = Setup { durable, ..storage.setup(1, InPlace::Copy) };
            let server = entry.server.start(&setup)?;
            let warm = storage.warm(&server, stage)?;
            drop(warm);
            // Not counted: the first run of a tool finds its libraries cold.
            tool.run(storage, &server.uri())?;
            Ok::<_, io::Error>(server)
        };
        match start() {
            Ok(server) => running.push((entry.server, server)),
            Err(error) => entry.failure = Some(explain(&error)),
        }
        if writes && entry.server.forgets() {
            entry.note = Some("every connection has a new overlay: these are first writes".into());
        }
    }
    storage.interleave(&mut row, |entry, _| {
        let found = running.iter().find(|(kind, _)| *kind == entry.server);
        let (_, server) = found.expect("what does not run has failed");
        let figure = tool.run(storage, &server.uri())?;
        Ok(Round { figure, ..Round::default() })
    });
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_tools_print() {
        let out = "warning: x\n{\"jobs\": [{\"error\": 0, \"read\": {\"iops\": 12.5}}]}";
        assert_eq!(fio(out, "read"), Some(12.5));
        assert_eq!(fio(&out.replace("r\": 0", "r\": 5"), "read"), None);
        let out = "Sending 4000 read requests, 4096 bytes each, 32 in parallel\n\
                   Run completed in 0.500 seconds.\n";
        assert_eq!(bench(out), Some(8000.0));
        assert_eq!(bench("qemu-img: it failed"), None);
    }
}
