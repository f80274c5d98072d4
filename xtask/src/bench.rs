//! Measures what observing costs, this daemon's and other tools', in one interleaved run, and writes docs/overhead.md.
mod closely;
mod document;
mod lockstep;
mod observers;
mod service;
mod statistics;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    setup,
    shell::{self, Privilege},
    workspace::Workspace,
};
use observers::{OBSERVERS, Observer};
use statistics::Series;
use workloads::{Sample, WORKLOADS, Workload};

/// Debian's packages that the comparison needs.
const PACKAGES: &[&str] =
    &["bpftrace", "gcc", "heaptrack", "libc6-dev", "linux-perf", "python3", "redis-server", "redis-tools", "sqlite3"];

/// What to measure, and for how long.
pub struct Selection {
    /// Fewer rounds, and only the workloads that are told apart in the verdicts.
    pub quick: bool,
    /// Only the service itself.
    pub service: bool,
    /// Install what is missing instead of measuring.
    pub setup: bool,
    /// Print the document instead of writing it.
    pub dry: bool,
    /// Measure this daemon instead of building one.
    pub daemon: Option<PathBuf>,
}

/// No round begins that would end after this, by the length of the one before. With building the daemon left out, a
/// full run takes at most 17 minutes and a quick one at most 7, of which the service takes 4.
const FULL: Duration = Duration::from_secs(480);
const QUICK: Duration = Duration::from_secs(120);
/// How long depth `sysmalloc` and nothing attached take turns.
const CLOSELY: Duration = Duration::from_secs(270);
const CLOSELY_QUICK: Duration = Duration::from_secs(60);

/// Rounds at most: the medians do not move any more.
const ROUNDS: usize = 11;

/// Everything that was measured.
struct Results {
    /// By observer and workload, in the order of the lists.
    samples: BTreeMap<(usize, usize), Series>,
    /// What could not run, and why.
    not_run: BTreeMap<String, String>,
    /// Counting a call against an empty program.
    lockstep: Option<lockstep::Figures>,
    /// Depth `sysmalloc` against nothing attached, by workload.
    closely: BTreeMap<usize, closely::Figures>,
    /// Of the service, by crowd in the order of the list.
    service: BTreeMap<usize, service::Figures>,
    rounds: usize,
    seconds: u64,
    quick: bool,
}

/// Measures, and writes the document.
pub fn bench(workspace: &Workspace, selection: &Selection) -> Result<()> {
    if selection.setup {
        return setup::packages(PACKAGES);
    }
    if !shell::is_root() {
        let why = match shell::privilege() {
            Privilege::None(why) => why.to_owned(),
            _ => "run it through sudo".to_owned(),
        };
        bail!("every observer here attaches probes to the whole machine, which needs root: {why}");
    }
    let daemon = match &selection.daemon {
        Some(daemon) => daemon.clone(),
        None => {
            let build = ["build", "--locked", "--release", "--package", "malloc-daemon"];
            shell::run(shell::cargo().current_dir(&workspace.root).args(build))?;
            workspace.daemon_binary()
        }
    };
    let place = Place::new(workspace, daemon)?;
    let mut results = measure(&place, selection)?;
    if !selection.service {
        println!("a counted call against an empty program");
        match lockstep::measure(&place) {
            Ok(figures) => results.lockstep = Some(figures),
            Err(error) => drop(results.not_run.insert(lockstep::NAME.to_owned(), format!("{error:#}"))),
        }
        println!("depth sysmalloc against nothing attached");
        match closely::measure(&place, if selection.quick { CLOSELY_QUICK } else { CLOSELY }) {
            Ok(figures) => results.closely = figures,
            Err(error) => drop(results.not_run.insert(closely::NAME.to_owned(), format!("{error:#}"))),
        }
    }
    for (c, crowd) in service::CROWDS.iter().enumerate() {
        println!("the service beside {} processes {}", crowd.processes, crowd.name);
        match service::measure(&place, crowd) {
            Ok(figures) => drop(results.service.insert(c, figures)),
            Err(error) => drop(results.not_run.insert(format!("the service, {}", crowd.name), format!("{error:#}"))),
        }
    }
    let text = document::render(&place, &results);
    if selection.dry {
        println!("{text}");
        return Ok(());
    }
    let file = workspace.root.join("docs/overhead.md");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}: {} rounds in {} s", workspace.relative(&file).display(), results.rounds, results.seconds);
    Ok(())
}

/// Where the programs and their data lie.
pub struct Place {
    /// The daemon.
    pub daemon: PathBuf,
    /// A folder for what the workloads need.
    pub folder: PathBuf,
    /// The libc whose functions the other tools probe.
    pub libc: PathBuf,
}

impl Place {
    fn new(workspace: &Workspace, daemon: PathBuf) -> Result<Self> {
        let folder = workspace.target.join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let maps = fs::read_to_string("/proc/self/maps").context("cannot read this program's own mappings")?;
        let libc =
            maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| PathBuf::from(format!("/{path}")));
        let is_libc =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc.so"));
        let libc = libc.into_iter().find(is_libc).context("this program maps no libc.so: nothing to compare on")?;
        let place = Self { daemon, folder, libc };
        workloads::prepare(&place)?;
        service::prepare(&place)?;
        Ok(place)
    }
}

fn measure(place: &Place, selection: &Selection) -> Result<Results> {
    let quick = selection.quick;
    let started = Instant::now();
    let limit = if quick { QUICK } else { FULL };
    let mut results = Results {
        samples: BTreeMap::new(),
        not_run: BTreeMap::new(),
        lockstep: None,
        closely: BTreeMap::new(),
        service: BTreeMap::new(),
        rounds: 0,
        seconds: 0,
        quick,
    };
    let mut given_up: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut longest = Duration::ZERO;
    while !selection.service && results.rounds < ROUNDS && started.elapsed() + longest < limit {
        let began = Instant::now();
        for (o, observer) in OBSERVERS.iter().enumerate() {
            if results.not_run.contains_key(observer.name) || (quick && !observer.quick) {
                continue;
            }
            if let Err(error) = session(place, quick, (o, observer), &mut given_up, &mut results) {
                println!("not run: {}: {error:#}", observer.name);
                results.not_run.insert(observer.name.to_owned(), format!("{error:#}"));
            }
        }
        longest = longest.max(began.elapsed());
        results.rounds += 1;
        println!("round {} took {:.0} s", results.rounds, began.elapsed().as_secs_f64());
    }
    results.seconds = started.elapsed().as_secs();
    Ok(results)
}

/// Starts one observer, runs every workload under it, stops it.
fn session(
    place: &Place,
    quick: bool,
    (o, observer): (usize, &Observer),
    given_up: &mut BTreeSet<(usize, usize)>,
    results: &mut Results,
) -> Result<()> {
    let running = observer.start(place)?;
    for (w, workload) in WORKLOADS.iter().enumerate() {
        if given_up.contains(&(o, w)) || (quick && !workload.quick) {
            continue;
        }
        for _ in 0..observer.repeats * workload.repeats {
            match run(place, workload, &running) {
                Ok(sample) => results.samples.entry((o, w)).or_default().push(sample),
                Err(error) => {
                    println!("not run: {} under {}: {error:#}", workload.name, observer.name);
                    let key = format!("{} under {}", workload.name, observer.name);
                    results.not_run.insert(key, format!("{error:#}"));
                    given_up.insert((o, w));
                    break;
                }
            }
        }
    }
    running.stop()
}

fn run(place: &Place, workload: &Workload, running: &observers::Running) -> Result<Sample> {
    (workload.run)(place, &|command| running.prepare(command))
}
