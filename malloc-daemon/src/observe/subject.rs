//! One process that is probed deeply: polls what its hits cost, opens and closes its windows, keeps its account.

use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::windows::{DeepProbes, ToClose};
use crate::budget::{Account, Controller, HitPrice, Level, Plan, Prices, Reading, Rung, Tally};
use crate::collect::{RawImage, Rows, boot_ns};
use crate::host::process::{self, Pid};
use crate::probes::{Attached, MultiPrograms, process_cpu_ns, thread_cpu_ns};

/// How often a fully probed process is looked at: what a sudden rate costs before full probing ends.
const POLL_NS: u64 = 25_000_000;
/// The same for one of which nothing is known yet: it may end before it has run for as long as that.
const FIRST_POLL_NS: u64 = 5_000_000;
/// How long that lasts.
const NEW_NS: u64 = 100_000_000;
/// How often one that is probed in windows is looked at: only its load is of interest.
const SLOW_POLL_NS: u64 = 200_000_000;
/// Attaching 15 sites takes about this long (Linux 6.18).
const ATTACH_NS: u64 = 8_000_000;
/// Threads of a process that are asked for their time at the ends of a window.
const THREADS: usize = 64;
/// Time and counts that are read within this are of one moment. 100 us: a twentieth of the shortest window.
const AT_ONCE_NS: u64 = 100_000;
/// Tries to read them so.
const READINGS: u32 = 4;
/// Accounts kept of images whose end was not collected yet; what has none is told as it was counted, not estimated.
/// 256 x at most 200 KiB = 50 MiB, a tenth of that for a program that uses two functions.
const ACCOUNTS: usize = 256;

/// An image's account, as the thread left it.
pub(super) struct Held {
    pub(super) account: Account,
    pub(super) prices: Prices,
    pub(super) cpu_ns: u64,
    /// Windows were needed at some time.
    pub(super) windowed: bool,
    /// They are now.
    pub(super) over_budget: bool,
}

/// By process and the beginning of its image.
pub(super) type Accounts = Arc<Mutex<HashMap<(u32, u64), Arc<Mutex<Held>>>>>;

/// A panic of another thread leaves an account as it is.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that is probed deeply.
pub(super) struct Subject {
    pub(super) pid: u32,
    pub(super) parts: Vec<Part>,
    pub(super) prices: Prices,
    pub(super) controller: Controller,
    pub(super) image: Option<Image>,
    pub(super) state: State,
    /// Since when it is probed.
    pub(super) since_ns: u64,
    pub(super) poll_ns: u64,
}

/// The probes of one file in it, as far as they are attached.
pub(super) struct Part {
    pub(super) probes: DeepProbes,
    pub(super) arena: Option<Attached>,
    pub(super) call: Option<Attached>,
}

/// The image that it runs.
pub(super) struct Image {
    pub(super) row: usize,
    pub(super) first_ns: u64,
    pub(super) held: Arc<Mutex<Held>>,
}

/// Where it is between two windows.
pub(super) enum State {
    /// No window is due.
    Full,
    /// A window is due; its stretch began at the first figure.
    Planned(u64, Plan),
    Open(Box<Open>),
}

/// A window that is open.
pub(super) struct Open {
    pub(super) began_ns: u64,
    pub(super) plan: Plan,
    pub(super) opened_ns: u64,
    pub(super) cpu_ns: u64,
    pub(super) tally: Tally,
    pub(super) rung: Rung,
}

impl Subject {
    pub(super) fn due_ns(&self) -> u64 {
        match &self.state {
            State::Full => self.poll_ns,
            State::Planned(_, plan) => self.poll_ns.min(plan.open_ns.saturating_sub(ATTACH_NS)),
            State::Open(open) => open.opened_ns + open.plan.length_ns,
        }
    }

    /// Attaches and detaches until what is attached is what the rung and the window want.
    pub(super) fn settle(&mut self, programs: &MultiPrograms, to_close: Option<&Sender<ToClose>>) {
        let open = match &self.state {
            State::Open(open) => Some(open.rung),
            _ => None,
        };
        let rung = self.controller.rung();
        let call = rung == Rung::Full || open.is_some();
        let arena = rung >= Rung::Arena || open == Some(Rung::Windows);
        let mut unwanted = Vec::new();
        for part in &mut self.parts {
            // The dear one goes first.
            let levels = [(call, &mut part.call, &part.probes.call), (arena, &mut part.arena, &part.probes.arena)];
            for (wanted, link, probes) in levels {
                match (wanted, link.is_some()) {
                    (true, false) if !probes.programs.is_empty() => match programs.attach(probes) {
                        Ok(attached) => *link = Some(attached),
                        Err(error) => tracing::debug!(pid = self.pid, %error, "a window stays closed"),
                    },
                    (false, true) => unwanted.extend(link.take()),
                    _ => {}
                }
            }
        }
        if let Some(to_close) = to_close.filter(|_| !unwanted.is_empty()) {
            let _ = to_close.send((unwanted, None));
        }
    }

