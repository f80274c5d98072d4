//! The budget of deep probing: when to probe all the time, when in windows, and what windows tell of the whole. Pure.

mod account;
mod clock;
mod controller;
mod figures;
mod interval;
mod shares;
mod tally;

pub use account::{Account, Level, Reading};
pub use controller::{Controller, Plan, Rung};
pub use figures::{Figure, LevelFigures};
pub use tally::{Prices, Row, Tally};

/// What one hit of a probe of `arena` or `call` costs the observed program, nanoseconds of its CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HitPrice {
    /// On an instruction that the kernel emulates.
    pub emulated_ns: u32,
    /// On one that it steps over out of line.
    pub stepped_ns: u32,
    /// Whether it was measured on this machine.
    pub source: PriceSource,
}

/// Where a price comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PriceSource {
    /// Not measured: a guess on the high side, so that the budget holds.
    Assumed,
    /// Measured on this machine at start.
    Measured,
}

impl Default for HitPrice {
    /// 520 to 850 ns and 5 to 14 us were measured on a virtual machine (Linux 6.18); bare metal is cheaper.
    fn default() -> Self {
        Self { emulated_ns: 1_000, stepped_ns: 14_000, source: PriceSource::Assumed }
    }
}

impl HitPrice {
    /// What is believed of the true price. In a program that does other things between two hits a hit cost 1.24 times what
    /// it cost on the functions that it is calibrated on (676 and 544 ns, Linux 6.18, virtual machine, both processors
    /// busy).
    const fn belief(self) -> clock::Belief {
        match self.source {
            PriceSource::Assumed => clock::Belief { centre: 0.75, spread: 0.25 },
            PriceSource::Measured => clock::Belief { centre: 1.1, spread: 0.15 },
        }
    }
}

/// How sure a value is that was not counted whole, but estimated from windows of time placed at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Part of the time in which calls were counted, millionths.
    pub coverage_ppm: u32,
    /// Between these two lies the true number of calls, 95 times in 100; `None`: too few windows to tell.
    pub calls_95: Option<(u64, u64)>,
    /// The same for bytes.
    pub bytes_95: Option<(u64, u64)>,
}

#[cfg(test)]
mod coverage;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
