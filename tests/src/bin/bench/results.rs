//! What was measured.

use serde::Serialize;

use crate::servers::Kind;

/// What figures are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "operations/s")]
    Operations,
    #[serde(rename = "MiB/s")]
    MiB,
    /// Throughput with a disturbance over throughput without.
    #[serde(rename = "ratio")]
    Ratio,
    #[serde(rename = "system calls/operation")]
    Calls,
    #[serde(rename = "KiB")]
    KiB,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "allocations/operation")]
    Allocations,
}

impl Unit {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Operations => "operations/s",
            Self::MiB => "MiB/s",
            Self::Ratio => "ratio",
            Self::Calls => "system calls/operation",
            Self::KiB => "KiB",
            Self::Milliseconds => "ms",
            Self::Allocations => "allocations/operation",
        }
    }

    /// Whether servers are compared by it, and more is better.
    pub(crate) fn is_speed(self) -> bool {
        matches!(self, Self::Operations | Self::MiB)
    }
}

/// One measurement.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Round {
    /// In the unit of the row.
    pub(crate) figure: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_microseconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_microseconds: Option<u32>,
    /// How many operations were answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operations: Option<usize>,
    /// CPU time of the server, with all threads and children.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server_cpu_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_cpu_seconds: Option<f64>,
    /// What a ratio is made of, or what calls were made: names and figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) details: Vec<(String, f64)>,
}

/// A server in a workload.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    pub(crate) server: Kind,
    pub(crate) rounds: Vec<Round>,
    /// Why there are no figures, or fewer: it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
    /// What else is to be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

/// A workload on one kind of storage.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    pub(crate) title: String,
    pub(crate) unit: Unit,
    pub(crate) storage: String,
    pub(crate) entries: Vec<Entry>,
}

impl Entry {
    pub(crate) fn new(server: Kind) -> Self {
        Self { server, rounds: vec![], failure: None, note: None }
    }

    /// Lowest, median and highest figure.
    pub(crate) fn spread(&self) -> Option<(f64, f64, f64)> {
        let mut figures: Vec<f64> = self.rounds.iter().map(|round| round.figure).collect();
        figures.sort_by(f64::total_cmp);
        Some((*figures.first()?, middle(&figures), *figures.last()?))
    }

    pub(crate) fn median(&self) -> Option<f64> {
        self.spread().map(|(_, median, _)| median)
    }

    /// The median of a percentile over the rounds.
    pub(crate) fn percentile(&self, which: impl Fn(&Round) -> Option<u32>) -> Option<f64> {
        let mut figures: Vec<f64> = self.rounds.iter().filter_map(which).map(f64::from).collect();
        figures.sort_by(f64::total_cmp);
        (!figures.is_empty()).then(|| middle(&figures))
    }

    /// CPU time per operation in microseconds (so, seconds per million), over all rounds.
    pub(crate) fn cpu(&self, which: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
        let seconds: Option<f64> = self.rounds.iter().map(which).sum();
        let operations: Option<usize> = self.rounds.iter().map(|round| round.operations).sum();
        let operations = operations.filter(|count| *count > 0)?;
        Some(seconds? / operations as f64 * 1e6)
    }
}

/// The median of sorted figures; of two in the middle, their mean.
fn middle(sorted: &[f64]) -> f64 {
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

impl Row {
    pub(crate) fn entry(&self, server: Kind) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.server == server)
    }

    fn glassine_over(&self, others: impl Fn(Kind) -> bool) -> Option<f64> {
        let medians = self.entries.iter().filter(|entry| others(entry.server));
        let best = medians.filter_map(Entry::median).max_by(f64::total_cmp)?;
        Some(self.entry(Kind::Glassine)?.median()? / best).filter(|_| self.unit.is_speed())
    }

    /// Glassine over the best peer with copy-on-write.
    pub(crate) fn over_peers(&self) -> Option<f64> {
        self.glassine_over(Kind::is_peer)
    }

    /// Glassine over the limit.
    pub(crate) fn over_limit(&self) -> Option<f64> {
        self.glassine_over(|kind| kind == Kind::Limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(server: Kind, figures: &[f64]) -> Entry {
        let rounds = figures.iter().map(|figure| Round { figure: *figure, ..Round::default() });
        Entry { rounds: rounds.collect(), ..Entry::new(server) }
    }

    #[test]
    fn ratios_are_of_medians_to_the_best_peer_and_to_the_limit() {
        let entries = vec![
            entry(Kind::Glassine, &[90.0, 1000.0, 100.0]),
            entry(Kind::QemuQcow2, &[10.0, 30.0]),
            entry(Kind::NbdkitCow, &[25.0]),
            entry(Kind::NbdServerCow, &[]),
            entry(Kind::NbdkitFile, &[77.0]),
            entry(Kind::Limit, &[200.0]),
        ];
        let (title, storage) = (String::new(), String::new());
        let row = Row { workload: "x", title, unit: Unit::Operations, storage, entries };
        assert_eq!(row.entries[0].spread(), Some((90.0, 100.0, 1000.0)));
        assert_eq!(row.entries[1].median(), Some(20.0));
        assert_eq!(row.over_peers(), Some(4.0));
        assert_eq!(row.over_limit(), Some(0.5));
        assert_eq!(Row { unit: Unit::Calls, ..row }.over_peers(), None);
    }

    #[test]
    fn cpu_time_is_of_all_rounds() {
        let mut entry = entry(Kind::Limit, &[1.0, 2.0]);
        assert_eq!(entry.cpu(|round| round.server_cpu_seconds), None);
        for round in &mut entry.rounds {
            (round.operations, round.server_cpu_seconds) = (Some(500_000), Some(0.25));
        }
        entry.rounds[1].server_cpu_seconds = Some(0.75);
        assert_eq!(entry.cpu(|round| round.server_cpu_seconds), Some(1.0));
    }
}
