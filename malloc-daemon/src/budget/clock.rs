//! The time that a program had for itself: what windows are weighted and compared by.
//!
//! A ratio of counts to the program's own CPU time is what windows estimate, since that time is known for the whole. Hits of
//! probes take CPU time, too, at a price that is known to a part only. So everything is summed three times: for the most
//! own time that the price leaves likely, for the least, and for the median. Where hits are rare the three
//! are one; where a program does little else than call, they differ by what nobody can know.

/// For the most own time (and so the lowest estimate), for the median, and for the least.
pub type Bounds<T> = [T; 3];
/// The most own time.
pub const MOST: usize = 0;
/// The median.
pub const MIDDLE: usize = 1;
/// The least own time.
pub const LEAST: usize = 2;

/// A program needs at least this long between two hits, nanoseconds of its own time: a call of `malloc` that the thread
/// cache serves takes 6 (glibc 2.36, a pair with `free` 12), and faster processors exist.
const OWN_NS: f64 = 2.0;

/// See [`Whole::is_all_hits`]: a quarter of the price is less than twice what it is known to.
const ALL_HITS: f64 = 0.8;
/// Fewer hits are not all there is.
const MANY: f64 = 100.0;
/// Own times that are tried.
const TRIED: u32 = 101;
/// Hits that cost a smaller part of the time leave nearly all of it.
const FEW_HITS: f64 = 0.2;
/// Below so many times the price of its hits a program has little time left.
const FEW_LEFT: f64 = 2.0;
/// Parts of what is likely that have more own time: for [`MOST`], [`MIDDLE`] and [`LEAST`].
const QUANTILES: Bounds<f64> = [0.025, 0.5, 0.975];

/// What is believed of the price of a hit, as parts of what it is taken to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Belief {
    /// What it most likely is.
    pub centre: f64,
    /// The standard deviation.
    pub spread: f64,
}

/// CPU time of a process, and what of it the hits of probes took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Whole {
    /// CPU time, ns.
    pub cpu: f64,
    /// Cost of hits at their price, ns.
    pub cost: f64,
    /// Hits.
    pub hits: f64,
}

/// One window: what the process had and did while it was open, and what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Window {
    /// The stretch it stands for, ns.
    pub cell_ns: f64,
    /// How long it was open, ns.
    pub open_ns: f64,
    /// CPU time, cost of the hits, hits.
    pub met: Whole,
}

impl Whole {
    /// The program's own time: 95 % and the median of what the price's uncertainty leaves likely.
    ///
    /// The time between two hits is known, and is the price of one and the program's own time. Of the price its likely
    /// range is known, of the own time nothing, not even its order: each order is as likely as another.
    #[must_use]
    pub fn own(&self, price: Belief) -> Bounds<f64> {
        if self.hits < 1.0 || self.cpu <= 0.0 || self.cost <= 0.0 {
            return [self.cpu; 3];
        }
        let floor = (self.hits * OWN_NS).min(self.cpu);
        if self.cost < FEW_HITS * self.cpu {
            // Nothing bends there.
            return [-1.96, 0.0, 1.96].map(|sigmas| self.cpu - (price.centre + sigmas * price.spread) * self.cost);
        }
        // In prices where these differ little from one to the next, in orders of the own time where prices leave next to none.
        let few_left = self.cpu < FEW_LEFT * price.centre * self.cost;
        let tried = (0..TRIED).map(|step| {
            let part = f64::from(step) / f64::from(TRIED - 1);
            if few_left {
                let own = self.cpu * (floor / self.cpu).powf(part);
                let sigmas = ((self.cpu - own) / self.cost - price.centre) / price.spread;
                (own, (-0.5 * sigmas * sigmas).exp())
            } else {
                let sigmas = 4.0 * (2.0 * part - 1.0);
                let own = self.cpu - (price.centre + sigmas * price.spread).max(0.0) * self.cost;
                // A price that leaves no time at all is no price.
                let likely = if own < floor { 0.0 } else { (-0.5 * sigmas * sigmas).exp() * self.cpu / own };
                (own.max(floor), likely)
            }
        });
        let all: f64 = tried.clone().map(|(_, likely)| likely).sum();
        if all <= f64::MIN_POSITIVE {
            // Cheaper than anybody would have thought: by how much, nobody knows.
            return [self.cpu / 2.0, (self.cpu / 2.0 * floor).sqrt(), floor];
        }
        // From the most own time on.
        let (mut sum, mut bounds, mut found) = (0.0, [floor; 3], 0);
        for (own, likely) in tried {
            sum += likely;
            while let Some(bound) = bounds.get_mut(found)
                && sum >= QUANTILES[found] * all
            {
                *bound = own;
                found += 1;
            }
        }
        bounds
    }

