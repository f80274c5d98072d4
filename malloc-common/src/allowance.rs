//! How much of something rare is taken in a time: so many a second in the long run, and a burst.

/// Crossings of a process whose stacks are all sent.
pub const FIRST_SAMPLES: u64 = 32;
/// Of these the first few draw on an allowance that later ones cannot use up: one process that crosses without end does
/// not hide how others come to cross.
pub const RESERVED_SAMPLES: u64 = 4;
/// After the first samples: the least time between two stacks of one process, nanoseconds.
pub const SAMPLE_EVERY_NS: u64 = 10_000_000;

/// What may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Nanoseconds between two in the long run; 0: there is no limit.
    pub every_ns: u64,
    /// Nanoseconds that rest earns at most.
    pub burst_ns: u64,
}

impl Allowance {
    /// As many as come.
    pub const NO_LIMIT: Self = Self { every_ns: 0, burst_ns: 0 };

    /// `a_second` in the long run, at least 1, and `burst` at once.
    #[must_use]
    pub const fn new(a_second: u64, burst: u64) -> Self {
        let every_ns = 1_000_000_000 / a_second;
        Self { every_ns, burst_ns: every_ns * burst }
    }

    /// Takes one more: the time up to which what was taken is then paid for, nanoseconds. `None`: nothing is left.
    /// `paid_until_ns` is what the last one returned; 0 at first.
    #[inline(always)]
    #[must_use]
    pub fn take(self, paid_until_ns: u64, now_ns: u64) -> Option<u64> {
        let earned = now_ns.saturating_sub(self.burst_ns);
        let from = if paid_until_ns > earned { paid_until_ns } else { earned };
        let due = from.wrapping_add(self.every_ns);
        if due > now_ns { None } else { Some(due) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn taken(paid: &mut u64, times: impl Iterator<Item = u64>) -> usize {
        let mut one = |now| Allowance::new(50, 500).take(*paid, now).map(|due| *paid = due).is_some();
        times.filter(|now| one(*now)).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (mut paid, start) = (0, 100 * SECOND);
        assert_eq!(taken(&mut paid, std::iter::repeat_n(start, 2000)), 500);
        let within_ten_seconds = (0..1000).map(|n| start + n * SECOND / 100);
        assert_eq!(taken(&mut paid, within_ten_seconds), 500 - 1, "fifty a second, less the first, not due yet");
        let later = start + 100 * SECOND;
        assert_eq!(taken(&mut paid, std::iter::repeat_n(later, 2000)), 500, "rest earns a burst, no more");
    }

    #[test]
    fn a_clock_that_goes_back_takes_nothing_twice() {
        let mut paid = 0;
        assert_eq!(taken(&mut paid, std::iter::repeat_n(10 * SECOND, 2000)), 500);
        assert_eq!(taken(&mut paid, [9 * SECOND].into_iter()), 0);
    }
}
