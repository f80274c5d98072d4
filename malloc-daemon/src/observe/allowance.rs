//! How many stacks are named a second: what comes faster is sampled more thinly.

/// Stacks of mapped chunks among all processes of a machine: about 40 us each.
pub const STACKS: Allowance = Allowance::new(50, 500);

/// Takes at most so many a second in the long run, and a burst.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    every_ns: u64,
    burst_ns: u64,
    /// The time up to which what was taken is paid for.
    paid_until_ns: u64,
}

impl Allowance {
    /// `a_second` in the long run, `burst` at once.
    #[must_use]
    pub const fn new(a_second: u64, burst: u64) -> Self {
        let every_ns = 1_000_000_000 / a_second;
        Self { every_ns, burst_ns: every_ns.saturating_mul(burst), paid_until_ns: 0 }
    }

    /// Whether one more may be taken at this time.
    pub fn take(&mut self, now_ns: u64) -> bool {
        let due = self.paid_until_ns.max(now_ns.saturating_sub(self.burst_ns)).saturating_add(self.every_ns);
        if due > now_ns {
            return false;
        }
        self.paid_until_ns = due;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut allowance = Allowance::new(50, 500);
        let second = 1_000_000_000;
        let start = 100 * second;
        assert_eq!((0..2000).filter(|_| allowance.take(start)).count(), 500);
        let taken = (0..1000).filter(|n| allowance.take(start + n * second / 100)).count();
        assert_eq!(taken, 500 - 1, "fifty a second for ten seconds, less the first, which is not due yet");
        assert_eq!(
            (0..2000).filter(|_| allowance.take(start + 100 * second)).count(),
            500,
            "rest earns a burst, no more"
        );
    }

    #[test]
    fn a_clock_that_goes_back_takes_nothing_twice() {
        let mut allowance = Allowance::new(50, 2);
        assert!(allowance.take(10_000_000_000));
        assert!(allowance.take(10_000_000_000));
        assert!(!allowance.take(9_000_000_000));
    }
}
