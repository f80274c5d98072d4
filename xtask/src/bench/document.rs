//! Writes docs/overhead.md: the machine, the tables, the verdicts, the commands.
use std::{fmt::Write as _, fs, process::Command};

use super::{
    Place, Results, closely, lockstep,
    observers::{self, ALONE, BLANK, CALL, OBSERVERS, OTHERS, SERVICE},
    service::{self, CROWDS, Figures},
    statistics::{Ratio, Series, Spread},
    workloads::{PAIRS, PAIRS_OF_TWO, PROGRAMS, SERVERS, WORKLOADS},
};
use crate::shell;

/// The most that a counted call may cost, as a multiple of the same probe with an empty program.
const CALL_LIMIT: f64 = 1.10;
/// The most that programs may take at depth `sysmalloc`, as a multiple of nothing attached.
const SYSMALLOC_LIMIT: f64 = 1.01;
/// Two threads under observation may take this much longer for a pair than one.
const THREADS_LIMIT: f64 = 1.15;

/// The whole document.
pub fn render(place: &Place, results: &Results) -> String {
    let mut out = String::new();
    push(&mut out, "# What observing costs\n");
    push(
        &mut out,
        "Measured by `cargo xtask bench`, which wrote this file; `cargo xtask bench --setup` installs what it compares with.\n",
    );
    push(&mut out, &machine(place));
    let how = if results.quick { "A quick run: fewer workloads and observers. " } else { "" };
    push(
        &mut out,
        &format!(
            "{how}{} rounds in {} s. In each round every observer is started once for the whole machine and every workload runs \
             under it, so that a change of the machine's pace falls on all alike; what is compared to a hundredth takes turns apart \
             from that. A figure is the median of all runs, in brackets the least and the greatest. CPU time is user and \
             system time of the observed program.\n",
            results.rounds, results.seconds
        ),
    );
    push(&mut out, "## Verdicts\n");
    for verdict in verdicts(results) {
        push(&mut out, &format!("- {verdict}"));
    }
    push(&mut out, "\n## A pair of `malloc` and `free`, nanoseconds of CPU time\n");
    table(&mut out, results, 0..PROGRAMS);
    push(&mut out, "\n## Programs, milliseconds of CPU time\n");
    table(&mut out, results, PROGRAMS..WORKLOADS.len());
    push(&mut out, "\n## The service itself\n");
    crowds(&mut out, results);
    push(&mut out, "\n## What ran\n");
    for observer in OBSERVERS.iter().filter(|observer| !observer.shown().is_empty()) {
        push(&mut out, &format!("- {}: `{}`", observer.name, observer.shown()));
    }
    for workload in WORKLOADS {
        push(&mut out, &format!("- {}: {}", workload.name, workload.shown));
    }
    push(&mut out, "\n`LIB` is the libc.");
    push(&mut out, "\n## Not run\n");
    for (what, why) in &results.not_run {
        push(&mut out, &format!("- {what}: {why}"));
    }
    if results.quick {
        let left_out = OBSERVERS.iter().filter(|o| !o.quick).map(|o| o.name);
        let left_out: Vec<_> = left_out.chain(WORKLOADS.iter().filter(|w| !w.quick).map(|w| w.name)).collect();
        push(&mut out, &format!("- left out by `--quick`: {}", left_out.join(", ")));
    }
    push(&mut out, "- libbpf-tools `memleak`: no package of this distribution has it.");
    out
}

