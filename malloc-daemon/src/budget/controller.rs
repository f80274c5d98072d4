//! Decides how deep a process is probed from moment to moment, so that the hits of its probes stay within a share of its
//! CPU time. No clock and no randomness of its own: it is told the time, and draws from a seeded sequence.
//!
//! The share is an account: CPU time pays in, hits draw. Overdrawn, full probing ends, and windows begin; each is placed at
//! random in the stretch it stands for, and stretches are as long as it takes to earn a window. A window cannot cost
//! more than the processors the program runs on for as long as it is open, however many calls are made: a trapped call
//! takes its time. So a rate that explodes within one is bounded by the window's length.

use super::account::Level;

/// How much is probed all the time; the rest is probed in windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Neither `arena` nor `call`.
    Windows,
    /// `arena`.
    Arena,
    /// Both.
    Full,
}

/// The next window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// When it opens, on the caller's clock, nanoseconds.
    pub open_ns: u64,
    /// How long it is open, nanoseconds.
    pub length_ns: u64,
    /// When the stretch it stands for ends, and the next one begins.
    pub end_ns: u64,
}

/// Budgets from this share on are none.
const UNLIMITED: f64 = 1.0;
/// What may be drawn before anything was paid in, and saved up at most: 10 ms are 10,000 hits at 1 us. A program that
/// ends before it has made so many calls is counted exactly.
const CREDIT_NS: f64 = 10e6;
/// What a jump of the rate took before full probing ended counts up to this much: on a machine whose processors are all
/// taken the daemon may come late.
const OWED_NS: f64 = 5e6;
/// The price of a hit is measured on functions that do nothing else. In a program it was 1.24 times that (Linux 6.18).
const MARGIN: f64 = 1.25;
/// The busiest probes take hits for about this long besides each window, while they come and go.
const SPILL_NS: f64 = 3e6;
/// Shorter windows would mostly be spill.
const SHORTEST_NS: f64 = 2e6;
/// A window may cost this much for each processor that the program keeps busy, and no more: twice what may be saved.
const LONGEST_NS: f64 = 20e6;
/// A stretch is at least this long, so that attaching costs the daemon little: 1 ms of CPU time for each.
const STRETCH_NS: f64 = 250e6;
const LONGEST_STRETCH_NS: f64 = 600e9;
/// A process that uses less of a processor than this is taken to wait.
const IDLE: f64 = 1e-3;
/// Stretches are planned to use this part of the budget; the rest pays for what was not foreseen.
const PLANNED: f64 = 0.8;
/// Full probing begins again when it would take less than this part of the budget.
const COMFORT: f64 = 0.5;
/// And not sooner than this after it ended, twice as long after each time that it did not last.
const DWELL_NS: u64 = 10_000_000_000;
const DWELLS: u32 = 5;
/// What has lasted this long was no mistake.
const LASTED_NS: u64 = 60_000_000_000;
/// CPU time of the program over which its rate of hits is remembered.
const MEMORY_NS: f64 = 400e6;
/// The same of time with probes attached, for a program that mostly waits.
const MEMORY_OPEN_NS: f64 = 2e9;
/// Time over which its share of the processors is remembered.
const LOAD_NS: f64 = 2e9;

/// What was last told.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at_ns: u64,
    cpu_ns: u64,
    arena_ns: u64,
    call_ns: u64,
}

/// Recent CPU time with a level attached, and what its hits cost then: fading sums.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    open: f64,
    cpu: f64,
    cost: f64,
}

impl Recent {
    fn add(&mut self, open: f64, cpu: f64, cost: f64) {
        let fade = (-cpu / MEMORY_NS - open / MEMORY_OPEN_NS).exp();
        self.open = self.open * fade + open;
        self.cpu = self.cpu * fade + cpu;
        self.cost = self.cost * fade + cost;
    }

    /// Cost for each nanosecond that the level is attached.
    fn rate(&self) -> f64 {
        if self.open <= 0.0 { 0.0 } else { self.cost / self.open }
    }

    /// Cost for each nanosecond of the program's own time.
    fn dearness(&self) -> f64 {
        if self.cpu <= 0.0 { 0.0 } else { self.cost / (self.cpu - self.cost).max(self.cpu / 200.0) }
    }
}

/// The controller of one process.
#[derive(Clone, Debug)]
pub struct Controller {
    share: f64,
    balance: f64,
    rung: Rung,
    since_ns: u64,
    drops: u32,
    seen: Option<Seen>,
    /// CPU time and time: fading sums.
    used: f64,
    passed: f64,
    planned_load: f64,
    arena: Recent,
    call: Recent,
    random: u64,
}

impl Controller {
    /// `share` is the part of a process's CPU time that hits may take, 0.01 for one per cent.
    #[must_use]
    pub fn new(share: f64, now_ns: u64, seed: u64) -> Self {
        Self {
            share: share.max(1e-6),
            balance: CREDIT_NS,
            rung: Rung::Full,
            since_ns: now_ns,
            drops: 0,
            seen: None,
            used: 0.0,
            passed: 0.0,
            planned_load: 0.0,
            arena: Recent::default(),
            call: Recent::default(),
            random: seed,
        }
    }

