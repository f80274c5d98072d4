//! What is known of an image that is probed deeply a part of the time: exact for some stretches, estimated for others.
//!
//! A window's place is drawn before it is known what it will meet, so each moment of a stretch is met with the same
//! probability. A window counts with the weight *stretch it stands for / its length*; the weighted counts, divided by the
//! weighted own time that the program had in the windows and multiplied by what it had in all, estimate the whole (a
//! combined ratio estimator).

use malloc_common::function::{FUNCTIONS, Function};

use super::HitPrice;
use super::clock::{Belief, Bounds, Clock, MIDDLE, Weight, Whole, Window};
use super::interval::Moments;
use super::shares::Shares;
use super::tally::{ARENA, ROWS, Row, Tally};

/// A level that may be measured in windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `_int_malloc`
    Arena,
    /// The public functions.
    Call,
}

impl Level {
    /// Its rows in a [`Tally`].
    fn rows(self) -> std::ops::Range<usize> {
        match self {
            Level::Arena => ARENA..ROWS,
            Level::Call => 0..FUNCTIONS,
        }
    }

    /// `free` has no bytes and no sizes.
    pub(super) fn is_free(self, index: usize) -> bool {
        self == Level::Call && index == Function::Free as usize
    }
}

/// The state of a process at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Nanoseconds since boot.
    pub at_ns: u64,
    /// CPU time of the process, nanoseconds.
    pub cpu_ns: u64,
    /// What its probes counted.
    pub tally: &'a Tally,
}

/// A moment without the counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    at_ns: u64,
    cpu_ns: u64,
    cost_ns: u64,
    hits: u64,
}

impl Mark {
    fn of(reading: &Reading<'_>) -> Self {
        Self {
            at_ns: reading.at_ns,
            cpu_ns: reading.cpu_ns,
            cost_ns: reading.tally.cost_ns(),
            hits: reading.tally.hits,
        }
    }

    fn until(&self, end: &Self) -> Whole {
        Whole {
            cpu: end.cpu_ns.saturating_sub(self.cpu_ns) as f64,
            cost: end.cost_ns.saturating_sub(self.cost_ns) as f64,
            hits: end.hits.saturating_sub(self.hits) as f64,
        }
    }
}

#[derive(Clone, Debug)]
enum Stretch {
    /// Probed all the time since then; the rates until the second mark are known.
    Exact { start: Mark, before: Vec<Row>, known: Mark, then: Vec<(u64, u64)> },
    /// Probed in windows.
    Windows(Mark),
    /// Not probed; what happens is not in the figures.
    Unseen,
}

#[derive(Clone, Debug)]
pub(super) struct LevelAccount {
    pub(super) level: Level,
    pub(super) price: Belief,
    stretch: Stretch,
    /// Of stretches that are over.
    pub(super) exact: Vec<Row>,
    pub(super) exact_ns: u64,
    pub(super) windowed_ns: u64,
    pub(super) windowed: Whole,
    /// In windows, all stretches.
    pub(super) open_ns: u64,
    /// Of windows in which the program did other things, too.
    usual: Sums,
    /// Of those that were all hits, with hits in the place of own time.
    all_hits: Sums,
    /// What these had together.
    all_hits_met: Whole,
    /// The same of exact stretches: it tells what a hit is worth until a window does, which is read with more care.
    all_hits_exact: Whole,
}

/// Sums over windows.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    pub(super) clocks: Bounds<Clock>,
    pub(super) weighted: Vec<Weighted>,
    /// All rows but `free`.
    pub(super) together: Measures,
}

/// Calls and bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measures {
    pub(super) calls: Bounds<Moments>,
    pub(super) bytes: Bounds<Moments>,
}

/// One row, weighted.
#[derive(Clone, Debug, Default)]
pub(super) struct Weighted {
    pub(super) measures: Measures,
    pub(super) failed: f64,
    pub(super) shares: Bounds<Shares>,
}

/// What is known of one image.
#[derive(Clone, Debug)]
pub struct Account {
    arena: LevelAccount,
    call: LevelAccount,
}

impl Account {
    /// Of an image that is fully probed from `reading` on.
    #[must_use]
    pub fn new(price: HitPrice, reading: &Reading<'_>) -> Self {
        let level = |level| LevelAccount::new(level, price, reading);
        Self { arena: level(Level::Arena), call: level(Level::Call) }
    }