/// What the promises come to. A figure that is missing is no verdict.
fn verdicts(results: &Results) -> Vec<String> {
    let cpu = |o: usize, w: usize| results.samples.get(&(o, w)).and_then(Series::cpu);
    let wall = |o: usize, w: usize| results.samples.get(&(o, w)).and_then(Series::wall);
    let mut verdicts = Vec::new();
    let ratio = |a: Option<Spread>, b: Option<Spread>| Some(a?.median / b.filter(|b| b.median > 0.0)?.median);
    verdicts.push(match results.lockstep {
        Some(lockstep::Figures { ratio, blank_ns, call_ns }) => format!(
            "Counting a call with its size costs {:.3} times an empty program on the same sites ({:.3} to {:.3} in 95 of 100 \
             cases; at most {CALL_LIMIT:.2}): {}. A pair of `malloc` and `free` took {call_ns:.0} ns and {blank_ns:.0} ns, medians \
             of {} turns of 5,000 pairs, which two processes took one after the other.",
            ratio.value,
            ratio.low,
            ratio.high,
            judged(ratio, CALL_LIMIT),
            lockstep::TURNS,
        ),
        None => "Counting a call against an empty program: not measured.".to_owned(),
    });
    let threads = |o| ratio(wall(o, PAIRS_OF_TWO), wall(o, PAIRS));
    verdicts.push(match (threads(CALL), threads(BLANK), threads(ALONE)) {
        (Some(call), Some(blank), Some(alone)) => format!(
            "Two threads that allocate at once take {call:.3} times as long for a pair as one does at depth `call` (at most \
             {THREADS_LIMIT:.2}), {blank:.3} times with an empty program, {alone:.3} times alone: {}.",
            held(call <= THREADS_LIMIT.max(blank))
        ),
        _ => "Two threads against one: not measured.".to_owned(),
    });
    for w in SERVERS {
        let name = WORKLOADS.get(w).map_or("?", |workload| workload.name);
        verdicts.push(match results.closely.get(&w) {
            Some(closely::Figures { ratio, turns }) => format!(
                "{name} at depth `sysmalloc`, the default of `serve`, takes {:.4} times what it takes alone ({:.4} to {:.4} in 95 \
                 of 100 cases; at most {SYSMALLOC_LIMIT:.2}): {}. {turns} turns of each, one after the other.",
                ratio.value,
                ratio.low,
                ratio.high,
                judged(*ratio, SYSMALLOC_LIMIT),
            ),
            None => format!("{name} at depth `sysmalloc` against nothing attached: not measured."),
        });
    }
    for (o, observer) in OBSERVERS.iter().enumerate().skip(OTHERS) {
        for (ours, what) in [(CALL, "depth `call`"), (SERVICE, "depth `call` within the budget of `serve`")] {
            let ratios = (0..WORKLOADS.len()).filter_map(|w| Some((w, ratio(cpu(o, w), cpu(ours, w))?)));
            let compared: Vec<(usize, f64)> = ratios.collect();
            if compared.is_empty() {
                continue;
            }
            let (dearer, cheaper): (Vec<_>, Vec<_>) = compared.into_iter().partition(|(_, ratio)| *ratio > 1.0);
            let list = |which: &[(usize, f64)]| {
                let parts =
                    which.iter().filter_map(|(w, ratio)| Some(format!("{} {ratio:.2}", WORKLOADS.get(*w)?.name)));
                parts.collect::<Vec<_>>().join(", ")
            };
            let mut text = format!("{}, as a multiple of {what}:", observer.name);
            if !dearer.is_empty() {
                let _ = write!(text, " dearer in {}", list(&dearer));
            }
            if !cheaper.is_empty() {
                let _ = write!(text, "{} cheaper in {}", if dearer.is_empty() { "" } else { ";" }, list(&cheaper));
            }
            verdicts.push(format!(
                "{text}: ours is below it {}.",
                if cheaper.is_empty() { "everywhere" } else { "not everywhere" }
            ));
        }
    }
    verdicts
}

