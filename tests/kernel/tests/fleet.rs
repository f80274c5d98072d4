//! Proves that what fleets are watched with understands the daemon: Prometheus, its alerts, a dashboard, a collector.
#![cfg(feature = "real-kernel")]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kernel_tests::daemon::Serving;
use kernel_tests::http::try_get;
use kernel_tests::process::{Running, run, until};
use kernel_tests::victim::workspace;
use libc_tests::archive::package;
use serde_json::Value;
use tempfile::TempDir;

fn packaged(file: &str) -> PathBuf {
    workspace().join("packaging").join(file)
}

fn prometheus(program: &str) -> PathBuf {
    package("bookworm", "prometheus").expect("Prometheus from the archive").join("usr/bin").join(program)
}

/// A port that nobody uses at the moment.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

/// Families by the names that samples begin with, from `# TYPE` lines.
fn families(page: &str) -> BTreeSet<String> {
    let typed = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    typed.filter_map(|rest| Some(rest.split_once(' ')?.0.to_owned())).collect()
}

/// The names that Prometheus or what is compatible with it holds; none while it does not answer.
fn names_held(address: &str, prefix: &str) -> BTreeSet<String> {
    let answer = try_get(address, &format!("{prefix}/api/v1/label/__name__/values"));
    let Some(answer) = answer.filter(|answer| answer.status == 200) else { return BTreeSet::new() };
    let names = answer.json()["data"].as_array().cloned().unwrap_or_default();
    names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Families that a scraped page has samples of.
fn sampled(page: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    families(page).into_iter().filter(|name| lines.iter().any(|line| line.starts_with(name.as_str()))).collect()
}

#[test]
fn a_real_prometheus_scrapes_every_family_and_loads_the_alerts() {
    let serving = Serving::start(&[]);
    let folder = TempDir::new().expect("a folder");
    let (address, config) = (free_address(), folder.path().join("prometheus.yml"));
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\nscrape_configs:\n  \
         - job_name: malloc-daemon\n    static_configs: [{{targets: [{:?}]}}]\n",
        packaged("prometheus-alerts.yml").canonicalize().expect("the alerts"),
        serving.address
    );
    std::fs::write(&config, text).expect("written");
    let mut scraper = Command::new(prometheus("prometheus"));
    scraper.arg(format!("--config.file={}", config.display()));
    scraper.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    scraper.arg(format!("--web.listen-address={address}"));
    let scraper = Running::start(&mut scraper);

    let wanted = sampled(&serving.get("/metrics").body);
    assert!(wanted.len() > 10, "{wanted:?}");
    // A histogram is held as its parts.
    let has = |held: &BTreeSet<String>, name: &String| held.contains(name) || held.contains(&format!("{name}_count"));
    until("Prometheus holds every family", || {
        let held = names_held(&address, "");
        wanted.iter().all(|name| has(&held, name)).then_some(())
    });
    let up = until("the scrape is judged", || {
        let answer = try_get(&address, "/api/v1/query?query=up")?.json();
        answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    });
    assert_eq!(up, "1");
    let rules = try_get(&address, "/api/v1/rules").expect("an answer").json();
    let rules = rules["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
    assert!(rules.len() >= 4, "{rules:?}");
    assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
    scraper.signal(rustix::process::Signal::TERM);
    assert_eq!(scraper.end().code(), 0);
}

#[test]
fn promtool_finds_nothing_to_say_against_metrics_and_alerts() {
    let serving = Serving::start(&["--depth", "call"]);
    let page = serving.get("/metrics").body;
    let mut check = Command::new(prometheus("promtool"));
    let mut check = check
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    std::io::Write::write_all(&mut check.stdin.take().expect("its input"), page.as_bytes()).expect("the page");
    let told = check.wait_with_output().expect("promtool ends");
    let words = String::from_utf8_lossy(&told.stderr).into_owned() + &String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success() && words.is_empty(), "{words}");
    for (command, file) in [("check", "prometheus-alerts.yml"), ("test", "prometheus-alerts.test.yml")] {
        let ended = run(Command::new(prometheus("promtool")).args([command, "rules"]).arg(packaged(file)));
        assert_eq!(ended.code(), 0, "{command} {file}: {}", ended.stderr);
    }
}

/// Every `malloc_...` word of a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("malloc_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let serving = Serving::start(&["--depth", "call"]);
    let exist = families(&serving.get("/metrics").body);
    let text = |path: &Path| std::fs::read_to_string(path).expect("a file");
    let dashboard: Value = serde_json::from_str(&text(&packaged("grafana-dashboard.json"))).expect("JSON");
    let expressions = dashboard["panels"].as_array().expect("panels").iter();
    let mut asked: BTreeSet<String> = expressions
        .flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default())
        .flat_map(|target| names_in(target["expr"].as_str().unwrap_or_default()))
        .collect();
    let alerts = text(&packaged("prometheus-alerts.yml"));
    asked.extend(alerts.lines().filter(|line| line.trim_start().starts_with("expr:")).flat_map(names_in));
    assert!(asked.len() > 10, "{asked:?}");
    let missing: Vec<&String> = asked
        .iter()
        .filter(|name| !exist.contains(*name) && !exist.contains(name.trim_end_matches("_bucket")))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {exist:?}");
}

#[test]
fn metrics_are_pushed_to_a_real_collector() {
    let folder = TempDir::new().expect("a folder");
    let address = free_address();
    let collector = package("trixie", "victoria-metrics").expect("VictoriaMetrics from the archive");
    let mut collector = Command::new(collector.join("usr/bin/victoria-metrics"));
    collector.arg(format!("-storageDataPath={}", folder.path().join("data").display()));
    collector.arg(format!("-httpListenAddr={address}"));
    let collector = Running::start(&mut collector);
    until("the collector answers", || try_get(&address, "/health").filter(|answer| answer.status == 200));
    let config = folder.path().join("config.toml");
    let text = format!("[push]\ncollector = \"http://{address}/opentelemetry/v1/metrics\"\ninterval = \"200ms\"\n");
    std::fs::write(&config, text).expect("written");
    let serving = Serving::start(&["--config", config.to_str().expect("a path in UTF-8")]);
    let page = serving.get("/metrics").body;
    // OTLP has counters without the suffix.
    let wanted: Vec<String> = sampled(&page).iter().map(|name| name.trim_end_matches("_total").to_owned()).collect();
    let has = |held: &BTreeSet<String>, name: &String| {
        [name.clone(), format!("{name}_total"), format!("{name}_count")].iter().any(|name| held.contains(name))
    };
    until("the collector holds every family", || {
        let held = names_held(&address, "/prometheus");
        wanted.iter().all(|name| has(&held, name)).then_some(())
    });
    collector.signal(rustix::process::Signal::TERM);
    collector.end();
}
