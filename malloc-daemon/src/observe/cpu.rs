//! The CPU time that processes took while they were observed, read from /proc at a bounded rate.

use std::collections::HashMap;
use std::sync::Arc;

use malloc_common::abi::BORN_EXEC;

use crate::aggregate::model::{DaemonCost, NANOSECONDS_PER_TICK, ProcessId};
use crate::collect::RawImage;
use crate::host::process::{self, Pid};

/// Processes read at one collection, those first that are new or hit a probe: about 15 us each, so 1 ms of a collection
/// at most.
const READ_AT_ONCE: usize = 64;
/// Of them such as neither are: their time goes on without a hit.
const QUIET_AT_ONCE: usize = 4;
/// Processes that are read when they end, between two collections.
const ENDED_AT_ONCE: u32 = 256;

/// What was read of one image.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// When it was first looked at, nanoseconds.
    before_ns: u64,
    /// The last reading, nanoseconds.
    now_ns: u64,
    /// What it had counted then.
    counted: u64,
}

/// Readings by image.
#[derive(Debug, Default)]
pub struct CpuTimes {
    images: HashMap<(ProcessId, u64), Times>,
    /// Processes that ended since the last collection, with their last reading.
    ended: HashMap<ProcessId, u64>,
    /// Where the next turn begins.
    turn: usize,
    read_ended: u32,
}

impl CpuTimes {
    /// Reads a process that is ending: until its parent asks for its status, /proc still tells.
    pub fn read_last(&mut self, pid: Pid) {
        if self.read_ended < ENDED_AT_ONCE {
            self.read_ended += 1;
            self.ended.extend(read(pid));
        }
    }

    /// Reads some of the processes that live, and lets go of those that are gone.
    pub fn renew(&mut self, images: &[Arc<RawImage>]) {
        let live: Vec<&RawImage> = images.iter().map(Arc::as_ref).filter(|image| image.slot.end_ns == 0).collect();
        let turn = if live.is_empty() { 0 } else { self.turn % live.len() };
        let (mut new, mut hit, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
        for image in live[turn..].iter().chain(&live[..turn]) {
            match self.images.get(&key(image)) {
                None => new.push(*image),
                Some(times) if times.counted != image.counted() => hit.push(*image),
                Some(_) => quiet.push(*image),
            }
        }
        quiet.truncate(QUIET_AT_ONCE);
        // New ones first: what a process took before its first reading is not told apart later.
        let due: Vec<&RawImage> = new.into_iter().chain(quiet).chain(hit).take(READ_AT_ONCE).collect();
        self.turn = turn + due.len();
        for image in due {
            if let Some((_, now_ns)) = read(Pid(image.slot.tgid)).filter(|(id, _)| *id == ProcessId::of(&image.slot)) {
                self.note(image, now_ns);
            }
        }
        for image in images.iter().filter(|image| image.slot.end_ns != 0) {
            if let Some(now_ns) = self.ended.get(&ProcessId::of(&image.slot)).copied() {
                self.note(image, now_ns);
            }
        }
        // Never more than twice what there is.
        if self.images.len() > 2 * images.len() {
            let held: std::collections::HashSet<_> = images.iter().map(|image| key(image)).collect();
            self.images.retain(|key, _| held.contains(key));
        }
        self.ended.clear();
        self.read_ended = 0;
    }

    fn note(&mut self, image: &RawImage, now_ns: u64) {
        // An image whose exec was seen began with next to nothing; another has a past that is not counted.
        let before_ns = if image.slot.born == BORN_EXEC { 0 } else { now_ns };
        let times = self.images.entry(key(image)).or_insert(Times { before_ns, now_ns, counted: 0 });
        (times.now_ns, times.counted) = (now_ns, image.counted());
    }

    /// CPU time of an image while it was observed, nanoseconds; `None`: not read, or not yet twice.
    #[must_use]
    pub fn of(&self, image: &RawImage) -> Option<u64> {
        let times = self.images.get(&key(image))?;
        Some(times.now_ns.saturating_sub(times.before_ns)).filter(|ns| *ns > 0)
    }
}

fn key(image: &RawImage) -> (ProcessId, u64) {
    (ProcessId::of(&image.slot), image.slot.first_ns)
}

/// What this daemon itself costs, as /proc has it.
pub fn own_cost(kernel_bytes: u64, collect_us: u64) -> DaemonCost {
    let own = process::stat(Pid(std::process::id())).ok().flatten();
    DaemonCost {
        cpu_ms: own.map_or(0, |own| (own.user_ticks + own.system_ticks) * 10),
        resident_bytes: process::own_resident_bytes().unwrap_or(0),
        kernel_bytes,
        collect_us,
    }
}

fn read(pid: Pid) -> Option<(ProcessId, u64)> {
    let stat = process::stat(pid).ok()??;
    let ns = (stat.user_ticks + stat.system_ticks) * NANOSECONDS_PER_TICK;
    Some((ProcessId { pid: pid.0, start_ticks: stat.start_ticks }, ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use malloc_common::abi::Slot;

    fn image(pid: u32, start_ticks: u64, born: u16, end_ns: u64) -> RawImage {
        let slot = Slot { tgid: pid, start_ns: start_ticks * NANOSECONDS_PER_TICK, born, end_ns, ..Slot::FREE };
        RawImage { slot, histograms: Vec::new() }
    }

    #[test]
    fn a_process_with_a_past_counts_from_its_first_reading() {
        let own = std::process::id();
        let (id, _) = read(Pid(own)).expect("this process");
        let mut times = CpuTimes::default();
        let seen_late = image(own, id.start_ticks, 0, 0);
        times.note(&seen_late, 500);
        assert_eq!(times.of(&seen_late), None);
        times.note(&seen_late, 700);
        assert_eq!(times.of(&seen_late), Some(200));
        let begun = image(own, id.start_ticks, BORN_EXEC, 0);
        let mut times = CpuTimes::default();
        times.note(&begun, 700);
        assert_eq!(times.of(&begun), Some(700));
    }

    #[test]
    fn a_pid_used_again_gets_no_reading_of_the_new_process() {
        let own = std::process::id();
        let (id, _) = read(Pid(own)).expect("this process");
        let other = image(own, id.start_ticks + 1, BORN_EXEC, 0);
        let mut times = CpuTimes::default();
        times.renew(&[Arc::new(other.clone())]);
        assert_eq!(times.of(&other), None);
        assert!(times.images.is_empty());
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let gone = image(1, 1, BORN_EXEC, 5);
        let mut times = CpuTimes::default();
        times.ended.insert(ProcessId::of(&gone.slot), 900);
        times.renew(&[Arc::new(gone.clone())]);
        assert_eq!(times.of(&gone), Some(900));
        times.renew(&[]);
        assert!(times.images.is_empty() && times.ended.is_empty());
    }
}
