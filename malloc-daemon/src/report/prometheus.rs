//! Metrics: processes of one name summed, no pid or address ever a label, every cap counted.

mod chunks;
mod figures;
mod own;
mod totals;

use std::fmt;

use malloc_common::abi::{ALL_ORIGINS, Syscall};
use malloc_common::depth::DEPTHS;
use malloc_common::function;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use self::figures::{BOUNDS, Figures};
use self::totals::Sums;
pub use self::totals::{NAMES, OTHER, Totals};

/// The two text formats that scrapers read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0
    OpenMetrics,
    /// Prometheus text 0.0.4
    Classic,
}

impl Format {
    /// What a scraper with this `Accept` header wants.
    #[must_use]
    pub fn from_accept(accept: &str) -> Self {
        let asked = accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/openmetrics-text"));
            named && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        });
        if asked { Format::OpenMetrics } else { Format::Classic }
    }

    /// The media type to answer with.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What processes are summed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Label {
    /// Their names.
    #[default]
    Comm,
    /// Their control groups.
    Cgroup,
}

impl Label {
    /// The name of the label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Label::Comm => "comm",
            Label::Cgroup => "cgroup",
        }
    }
}

/// The metrics as a scraper reads them; `version` is the daemon's.
///
/// At most [`NAMES`] + 1 names unless configured otherwise, each with 9 functions, 8 histograms of 15 lines, 14 origins twice and 3 more:
/// 201 x 160 lines in the worst case, where every function of every program is probed. At the default depth
/// it is 201 x 31.
#[must_use]
pub fn render(totals: &Totals, version: &str, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page {
        sums: totals.sums().clone(),
        label: totals.label().name(),
        version: version.to_owned(),
    }));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, &registry);
    match format {
        Format::OpenMetrics => out,
        Format::Classic => classic(&out),
    }
}

/// Prometheus text 0.0.4 from OpenMetrics: a counter's family there bears the `_total` of its samples.
///
/// Label values hold no line ends (the encoder escapes them), so lines that begin with `#` are comments.
fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help: Option<&str> = None;
    for line in open_metrics.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = Some(text);
        } else if let Some(text) = line.strip_prefix("# TYPE ") {
            let suffix = if text.ends_with(" counter") { "_total" } else { "" };
            for (word, text) in [("HELP", help.take()), ("TYPE", Some(text))] {
                if let Some((name, rest)) = text.and_then(|text| text.split_once(' ')) {
                    out.push_str(&format!("# {word} {name}{suffix} {rest}\n"));
                }
            }
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[derive(Debug)]
struct Page {
    sums: Sums,
    label: &'static str,
    version: String,
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.calls(&mut encoder)?;
        self.requests(&mut encoder)?;
        self.crossings(&mut encoder)?;
        self.chunks(&mut encoder)?;
        self.system_calls(&mut encoder)?;
        self.cost(&mut encoder)?;
        self.daemon(&mut encoder)
    }
}

impl Page {
    fn calls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Outermost calls of an allocator function that could succeed";
        let mut metric = encoder.encode_descriptor("malloc_calls", help, None, MetricType::Counter)?;
        for (name, figures) in self.sums.names() {
            for (function, calls) in function::ALL.into_iter().zip(figures.calls) {
                if let Some(calls) = calls {
                    counter(&mut metric, &[(self.label, name), ("function", function.name())], calls)?;
                }
            }
        }
        let help =
            "Estimated calls of processes over the budget of deep probing, of those that run; not in malloc_calls";
        let mut metric = encoder.encode_descriptor("malloc_calls_estimated", help, None, MetricType::Gauge)?;
        for (name, figures) in self.sums.names() {
            for (function, calls) in function::ALL.into_iter().zip(figures.estimated) {
                if let Some(calls) = calls {
                    gauge(&mut metric, &[(self.label, name), ("function", function.name())], calls)?;
                }
            }
        }
        let help = "Part of the time in which the calls of these are counted, the least of those that run";
        let mut metric = encoder.encode_descriptor("malloc_calls_coverage_ratio", help, None, MetricType::Gauge)?;
        for (name, figures) in self.sums.names() {
            if let Some(ppm) = figures.coverage_ppm {
                ConstGauge::new(f64::from(ppm) / 1e6).encode(metric.encode_family(&[(self.label, name)])?)?;
            }
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes requested by a call of an allocator function";
        let mut metric = encoder.encode_descriptor("malloc_request_bytes", help, None, MetricType::Histogram)?;
        for (name, figures) in self.sums.names() {
            for (function, requests) in function::ALL.into_iter().zip(&figures.requests) {
                let Some(requests) = requests else { continue };
                let bounds = BOUNDS.into_iter().map(|bound| bound as f64).chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(requests.buckets).collect();
                let count = requests.buckets.iter().fold(0u64, |sum, calls| sum.saturating_add(*calls));
                metric
                    .encode_family(&[(self.label, name), ("function", function.name())])?
                    .encode_histogram::<NoLabelSet>(requests.sum as f64, count, &buckets, None)?;
            }
        }
        Ok(())
    }