    pub(super) fn work(&mut self, now: u64, floor_ns: u64, price: HitPrice, rows: &Rows, accounts: &Accounts) {
        if now >= self.poll_ns {
            self.poll_ns = now
                + match self.controller.rung() {
                    Rung::Windows => SLOW_POLL_NS,
                    _ if now.saturating_sub(self.since_ns) < NEW_NS => FIRST_POLL_NS,
                    _ => POLL_NS,
                };
        }
        let Some(cpu_ns) = process_cpu_ns(self.pid) else {
            // It has ended: its owner says so soon.
            self.state = State::Full;
            self.poll_ns = now + SLOW_POLL_NS;
            return;
        };
        let tally = self.look(now, cpu_ns, price, rows, accounts);
        // A window is never given up for what it meets: neither is it closed early, nor does the rung change within one.
        if let State::Open(_) = &self.state {
            self.end_window(rows, floor_ns);
            return;
        }
        let before = self.controller.rung();
        let after = self.controller.observe(now, cpu_ns, tally.arena_cost_ns, tally.call_cost_ns);
        if after != before {
            tracing::debug!(pid = self.pid, ?before, ?after, "what is probed all the time changes");
            if after < before {
                self.account(&Reading { at_ns: now, cpu_ns, tally: &tally }, after);
            }
            // What begins now is accounted for when it is attached: at the next poll.
            self.poll_ns = now;
        } else {
            self.account(&Reading { at_ns: now, cpu_ns, tally: &tally }, after);
        }
        self.state = match (std::mem::replace(&mut self.state, State::Full), after) {
            (_, Rung::Full) => State::Full,
            (State::Full, _) => State::Planned(now, self.controller.plan(now, floor_ns)),
            (State::Planned(..), _) if self.controller.outgrown() => {
                State::Planned(now, self.controller.plan(now, floor_ns))
            }
            (State::Planned(began_ns, plan), rung) if now + ATTACH_NS >= plan.open_ns => {
                State::Open(Box::new(Open { began_ns, plan, opened_ns: 0, cpu_ns, tally, rung }))
            }
            (state, _) => state,
        };
    }

    /// Brings the account into the state that the rung stands for.
    fn account(&self, reading: &Reading<'_>, rung: Rung) {
        let Some(image) = &self.image else { return };
        let mut held = locked(&image.held);
        held.over_budget = rung < Rung::Full;
        held.windowed |= held.over_budget;
        for (level, from) in [(Level::Call, Rung::Full), (Level::Arena, Rung::Arena)] {
            if rung >= from {
                held.account.probe_fully(level, reading);
            } else {
                held.account.probe_in_windows(level, reading);
            }
        }
    }

    /// What is counted now; a new image gets an account.
    fn look(&mut self, now: u64, cpu_ns: u64, price: HitPrice, rows: &Rows, accounts: &Accounts) -> Tally {
        let known = self.image.as_ref().and_then(|image| rows.deep(image.row, self.pid, Some(image.first_ns)));
        let row = match known {
            Some(row) => row,
            None => {
                let found = rows.find(self.pid).and_then(|row| Some((row, rows.deep(row, self.pid, None)?)));
                let Some((index, row)) = found else { return Tally::empty() };
                let key = (self.pid, row.slot.first_ns);
                let mut all = locked(accounts);
                if all.len() >= ACCOUNTS && !all.contains_key(&key) {
                    return Tally::of(&row, &self.prices);
                }
                let held = all.entry(key).or_insert_with(|| {
                    // What it counted before was counted with everything attached, unless windows had begun.
                    let full = self.controller.rung() == Rung::Full;
                    let before = if full { Tally::empty() } else { Tally::of(&row, &self.prices) };
                    let account = Account::new(price, &Reading { at_ns: now, cpu_ns, tally: &before });
                    Arc::new(Mutex::new(Held {
                        account,
                        prices: self.prices,
                        cpu_ns,
                        windowed: false,
                        over_budget: false,
                    }))
                });
                self.image = Some(Image { row: index, first_ns: row.slot.first_ns, held: Arc::clone(held) });
                row
            }
        };
        if let Some(image) = &self.image {
            locked(&image.held).cpu_ns = cpu_ns;
        }
        Tally::of(&row, &self.prices)
    }

