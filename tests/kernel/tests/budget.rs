//! Proves that deep probing keeps to its budget on a real kernel, what estimates are worth, and the switch.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kernel_tests::daemon::Serving;
use kernel_tests::document::Image;
use kernel_tests::process::{Running, until};
use kernel_tests::text::changed_code;
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use rustix::process::Signal;
use serde_json::Value;

/// Prices and probes are the whole machine's: these tests run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rate() -> Running {
    let mut rate = Running::start(&mut Command::new(victim::program("rate")));
    work(&mut rate, b's');
    rate
}

/// Works for half a second; answers the calls made and the CPU time for each, nanoseconds.
fn work(rate: &mut Running, how: u8) -> (u64, f64) {
    rate.write(&[how]);
    let line = rate.read_line();
    let (calls, cpu_ns) = line.trim().split_once(' ').expect("two numbers");
    let (calls, cpu_ns): (u64, u64) = (calls.parse().expect("calls"), cpu_ns.parse().expect("time"));
    (calls, cpu_ns as f64 / calls as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn is_estimated(image: &Image) -> bool {
    image.0.pointer("/funnel/call/estimated") == Some(&true.into())
}

fn has_interval(image: &Image) -> bool {
    is_estimated(image) && !image.is_null("/funnel/call/interval_95")
}

fn float(image: &Image, pointer: &str) -> f64 {
    image.0.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {:?}", image.0))
}

/// What deep probes cost so far and the CPU time, milliseconds.
fn spent(image: &Image) -> (f64, f64) {
    let deep = float(image, "/cost/ms_by_depth/arena") + float(image, "/cost/ms_by_depth/call");
    (deep, float(image, "/cost/cpu_ms"))
}

fn serving(pid: u32, more: &[&str]) -> Serving {
    let pid_text = pid.to_string();
    let mut arguments = vec!["--pid", &pid_text, "--interval", "100ms"];
    arguments.extend(more);
    let serving = Serving::start(&arguments);
    serving.image_when("its calls are probed", pid, |image| image.text("/depth") == "call");
    serving
}

/// The parts of the calls of `malloc` by bucket, with their intervals.
fn shares(image: &Image) -> BTreeMap<u64, (f64, f64)> {
    let functions = image.0["functions"].as_array().expect("functions");
    let malloc = functions.iter().find(|function| function["name"] == "malloc").expect("malloc");
    let sizes = malloc["sizes"].as_array().expect("sizes").iter();
    let interval = |bucket: &Value, end: usize| bucket["share_interval_95"][end].as_f64().unwrap_or(f64::NAN);
    sizes.map(|b| (b["lo"].as_u64().expect("lo"), (interval(b, 0), interval(b, 1)))).collect()
}

// COST-2, EST-2: the probed program and its unprobed twin take turns.
#[test]
fn a_program_that_allocates_as_fast_as_it_can_is_hardly_slowed_and_its_calls_are_estimated() {
    let _alone = alone();
    const LEAST_ROUNDS: usize = 24;
    const MOST_ROUNDS: usize = 60;
    let (mut probed, mut twin) = (rate(), rate());
    let pid = probed.pid();
    let serving = serving(pid, &[]);
    // What the jump takes until it is noticed is told apart.
    work(&mut probed, b'f');
    let is_told = |image: &Image| is_estimated(image) && !image.is_null("/cost/cpu_ms");
    let began = spent(&serving.image_when("windows", pid, is_told));
    let (mut ratios, mut asked) = (Vec::new(), 1);
    let image = loop {
        let with = work(&mut probed, b'f').1;
        ratios.push(with / work(&mut twin, b'f').1);
        asked += 1;
        let image = serving.image_when("it is estimated", pid, is_estimated);
        if (has_interval(&image) && ratios.len() >= LEAST_ROUNDS) || ratios.len() >= MOST_ROUNDS {
            break image;
        }
    };
    let ended = spent(&image);
    let share = (ended.0 - began.0) / (ended.1 - began.1);
    // Of programs that run: an ended one's estimate is no gauge any more.
    let page = serving.get("/metrics").body;
    // Before the next window: the program waits, and what was counted stands.
    probed.close_input();
    let truth = Truth::parse(&probed.read_line());
    let slowed = median(ratios);
    println!(
        "hits took {:.2} % of {} ms; {slowed:.4} of the twin's time for a call; {:.1} ms until the jump was noticed",
        100.0 * share,
        ended.1 - began.1,
        began.0
    );
    // A window may close late where the daemon gets no processor: that is paid back, not undone.
    assert!(ended.0 - began.0 <= 0.01 * (ended.1 - began.1) + 100.0, "{began:?} {ended:?}");
    // Other load moves both in turn; without a budget it is 30.
    assert!(slowed < 1.15, "{slowed}");
    let coverage = float(&image, "/funnel/call/coverage");
    assert!((0.0..0.2).contains(&coverage), "{coverage}");
    // Windows of nothing but hits tell little of the time between them: no interval is told then, and none is made up.
    if has_interval(&image) {
        let (low, high) = (image.number("/funnel/call/interval_95/0"), image.number("/funnel/call/interval_95/1"));
        let true_calls = truth.functions["malloc"].calls as f64;
        println!("{true_calls} calls, estimated {}, 95 %: {low} to {high}", image.calls("malloc"));
        // One trial in twenty may fall out: not by half.
        assert!(low as f64 / 1.5 <= true_calls && true_calls <= high as f64 * 1.5, "{true_calls}: {low} to {high}");
        let shares = shares(&image);
        for (bytes, part) in [(24, 0.70), (192, 0.25), (2560, 0.05)] {
            let (low, high) = shares[&bytes];
            println!("{part} of the calls ask for {bytes} bytes or a little more, 95 %: {low} to {high}");
            assert!(low - 0.01 <= part && part <= high + 0.01 && high - low < 0.3, "{part}: {low} to {high}");
        }
    }
    // COUNT-1: the cheap levels stay exact.
    assert_eq!(image.number("/crossings/calls"), asked, "a chunk is mapped for each half second");
    assert!(image.0.pointer("/funnel/sysmalloc/estimated").is_none());
    assert!(page.contains("malloc_calls_estimated{comm=\"rate\",function=\"malloc\"}"), "{page}");
}

// COST-2
#[test]
fn a_jump_of_the_rate_ends_full_probing_within_two_seconds() {
    let _alone = alone();
    let mut rate = rate();
    let pid = rate.pid();
    let serving = serving(pid, &[]);
    let before = work(&mut rate, b's').0;
    let image = serving.image_when("the calls", pid, |image| image.calls("malloc") > before);
    assert!(!is_estimated(&image), "{:?}", image.0["funnel"]);
    assert_eq!(image.calls("malloc"), before + 1, "what is within the budget is counted");
    assert!(serving.get("/metrics").body.contains("malloc_budget_tripped 0"));
    let jumped = Instant::now();
    rate.write(b"ffff");
    serving.image_when("windows", pid, is_estimated);
    // The snapshot is at most 100 ms old, and this machine may be busy.
    assert!(jumped.elapsed() < Duration::from_millis(2_500), "{:?}", jumped.elapsed());
    assert!(serving.get("/metrics").body.contains("malloc_budget_tripped 1"));
    for _ in 0..4 {
        rate.read_line();
    }
}

// COST-2: calls exceed the budget, entries of the arena do not: these are counted, those of a size beyond the thread's
// cache all of them.
#[test]
fn the_arena_stays_exact_where_its_entries_fit_the_budget() {
    let _alone = alone();
    let mut rate = rate();
    let pid = rate.pid();
    let serving = serving(pid, &[]);
    let mut calls = 0;
    for _ in 0..4 {
        calls += work(&mut rate, b'm').0;
    }
    // Five of each hundred turns, whichever hundred the count begins in.
    let image = serving.image_when("windows, and all entries", pid, |image| {
        is_estimated(image) && of_size(image, 2560) + 5 >= calls / 20
    });
    assert!(image.0.pointer("/funnel/arena/estimated").is_none(), "{:?}", image.0["funnel"]);
    assert!(of_size(&image, 2560) <= calls / 20 + 5, "{} of {calls}", of_size(&image, 2560));
}

/// Entries of the arena for requests of a bucket.
fn of_size(image: &Image, lo: u64) -> u64 {
    let sizes = image.0["arena_sizes"].as_array().expect("sizes").iter();
    sizes.filter(|bucket| bucket["lo"] == lo).map(|bucket| bucket["calls"].as_u64().expect("calls")).sum()
}

// SAFE-1, HONEST-1: one signal takes every probe out, another puts them back.
#[test]
fn a_signal_takes_all_probes_out_within_two_seconds_and_another_puts_them_back() {
    let _alone = alone();
    let mut rate = rate();
    let pid = rate.pid();
    let serving = serving(pid, &["--budget", "100"]);
    assert!(!changed_code(pid).is_empty(), "it carries probes");
    let asked = Instant::now();
    serving.signal(Signal::USR1);
    // It is told when it is done.
    let image = serving.image_when("it is told", pid, |image| image.text("/depth") == "syscall");
    let gone = asked.elapsed();
    println!("switched off in {gone:?}");
    assert!(gone < Duration::from_millis(2_500), "{gone:?}");
    until("no probe is left", || changed_code(pid).is_empty().then_some(()));
    let why = image.0["not_measured"].to_string();
    assert!(why.contains("switched off") && image.is_null("/funnel/sysmalloc") && image.is_null("/functions"), "{why}");
    assert_eq!(image.0["complete"], false);
    let health = serving.get("/v1/health").json();
    assert!(health["probes"].to_string().contains("switched off"), "{health}");
    work(&mut rate, b's');
    serving.signal(Signal::USR2);
    let before = serving.image_when("its calls are probed again", pid, |image| image.text("/depth") == "call");
    let made = work(&mut rate, b's').0;
    let after = serving.image_when("the calls", pid, |image| image.calls("malloc") >= before.calls("malloc") + made);
    assert_eq!(after.calls("malloc"), before.calls("malloc") + made + 1);
    assert_eq!((&after.0["from_start"], &after.0["complete"]), (&false.into(), &false.into()), "there is a gap");
    assert_eq!(serving.stop(Signal::TERM).code(), 0);
}

// SAFE-1: the configuration switches, too, from the start and at a reload.
#[test]
fn a_key_of_the_configuration_keeps_all_probes_out() {
    let _alone = alone();
    let rate = rate();
    let pid = rate.pid();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    let write = |probing: bool| {
        let text = format!("interval = '100ms'\nprobing = {probing}\n[deep]\ncomm = ['rate']\n");
        std::fs::write(&file, text).expect("written");
    };
    write(false);
    let serving = Serving::start(&["--config", file.to_str().expect("a path in UTF-8")]);
    serving.image_when("it is told", pid, |image| image.0["not_measured"].to_string().contains("switched off"));
    write(true);
    serving.signal(Signal::HUP);
    serving.image_when("its calls are probed", pid, |image| image.text("/depth") == "call");
    assert!(!changed_code(pid).is_empty());
    write(false);
    serving.signal(Signal::HUP);
    let image = serving.image_when("it is told", pid, |image| image.text("/depth") == "syscall");
    assert!(image.is_null("/functions") && image.is_null("/funnel/sysmalloc"), "{:?}", image.0["funnel"]);
}
