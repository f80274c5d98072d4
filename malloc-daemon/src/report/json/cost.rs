//! What observing costs: prices of hits and the sums of processes.

use std::borrow::Cow;

use super::document as doc;
use crate::aggregate::model::{Calibration, Cost};
use crate::aggregate::price::TableCheck;

pub(super) fn cost(cost: &Cost) -> doc::Cost {
    let [syscall, sysmalloc, arena, call] = cost.ns_by_depth.map(milliseconds);
    let [hits_syscall, hits_sysmalloc, hits_arena, hits_call] = cost.hits.by_depth().map(|(_, hits)| hits);
    doc::Cost {
        estimated: true,
        ms: milliseconds(cost.ns()),
        cpu_ms: cost.cpu_ns.map(|ns| ns / 1_000_000),
        share: cost.share().map(|share| (share * 1e6).round() / 1e6),
        hits: doc::ByDepth { syscall: hits_syscall, sysmalloc: hits_sysmalloc, arena: hits_arena, call: hits_call },
        ms_by_depth: doc::ByDepth { syscall, sysmalloc, arena, call },
    }
}

/// To the microsecond.
fn milliseconds(ns: u64) -> f64 {
    (ns / 1000) as f64 / 1000.0
}

pub(super) fn calibration(calibration: &Calibration) -> doc::Calibration<'_> {
    match calibration {
        Calibration::NotMeasured(why) => {
            doc::Calibration { not_measured: Some(Cow::Borrowed(why)), hit_ns: None, emulated_ns: None, table: None }
        }
        Calibration::Measured(prices) => doc::Calibration {
            not_measured: None,
            hit_ns: Some(doc::HitPrices {
                blank: prices.blank_ns,
                stepped: prices.stepped_ns,
                call: prices.call_ns,
                arena: prices.arena_ns,
                slow: prices.slow_ns,
                branch: prices.branch_ns,
                syscall: prices.syscall_ns,
                other_syscall: prices.other_syscall_ns,
            }),
            emulated_ns: Some(prices.kinds.iter().map(|(kind, ns)| (Cow::Borrowed(*kind), *ns)).collect()),
            table: Some(Cow::Borrowed(match prices.table() {
                TableCheck::Holds => "holds",
                TableCheck::Steps(_) => "steps",
                TableCheck::Untold => "untold",
            })),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_cost_is_told_in_whole_and_by_depth() {
        let told = cost(&sample::sqlite().cost.expect("calibrated"));
        assert_eq!((told.ms, told.cpu_ms, told.share), (802.448, Some(1030), Some(0.779_076)));
        assert_eq!((told.hits.call, told.hits.sysmalloc, told.ms_by_depth.syscall), (1_235_430, 330, 0.06));
    }

    #[test]
    fn what_was_not_measured_is_null_and_says_why() {
        let told = Calibration::NotMeasured("no rights".to_owned());
        let json = serde_json::to_value(calibration(&told)).expect("JSON");
        assert_eq!(json["not_measured"], "no rights");
        assert!(json["hit_ns"].is_null() && json["emulated_ns"].is_null() && json["table"].is_null());
    }
}
