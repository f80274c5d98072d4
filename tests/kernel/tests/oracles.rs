//! Proves the measure before anything is measured: two independent accounts of each victim agree.
//!
//! This needs neither root nor the daemon. If it fails, no other result of these tests means anything.
#![cfg(feature = "real-kernel")]

use kernel_tests::victim::{calls_of_the_libc, run_alone};

// The other tests compare with the victim's account alone, so the libc must add nothing to it.
#[test]
fn the_libc_makes_no_call_of_its_own_in_a_program_of_one_thread() {
    let victims: [(&str, &[&str]); 14] = [
        ("sizes", &[]),
        ("sizes", &["small"]),
        ("functions", &["public"]),
        ("refused", &[]),
        ("signals", &["raise"]),
        ("signals", &["storm"]),
        ("crossings_storm", &[]),
        ("crossings_storm", &["2000", "40000", "keep"]),
        ("dynamic_threshold", &[]),
        ("fallback", &["1000"]),
        ("trim", &[]),
        ("own_syscalls", &[]),
        ("trace_one", &[]),
        ("busy", &[]),
    ];
    for (name, arguments) in victims {
        for (function, beyond) in calls_of_the_libc(name, arguments) {
            let nothing = beyond.calls == 0 && beyond.failed.unwrap_or(0) == 0;
            assert!(nothing, "{name} {arguments:?}: {function}: {beyond:?} not made by the victim");
        }
    }
}

#[test]
fn the_libc_makes_the_same_calls_for_its_threads_in_every_run() {
    for (name, arguments) in [("threads", ["16", "500"]), ("stacks_arenas", ["16", "32"])] {
        let first = calls_of_the_libc(name, &arguments);
        for _ in 0..5 {
            assert_eq!(first, calls_of_the_libc(name, &arguments), "{name}");
        }
        assert!(first.values().any(|row| row.calls >= 16), "{name}: each thread costs the libc a call");
    }
}

#[test]
fn a_victim_gives_the_same_account_in_every_run() {
    let victims: [(&str, &[&str]); 6] = [
        ("functions", &[]),
        ("longjmp", &[]),
        ("threads", &["4"]),
        ("crossings_storm", &[]),
        ("dynamic_threshold", &[]),
        ("trim", &[]),
    ];
    for (name, arguments) in victims {
        let (first, second) = (&run_alone(name, arguments)[0], &run_alone(name, arguments)[0]);
        assert_eq!(first.functions, second.functions, "{name}");
        assert_eq!(first.crossings, second.crossings, "{name}");
        assert_eq!((first.threshold, &first.facts), (second.threshold, &second.facts), "{name}");
    }
}
