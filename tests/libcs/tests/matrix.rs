//! Every internal function of every libc at hand is told as its symbols say, or not at all.
#![cfg(feature = "archives")]

use std::time::{Duration, Instant};

use libc_tests::archive::{ARCHES, SUITES, build};
use libc_tests::compare::{Verdict, items};
use malloc_daemon::targets::analyse;
use malloc_daemon::targets::locate::{analyse_knowing, evidence};

/// A tenth of a second is promised of an optimized build; an unoptimized one takes ten times as long.
const LIMIT: Duration = Duration::from_secs(1);

#[test]
fn what_is_told_of_a_stripped_libc_is_what_its_symbols_say() {
    let mut names = Vec::new();
    let mut columns: Vec<(String, Vec<Verdict>)> = Vec::new();
    let (mut failures, mut not_run) = (Vec::new(), Vec::new());
    for (suite, arch) in SUITES.iter().flat_map(|suite| ARCHES.map(|arch| (*suite, arch))) {
        let column = format!("{suite}-{}", arch.name);
        let build = match build(suite, arch) {
            Ok(build) => build,
            Err(why) => {
                not_run.push(format!("{column}: {why}"));
                if suite != "bullseye" {
                    failures.push(format!("{column} was not run: {why}"));
                }
                continue;
            }
        };
        let started = Instant::now();
        let nothing = None::<&[u8]>;
        let (inferred, made) = analyse_knowing(&*build.libc, nothing, None).expect("a libc");
        let took = started.elapsed();
        let started = Instant::now();
        let (again, anew) = analyse_knowing(&*build.libc, nothing, made.as_ref()).expect("a libc");
        let took_again = started.elapsed();
        if anew.is_some() || again != inferred {
            failures.push(format!("{column}: what was inferred before is not believed, or gives another result"));
        }
        let truth = analyse(&*build.libc, Some(&*build.debug)).expect("a libc");
        assert_eq!(truth.located_by.name(), "debug_file");
        println!("{column}: {}, {} hooks, {took:?}, known before {took_again:?}", build.version, inferred.hooks.len());
        for missing in &inferred.missing {
            println!("  missing at {}: {}: {}", missing.depth, missing.what, missing.why);
        }
        if took > LIMIT {
            failures.push(format!("{column} took {took:?}"));
        }
        for (located, whose) in [(&inferred, "the inference"), (&truth, "the symbols")] {
            let checks = evidence(&*build.libc, located).expect("a libc").checks;
            let wrong: Vec<_> = checks.iter().filter(|check| !check.holds).collect();
            if checks.len() < 12 || !wrong.is_empty() {
                failures.push(format!("{column}: of {} cross-checks of {whose} fail {wrong:?}", checks.len()));
            }
        }
        let verdicts = items(&inferred, &truth);
        names = verdicts.iter().map(|(name, _)| *name).collect();
        for (name, verdict) in &verdicts {
            if *verdict == Verdict::Wrong {
                failures.push(format!("{name} of {column} is wrong"));
            }
        }
        columns.push((column, verdicts.into_iter().map(|(_, verdict)| verdict).collect()));
    }
    print(&names, &columns);
    not_run.iter().for_each(|line| println!("not run: {line}"));
    assert!(!columns.is_empty(), "no libc was looked at: {not_run:?}");
    assert!(failures.is_empty(), "{failures:#?}");
}

fn print(names: &[&str], columns: &[(String, Vec<Verdict>)]) {
    let all = || columns.iter().flat_map(|(_, verdicts)| verdicts);
    let good = all().filter(|verdict| !matches!(verdict, Verdict::Wrong | Verdict::Unidentified)).count();
    println!("{good} of {} items as the symbols say", all().count());
    print!("{:24}", "");
    columns.iter().for_each(|(name, _)| print!(" {name:>18}"));
    println!();
    for (row, name) in names.iter().enumerate() {
        print!("{name:24}");
        for (_, verdicts) in columns {
            print!(" {:>18}", verdicts.get(row).map_or("-", |verdict| verdict.word()));
        }
        println!();
    }
}