    fn level_mut(&mut self, level: Level) -> &mut LevelAccount {
        match level {
            Level::Arena => &mut self.arena,
            Level::Call => &mut self.call,
        }
    }

    pub(super) fn level(&self, level: Level) -> &LevelAccount {
        match level {
            Level::Arena => &self.arena,
            Level::Call => &self.call,
        }
    }

    /// From here on every call of the level is counted; told again and again while it is.
    pub fn probe_fully(&mut self, level: Level, reading: &Reading<'_>) {
        let account = self.level_mut(level);
        if matches!(account.stretch, Stretch::Exact { .. }) {
            account.note_rates(reading);
        } else {
            account.end(reading);
            account.stretch = account.exact_from(reading);
        }
    }

    /// From here on the level is counted in windows.
    pub fn probe_in_windows(&mut self, level: Level, reading: &Reading<'_>) {
        let account = self.level_mut(level);
        if !matches!(account.stretch, Stretch::Windows(_)) {
            account.note_rates(reading);
            account.end(reading);
            account.stretch = Stretch::Windows(Mark::of(reading));
        }
    }

    /// From here on nothing is counted, and what happens is in no figure.
    pub fn stop(&mut self, reading: &Reading<'_>) {
        for account in [&mut self.arena, &mut self.call] {
            account.end(reading);
            account.stretch = Stretch::Unseen;
        }
    }

    /// Takes in a window of a level, which stands for `cell_ns`.
    pub fn window(&mut self, level: Level, cell_ns: u64, opened: &Reading<'_>, closed: &Reading<'_>) {
        self.level_mut(level).window(cell_ns, opened, closed);
    }

    /// How many windows of a level there were.
    #[must_use]
    pub fn windows(&self, level: Level) -> u64 {
        self.level(level).sums().clocks[MIDDLE].windows() as u64
    }
}

impl Measures {
    fn add(&mut self, weights: &Bounds<Weight>, calls: f64, bytes: f64) {
        for ((calls_of, bytes_of), weight) in self.calls.iter_mut().zip(&mut self.bytes).zip(weights) {
            calls_of.add(weight, calls);
            bytes_of.add(weight, bytes);
        }
    }

    fn meet(&mut self, owns: Bounds<f64>, calls: f64, bytes: f64) {
        for ((calls_of, bytes_of), own) in self.calls.iter_mut().zip(&mut self.bytes).zip(owns) {
            calls_of.meet(own, calls);
            bytes_of.meet(own, bytes);
        }
    }
}

impl Sums {
    fn new(rows: usize) -> Self {
        let (clocks, together) = (Bounds::default(), Measures::default());
        Self { clocks, weighted: vec![Weighted::default(); rows], together }
    }
}

impl Measures {
    fn and(&self, other: &Self, scales: Bounds<f64>) -> Self {
        let both = |mine: &Bounds<Moments>, other: &Bounds<Moments>| {
            std::array::from_fn(|which| mine[which].and(&other[which], scales[which]))
        };
        Self { calls: both(&self.calls, &other.calls), bytes: both(&self.bytes, &other.bytes) }
    }
}

impl LevelAccount {
    /// All windows together.
    pub(super) fn sums(&self) -> Sums {
        let (usual, all_hits) = (&self.usual, &self.all_hits);
        let met = if self.all_hits_met.hits > 0.0 { self.all_hits_met } else { self.all_hits_exact };
        let scales = met.own(self.price).map(|own| if own > 0.0 { met.hits / own } else { 0.0 });
        let weighted = usual.weighted.iter().zip(&all_hits.weighted).map(|(mine, other)| Weighted {
            measures: mine.measures.and(&other.measures, scales),
            failed: mine.failed + scales[MIDDLE] * other.failed,
            shares: std::array::from_fn(|which| mine.shares[which].and(&other.shares[which], scales[which])),
        });
        Sums {
            clocks: std::array::from_fn(|which| usual.clocks[which].and(&all_hits.clocks[which])),
            weighted: weighted.collect(),
            together: usual.together.and(&all_hits.together, scales),
        }
    }

    fn new(level: Level, price: HitPrice, reading: &Reading<'_>) -> Self {
        let rows = level.rows().len();
        let mut account = Self {
            level,
            price: price.belief(),
            stretch: Stretch::Unseen,
            exact: vec![Row::EMPTY; rows],
            exact_ns: 0,
            windowed_ns: 0,
            windowed: Whole::default(),
            open_ns: 0,
            usual: Sums::new(rows),
            all_hits: Sums::new(rows),
            all_hits_met: Whole::default(),
            all_hits_exact: Whole::default(),
        };
        account.stretch = account.exact_from(reading);
        account
    }