    /// Time, CPU time and counts of one moment. Each thread is asked for its time, so that the time of the process is that
    /// of this moment. When this thread lost its processor in between, all is read again.
    fn exact_reading(&self, rows: &Rows) -> Option<(u64, u64, Tally)> {
        let image = self.image.as_ref()?;
        let threads: Vec<u32> = process::threads(Pid(self.pid)).take(THREADS).collect();
        let mut best: Option<(u64, u64, u64, RawImage)> = None;
        for _ in 0..READINGS {
            let at_ns = boot_ns();
            for tid in &threads {
                let _ = thread_cpu_ns(*tid);
            }
            let cpu_ns = process_cpu_ns(self.pid)?;
            let row = rows.deep(image.row, self.pid, Some(image.first_ns))?;
            let took_ns = boot_ns().saturating_sub(at_ns);
            if best.as_ref().is_none_or(|(least, ..)| took_ns < *least) {
                best = Some((took_ns, at_ns, cpu_ns, row));
            }
            if took_ns < AT_ONCE_NS {
                break;
            }
        }
        best.map(|(_, at_ns, cpu_ns, row)| (at_ns, cpu_ns, Tally::of(&row, &self.prices)))
    }

    /// A window whose probes are in place begins.
    pub(super) fn opened(&mut self, rows: &Rows) {
        let unopened = matches!(&self.state, State::Open(open) if open.opened_ns == 0);
        if !unopened {
            return;
        }
        let reading = self.exact_reading(rows).filter(|_| self.parts.iter().all(|part| part.call.is_some()));
        match (&mut self.state, reading) {
            (State::Open(open), Some((at_ns, cpu_ns, tally))) => {
                (open.opened_ns, open.cpu_ns, open.tally) = (at_ns, cpu_ns, tally);
            }
            // The process ends, or becomes another program.
            (State::Open(open), None) => {
                let (end_ns, plan) = (open.plan.end_ns, open.plan);
                self.state = State::Planned(end_ns, Plan { open_ns: end_ns + plan.length_ns, ..plan });
            }
            _ => {}
        }
    }

    fn end_window(&mut self, rows: &Rows, floor_ns: u64) {
        let reading = self.exact_reading(rows);
        let State::Open(open) = std::mem::replace(&mut self.state, State::Full) else { return };
        if let (Some((at_ns, cpu_ns, tally)), Some(image)) = (reading, &self.image) {
            let opened = Reading { at_ns: open.opened_ns, cpu_ns: open.cpu_ns, tally: &open.tally };
            let closed = Reading { at_ns, cpu_ns, tally: &tally };
            let stretch_ns = open.plan.end_ns.max(at_ns).saturating_sub(open.began_ns);
            let (long, used) = (at_ns.saturating_sub(open.opened_ns), cpu_ns.saturating_sub(open.cpu_ns));
            let hits = tally.hits.saturating_sub(open.tally.hits);
            tracing::debug!(pid = self.pid, stretch_ns, open_ns = long, cpu_ns = used, hits, "a window");
            let mut held = locked(&image.held);
            held.account.window(Level::Call, stretch_ns, &opened, &closed);
            let cost = tally.call_cost_ns.saturating_sub(open.tally.call_cost_ns);
            self.controller.learn(Level::Call, long, used, cost);
            if open.rung == Rung::Windows {
                held.account.window(Level::Arena, stretch_ns, &opened, &closed);
                let cost = tally.arena_cost_ns.saturating_sub(open.tally.arena_cost_ns);
                self.controller.learn(Level::Arena, long, used, cost);
            }
        }
        let began_ns = open.plan.end_ns.max(boot_ns());
        self.state = State::Planned(began_ns, self.controller.plan(began_ns, floor_ns));
    }

    /// Ends the accounts: it is not probed any more.
    pub(super) fn stop(&mut self, rows: &Rows) {
        if let (Some((at_ns, cpu_ns, tally)), Some(image)) = (self.exact_reading(rows), &self.image) {
            locked(&image.held).account.stop(&Reading { at_ns, cpu_ns, tally: &tally });
        }
    }
}
