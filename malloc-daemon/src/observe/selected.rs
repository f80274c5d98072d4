//! Processes that are probed deeper than the rest: who they are, and when they no longer are.

use std::collections::HashMap;

use malloc_common::depth::Depth;

use super::observer::Observer;
use crate::aggregate::model::{Snapshot, Verdict};
use crate::config::{Deep, Subject};
use crate::host::HostError;
use crate::host::process::{self, Pid};

/// A process is looked at again while it is younger than this and maps no allocator yet: its loader may still run.
const YOUNG_MS: u64 = 5_000;

/// The selectors and whom they select.
#[derive(Debug, Default)]
pub struct Selected {
    deep: Deep,
    /// Starts of the processes that are selected by their number: the number alone may be another's later.
    lives: HashMap<u32, u64>,
    /// Those that were probed, by number, with their starts.
    held: HashMap<u32, u64>,
}

impl Selected {
    fn selects(&self, process: Subject<'_>, start_ticks: u64) -> bool {
        let by_number = self.lives.get(&process.pid) == Some(&start_ticks);
        by_number || self.deep.selects(Subject { pid: 0, ..process })
    }
}

impl Observer {
    /// Probes other processes down to `call` than before, from the next collection on. Returns the numbers among the
    /// selectors that no process has.
    pub fn select(&mut self, deep: Deep) -> Vec<u32> {
        let life = |pid: &u32| Some((*pid, process::identity(Pid(*pid)).ok().flatten()?.start_ticks));
        self.selected.lives = deep.pid.iter().filter_map(life).collect();
        let nobodys = deep.pid.iter().filter(|pid| !self.selected.lives.contains_key(pid)).copied().collect();
        self.selected.deep = deep;
        nobodys
    }

    /// Probes those that are selected and not probed yet, and lets go of those that are no longer selected.
    pub fn probe_selected(&mut self, snapshot: &Snapshot) {
        let live = snapshot.processes.iter().filter(|process| process.ended.is_none());
        let wanted: HashMap<u32, (u64, u64)> = live
            .filter(|process| {
                let (exe, cgroup) = (process.exe.as_deref(), process.cgroup.as_deref());
                let subject = Subject { pid: process.id.pid, comm: &process.comm, exe, cgroup };
                self.selected.selects(subject, process.id.start_ticks)
            })
            .map(|process| (process.id.pid, (process.id.start_ticks, process.observed_ms)))
            .collect();
        let gone = |pid: &u32, start: &u64| wanted.get(pid).is_none_or(|(now, _)| now != start);
        let released: Vec<u32> =
            self.selected.held.iter().filter(|(pid, start)| gone(pid, start)).map(|(pid, _)| *pid).collect();
        if !released.is_empty() {
            self.selected.held.retain(|pid, _| !released.contains(pid));
            self.let_go(&released);
        }
        for (pid, (start_ticks, observed_ms)) in wanted {
            if !self.selected.held.contains_key(&pid) {
                self.probe_deep(pid, start_ticks, observed_ms < YOUNG_MS);
            }
        }
    }

    /// Probes a process that was looked at just now, if it is selected.
    pub(super) fn probe_if_selected(&mut self, pid: Pid) {
        if self.selected.deep.is_empty() || self.selected.held.contains_key(&pid.0) {
            return;
        }
        let start = self.census.subject(pid).filter(|(subject, start)| self.selected.selects(*subject, *start));
        if let Some(start_ticks) = start.map(|(_, start_ticks)| start_ticks) {
            self.probe_deep(pid.0, start_ticks, true);
        }
    }

    /// Takes out the probes that count for these processes alone.
    pub(super) fn let_go(&mut self, pids: &[u32]) {
        self.files.release(&|pid| pids.contains(&pid));
        self.deep.retain(|pid, _| !pids.contains(pid));
    }

    /// Probes all processes deeper than before.
    ///
    /// # Errors
    ///
    /// When /proc cannot be listed.
    pub fn deepen(&mut self, depth: Depth) -> Result<(), HostError> {
        if depth > self.options.depth {
            self.options.depth = depth;
            self.probe_everything(&|| false)?;
        }
        Ok(())
    }

    fn probe_deep(&mut self, pid: u32, start_ticks: u64, again: bool) {
        match self.probe_process(pid, Depth::Call) {
            Ok(None) if again => return,
            Ok(Some(_)) => {}
            Ok(None) => tracing::warn!(pid, "it maps no allocator whose calls can be probed"),
            Err(why) => {
                tracing::warn!(pid, why, "its calls cannot be probed");
                self.note(format!("process {pid}"), Depth::Call, Verdict::Unsupported(why));
            }
        }
        self.selected.held.insert(pid, start_ticks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_selects_one_life_of_it() {
        let selected =
            Selected { deep: Deep { pid: vec![7], ..Deep::default() }, lives: [(7, 100)].into(), held: HashMap::new() };
        let process = Subject { pid: 7, comm: "x", exe: None, cgroup: None };
        assert!(selected.selects(process, 100));
        assert!(!selected.selects(process, 101));
        assert!(!selected.selects(Subject { pid: 8, ..process }, 100));
    }
}
