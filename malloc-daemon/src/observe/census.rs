//! What the daemon knows of processes besides their counts, read from /proc when a process is first seen.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use malloc_common::abi::{BORN_EXEC, EVENT_FORK, EVENT_MAPPED, Event, Series};
use malloc_common::depth::{DEPTHS, Depth};

use super::candidates::Candidates;
use super::files::{Files, ProbedFile};
use super::shapes::Shapes;
use crate::aggregate::Facts;
use crate::aggregate::model::ProcessId;
use crate::arenas::Place;
use crate::collect::{RawImage, boot_ns};
use crate::config::Subject;
use crate::host::file::FileKey;
use crate::host::process::{self, Pid};

/// Processes remembered at most; those that left the snapshot go first.
const REMEMBERED: usize = 16_384;
/// So many may be remembered beside those that were found worth it the last time: beside short programs most are over.
const TIDY_AFTER: usize = 1024;
/// A process that was looked at so long ago was in a snapshot, or will be in none. 15 s.
const RECENT_NS: u64 = 15_000_000_000;
/// Name and control group are read again after so long: they change. 30 s; where nothing was counted since, as long as
/// the mapped files.
const NAMES_NS: u64 = 30_000_000_000;
/// The mapped files, which take ten times as long to look at: executions and mapped code are followed as they happen,
/// so that this finds only what an event that was lost would have told. 5 min.
const STALE_NS: u64 = 300_000_000_000;
/// A young process whose allocator is not known is looked at again at every collection: its loader may still run. 5 s.
const YOUNG_NS: u64 = 5_000_000_000;
/// Readings kept of one pid: an image that ended needs the one from its own time.
const READINGS: usize = 4;

/// One look at a process.
#[derive(Clone, Debug)]
struct Reading {
    at_ns: u64,
    /// When name and control group were read last.
    named_ns: u64,
    /// What was counted by then, when that is known: [`RawImage::counted`].
    counted: Option<u64>,
    start_ticks: u64,
    comm: String,
    exe: Option<String>,
    cgroup: Option<String>,
    allocator: Option<FileKey>,
    /// Other files with a `malloc` that it maps.
    also_mapped: Vec<FileKey>,
    /// Files whose `malloc` comes before its and is not probed.
    in_front: Vec<String>,
    /// Why there is none.
    no_allocator: Option<String>,
    /// Where its allocator's variables lie.
    place: Option<Place>,
}

/// Readings by pid.
#[derive(Debug, Default)]
pub struct Census {
    readings: HashMap<u32, Vec<Reading>>,
    expected: Option<(u32, Expected)>,
    /// Allocators that processes were seen to map, by pid: when, nanoseconds since boot, and which it may be.
    mapped: HashMap<u32, Vec<(u64, Vec<FileKey>)>>,
    /// How many were remembered after the last tidying.
    tidied: usize,
}

/// The allocator that serves a process, and where its code is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The file.
    pub key: FileKey,
    /// Address of its first executable mapping.
    pub mapped_at: u64,
    /// File offset at that address.
    pub mapped_offset: u64,
    /// Other files with a `malloc` that the process maps.
    pub also_mapped: Vec<FileKey>,
    /// Files whose `malloc` comes before its and is not probed.
    pub in_front: Vec<String>,
}

/// What will serve a process that is about to start: a file, or why none is known.
pub type Expected = Result<FileKey, String>;

/// What a look at a process's files found.
pub type Found = Result<Option<Serving>, String>;

impl Reading {
    /// Reads again what a process changes by itself.
    fn rename(&mut self, pid: Pid, now_ns: u64) {
        self.named_ns = now_ns;
        if let Ok(Some(stat)) = process::stat(pid)
            && stat.start_ticks == self.start_ticks
        {
            self.comm = stat.comm;
            self.cgroup = process::cgroup(pid).ok().flatten();
        }
    }
}

impl Census {
    /// Remembers what will serve a process that is about to start.
    pub fn expect(&mut self, pid: u32, expected: Expected) {
        self.expected = Some((pid, expected));
    }

    /// Remembers the allocator that a process maps, or is forked with: it may be over before it is looked at. True when
    /// one was mapped: as a rule the last that a loader maps.
    pub fn follow(&mut self, event: &Event, shapes: &Shapes) -> bool {
        let [_, bytes, offset, ..] = event.values;
        let (pid, keys) = match event.kind {
            EVENT_FORK => (u32::try_from(event.values[0]).unwrap_or(0), self.parents(event.tgid)),
            EVENT_MAPPED => (event.tgid, shapes.files(offset, bytes).to_vec()),
            _ => return false,
        };
        let is_one = event.kind == EVENT_MAPPED && !keys.is_empty();
        if !keys.is_empty() {
            push_last(self.mapped.entry(pid).or_default(), (event.ns, keys));
        }
        is_one
    }