    fn crossings(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Chunks that malloc mapped because they were at or over the threshold";
        self.by_name(encoder, "malloc_mmap_crossings", help, |figures| figures.crossings)?;
        let help = "Times the mmap threshold was seen to rise";
        self.by_name(encoder, "malloc_mmap_threshold_raises", help, |figures| figures.raises)?;
        let help = "The mmap threshold, the highest of the running processes of this name";
        let mut metric = encoder.encode_descriptor("malloc_mmap_threshold_bytes", help, None, MetricType::Gauge)?;
        for (name, figures) in self.sums.names() {
            if let Some(threshold) = figures.threshold {
                gauge(&mut metric, &[(self.label, name)], threshold)?;
            }
        }
        Ok(())
    }

    fn system_calls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Of = fn(&Figures) -> &[Option<u64>; malloc_common::abi::ORIGINS];
        let families: [(&str, &str, Of); 2] = [
            ("malloc_syscalls", "System calls that succeeded, by who in the process asked", |f| &f.origin_calls),
            ("malloc_kernel_bytes", "Bytes mapped, unmapped, resized or moved by these calls", |f| &f.origin_bytes),
        ];
        for (family, help, of) in families {
            let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Counter)?;
            for (name, figures) in self.sums.names() {
                for (origin, value) in ALL_ORIGINS.into_iter().zip(of(figures)) {
                    let syscall: Syscall = origin.syscall();
                    if let Some(value) = value {
                        let labels = [(self.label, name), ("syscall", syscall.name()), ("origin", origin.name())];
                        counter(&mut metric, &labels, *value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn cost(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "CPU time that observing cost the processes, estimated: hits times the price of one";
        let mut metric = encoder.encode_descriptor("malloc_observation_seconds", help, None, MetricType::Counter)?;
        for (name, figures) in self.sums.names() {
            if let Some(ns) = figures.cost_ns {
                ConstCounter::new(ns as f64 / 1e9).encode(metric.encode_family(&[(self.label, name)])?)?;
            }
        }
        let Some(prices) = self.sums.prices() else { return Ok(()) };
        let help = "What a hit of a probe costs the observed program, measured at start";
        let mut metric = encoder.encode_descriptor("malloc_probe_hit_seconds", help, None, MetricType::Gauge)?;
        for (probe, ns) in [
            ("blank", prices.blank_ns),
            ("stepped", prices.stepped_ns),
            ("call", prices.call_ns),
            ("arena", prices.arena_ns),
            ("slow", prices.slow_ns),
            ("branch", prices.branch_ns),
            ("syscall", prices.syscall_ns),
            ("other_syscall", prices.other_syscall_ns),
        ] {
            ConstGauge::new(ns as f64 / 1e9).encode(metric.encode_family(&[("probe", probe)])?)?;
        }
        Ok(())
    }

    fn daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Things that happened and are missing from the counts, by reason";
        let mut metric = encoder.encode_descriptor("malloc_lost", help, None, MetricType::Counter)?;
        for (reason, count) in self.sums.lost() {
            counter(&mut metric, &[("reason", reason.name())], count)?;
        }
        let help = "What the probes of a depth counted";
        let mut metric = encoder.encode_descriptor("malloc_probe_hits", help, None, MetricType::Counter)?;
        for (depth, hits) in DEPTHS.into_iter().zip(self.sums.hits()) {
            if let Some(hits) = hits {
                counter(&mut metric, &[("depth", depth.name())], hits)?;
            }
        }
        let help = "Processes counted under the name `other` because all names were taken";
        let mut metric = encoder.encode_descriptor("malloc_series_folded", help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, f64>(&self.sums.folded(), None)?;
        let help = "The version that runs";
        let mut metric = encoder.encode_descriptor("malloc_daemon_build_info", help, None, MetricType::Gauge)?;
        gauge(&mut metric, &[("version", self.version.as_str())], 1)?;
        self.sums.own().encode(encoder)
    }

    fn by_name(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        family: &str,
        help: &str,
        of: fn(&Figures) -> Option<u64>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Counter)?;
        for (name, figures) in self.sums.names() {
            if let Some(value) = of(figures) {
                counter(&mut metric, &[(self.label, name)], value)?;
            }
        }
        Ok(())
    }
}

fn counter<const N: usize>(metric: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(metric.encode_family(labels)?)
}

fn gauge<const N: usize>(metric: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], value: u64) -> fmt::Result {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric.encode_family(labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn every_promised_name_is_there_in_the_classic_format() {
        let mut totals = Totals::default();
        totals.feed(&sample::lossy());
        let text = render(&totals, "0.1.0", Format::Classic);
        insta::assert_snapshot!(text);
        for name in [
            "malloc_calls_total",
            "malloc_request_bytes",
            "malloc_mmap_crossings_total",
            "malloc_mmap_threshold_bytes",
            "malloc_mmap_threshold_raises_total",
            "malloc_syscalls_total",
            "malloc_kernel_bytes_total",
            "malloc_lost_total",
            "malloc_probe_hits_total",
            "malloc_series_folded_total",
            "malloc_daemon_build_info",
            "malloc_probes",
            "malloc_complete",
            "malloc_daemon_start_time_seconds",
            "malloc_daemon_cpu_seconds_total",
            "malloc_daemon_resident_bytes",
            "malloc_daemon_kernel_bytes",
            "malloc_daemon_collect_seconds",
        ] {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}");
        }
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn open_metrics_ends_with_its_mark() {
        let mut totals = Totals::default();
        totals.feed(&sample::snapshot(vec![sample::sqlite()]));
        let text = render(&totals, "0.1.0", Format::OpenMetrics);
        assert!(text.ends_with("# EOF\n"));
        assert!(text.contains("# TYPE malloc_calls counter\n"));
        assert!(text.contains("\nmalloc_calls_total{comm=\"sqlite3\",function=\"malloc\"} 618397\n"));
    }

    #[test]
    fn what_is_not_measured_has_no_series() {
        let mut totals = Totals::default();
        totals.feed(&sample::snapshot(vec![sample::at_depth_syscall()]));
        let text = render(&totals, "0.1.0", Format::Classic);
        assert!(!text.contains("malloc_calls_total{"));
        assert!(!text.contains("malloc_mmap_crossings_total{"));
        assert!(!text.contains("origin=\"crossing\""));
        assert!(!text.contains("malloc_probe_hits_total{depth=\"call\"}"));
        assert!(text.contains("malloc_syscalls_total{comm=\"java\",syscall=\"mmap\",origin=\"file\"} 24\n"));
    }

    #[test]
    fn processes_of_one_control_group_are_summed_under_it() {
        let mut totals = Totals::new(Label::Cgroup, NAMES);
        let mut outside = sample::hostile();
        outside.cgroup = None;
        totals.feed(&sample::snapshot(vec![sample::sqlite(), outside]));
        let text = render(&totals, "0.1.0", Format::Classic);
        let cgroup = sample::sqlite().cgroup.unwrap();
        assert!(text.contains(&format!("malloc_mmap_crossings_total{{cgroup=\"{cgroup}\"}} 1\n")), "{text}");
        assert!(text.contains("malloc_mmap_crossings_total{cgroup=\"unknown\"} 1\n"), "{text}");
        assert!(!text.contains("comm=\""), "{text}");
    }

    #[test]
    fn a_hostile_name_stays_within_its_label() {
        let mut totals = Totals::default();
        totals.feed(&sample::snapshot(vec![sample::hostile()]));
        let text = render(&totals, "0.1.0", Format::Classic);
        assert!(text.contains(r#"malloc_mmap_crossings_total{comm="\\x1b[2J\"}\\x0a\\u{202e}\\\\"} 1"#), "{text}");
        assert!(text.lines().all(|line| line.starts_with("malloc_") || line.starts_with("# ")));
    }

    #[test]
    fn the_format_follows_the_accept_header() {
        assert_eq!(Format::from_accept("*/*"), Format::Classic);
        assert_eq!(Format::from_accept("text/plain;version=0.0.4"), Format::Classic);
        assert_eq!(
            Format::from_accept("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"),
            Format::OpenMetrics
        );
        assert_eq!(Format::from_accept("application/openmetrics-text;q=0"), Format::Classic);
    }
}