    /// Another budget from now on.
    pub fn set_share(&mut self, share: f64) {
        self.share = share.max(1e-6);
    }

    /// What is probed all the time now.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Told several times a second what the process used and what hits cost it, all of them since it began,
    /// nanoseconds; answers what to probe all the time.
    pub fn observe(&mut self, at_ns: u64, cpu_ns: u64, arena_ns: u64, call_ns: u64) -> Rung {
        let seen = self.seen.replace(Seen { at_ns, cpu_ns, arena_ns, call_ns });
        let Some(seen) = seen else { return self.rung };
        let passed = at_ns.saturating_sub(seen.at_ns) as f64;
        let cpu = cpu_ns.saturating_sub(seen.cpu_ns) as f64;
        let arena = MARGIN * arena_ns.saturating_sub(seen.arena_ns) as f64;
        let call = MARGIN * call_ns.saturating_sub(seen.call_ns) as f64;
        self.balance = (self.balance + self.share * cpu - arena - call).min(CREDIT_NS);
        if passed > 0.0 {
            let fade = (-passed / LOAD_NS).exp();
            self.used = self.used * fade + cpu;
            self.passed = self.passed * fade + passed;
        }
        if self.share >= UNLIMITED {
            self.rung = Rung::Full;
            return self.rung;
        }
        // What hits of the other level took is no time of the program's own; a little is left whatever they cost.
        let without = |cost: f64| (cpu - cost).max(cpu / 200.0);
        if self.rung >= Rung::Arena {
            self.arena.add(passed, without(call), arena);
        }
        if self.rung == Rung::Full {
            self.call.add(passed, without(arena), call);
        }
        let lasted = at_ns.saturating_sub(self.since_ns);
        if lasted > LASTED_NS && self.balance > 0.0 {
            self.drops = 0;
        }
        let affordable = |dearness: f64, part: f64| dearness < part * self.share;
        let wanted = match self.rung {
            Rung::Full if self.balance < 0.0 && affordable(self.arena.dearness(), COMFORT) => Rung::Arena,
            Rung::Full if self.balance < 0.0 => Rung::Windows,
            Rung::Arena if self.balance < 0.0 && !affordable(self.arena.dearness(), PLANNED) => Rung::Windows,
            Rung::Full => Rung::Full,
            rung if lasted < DWELL_NS << self.drops.saturating_sub(1).min(DWELLS) || self.balance < 0.0 => rung,
            _ if affordable(self.arena.dearness() + self.call.dearness(), COMFORT) => Rung::Full,
            Rung::Windows if affordable(self.arena.dearness(), COMFORT) => Rung::Arena,
            rung => rung,
        };
        if wanted != self.rung {
            if self.rung == Rung::Full {
                // What the reaction took is not held against the windows for long.
                self.balance = self.balance.max(-OWED_NS);
            }
            self.drops += u32::from(wanted < self.rung);
            self.rung = wanted;
            self.since_ns = at_ns;
        }
        self.rung
    }

    /// Told what a window met: how long it was open, CPU time of the process within it, and the cost of the level's hits.
    pub fn learn(&mut self, level: Level, open_ns: u64, cpu_ns: u64, cost_ns: u64) {
        let recent = if level == Level::Arena { &mut self.arena } else { &mut self.call };
        recent.add(open_ns as f64, cpu_ns as f64, (MARGIN * cost_ns as f64).min(cpu_ns as f64));
    }

    /// The next window. `floor_ns`: stretches are at least this long, because attaching for all processes together would
    /// cost too much otherwise.
    pub fn plan(&mut self, now_ns: u64, floor_ns: u64) -> Plan {
        let arena = if self.rung == Rung::Windows { self.arena.rate() } else { 0.0 };
        let rate = arena + self.call.rate();
        let load = self.load().max(IDLE);
        let earned = PLANNED * self.share * load;
        let open_part = if rate > 0.0 && load > IDLE { (earned / rate).min(0.25) } else { 0.0 };
        let mut stretch = STRETCH_NS.max(floor_ns as f64);
        let length = (open_part * stretch - SPILL_NS).max(SHORTEST_NS);
        let length = length.min((LONGEST_NS / load.max(1.0)).max(SHORTEST_NS));
        // What is not saved yet is earned first.
        stretch = stretch.max((rate * (length + SPILL_NS) - self.balance) / earned);
        let stretch = (stretch * (0.75 + 0.5 * self.draw())).min(LONGEST_STRETCH_NS);
        let open_ns = now_ns + (self.draw() * (stretch - length)) as u64;
        self.planned_load = load;
        Plan { open_ns, length_ns: length as u64, end_ns: now_ns + stretch as u64 }
    }

    /// The process uses so much more of the processors than when its window was planned that it earns one sooner.
    #[must_use]
    pub fn outgrown(&self) -> bool {
        self.load() > 4.0 * self.planned_load
    }

    /// CPU time for each nanosecond that passes.
    fn load(&self) -> f64 {
        if self.passed > 0.0 { self.used / self.passed } else { 0.0 }
    }

    /// The next number of the sequence, 0 to 1 (splitmix64).
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