    /// The allocator of a process that forks.
    fn parents(&self, pid: u32) -> Vec<FileKey> {
        let read = self.readings.get(&pid).and_then(|all| all.last()).and_then(|reading| reading.allocator);
        let mapped = || self.mapped.get(&pid).and_then(|all| all.last()).map(|(_, keys)| keys.clone());
        read.map(|key| vec![key]).or_else(mapped).unwrap_or_default()
    }

    /// The files one of which is the allocator that an image was seen to map; another one comes before the C library's.
    fn seen(&self, row: &RawImage, files: &Files) -> &[FileKey] {
        let slot = &row.slot;
        let held = self.mapped.get(&slot.tgid).map(Vec::as_slice).unwrap_or_default().iter();
        // A forked child's begins with its first event, after the fork.
        let since_ns = if slot.born == BORN_EXEC { slot.first_ns } else { slot.start_ns };
        let its = |at_ns: u64| at_ns >= since_ns && (slot.end_ns == 0 || at_ns <= slot.end_ns);
        let sets = held.filter(|(at_ns, _)| its(*at_ns)).map(|(_, keys)| keys.as_slice());
        let is_libc = |key: &FileKey| files.get(key).is_some_and(|probed| probed.located.kind.is_libc());
        sets.min_by_key(|keys| keys.iter().any(is_libc)).unwrap_or_default()
    }

    /// Looks at the processes whose facts are missing or stale. `serving` finds the allocator of a process.
    pub fn renew(
        &mut self,
        images: &[Arc<RawImage>],
        files: &mut dyn FnMut(Pid) -> Found,
        placed: &dyn Fn(&Serving) -> Option<Place>,
    ) {
        let now = boot_ns();
        for image in images.iter().filter(|image| image.slot.end_ns == 0) {
            let pid = image.slot.tgid;
            let last = self.readings.get_mut(&pid).and_then(|all| all.last_mut());
            let due = match &last {
                None => true,
                Some(last) if last.at_ns < image.slot.first_ns => true,
                Some(last) if now.saturating_sub(last.at_ns) > STALE_NS => true,
                Some(last) => last.allocator.is_none() && now.saturating_sub(image.slot.first_ns) < YOUNG_NS,
            };
            match last {
                _ if due => self.look(Pid(pid), files, placed),
                Some(last) if now.saturating_sub(last.named_ns) > NAMES_NS => {
                    let counted = Some(image.counted());
                    if last.counted.is_none_or(|_| last.counted != counted) {
                        last.counted = counted;
                        last.rename(Pid(pid), now);
                    }
                }
                _ => {}
            }
        }
        self.tidy(images, now, &|pid| process::is_there(Pid(pid)));
    }

    /// Forgets processes that are over and told of no more, when many came since that was done last.
    fn tidy(&mut self, images: &[Arc<RawImage>], now: u64, is_there: &dyn Fn(u32) -> bool) {
        let remembered = |census: &Self| census.readings.len().max(census.mapped.len());
        if remembered(self) <= self.tidied + TIDY_AFTER && remembered(self) <= REMEMBERED {
            return;
        }
        let held: HashSet<u32> = images.iter().map(|image| image.slot.tgid).collect();
        // One that neither allocates nor is told of may be the parent of others.
        let matters =
            |pid: u32, at_ns: u64| held.contains(&pid) || now.saturating_sub(at_ns) < RECENT_NS || is_there(pid);
        self.readings.retain(|pid, all| matters(*pid, all.last().map_or(0, |last| last.at_ns)));
        self.mapped.retain(|pid, all| matters(*pid, all.last().map_or(0, |(at_ns, _)| *at_ns)));
        if remembered(self) > REMEMBERED {
            self.readings.retain(|pid, _| held.contains(pid));
            self.mapped.retain(|pid, _| held.contains(pid));
        }
        self.readings.shrink_to_fit();
        self.mapped.shrink_to_fit();
        self.tidied = remembered(self);
    }

