//! What a hit of a probe costs here, in words.

use crate::aggregate::model::{Calibration, Prices};
use crate::aggregate::price::TableCheck;
use crate::host::checks::Verdict;
use crate::report::doctor::Finding;
use crate::targets::Located;

/// The prices that were measured at the start, and what they mean for this machine's libc.
pub fn findings(calibration: &Calibration, libc: Option<&Located>) -> Vec<Finding> {
    let finding = |name: &str, verdict, found: String, remedy: Option<&str>| Finding {
        name: name.to_owned(),
        verdict,
        found,
        remedy: remedy.map(str::to_owned),
    };
    let prices = match calibration {
        Calibration::Measured(prices) => prices,
        Calibration::NotMeasured(why) => {
            return vec![finding("prices", Verdict::Degraded, format!("not measured: {why}"), None)];
        }
    };
    let mut findings: Vec<_> = [
        ("public function, with its size", prices.call_ns),
        ("_int_malloc", prices.arena_ns),
        ("function of the slow path", prices.slow_ns),
        ("branch to a system call", prices.branch_ns),
        ("system call, both its tracepoints", prices.syscall_ns),
        ("any other system call of the machine", prices.other_syscall_ns),
        ("a program that does nothing", prices.blank_ns),
        ("the same, instruction stepped over", prices.stepped_ns),
    ]
    .map(|(name, ns)| finding(name, Verdict::Ok, microseconds(ns), None))
    .into();
    let kinds = prices.kinds.len();
    let name = "instructions taken for emulated";
    findings.push(match prices.table() {
        TableCheck::Holds => finding(name, Verdict::Ok, format!("all {kinds} kinds are"), None),
        TableCheck::Untold => {
            finding(name, Verdict::Ok, "not told apart: stepping is as cheap on this machine".to_owned(), None)
        }
        TableCheck::Steps(steps) => finding(
            name,
            Verdict::Degraded,
            format!("this kernel steps over {}", steps.join(", ")),
            Some("Probes on these cost more than need be: report the kernel's release."),
        ),
    });
    findings.extend(
        libc.map(|libc| finding("public functions only by stepping", Verdict::Ok, stepped(libc, prices), None)),
    );
    findings
}

/// `valloc, pvalloc: left out unless --stepped is given, then 11.2 us a call`
fn stepped(libc: &Located, prices: &Prices) -> String {
    let names: Vec<&str> = libc.hooks.iter().filter(|hook| hook.is_dear()).map(|hook| hook.symbol.as_str()).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    let price = prices.call_ns.saturating_add(prices.stepped_ns.saturating_sub(prices.blank_ns));
    format!("{}: left out unless --stepped is given, then {} a call", names.join(", "), microseconds(price))
}

fn microseconds(ns: u64) -> String {
    format!("{}.{:02} us", ns / 1000, ns % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices() -> Prices {
        Prices {
            blank_ns: 800,
            stepped_ns: 10_800,
            call_ns: 850,
            kinds: vec![("push", 800), ("jcc", 9_900)],
            ..Prices::default()
        }
    }

    #[test]
    fn a_kernel_that_steps_where_the_table_says_it_emulates_is_told() {
        let found = findings(&Calibration::Measured(prices()), None);
        assert_eq!(found[0].found, "0.85 us");
        let last = found.last().unwrap();
        assert_eq!((last.verdict, last.found.as_str()), (Verdict::Degraded, "this kernel steps over jcc"));
    }

    #[test]
    fn prices_that_were_not_measured_say_why() {
        let found = findings(&Calibration::NotMeasured("no rights".to_owned()), None);
        assert_eq!(found[0].found, "not measured: no rights");
    }
}
