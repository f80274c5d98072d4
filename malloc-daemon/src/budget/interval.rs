//! How far an estimate from windows may be off.

use super::clock::{Bounds, Clock, LEAST, MIDDLE, MOST, Weight};

/// Fewer windows than this that met the program running tell no interval.
pub const FEW: f64 = 5.0;
/// With 95 %, what no window has met takes less than this over their number of the time: `-ln 0.05`.
const UNMET: f64 = 3.0;
/// Rates up to this many times the mean are no burst: windows differ that much.
const BURST: f64 = 1.5;
/// A shorter stretch, nanoseconds of own time (or hits), tells no rate.
const SHORTEST_OWN_NS: f64 = 1e3;

/// Weighted sums of something that was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    seen: f64,
    /// Weighted count, the sum of its squares, and of its products with weighted own time.
    sum: f64,
    square: f64,
    cross: f64,
    /// The highest rate ever met, for each nanosecond of own time.
    peak: f64,
}

impl Moments {
    /// Takes a window in, with what [`Clock::add`] said of it.
    pub fn add(&mut self, weight: &Weight, count: f64) {
        let weighted = weight.weight * count;
        self.seen += count;
        self.sum += weighted;
        self.square += weighted * weighted;
        self.cross += weighted * weight.weight * weight.own;
        self.meet(weight.own, count);
    }

    /// Notes a rate that was met, in a window or elsewhere.
    pub fn meet(&mut self, own: f64, count: f64) {
        if own >= SHORTEST_OWN_NS {
            self.peak = self.peak.max(count / own);
        }
    }

    /// Both together, the other ones multiplied.
    #[must_use]
    pub fn and(&self, other: &Self, scale: f64) -> Self {
        Self {
            seen: self.seen + other.seen,
            sum: self.sum + scale * other.sum,
            square: self.square + scale * scale * other.square,
            cross: self.cross + scale * other.cross,
            peak: self.peak.max(scale * other.peak),
        }
    }

    /// The estimate for so much own time, and its standard error.
    #[must_use]
    pub fn estimate(&self, clock: &Clock, own: f64) -> Option<(f64, f64)> {
        if clock.own() <= 0.0 {
            return None;
        }
        let scale = own / clock.own();
        let rate = self.sum / clock.own();
        let residual = (self.square - 2.0 * rate * self.cross + rate * rate * clock.square()).max(0.0);
        let effective = clock.effective();
        let error = scale * (residual * effective / (effective - 1.0).max(1.0)).sqrt();
        Some((self.sum * scale, error))
    }
}

/// Lowest and highest count for the whole's `own` time that the windows leave likely: 95 % for what differs between windows,
/// whichever own time is right. `None` when there are too few windows.
///
/// What differs between windows cannot tell of a burst that none of them met: of the highest rate that was ever met in this
/// program, as much as [`UNMET`] windows may have been missed.
#[must_use]
pub fn interval(clocks: &Bounds<Clock>, sums: &Bounds<Moments>, own: Bounds<f64>) -> Option<(f64, f64)> {
    let effective = clocks.iter().map(Clock::effective).fold(f64::INFINITY, f64::min);
    if effective < FEW {
        return None;
    }
    // Two things are estimated from the windows: counts and own time.
    let t = student(effective - 2.0);
    let (low, low_error) = sums[MOST].estimate(&clocks[MOST], own[MOST])?;
    let (high, high_error) = sums[LEAST].estimate(&clocks[LEAST], own[LEAST])?;
    let seen = sums[MOST].seen;
    let lowest = (low - t * low_error).max(seen);
    // Rare things: three unseen ones are as likely as none, whatever the windows' differences say.
    let weight = if seen > 0.0 { high / seen } else { own[LEAST] / clocks[LEAST].own() };
    let unmet = unmet(clocks, sums, own, MIDDLE).map_or(0.0, |(unmet, _)| unmet);
    let highest = (high + t * high_error + unmet).max(poisson_highest(seen) * weight).max(lowest);
    Some((lowest, highest))
}

/// How much more there may be in bursts that no window met, and the estimate, when the own time was `which`.
#[must_use]
pub fn unmet(clocks: &Bounds<Clock>, sums: &Bounds<Moments>, own: Bounds<f64>, which: usize) -> Option<(f64, f64)> {
    let (clock, sum, own) = (clocks.get(which)?, sums.get(which)?, own.get(which)?);
    let (estimate, _) = sum.estimate(clock, *own)?;
    Some((UNMET / clock.effective() * (sum.peak * own - BURST * estimate).max(0.0), estimate))
}

/// The 97.5 % point of Student's distribution, by Cornish and Fisher's expansion; 1 % off at 3 degrees of freedom.
pub fn student(degrees: f64) -> f64 {
    let (z, n) = (1.959_964_f64, degrees.max(3.0));
    let [z3, z5, z7] = [3, 5, 7].map(|power| z.powi(power));
    z + (z3 + z) / (4.0 * n)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n * n * n)
}

/// The highest mean of a Poisson distribution that gives `seen` or fewer with 2.5 %: Byar's approximation.
pub fn poisson_highest(seen: f64) -> f64 {
    let n = seen + 1.0;
    n * (1.0 - 1.0 / (9.0 * n) + 1.959_964 / (3.0 * n.sqrt())).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_the_tables() {
        for (degrees, table) in [(3.0, 3.182), (4.0, 2.776), (9.0, 2.262), (30.0, 2.042), (1e9, 1.960)] {
            assert!((student(degrees) - table).abs() < 0.03, "{degrees}: {}", student(degrees));
        }
        for (seen, table) in [(0.0, 3.69), (1.0, 5.57), (10.0, 18.39), (100.0, 121.6)] {
            assert!((poisson_highest(seen) / table - 1.0).abs() < 0.02, "{seen}: {}", poisson_highest(seen));
        }
    }
}
