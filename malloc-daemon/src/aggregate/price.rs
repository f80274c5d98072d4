//! What a hit of a probe costs on this machine, and what observing costs a process: hits times price.

use malloc_common::depth::Depth;

/// What a hit costs, nanoseconds of the observed program's CPU time: the trap and the program that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// A probe whose program does nothing, on an instruction that the kernel emulates.
    pub blank_ns: u64,
    /// The same on one that it steps over out of line.
    pub stepped_ns: u64,
    /// A public function's entry, its size put into a histogram; on an emulated instruction, as the next three.
    pub call_ns: u64,
    /// `_int_malloc`.
    pub arena_ns: u64,
    /// A function of the slow path.
    pub slow_ns: u64,
    /// A branch to a system call.
    pub branch_ns: u64,
    /// Both tracepoints of one of the four system calls.
    pub syscall_ns: u64,
    /// What the tracepoints add to every other system call of the machine, observed or not; in no process's `cost`.
    pub other_syscall_ns: u64,
    /// Instructions that the table has as emulated, and what a hit on one costs.
    pub kinds: Vec<(&'static str, u64)>,
}

/// What was learnt at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// The prices.
    Measured(Prices),
    /// Why there are none.
    NotMeasured(String),
}

impl Default for Calibration {
    fn default() -> Self {
        Self::NotMeasured("not measured yet".to_owned())
    }
}

impl Calibration {
    /// The prices, when they were measured.
    #[must_use]
    pub const fn prices(&self) -> Option<&Prices> {
        match self {
            Calibration::Measured(prices) => Some(prices),
            Calibration::NotMeasured(_) => None,
        }
    }
}

/// Whether the kernel emulates what the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableCheck {
    /// Every kind costs clearly less than a stepped instruction.
    Holds,
    /// These kinds cost about what a stepped one does.
    Steps(Vec<&'static str>),
    /// Stepping costs so little here that nothing can be told.
    Untold,
}

/// Stepping must be this much dearer than the cheapest kind to tell one from the other. On the machine this was written
/// on it is ten times as dear, on bare metal about three times.
const TELLING: u64 = 2;

/// How often the probes were hit for one image. The stepped ones are among the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Public functions, and the allocator's own branches to them.
    pub call: u64,
    /// Of them on instructions that the kernel steps over.
    pub call_stepped: u64,
    /// `_int_malloc`.
    pub arena: u64,
    /// Stepped.
    pub arena_stepped: u64,
    /// Functions of the slow path.
    pub slow: u64,
    /// Stepped.
    pub slow_stepped: u64,
    /// Branches to system calls.
    pub branch: u64,
    /// The four system calls.
    pub syscall: u64,
}

/// What observing costs one image: an estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How often the probes were hit.
    pub hits: Hits,
    /// Nanoseconds that this took, by depth, the cheapest first.
    pub ns_by_depth: [u64; 4],
    /// CPU time of the image while it was observed, nanoseconds; the cost is part of it. `None`: not read.
    pub cpu_ns: Option<u64>,
}

impl Prices {
    /// What these hits cost.
    #[must_use]
    pub fn cost(&self, hits: Hits, cpu_ns: Option<u64>) -> Cost {
        let stepping = self.stepped_ns.saturating_sub(self.blank_ns);
        let sum = |parts: &[(u64, u64)]| {
            parts.iter().fold(0u64, |sum, (hits, ns)| sum.saturating_add(hits.saturating_mul(*ns)))
        };
        let ns_by_depth = [
            sum(&[(hits.syscall, self.syscall_ns)]),
            sum(&[(hits.slow, self.slow_ns), (hits.slow_stepped, stepping), (hits.branch, self.branch_ns)]),
            sum(&[(hits.arena, self.arena_ns), (hits.arena_stepped, stepping)]),
            sum(&[(hits.call, self.call_ns), (hits.call_stepped, stepping)]),
        ];
        Cost { hits, ns_by_depth, cpu_ns }
    }

    /// Compares the table of emulated instructions with what was measured.
    #[must_use]
    pub fn table(&self) -> TableCheck {
        let Some(cheapest) = self.kinds.iter().map(|(_, ns)| *ns).min() else { return TableCheck::Untold };
        if self.stepped_ns < cheapest.saturating_mul(TELLING) {
            return TableCheck::Untold;
        }
        let dear = |ns: u64| ns > cheapest.midpoint(self.stepped_ns);
        let steps: Vec<_> = self.kinds.iter().filter(|(_, ns)| dear(*ns)).map(|(kind, _)| *kind).collect();
        if steps.is_empty() { TableCheck::Holds } else { TableCheck::Steps(steps) }
    }
}

impl Cost {
    /// Nanoseconds of all depths together.
    #[must_use]
    pub fn ns(&self) -> u64 {
        self.ns_by_depth.iter().fold(0, |sum, ns| sum.saturating_add(*ns))
    }

    /// Part of the image's CPU time, at most 1; `None` when that is not known.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        let cpu_ns = self.cpu_ns.filter(|ns| *ns > 0)?;
        Some((self.ns() as f64 / cpu_ns as f64).min(1.0))
    }
}

impl Hits {
    /// Hits by depth, the cheapest first.
    #[must_use]
    pub const fn by_depth(&self) -> [(Depth, u64); 4] {
        [
            (Depth::Syscall, self.syscall),
            (Depth::Sysmalloc, self.slow + self.branch),
            (Depth::Arena, self.arena),
            (Depth::Call, self.call),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices() -> Prices {
        Prices {
            blank_ns: 600,
            stepped_ns: 10_600,
            call_ns: 640,
            arena_ns: 630,
            slow_ns: 900,
            branch_ns: 800,
            syscall_ns: 300,
            other_syscall_ns: 60,
            kinds: vec![("push", 600), ("nop", 580), ("jcc", 610)],
        }
    }

    #[test]
    fn each_hit_costs_its_own_price_and_a_stepped_one_the_stepping_too() {
        let hits = Hits { call: 10, call_stepped: 1, arena: 2, slow: 3, branch: 4, syscall: 5, ..Hits::default() };
        let cost = prices().cost(hits, Some(100_000));
        assert_eq!(cost.ns_by_depth, [1_500, 2_700 + 3_200, 1_260, 6_400 + 10_000]);
        assert_eq!(cost.ns(), 25_060);
        assert_eq!(cost.share(), Some(0.250_6));
    }

    #[test]
    fn a_share_needs_a_cpu_time_and_is_never_more_than_all() {
        let hits = Hits { call: 10, ..Hits::default() };
        assert_eq!(prices().cost(hits, None).share(), None);
        assert_eq!(prices().cost(hits, Some(0)).share(), None);
        assert_eq!(prices().cost(hits, Some(1)).share(), Some(1.0));
    }

    #[test]
    fn a_kind_that_costs_what_stepping_costs_is_named() {
        let mut prices = prices();
        assert_eq!(prices.table(), TableCheck::Holds);
        prices.kinds.push(("call", 9_900));
        assert_eq!(prices.table(), TableCheck::Steps(vec!["call"]));
        prices.stepped_ns = 900;
        assert_eq!(prices.table(), TableCheck::Untold);
    }
}