/// What the service takes beside a crowd, each figure with its limit.
fn crowds(out: &mut String, results: &Results) {
    push(
        out,
        "`malloc-daemon serve` with its defaults, beside processes that `crowd.c` makes; CPU time over 30 s, 80 s after the \
         start, memory then, the median and the 99th percentile of 100 answers of `/v1/snapshot`.\n",
    );
    push(out, "| | ready | CPU | resident | `/v1/snapshot` | its bytes | stopped |");
    push(out, "|---|---|---|---|---|---|---|");
    for (c, f) in &results.service {
        let Some(crowd) = CROWDS.get(*c) else { continue };
        push(
            out,
            &format!(
                "| {} processes {} | {:.0} ms | {:.2} % of a processor | {:.1} MB | {:.1} ms, {:.1} ms | {:.1} MB | {:.0} ms |",
                crowd.processes,
                crowd.name,
                f.ready_ms,
                f.cpu_percent,
                f.resident_mb,
                f.snapshot_ms,
                f.snapshot_p99_ms,
                f.snapshot_mb,
                f.stop_ms
            ),
        );
    }
    push(out, "");
    for (c, f) in &results.service {
        let Some(crowd) = CROWDS.get(*c) else { continue };
        for (what, figure, limit) in limits(crowd, f) {
            push(
                out,
                &format!(
                    "- {} processes {}: {what} at most {limit}: {}.",
                    crowd.processes,
                    crowd.name,
                    held(figure <= limit)
                ),
            );
        }
    }
}

fn limits(crowd: &service::Crowd, f: &Figures) -> Vec<(&'static str, f64, f64)> {
    let mut limits = vec![
        ("ready after milliseconds", f.ready_ms, service::READY_LIMIT_MS),
        ("percent of a processor", f.cpu_percent, crowd.cpu_percent_limit),
        ("milliseconds of a snapshot", f.snapshot_ms, service::SNAPSHOT_LIMIT_MS),
        ("milliseconds to stop", f.stop_ms, service::STOP_LIMIT_MS),
    ];
    limits.extend(crowd.resident_mb_limit.map(|limit| ("MB resident", f.resident_mb, limit)));
    limits
}

/// What an interval says of a limit.
fn judged(ratio: Ratio, limit: f64) -> &'static str {
    match () {
        () if ratio.high <= limit => held(true),
        () if ratio.low > limit => held(false),
        () => "the runs scatter too much to tell",
    }
}

fn held(holds: bool) -> &'static str {
    if holds { "**holds**" } else { "**does not hold**" }
}

fn table(out: &mut String, results: &Results, columns: std::ops::Range<usize>) {
    let workloads: Vec<usize> = columns.filter(|w| results.samples.keys().any(|(_, measured)| measured == w)).collect();
    let names = workloads.iter().filter_map(|w| WORKLOADS.get(*w)).map(|workload| workload.name);
    push(out, &format!("| | runs | {} |", names.collect::<Vec<_>>().join(" | ")));
    push(out, &format!("|---|---|{}", "---|".repeat(workloads.len())));
    for (o, observer) in OBSERVERS.iter().enumerate() {
        let series = |w: &usize| results.samples.get(&(o, *w));
        let runs = workloads.iter().filter_map(series).map(Series::len).max();
        let Some(runs) = runs else { continue };
        let cells = workloads.iter().map(|w| series(w).and_then(Series::cpu).map_or("not run".to_owned(), cell));
        push(out, &format!("| {} | {runs} | {} |", observer.name, cells.collect::<Vec<_>>().join(" | ")));
    }
}

fn cell(spread: Spread) -> String {
    let digits = |value: f64| if value < 100.0 { format!("{value:.1}") } else { grouped(value.round() as u64) };
    format!("{} ({}-{})", digits(spread.median), digits(spread.least), digits(spread.greatest))
}

