//! No kernel program outgrows what the verifier was measured to walk through.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeMap;

use kernel_tests::daemon::run_daemon;

const BUDGETS: &str = include_str!("../../../malloc-ebpf/budgets.txt");
/// The first kernel that tells `verified_insns`.
const TOLD_SINCE: (u32, u32) = (5, 16);

// COST-1
#[test]
fn the_verifier_walks_no_program_further_than_its_budget() {
    let ended = run_daemon(["programs"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let verified: BTreeMap<&str, &str> = ended.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
    let budgets: Vec<&str> = BUDGETS.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(!budgets.is_empty() && budgets.len() == verified.len(), "{budgets:?} {verified:?}");
    for line in budgets {
        let words: Vec<&str> = line.split(' ').collect();
        let (name, budget) = (words[0], words[2].parse::<u64>().expect("a number"));
        match verified[name].parse::<u64>() {
            Ok(walked) => assert!(walked > 0 && walked <= budget, "{name}: {walked} of {budget}"),
            Err(_) => assert!(kernel() < TOLD_SINCE, "{name}: this kernel must tell how far it walked"),
        }
    }
}

fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse().ok());
    (numbers.next().expect("a major version"), numbers.next().expect("a minor version"))
}
