//! What changes while observing: the budget, and whether programs carry probes.

use super::observer::Observer;
use super::options::Probing;

/// Why nothing but system calls is measured after SIGUSR1.
const SWITCHED_OFF: &str = "probing is switched off (by SIGUSR1 or the configuration; SIGUSR2 switches it on)";

impl Observer {
    /// Another budget for deep probing from now on, the part of a process's CPU time.
    pub fn set_budget(&mut self, share: f64) {
        if let Some(windows) = &self.files.windows {
            windows.set_share(share);
        }
    }

    /// Takes every probe out of every program, or puts them back; the system calls are counted all the time.
    pub fn switch(&mut self, probing: Probing) {
        match (probing, &self.files.off) {
            (Probing::Off, None) => self.files.switch_off(SWITCHED_OFF),
            (Probing::On, Some(_)) => self.files.switch_on(&mut self.object),
            _ => {}
        }
    }
}
