//! Depth `sysmalloc` against nothing attached, to a hundredth: the daemon is started and stopped again and again, and what
//! runs while it observes is compared with what ran right before or after without it.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Place,
    observers::{ALONE, OBSERVERS, SYSMALLOC},
    run,
    statistics::{Ratio, median, paired_ratio},
    workloads::{SERVERS, WORKLOADS},
};

/// What is measured, where it could not be.
pub const NAME: &str = "`sysmalloc` and nothing attached in turns";
/// Runs of each of [`SERVERS`] in a turn: about 0.3 s each.
const RUNS: [usize; 3] = [4, 3, 1];

/// What was measured of one workload.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// CPU time of a turn under observation as a multiple of one without.
    pub ratio: Ratio,
    /// Turns of each kind.
    pub turns: usize,
}

/// Measures for this long; by workload.
pub fn measure(place: &Place, limit: Duration) -> Result<BTreeMap<usize, Figures>> {
    let began = Instant::now();
    let mut turns: [Vec<Vec<f64>>; 2] = [Vec::new(), Vec::new()];
    let mut longest = Duration::ZERO;
    while began.elapsed() + longest < limit {
        let began = Instant::now();
        // Each is second in every other pair.
        let second_first = turns[0].len() % 2 == 1;
        for which in if second_first { [1, 0] } else { [0, 1] } {
            let told = turn(place, [ALONE, SYSMALLOC][which])?;
            turns[which].push(told);
        }
        longest = longest.max(began.elapsed());
    }
    let [alone, observed] = turns;
    let figures = SERVERS.into_iter().enumerate().filter_map(|(n, w)| {
        let of = |turns: &[Vec<f64>]| turns.iter().filter_map(|turn| turn.get(n).copied()).collect::<Vec<_>>();
        Some((w, Figures { ratio: paired_ratio(&of(&observed), &of(&alone))?, turns: alone.len() }))
    });
    Ok(figures.collect())
}

/// The medians of the runs of each workload while one observer observes.
fn turn(place: &Place, observer: usize) -> Result<Vec<f64>> {
    let running = OBSERVERS.get(observer).context("no such observer")?.start(place)?;
    let measured = SERVERS.iter().zip(RUNS).map(|(w, runs)| {
        let workload = WORKLOADS.get(*w).context("no such workload")?;
        let cpu = (0..runs).map(|_| Ok(run(place, workload, &running)?.cpu)).collect::<Result<Vec<f64>>>()?;
        median(cpu).context("it took no time")
    });
    let measured = measured.collect();
    running.stop()?;
    measured
}
