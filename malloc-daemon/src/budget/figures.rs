//! An account turned into figures for the whole time: what was counted, plus what windows tell of the rest.

use malloc_common::histogram::BUCKETS;

use super::Estimate;
use super::account::{Account, Level, LevelAccount, Measures, Reading, Weighted};
use super::clock::{Bounds, Clock, MIDDLE, MOST};
use super::interval::{Moments, interval, unmet};
use super::tally::Row;

/// One row for the whole time.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The counts; `calls` is the sum over `buckets` where the row has any.
    pub row: Row,
    /// `None`: counted, not estimated.
    pub estimate: Option<Estimate>,
    /// By size class: between these, millionths of the calls, lies its part, 95 times in 100. `None`: counted, or too few
    /// windows to tell.
    pub shares_95: Option<Vec<(u32, u32)>>,
}

/// A level for the whole time.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelFigures {
    /// By function, or the arena alone.
    pub rows: Vec<Figure>,
    /// All rows but `free` together.
    pub sum: Option<Estimate>,
    /// What was counted exactly, by row: never falls.
    pub exact: Vec<Row>,
}

impl Account {
    /// A level as it is at `now`. Before the first window: what was counted, as an estimate without an interval.
    #[must_use]
    pub fn figures(&self, level: Level, now: &Reading<'_>) -> LevelFigures {
        self.level(level).figures(now)
    }
}

impl LevelAccount {
    fn figures(&self, now: &Reading<'_>) -> LevelFigures {
        let mut all = self.clone();
        all.end(now);
        if all.windowed_ns == 0 {
            let counted = |row: &Row| Figure { row: row.clone(), estimate: None, shares_95: None };
            return LevelFigures { rows: all.exact.iter().map(counted).collect(), sum: None, exact: all.exact };
        }
        let (own, sums) = (all.windowed.own(all.price), all.sums());
        let total_ns = all.exact_ns + all.windowed_ns;
        let coverage_ppm = ((all.exact_ns + all.open_ns) as f64 / total_ns as f64 * 1e6).min(1e6) as u32;
        let interval = |moments: &Bounds<Moments>| interval(&sums.clocks, moments, own);
        let estimate = |exact: (u64, u64), measures: &Measures, row: (u64, u64)| Estimate {
            coverage_ppm,
            calls_95: around(exact.0, interval(&measures.calls), row.0),
            bytes_95: around(exact.1, interval(&measures.bytes), row.1),
        };
        let (mut exactly, mut counted) = ((0_u64, 0_u64), (0_u64, 0_u64));
        let mut rows = Vec::new();
        for (index, (exact, weighted)) in all.exact.iter().zip(&sums.weighted).enumerate() {
            let row = row(exact, weighted, &sums.clocks[MIDDLE], own[MIDDLE], all.level.is_free(index));
            if !all.level.is_free(index) {
                exactly = (exactly.0 + exact.calls, exactly.1.wrapping_add(exact.bytes));
                counted = (counted.0 + row.calls, counted.1.wrapping_add(row.bytes));
            }
            let estimate = estimate((exact.calls, exact.bytes), &weighted.measures, (row.calls, row.bytes));
            // With the most own time rates differ least by what the price leaves open.
            let unmet = unmet(&sums.clocks, &weighted.measures.calls, own, MOST);
            let unmet = unmet.map_or(0.0, |(unmet, met)| unmet / met.max(1.0));
            let shares_95 = estimate.calls_95.and_then(|calls| shares(exact, weighted, calls, unmet));
            rows.push(Figure { row, estimate: Some(estimate), shares_95 });
        }
        let sum = Some(estimate(exactly, &sums.together, counted));
        LevelFigures { rows, sum, exact: all.exact }
    }
}

/// What was counted and what windows make likely, together.
fn row(exact: &Row, weighted: &Weighted, clock: &Clock, own: f64, is_free: bool) -> Row {
    let middle = |moments: &Bounds<Moments>| moments[MIDDLE].estimate(clock, own).map_or(0.0, |(value, _)| value);
    let (calls, bytes) = (middle(&weighted.measures.calls), middle(&weighted.measures.bytes));
    let mut row = exact.clone();
    row.bytes = row.bytes.wrapping_add(bytes.round() as u64);
    if clock.own() > 0.0 {
        row.failed += (weighted.failed * own / clock.own()).round() as u64;
    }
    if is_free {
        row.calls += calls.round() as u64;
    } else if let Some(parts) = weighted.shares[MIDDLE].parts() {
        for (bucket, part) in row.buckets.iter_mut().zip(parts) {
            *bucket += (part * calls).round() as u64;
        }
        row.calls = row.buckets.iter().sum();
    }
    row
}

/// The interval of what was counted and what was estimated together; it holds the value, which is rounded by bucket.
fn around(exact: u64, interval: Option<(f64, f64)>, value: u64) -> Option<(u64, u64)> {
    let (low, high) = interval?;
    let (low, high) = (exact.wrapping_add(low.floor() as u64), exact.wrapping_add(high.ceil() as u64));
    Some((low.min(value), high.max(value)))
}

/// Parts of the calls by size class, of what was counted and what was estimated together: whichever number of calls
/// between `calls` is right, and however much own time the windows had. Of bursts that
/// no window met, `unmet` parts of the estimate, nothing is known.
fn shares(exact: &Row, weighted: &Weighted, (fewest, most): (u64, u64), unmet: f64) -> Option<Vec<(u32, u32)>> {
    let (met, unmet) = (1.0 / (1.0 + unmet), unmet / (1.0 + unmet));
    let mut all = vec![(u32::MAX, 0); BUCKETS];
    for shares in &weighted.shares {
        for (ppm, ((low, high), counted)) in all.iter_mut().zip(shares.intervals()?.zip(exact.buckets)) {
            for total in [fewest.max(1) as f64, most.max(1) as f64] {
                let estimated = (total - exact.calls as f64).max(0.0);
                let part = |part: f64| ((counted as f64 + part * estimated) / total * 1e6).min(1e6);
                *ppm = (ppm.0.min(part(low * met).floor() as u32), ppm.1.max(part(high * met + unmet).ceil() as u32));
            }
        }
    }
    Some(all)
}
