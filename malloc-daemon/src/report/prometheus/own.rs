//! The daemon's own metrics: how its probes fare, what it costs, when it started.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::gauge;
use crate::aggregate::model::{DaemonCost, Snapshot, Verdict};

/// What the newest snapshot says of the daemon.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    started_unix_ms: u64,
    complete: bool,
    cost: DaemonCost,
    attached: u64,
    unsupported: u64,
    broken: u64,
    over_budget: u64,
}

impl Own {
    /// The figures of a newer snapshot. The start stays: worked out anew it would follow each change of the clock, and
    /// a start that moves reads as a restart.
    pub(super) fn renewed(self, snapshot: &Snapshot) -> Self {
        let started = Some(self.started_unix_ms).filter(|started| *started != 0);
        let mut own = Self {
            started_unix_ms: started.unwrap_or(snapshot.window.start_unix_ms),
            complete: snapshot.complete,
            cost: snapshot.cost,
            over_budget: snapshot.processes.iter().filter(|process| process.over_budget).count() as u64,
            ..Self::default()
        };
        for probe in &snapshot.probes {
            match probe.verdict {
                Verdict::Attached => own.attached += 1,
                Verdict::Unsupported(_) => own.unsupported += 1,
                Verdict::Broken(_) => own.broken += 1,
            }
        }
        own
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Probes, or families of probes on one file, by what became of them";
        let mut metric = encoder.encode_descriptor("malloc_probes", help, None, MetricType::Gauge)?;
        for (verdict, count) in [("ok", self.attached), ("unsupported", self.unsupported), ("broken", self.broken)] {
            gauge(&mut metric, &[("verdict", verdict)], count)?;
        }
        let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
        let figures: [(&str, &str, f64); 6] = [
            (
                "malloc_complete",
                "1 when nothing is missing from the counts since the start",
                f64::from(u8::from(self.complete)),
            ),
            (
                "malloc_daemon_start_time_seconds",
                "When counting began, seconds since 1970",
                seconds(self.started_unix_ms),
            ),
            (
                "malloc_budget_tripped",
                "Processes whose calls are counted in windows now, because counting all would exceed the budget",
                self.over_budget as f64,
            ),
            ("malloc_daemon_resident_bytes", "Resident memory of the daemon", self.cost.resident_bytes as f64),
            ("malloc_daemon_kernel_bytes", "Ceiling of the daemon's kernel maps", self.cost.kernel_bytes as f64),
            ("malloc_daemon_collect_seconds", "Duration of the last collection", self.cost.collect_us as f64 / 1e6),
        ];
        for (name, help, value) in figures {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        let help = "CPU time of the daemon";
        let mut metric = encoder.encode_descriptor("malloc_daemon_cpu_seconds", help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, f64, f64>(&seconds(self.cost.cpu_ms), None)
    }
}
