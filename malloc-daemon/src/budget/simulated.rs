//! A process, its probes and the daemon's part, on a clock of steps: what `observe::windows` does, without a kernel.

use malloc_common::function::Function;
use malloc_common::histogram;

use super::tally::{ARENA, Prices};
use super::{Account, Controller, HitPrice, Level, Plan, Reading, Rung, Tally};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

/// What a program does at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Doing {
    /// Pairs of `malloc` and `free` for each second of its own time.
    pub pairs: f64,
    /// The part of one processor that it has work for.
    pub work: f64,
    /// The part of one processor that others leave to it.
    pub given: f64,
    /// The part of the calls that ask for [`LARGE`] bytes and not for [`SMALL`].
    pub large: f64,
}

pub const SMALL: u64 = 100;
pub const LARGE: u64 = 3000;

/// What a program does, by the clock and by its own time so far.
pub type Behaviour = Box<dyn FnMut(u64, f64, &mut Random) -> Doing>;

/// xorshift64*
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    fn normal(&mut self) -> f64 {
        2.0 * (self.unit() + self.unit() + self.unit() - 1.5)
    }
}

pub struct Simulation {
    pub now: u64,
    pub cpu: f64,
    /// What hits really cost it.
    pub paid: f64,
    pub truth: Tally,
    pub counted: Tally,
    pub controller: Controller,
    pub account: Account,
    pub changes: Vec<u64>,
    price: HitPrice,
    true_price: f64,
    /// Time it had without what hits took.
    own: f64,
    backlog: f64,
    rest: f64,
    random: Random,
    behaviour: Behaviour,
    window: Window,
}

enum Window {
    None,
    Planned(u64, Plan),
    Attaching(u64, Plan, u64),
    Open(u64, Plan, u64, u64, Box<Tally>),
    Detaching(u64, u64),
}

/// Time to attach and to detach the busiest probes.
const ATTACH: u64 = 2 * MS;
const DETACH: u64 = 3 * MS;
const POLL: u64 = 25 * MS;
const STEP: u64 = MS;

impl Simulation {
    pub fn new(share: f64, price: HitPrice, true_price: f64, seed: u64, behaviour: Behaviour) -> Self {
        let empty = Tally::empty();
        Self {
            now: 0,
            cpu: 0.0,
            paid: 0.0,
            account: Account::new(price, &Reading { at_ns: 0, cpu_ns: 0, tally: &empty }),
            truth: empty.clone(),
            counted: empty,
            controller: Controller::new(share, 0, seed),
            changes: Vec::new(),
            price,
            true_price,
            own: 0.0,
            backlog: 0.0,
            rest: 0.0,
            random: Random(seed | 1),
            behaviour,
            window: Window::None,
        }
    }

    pub fn run(&mut self, until: u64) {
        while self.now < until {
            self.step();
        }
    }

    fn step(&mut self) {
        let Doing { pairs, work, given, large } = (self.behaviour)(self.now, self.own, &mut self.random);
        let probed = matches!(self.window, Window::Attaching(..) | Window::Open(..) | Window::Detaching(..));
        let call = self.controller.rung() == Rung::Full || probed;
        let arena = self.controller.rung() >= Rung::Arena || probed;
        // One pair in ten enters the arena.
        let dear = pairs / 1e9 * self.true_price * (2.0 * f64::from(call) + 0.1 * f64::from(arena));
        self.backlog += work * STEP as f64;
        let own = self.backlog.min(given * STEP as f64 / (1.0 + dear));
        self.backlog = (self.backlog - own).min(STEP as f64 * 10.0);
        let mean = pairs / 1e9 * own;
        let made = (mean + mean.sqrt() * self.random.normal() + self.rest).max(0.0);
        self.rest = made.fract();
        let made = made as u64;
        let spread = (made as f64 * large * (1.0 - large)).sqrt() * self.random.normal();
        let large = ((made as f64 * large + spread).round().max(0.0) as u64).min(made);
        self.own += own;
        self.cpu += own * (1.0 + dear);
        self.paid += own * dear;
        add(&mut self.truth, made, large, (true, true), self.price);
        add(&mut self.counted, made, large, (call, arena), self.price);
        self.now += STEP;
        self.decide();
    }