/// `12345` as `12,345`.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn machine(place: &Place) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str, separator: char| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(separator)?.1.trim().trim_matches('"').to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo");
    let model = field(&cpuinfo, "model name", ':').unwrap_or_else(|| "an unnamed processor".to_owned());
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let flags = field(&cpuinfo, "flags", ':').unwrap_or_default();
    let kind =
        if flags.split(' ').any(|flag| flag == "hypervisor") { "a virtual machine" } else { "no virtual machine" };
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    let system = field(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_else(|| "an unnamed system".to_owned());
    let libc = shell::capture(Command::new("ldd").arg("--version")).unwrap_or_default();
    let libc = libc.lines().next().and_then(|line| line.rsplit(' ').next()).unwrap_or("?").to_owned();
    let versions: Vec<String> = ["bpftrace", "perf", "heaptrack", "sqlite3", "redis-server", "cc"]
        .iter()
        .filter_map(|tool| observers::version(tool).map(|version| format!("{tool}: {version}")))
        .collect();
    let load = read("/proc/loadavg");
    format!(
        "Machine: {model}, {processors} processors, {kind}; Linux {kernel}; {system}, glibc {libc} (`{}`). Load of the machine \
         when it ended: {} (this run alone makes about 1). Versions: {}.\n",
        place.libc.file_name().unwrap_or_default().to_string_lossy(),
        load.split(' ').next().unwrap_or("?"),
        versions.join("; ")
    )
}

fn push(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::workloads::Sample;
    use super::*;
    use std::collections::BTreeMap;

    fn results(figures: &[(usize, usize, f64)]) -> Results {
        let mut samples: BTreeMap<(usize, usize), Series> = BTreeMap::new();
        for (o, w, value) in figures {
            samples.entry((*o, *w)).or_default().push(Sample { cpu: *value, wall: *value });
        }
        Results {
            samples,
            lockstep: None,
            closely: BTreeMap::new(),
            not_run: BTreeMap::new(),
            service: BTreeMap::new(),
            rounds: 1,
            seconds: 2,
            quick: false,
        }
    }

    #[test]
    fn a_promise_holds_or_does_not_by_its_figures() {
        let in_turns = |low, high| {
            let ratio = Ratio { low, value: 1.09, high };
            let lockstep = Some(lockstep::Figures { ratio, blank_ns: 800.0, call_ns: 872.0 });
            verdicts(&Results { lockstep, ..results(&[]) }).remove(0)
        };
        let told = in_turns(1.08, 1.099);
        assert!(
            told.contains("1.090 times") && told.contains("**holds**") && told.contains("872 ns and 800 ns"),
            "{told}"
        );
        assert!(in_turns(1.08, 1.101).contains("scatter too much"));
        assert!(in_turns(1.101, 1.12).contains("**does not hold**"));
        let ratio = Ratio { low: 1.011, value: 1.02, high: 1.03 };
        let closely = BTreeMap::from([(PROGRAMS, closely::Figures { ratio, turns: 40 })]);
        let told = verdicts(&Results { closely, ..results(&[]) });
        assert!(told[2].contains("1.0200 times") && told[2].contains("**does not hold**. 40 turns"), "{told:?}");
    }

    #[test]
    fn what_is_missing_gives_no_verdict() {
        let told = verdicts(&results(&[]));
        assert_eq!(told.len(), 5);
        assert!(told.iter().all(|verdict| verdict.ends_with("not measured.")), "{told:?}");
    }

    #[test]
    fn a_tool_that_is_cheaper_somewhere_is_told_so() {
        let told = verdicts(&results(&[
            (CALL, PAIRS, 1000.0),
            (OTHERS, PAIRS, 300.0),
            (CALL, PROGRAMS, 100.0),
            (OTHERS, PROGRAMS, 150.0),
        ]));
        let told = told.last().expect("a verdict");
        assert!(told.contains("dearer in sqlite3 1.50; cheaper in malloc and free, 1 thread 0.30"), "{told}");
        assert!(told.contains("not everywhere"));
    }

    #[test]
    fn a_cell_has_the_median_and_its_spread() {
        assert_eq!(cell(Spread { least: 9.5, median: 12.34, greatest: 1234.5 }), "12.3 (9.5-1,235)");
    }
}
