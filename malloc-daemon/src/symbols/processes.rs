//! What processes map as code, kept so that a stack can be named after its process ended.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Limits;
use super::modules::{ModuleId, Modules, file_of};
use super::perf_map::PerfMap;
use crate::host::file::{FileKey, TargetFile};
use crate::host::maps::{Device, Mapping, Permissions};
use crate::host::process::{Pid, ProcessIdentity, identity, maps, status};

/// The most executable mappings of one process that are known: a browser has 300.
const REGIONS: usize = 4096;
/// How often mappings may be read again at once, when an unknown address asks for it; one more for each second.
/// A program that starts maps its libraries one after the other.
const REFRESHES: u32 = 8;
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// The most bytes that the names of just-in-time code of all processes may take.
const PERF_MAP_BYTES: u64 = 128 << 20;

/// Where an address lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name for people.
    pub name: Arc<str>,
    /// The file, if there is one that can be looked into, and the address in the file's own numbering.
    pub code: Option<(ModuleId, u64)>,
}

/// The most files that a glimpse opens: what is beyond is opened when it is asked for, if the process still runs.
const GLIMPSED_FILES: usize = 16;

/// What a process maps as code, with the files open: taken from one that may be over before anybody asks for it.
pub struct Glimpse {
    pid: u32,
    identity: ProcessIdentity,
    mappings: Vec<Mapping>,
    /// In the order of the mappings of files.
    files: Vec<Option<TargetFile>>,
    at: Instant,
}

impl Glimpse {
    /// Looks at a process; `None` when it is over.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let identity = identity(Pid(pid)).ok()??;
        let mut mappings = maps(Pid(pid)).ok()??;
        mappings.retain(|mapping| mapping.permissions.execute);
        let code = mappings.iter().filter(|mapping| mapping.is_executable_file());
        let files = code.take(GLIMPSED_FILES).map(|mapping| file_of(Pid(pid), mapping)).collect();
        (!mappings.is_empty()).then(|| Self { pid, identity, mappings, files, at: Instant::now() })
    }
}

/// Code of a file in a process, as the kernel told when it was mapped.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// The file.
    pub key: FileKey,
    /// First address.
    pub start: u64,
    /// Length.
    pub bytes: u64,
    /// Where in the file it begins.
    pub offset: u64,
}

/// The known processes.
pub struct Processes {
    limits: Limits,
    known: HashMap<u32, Process>,
    /// Counts uses.
    turn: u64,
}

struct Process {
    identity: ProcessIdentity,
    /// Ascending, as the kernel lists them.
    regions: Arc<[Region]>,
    read_at: Instant,
    refreshes_left: u32,
    ended_at: Option<Instant>,
    perf_map: Option<PerfMap>,
    perf_map_read_at: Option<Instant>,
    last_turn: u64,
}

#[derive(Clone)]
struct Region {
    mapping: Mapping,
    name: Arc<str>,
    module: Option<ModuleId>,
}

