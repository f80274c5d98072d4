//! Whether the daemon sees all it should, what it lost, and what it costs.

use std::borrow::Cow;

use super::convert;
use super::document as doc;
use super::document::SCHEMA_VERSION;
use crate::aggregate::model::{Configuration, LossReason, Probe, Snapshot, Verdict};

/// `/v1/health`; `version` is the daemon's.
#[must_use]
pub fn health<'a>(snapshot: &'a Snapshot, configuration: &'a Configuration, version: &'a str) -> doc::Health<'a> {
    let complete = is_complete(snapshot);
    let losses: Vec<(LossReason, u64)> =
        snapshot.losses.iter().chain(snapshot.processes.iter().flat_map(|process| &process.losses)).copied().collect();
    doc::Health {
        schema_version: SCHEMA_VERSION,
        status: Cow::Borrowed(status(snapshot)),
        complete,
        losses: convert::every_loss(&losses),
        probes: snapshot.probes.iter().map(probe).collect(),
        daemon: doc::Daemon {
            version: Cow::Borrowed(version),
            cpu_ms: snapshot.cost.cpu_ms,
            resident_bytes: snapshot.cost.resident_bytes,
            kernel_bytes: snapshot.cost.kernel_bytes,
            collect_us: snapshot.cost.collect_us,
        },
        configuration: doc::Configuration {
            file: configuration.file.as_deref().map(Cow::Borrowed),
            since_unix_ms: configuration.since_unix_ms,
            refused: configuration
                .refused
                .as_ref()
                .map(|(unix_ms, why)| doc::Refused { unix_ms: *unix_ms, why: Cow::Borrowed(why) }),
            restart_for: configuration.restart_for.iter().map(|key| Cow::Borrowed(*key)).collect(),
        },
        history: None,
        calibration: super::cost::calibration(&snapshot.calibration),
        sequence: snapshot.sequence,
        window: convert::window(snapshot.window),
    }
}

/// `ok`; `incomplete`: something is missing; `broken`: a probe that should work does not.
#[must_use]
pub fn status(snapshot: &Snapshot) -> &'static str {
    let broken = snapshot.probes.iter().any(|probe| matches!(probe.verdict, Verdict::Broken(_)));
    match (broken, is_complete(snapshot)) {
        (true, _) => "broken",
        (false, false) => "incomplete",
        (false, true) => "ok",
    }
}

fn is_complete(snapshot: &Snapshot) -> bool {
    snapshot.complete && snapshot.processes.iter().all(|process| process.complete)
}

fn probe(probe: &Probe) -> doc::Probe<'_> {
    let (verdict, why) = match &probe.verdict {
        Verdict::Attached => ("ok", None),
        Verdict::Unsupported(why) => ("unsupported", Some(why)),
        Verdict::Broken(why) => ("broken", Some(why)),
    };
    doc::Probe {
        name: Cow::Borrowed(&probe.name),
        depth: Cow::Borrowed(probe.depth.name()),
        verdict: Cow::Borrowed(verdict),
        why: why.map(|why| Cow::Borrowed(why.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn reloaded() -> Configuration {
        Configuration {
            file: Some("/etc/malloc-daemon/config.toml".to_owned()),
            since_unix_ms: 1_700_000_000_000,
            refused: Some((1_700_000_060_000, "config.toml:1:1: unknown field `dept`".to_owned())),
            restart_for: vec!["listen"],
        }
    }

    #[test]
    fn health_names_every_probe_and_every_loss() {
        let snapshot = sample::lossy();
        insta::assert_snapshot!(serde_json::to_string_pretty(&health(&snapshot, &reloaded(), "0.1.0")).unwrap());
    }

    #[test]
    fn a_broken_probe_is_worse_than_a_loss() {
        let mut snapshot = sample::snapshot(vec![sample::sqlite()]);
        assert_eq!(health(&snapshot, &reloaded(), "0").status, "ok");
        snapshot.complete = false;
        assert_eq!(health(&snapshot, &reloaded(), "0").status, "incomplete");
        snapshot.probes[0].verdict = Verdict::Broken("gone".to_owned());
        assert_eq!(health(&snapshot, &reloaded(), "0").status, "broken");
    }

    #[test]
    fn a_process_that_is_incomplete_makes_health_incomplete() {
        let mut process = sample::sqlite();
        process.complete = false;
        assert_eq!(health(&sample::snapshot(vec![process]), &reloaded(), "0").status, "incomplete");
    }
}