    /// Looks at one process now.
    pub fn look(&mut self, pid: Pid, files: &mut dyn FnMut(Pid) -> Found, placed: &dyn Fn(&Serving) -> Option<Place>) {
        let Ok(Some(stat)) = process::stat(pid) else { return };
        if stat.state.has_ended() {
            return;
        }
        let found = files(pid);
        let serving = found.as_ref().ok().and_then(Option::as_ref);
        let reading = Reading {
            at_ns: boot_ns(),
            named_ns: boot_ns(),
            counted: None,
            start_ticks: stat.start_ticks,
            comm: stat.comm,
            exe: process::exe(pid).ok().flatten().map(|exe| exe.path.display().to_string()),
            cgroup: process::cgroup(pid).ok().flatten(),
            allocator: serving.map(|serving| serving.key),
            also_mapped: serving.map(|serving| serving.also_mapped.clone()).unwrap_or_default(),
            in_front: serving.map(|serving| serving.in_front.clone()).unwrap_or_default(),
            place: serving.and_then(placed),
            no_allocator: match found {
                Ok(Some(_)) => None,
                Ok(None) => Some("it maps no file that is known to hold malloc".to_owned()),
                Err(why) => Some(why),
            },
        };
        // The process may have ended, and its pid been used again, while it was looked at.
        if process::identity(pid).ok().flatten().is_none_or(|now| now.start_ticks != reading.start_ticks) {
            return;
        }
        push_last(self.readings.entry(pid.0).or_default(), reading);
    }

    /// What was read last of a process, with its start in clock ticks.
    pub fn subject(&self, pid: Pid) -> Option<(Subject<'_>, u64)> {
        let reading = self.readings.get(&pid.0)?.last()?;
        let (exe, cgroup) = (reading.exe.as_deref(), reading.cgroup.as_deref());
        Some((Subject { pid: pid.0, comm: &reading.comm, exe, cgroup }, reading.start_ticks))
    }

    /// Where the allocator's variables lie in an image.
    pub fn place(&self, row: &RawImage) -> Option<Place> {
        self.reading(row)?.place
    }

    /// The last look at a process while it was this image.
    fn reading(&self, row: &RawImage) -> Option<&Reading> {
        let slot = &row.slot;
        let (id, end_ns) = (ProcessId::of(slot), slot.end_ns);
        // An image that began unseen was there before its first event; one that began with an exec was another then.
        let since_ns = if slot.born == BORN_EXEC { slot.first_ns } else { 0 };
        self.readings
            .get(&id.pid)?
            .iter()
            .rev()
            .find(|r| r.start_ticks == id.start_ticks && r.at_ns >= since_ns && (end_ns == 0 || r.at_ns <= end_ns))
    }

    /// Figures one of which is another when another reading of a process counts: when it was read, when its name was, and
    /// when it was last seen to map an allocator.
    pub fn stamp(&self, row: &RawImage) -> [u64; 3] {
        let (read_ns, named_ns) = self.reading(row).map_or((0, 0), |reading| (reading.at_ns, reading.named_ns));
        let mapped = self.mapped.get(&row.slot.tgid).and_then(|all| all.last());
        [read_ns, named_ns, mapped.map_or(0, |(at_ns, _)| *at_ns)]
    }