    /// So little is left besides the hits that a single window cannot tell how much: the price's error is larger, and so is
    /// what a moment between two readings changes. Such windows are put together, and the own time for each hit is theirs.
    #[must_use]
    pub fn is_all_hits(&self, price: Belief) -> bool {
        self.hits >= MANY && price.centre * self.cost > ALL_HITS * self.cpu
    }

    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self { cpu: self.cpu + other.cpu, cost: self.cost + other.cost, hits: self.hits + other.hits }
    }
}

impl Window {
    /// What each nanosecond of the window stands for, when this was the program's own time in it.
    ///
    /// Probes slow a program: it gets less far in a window than it would have, and the window stands for as much more.
    /// (One that waits for work makes that up in the time it would have waited. Whether it waits for work or for a
    /// processor is not known; windows that met more calls are weighted a little too much then.)
    fn weight(&self, own: f64) -> f64 {
        self.cell_ns / (self.open_ns * (own / self.met.cpu.max(1.0)).clamp(1e-3, 1.0))
    }
}

/// Sums over windows, weighted by what each stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Clock {
    windows: f64,
    /// Weighted own time, and the sum of its squares.
    own: f64,
    square: f64,
}

/// What a window counts with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weight {
    /// What each of its counts stands for.
    pub weight: f64,
    /// Own time in it, ns.
    pub own: f64,
}

impl Clock {
    /// Takes a window in for each of the three.
    pub fn add(clocks: &mut Bounds<Self>, window: &Window, price: Belief) -> Bounds<Weight> {
        let owns = window.met.own(price);
        let mut weights = [Weight::default(); 3];
        for ((clock, own), weighted) in clocks.iter_mut().zip(owns).zip(&mut weights) {
            let weight = window.weight(own);
            clock.windows += 1.0;
            clock.own += weight * own;
            clock.square += (weight * own).powi(2);
            *weighted = Weight { weight, own };
        }
        weights
    }

    /// Takes a window in whose own time is told by its hits: what each is worth is put in later.
    pub fn add_by_hits(clocks: &mut Bounds<Self>, window: &Window) -> Bounds<Weight> {
        let stands_for = window.cell_ns / window.open_ns * window.met.cpu;
        for clock in clocks {
            clock.windows += 1.0;
            clock.own += stands_for;
            clock.square += stands_for * stands_for;
        }
        [Weight { weight: stands_for / window.met.hits, own: window.met.hits }; 3]
    }

    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self { windows: self.windows + other.windows, own: self.own + other.own, square: self.square + other.square }
    }

    /// How many there were.
    #[must_use]
    pub const fn windows(&self) -> f64 {
        self.windows
    }

    /// Weighted own time.
    #[must_use]
    pub const fn own(&self) -> f64 {
        self.own
    }

    /// The sum of its squares.
    #[must_use]
    pub const fn square(&self) -> f64 {
        self.square
    }

    /// How many windows of equal size would tell as much.
    #[must_use]
    pub fn effective(&self) -> f64 {
        if self.square > 0.0 { self.own * self.own / self.square } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Belief = Belief { centre: 1.1, spread: 0.15 };

    #[test]
    fn where_hits_are_rare_the_bounds_are_one_and_where_they_are_all_they_are_wide() {
        let rare = Whole { cpu: 1e9, cost: 1e6, hits: 1e3 }.own(PRICE);
        assert!(rare[MOST] / rare[LEAST] < 1.001 && rare[MOST] >= rare[LEAST], "{rare:?}");
        let hot = Whole { cpu: 1e9, cost: 0.9e9, hits: 1e6 }.own(PRICE);
        assert!(
            hot[LEAST] < 30e6 && hot[MOST] > 0.15e9 && hot[LEAST] < hot[MIDDLE] && hot[MIDDLE] < hot[MOST],
            "{hot:?}"
        );
    }

    #[test]
    fn a_price_that_is_refuted_by_a_window_makes_it_uncertain_and_not_absurd() {
        let refuted = Whole { cpu: 1e6, cost: 2e6, hits: 2e3 }.own(PRICE);
        assert!(refuted[MOST] > 0.1e6 && refuted[MIDDLE] > 0.01e6 && refuted[LEAST] >= 4e3, "{refuted:?}");
        assert_eq!(Whole::default().own(PRICE), [0.0; 3]);
    }
}