impl Processes {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, known: HashMap::new(), turn: 0 }
    }

    /// Reads what `pid` maps now and opens the files. What is known of a process that ended stays.
    pub fn note(&mut self, pid: u32, modules: &mut Modules, now: Instant) {
        self.turn += 1;
        let Ok(Some(identity)) = identity(Pid(pid)) else {
            self.forget(pid, now);
            return;
        };
        // A process that is ending has no mappings any more, but a stack of it may still be on the way.
        let mappings = maps(Pid(pid)).ok().flatten().unwrap_or_default();
        if mappings.is_empty() && self.known.get(&pid).is_some_and(|process| process.identity == identity) {
            return;
        }
        self.keep(Glimpse { pid, identity, mappings, files: Vec::new(), at: now }, modules, now);
    }

    /// Takes in what was seen of a process, unless it was looked at since.
    pub fn take(&mut self, glimpse: Glimpse, modules: &mut Modules, now: Instant) {
        self.turn += 1;
        let is_newer = |process: &Process| process.identity == glimpse.identity && process.read_at >= glimpse.at;
        if !self.known.get(&glimpse.pid).is_some_and(is_newer) {
            self.keep(glimpse, modules, now);
        }
    }

    /// The process runs another program: what it mapped before is not there any more.
    pub fn executed(&mut self, pid: u32) {
        self.known.remove(&pid);
    }

    /// Adds what the kernel told to what was read of a process, where nothing is known of that place.
    pub fn code(&mut self, pid: u32, code: &Code, modules: &Modules) {
        let module = ModuleId::File(code.key);
        let (Some(process), Some(path)) = (self.known.get_mut(&pid), modules.path(module)) else { return };
        let Some(end) = code.start.checked_add(code.bytes) else { return };
        let overlaps = |region: &Region| region.mapping.start < end && code.start < region.mapping.end;
        if process.regions.iter().any(overlaps) || process.regions.len() >= REGIONS {
            return;
        }
        let mapping = Mapping {
            start: code.start,
            end,
            permissions: Permissions { read: true, write: false, execute: true, shared: false },
            offset: code.offset,
            // Reading the mappings shows the real one.
            device: Device { major: 0, minor: 0 },
            inode: code.key.ino,
            path: path.as_os_str().as_encoded_bytes().to_vec(),
            deleted: false,
        };
        let name = path.to_string_lossy().into();
        let mut regions = process.regions.to_vec();
        let at = regions.partition_point(|region| region.mapping.start < code.start);
        regions.insert(at, Region { mapping, name, module: Some(module) });
        process.regions = regions.into();
    }

    /// `child` maps what `parent` maps. It counts as ended, so that it takes nobody's place; when it is there to be asked,
    /// it is.
    pub fn forked(&mut self, parent: u32, child: u32, now: Instant) {
        let Some(known) = self.known.get(&parent) else { return };
        let process = Process {
            // Nobody's: its own start is not known here.
            identity: ProcessIdentity { pid: Pid(child), start_ticks: 0 },
            regions: Arc::clone(&known.regions),
            read_at: known.read_at,
            refreshes_left: REFRESHES,
            ended_at: Some(now),
            perf_map: None,
            perf_map_read_at: None,
            last_turn: self.turn,
        };
        self.make_room(now);
        self.known.insert(child, process);
    }

    fn keep(&mut self, glimpse: Glimpse, modules: &mut Modules, now: Instant) {
        let Glimpse { pid, identity, mappings, files, at } = glimpse;
        let known = self.known.remove(&pid).filter(|process| process.identity == identity);
        let old = known.as_ref().map(|process| process.regions.as_ref()).unwrap_or_default();
        let regions = regions(Pid(pid), mappings, files, old, modules).into();
        let process = Process {
            identity,
            regions,
            read_at: at,
            refreshes_left: known.as_ref().map_or(REFRESHES, |process| process.refreshes_left),
            ended_at: None,
            perf_map_read_at: known.as_ref().and_then(|process| process.perf_map_read_at),
            perf_map: known.and_then(|process| process.perf_map),
            last_turn: self.turn,
        };
        self.make_room(now);
        self.known.insert(pid, process);
    }

    /// The process ended: what is known of it is kept a while longer.
    pub fn forget(&mut self, pid: u32, now: Instant) {
        if let Some(process) = self.known.get_mut(&pid) {
            process.ended_at.get_or_insert(now);
        }
        self.known.retain(|_, process| !process.is_over(self.limits.keep_ended, now));
    }

    /// Makes sure that `pid` is known as far as it can be, and that it is not an earlier process of that number.
    pub fn ensure(&mut self, pid: u32, modules: &mut Modules, now: Instant) {
        let known = self.known.get(&pid).map(|process| process.identity);
        match identity(Pid(pid)) {
            Ok(Some(alive)) if known == Some(alive) => {}
            Ok(Some(_)) => self.note(pid, modules, now),
            _ => self.forget(pid, now),
        }
        self.turn += 1;
        if let Some(process) = self.known.get_mut(&pid) {
            process.last_turn = self.turn;
        }
    }

    /// Where `address` lies in `pid`; its mappings are read again when it is in none that is known.
    pub fn place(&mut self, pid: u32, address: u64, modules: &mut Modules, now: Instant) -> Option<Place> {
        if let Some(place) = self.known_place(pid, address, modules) {
            return Some(place);
        }
        if !self.known.get_mut(&pid)?.may_refresh(now) {
            return None;
        }
        self.note(pid, modules, now);
        self.known_place(pid, address, modules)
    }

    /// The name that the process's just-in-time compiler gave the function at `address`.
    pub fn written_name(&mut self, pid: u32, address: u64, now: Instant) -> Option<String> {
        let process = self.known.get_mut(&pid)?;
        let found = process.perf_map.as_ref().and_then(|map| map.name_at(address));
        let is_fresh = process.perf_map_read_at.is_some_and(|read| now.saturating_duration_since(read) < REFRESH_EVERY);
        if found.is_some() || is_fresh {
            return found;
        }
        process.perf_map_read_at = Some(now);
        let map = process.perf_map.get_or_insert_default();
        if let Ok(Some(status)) = status(Pid(pid)) {
            map.refresh(Pid(pid), own_number(pid).unwrap_or(pid), status.uid);
        }
        let found = map.name_at(address);
        let total: u64 = self.known.values().filter_map(|process| process.perf_map.as_ref()).map(PerfMap::bytes).sum();
        if total > PERF_MAP_BYTES {
            let others = self.known.iter_mut().filter(|(other, _)| **other != pid);
            others.for_each(|(_, process)| process.perf_map = None);
        }
        found
    }

    /// Whether anything is known of what `pid` maps.
    pub fn knows(&self, pid: u32) -> bool {
        self.known.get(&pid).is_some_and(|process| !process.regions.is_empty())
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    fn known_place(&self, pid: u32, address: u64, modules: &Modules) -> Option<Place> {
        let regions = &self.known.get(&pid)?.regions;
        let after = regions.partition_point(|region| region.mapping.start <= address);
        let region = regions.get(after.checked_sub(1)?).filter(|region| address < region.mapping.end)?;
        let name = Arc::clone(&region.name);
        let Some(module) = region.module else {
            return Some(Place { name, code: None });
        };
        // A file that had to be closed is opened again by reading the mappings again.
        if !modules.has(module) {
            return None;
        }
        let offset = address.checked_sub(region.mapping.start)?.checked_add(region.mapping.offset)?;
        let code = modules.vaddr(module, offset).map(|vaddr| (module, vaddr));
        Some(Place { name, code })
    }

    fn make_room(&mut self, now: Instant) {
        self.known.retain(|_, process| !process.is_over(self.limits.keep_ended, now));
        while self.known.len() >= self.limits.processes.max(1) {
            // One that ended goes before one that may still ask.
            let oldest = self.known.iter().min_by_key(|(_, process)| (process.ended_at.is_none(), process.last_turn));
            let Some(pid) = oldest.map(|(&pid, _)| pid) else { return };
            self.known.remove(&pid);
        }
    }
}