    fn rows<'a>(&self, reading: &Reading<'a>) -> &'a [Row] {
        reading.tally.rows.get(self.level.rows()).unwrap_or_default()
    }

    fn exact_from(&self, reading: &Reading<'_>) -> Stretch {
        let (start, rows) = (Mark::of(reading), self.rows(reading));
        let then = rows.iter().map(|row| (row.calls, row.bytes)).collect();
        Stretch::Exact { start, before: rows.to_vec(), known: start, then }
    }

    /// Keeps the highest rates that exact stretches meet: windows may miss such bursts later.
    fn note_rates(&mut self, reading: &Reading<'_>) {
        let (end, rows) = (Mark::of(reading), self.rows(reading));
        let Stretch::Exact { known, then, .. } = &mut self.stretch else { return };
        let met = known.until(&end);
        let (sums, owns) = if met.is_all_hits(self.price) {
            self.all_hits_exact = self.all_hits_exact.and(&met);
            (&mut self.all_hits, [met.hits; 3])
        } else {
            (&mut self.usual, met.own(self.price))
        };
        let (mut all_calls, mut all_bytes) = (0.0, 0.0);
        for (index, (row, (calls, bytes))) in rows.iter().zip(then.iter_mut()).enumerate() {
            let more = |now: u64, before: u64| now.wrapping_sub(before).cast_signed().max(0) as f64;
            let (met_calls, met_bytes) = (more(row.calls, *calls), more(row.bytes, *bytes));
            if !self.level.is_free(index) {
                all_calls += met_calls;
                all_bytes += met_bytes;
            }
            if let Some(weighted) = sums.weighted.get_mut(index) {
                weighted.measures.meet(owns, met_calls, met_bytes);
            }
            (*calls, *bytes) = (row.calls, row.bytes);
        }
        sums.together.meet(owns, all_calls, all_bytes);
        *known = end;
    }

    /// Ends the stretch.
    pub(super) fn end(&mut self, reading: &Reading<'_>) {
        let (end, now) = (Mark::of(reading), self.rows(reading));
        match &self.stretch {
            Stretch::Exact { start, before, .. } => {
                self.exact_ns += end.at_ns.saturating_sub(start.at_ns);
                for ((exact, now), before) in self.exact.iter_mut().zip(now).zip(before) {
                    exact.add(&now.since(before));
                }
            }
            Stretch::Windows(start) => {
                self.windowed_ns += end.at_ns.saturating_sub(start.at_ns);
                self.windowed = self.windowed.and(&start.until(&end));
            }
            Stretch::Unseen => {}
        }
    }

    fn window(&mut self, cell_ns: u64, opened: &Reading<'_>, closed: &Reading<'_>) {
        let open_ns = closed.at_ns.saturating_sub(opened.at_ns);
        if open_ns == 0 || cell_ns < open_ns {
            return;
        }
        self.open_ns += open_ns;
        let met = Mark::of(opened).until(&Mark::of(closed));
        let pairs = self.rows(closed).iter().zip(self.rows(opened));
        let window = Window { cell_ns: cell_ns as f64, open_ns: open_ns as f64, met };
        let (sums, weights) = if met.is_all_hits(self.price) {
            self.all_hits_met = self.all_hits_met.and(&met);
            let weights = Clock::add_by_hits(&mut self.all_hits.clocks, &window);
            (&mut self.all_hits, weights)
        } else {
            let weights = Clock::add(&mut self.usual.clocks, &window, self.price);
            (&mut self.usual, weights)
        };
        let (mut calls, mut bytes) = (0.0, 0.0);
        for (index, (weighted, (after, before))) in sums.weighted.iter_mut().zip(pairs).enumerate() {
            let row = after.since(before);
            if !self.level.is_free(index) {
                calls += row.calls as f64;
                bytes += row.bytes as f64;
            }
            weighted.measures.add(&weights, row.calls as f64, row.bytes as f64);
            weighted.failed += weights[MIDDLE].weight * row.failed as f64;
            for (shares, weight) in weighted.shares.iter_mut().zip(&weights) {
                shares.add(weight.weight, &row.buckets);
            }
        }
        sums.together.add(&weights, calls, bytes);
    }
}