    fn reading<'a>(&self, tally: &'a Tally) -> Reading<'a> {
        Reading { at_ns: self.now, cpu_ns: self.cpu as u64, tally }
    }

    fn decide(&mut self) {
        let now = self.now;
        // A window is never given up for what it meets: those that meet much would be missing.
        let attached = matches!(self.window, Window::Attaching(..) | Window::Open(..));
        if now.is_multiple_of(POLL) && !attached {
            let before = self.controller.rung();
            let (arena, call) = (self.counted.arena_cost_ns, self.counted.call_cost_ns);
            let after = self.controller.observe(now, self.cpu as u64, arena, call);
            let (at_ns, cpu_ns, tally) = (now, self.cpu as u64, &self.counted);
            let reading = Reading { at_ns, cpu_ns, tally };
            for (level, from) in [(Level::Call, Rung::Full), (Level::Arena, Rung::Arena)] {
                if after >= from {
                    self.account.probe_fully(level, &reading);
                } else {
                    self.account.probe_in_windows(level, &reading);
                }
            }
            if after != before {
                self.changes.push(now);
                if before == Rung::Full || after == Rung::Full {
                    self.window = Window::None;
                }
            }
        }
        let rung = self.controller.rung();
        self.window = match std::mem::replace(&mut self.window, Window::None) {
            Window::None if rung < Rung::Full => Window::Planned(now, self.controller.plan(now, 0)),
            Window::Planned(..) if self.controller.outgrown() => Window::Planned(now, self.controller.plan(now, 0)),
            Window::Planned(start, plan) if now + ATTACH >= plan.open_ns => {
                Window::Attaching(start, plan, now + ATTACH)
            }
            Window::Attaching(start, plan, ready) if now >= ready => {
                Window::Open(start, plan, now, self.cpu as u64, Box::new(self.counted.clone()))
            }
            Window::Open(start, plan, opened, cpu, tally) if now >= opened + plan.length_ns => {
                let counted = self.counted.clone();
                let (opened, closed) = (Reading { at_ns: opened, cpu_ns: cpu, tally: &tally }, self.reading(&counted));
                let (long, used) = (closed.at_ns - opened.at_ns, closed.cpu_ns - cpu);
                let cell = plan.end_ns.max(now) - start;
                self.account.window(Level::Call, cell, &opened, &closed);
                self.controller.learn(Level::Call, long, used, counted.call_cost_ns - tally.call_cost_ns);
                if rung == Rung::Windows {
                    self.account.window(Level::Arena, cell, &opened, &closed);
                    self.controller.learn(Level::Arena, long, used, counted.arena_cost_ns - tally.arena_cost_ns);
                }
                Window::Detaching(plan.end_ns, now + DETACH)
            }
            Window::Detaching(end, until) if now >= until && now >= end => Window::None,
            Window::Detaching(end, until) if now >= until => Window::Planned(end, self.controller.plan(end, 0)),
            other => other,
        };
    }

    pub fn figures(&self, level: Level) -> super::LevelFigures {
        self.account.figures(level, &self.reading(&self.counted))
    }
}

fn add(tally: &mut Tally, pairs: u64, large: u64, (call, arena): (bool, bool), price: HitPrice) {
    if pairs == 0 {
        return;
    }
    let prices = Prices::emulated(price);
    if call {
        for (size, calls) in [(SMALL, pairs - large), (LARGE, large)] {
            let row = &mut tally.rows[0];
            row.calls += calls;
            row.bytes += calls * size;
            row.buckets[histogram::bucket(size) as usize] += calls;
        }
        tally.rows[Function::Free as usize].calls += pairs;
        tally.hits += 2 * pairs;
        tally.call_cost_ns += 2 * pairs * u64::from(prices.calls[0]);
    }
    if arena {
        let row = &mut tally.rows[ARENA];
        // Every tenth, whatever the size of the step.
        let entered = (row.failed + pairs) / 10;
        row.failed = (row.failed + pairs) % 10;
        row.calls += entered;
        row.bytes += entered * SMALL;
        row.buckets[histogram::bucket(SMALL) as usize] += entered;
        tally.hits += entered;
        tally.arena_cost_ns += entered * u64::from(prices.arena);
    }
}