impl Process {
    fn is_over(&self, keep: Duration, now: Instant) -> bool {
        self.ended_at.is_some_and(|ended| now.saturating_duration_since(ended) >= keep)
    }

    fn may_refresh(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.read_at).as_secs();
        let earned = u32::try_from(seconds).unwrap_or(REFRESHES);
        let left = self.refreshes_left.saturating_add(earned).min(REFRESHES);
        if self.ended_at.is_some() || left == 0 {
            return false;
        }
        self.refreshes_left = left - 1;
        true
    }
}

fn regions(
    pid: Pid,
    mappings: Vec<Mapping>,
    files: Vec<Option<TargetFile>>,
    old: &[Region],
    modules: &mut Modules,
) -> Vec<Region> {
    let mut files = files.into_iter();
    let executable = mappings.into_iter().filter(|mapping| mapping.permissions.execute).take(REGIONS);
    let region = |mapping: Mapping| {
        let is_file = mapping.is_executable_file();
        // Seen but not to be had is final: the process may be another one by now.
        let file = if is_file { files.next() } else { None };
        let same =
            old.iter().find(|region| region.mapping == mapping && region.module.is_some_and(|id| modules.has(id)));
        if let Some(same) = same {
            return Region { mapping, name: Arc::clone(&same.name), module: same.module };
        }
        let is_vdso = mapping.inode == 0 && mapping.path == b"[vdso]";
        let module = match () {
            () if is_vdso => modules.open_vdso(),
            () if is_file => file.unwrap_or_else(|| file_of(pid, &mapping)).and_then(|file| modules.take(pid, file)),
            () => None,
        };
        let name = match mapping.path.as_slice() {
            b"" => "[anonymous]".into(),
            path => String::from_utf8_lossy(path).into(),
        };
        Region { mapping, name, module }
    };
    executable.map(region).collect()
}

/// The number of a process in its own pid namespace: the last one listed.
fn own_number(pid: u32) -> Option<u32> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/status")).ok()?.take(64 << 10).read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}