    /// What is known of an image. `depth` is how deep it was meant to be probed.
    pub fn facts(&self, row: &RawImage, files: &Files, depth: Depth) -> Facts {
        let (slot, counted) = (&row.slot, counted_in_user_space(row));
        let id = ProcessId::of(slot);
        let end_ns = slot.end_ns;
        let reading = self.reading(row);
        // A process that ended before it was looked at is known by what its probes counted.
        let seen = self.seen(row, files);
        let foreseen = self.expected.as_ref().filter(|(pid, _)| *pid == id.pid).map(|(_, expected)| expected);
        let expected = || match seen {
            [key] => Some(*key),
            [] => foreseen.and_then(|expected| expected.as_ref().ok().copied()),
            _ => None,
        };
        let allocator = match reading {
            Some(Reading { allocator: Some(key), .. }) => Some(*key),
            _ if counted => expected().or_else(|| files.only()),
            // A loader that had not come to the library yet when it was looked at.
            Some(_) if end_ns != 0 => expected(),
            Some(_) => None,
            None => expected(),
        };
        let mut facts = Facts::default();
        if let Some(reading) = reading {
            facts.comm = Some(reading.comm.clone());
            facts.exe.clone_from(&reading.exe);
            facts.cgroup.clone_from(&reading.cgroup);
        }
        if let Some(probed) = allocator.and_then(|key| files.get(&key)) {
            let (measured, since_ns, not_measured) = probed.measures(id.pid, files.off.as_deref());
            let mut described = probed.allocator();
            if let Some(reading) = reading.filter(|r| !r.also_mapped.is_empty() || !r.in_front.is_empty()) {
                let others = reading.also_mapped.iter().filter_map(|key| files.get(key)).map(ProbedFile::summary);
                let unprobed = |path| format!("{path} (unknown, comes first: what it does not pass on is not counted)");
                let described = Arc::make_mut(&mut described);
                described.also_mapped = others.chain(reading.in_front.iter().map(unprobed)).collect();
            }
            facts.allocator = Some(described);
            facts.depth = measured;
            facts.probed_since_ns = since_ns;
            facts.not_measured = not_measured;
            facts.cut_short = probed.was_overwritten();
            facts.not_measured.retain(|(level, _)| *level <= depth);
            let told: Vec<Depth> = facts.not_measured.iter().map(|(level, _)| *level).collect();
            let deeper = |level: &Depth| *level > facts.depth && *level <= depth && !told.contains(level);
            for level in DEPTHS.into_iter().filter(deeper) {
                let why = "only the chosen process is probed this deep, not its children".to_owned();
                facts.not_measured.push((level, why));
            }
            facts.untold = probed.untold();
            facts.stepped = probed.stepped();
            facts.told = probed.told();
            facts.cut_short |= files.off.is_some() || slot.first_ns < files.interrupted_ns;
            if let (Some(windows), None) = (&files.windows, &files.off) {
                windows.describe(row, &mut facts);
            }
        } else if counted {
            // Which of the files it used is not known: a level is told only if each of them has it.
            let candidates = Candidates::of(files, seen, slot.threshold_ns != 0);
            facts.depth = if files.off.is_some() { Depth::Syscall } else { depth };
            facts.not_measured = candidates.unmeasured_by_any(depth);
            facts.untold = candidates.untold_by_any();
            facts.told = candidates.told_by_all();
        } else if depth > Depth::Syscall {
            let why = reading.and_then(|r| r.no_allocator.clone());
            let why = why.unwrap_or_else(|| match foreseen {
                Some(Err(why)) => format!("it ended before it was looked at; of the command: {why}"),
                _ => "it ended before its allocator could be told".to_owned(),
            });
            facts.not_measured = [Depth::Sysmalloc, Depth::Arena, Depth::Call]
                .into_iter()
                .filter(|level| *level <= depth)
                .map(|level| (level, why.clone()))
                .collect();
        }
        facts
    }
}

/// Adds one to the last few; most processes have a single one.
fn push_last<T>(all: &mut Vec<T>, one: T) {
    if all.len() >= READINGS {
        all.remove(0);
    }
    all.reserve_exact(1);
    all.push(one);
}

fn counted_in_user_space(row: &RawImage) -> bool {
    row.histograms.iter().any(|(index, _)| *index <= Series::Crossing.index()) || row.slot.threshold_ns != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_ns: u64) -> Reading {
        Reading {
            at_ns,
            named_ns: at_ns,
            counted: None,
            start_ticks: 0,
            comm: String::new(),
            exe: None,
            cgroup: None,
            allocator: None,
            also_mapped: Vec::new(),
            in_front: Vec::new(),
            no_allocator: None,
            place: None,
        }
    }

    fn of(pids: impl IntoIterator<Item = u32>, at_ns: u64) -> Census {
        let readings = pids.into_iter().map(|pid| (pid, vec![reading(at_ns)])).collect();
        Census { readings, ..Census::default() }
    }

    #[test]
    fn processes_that_are_over_are_forgotten_when_many_came() {
        let few = u32::try_from(TIDY_AFTER).unwrap();
        let mut census = of(0..few, 0);
        census.tidy(&[], RECENT_NS, &|_| false);
        assert_eq!(census.readings.len(), TIDY_AFTER, "not before there are many");
        census.readings.insert(few, vec![reading(RECENT_NS)]);
        census.tidy(&[], RECENT_NS, &|pid| pid == 7);
        let mut left: Vec<u32> = census.readings.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [7, few], "the one that lives, and the one that was looked at a moment ago");
        assert_eq!(census.tidied, 2);
        let mut crowd = of(0..=u32::try_from(REMEMBERED).unwrap(), 0);
        crowd.tidy(&[], RECENT_NS, &|_| true);
        assert_eq!(crowd.readings.len(), 0, "no more than the ceiling, even if all of them live");
    }
}
