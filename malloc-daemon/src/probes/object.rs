//! Loads the object: maps and programs, with this kernel's offsets and the chosen capacities.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::{Map, MapData, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use malloc_common::allowance::Allowance;
use malloc_common::maps as capacity;
use malloc_common::stripe::STRIPES;

/// The programs that are attached to instructions of user space.
pub const UPROBE_PROGRAMS: [&str; 6] = ["call", "arena", "slow", "branch", "told", "blank"];

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/probes/malloc.bpf.o"));

/// Names another object file than the one built in, for experiments.
pub const OBJECT_VARIABLE: &str = "MALLOC_DAEMON_OBJECT";

/// When set, every probe in a file runs the program that does nothing: the traps alone, to be measured.
pub const BLANK_VARIABLE: &str = "MALLOC_DAEMON_BLANK";

/// How many entries the maps have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Images of processes.
    pub slots: u32,
    /// Histograms of all processes together.
    pub histograms: u32,
    /// Threads on the slow path.
    pub flights: u32,
    /// Mapped chunks of all processes together.
    pub chunks: u32,
    /// Recorded processes.
    pub targets: u32,
    /// Bytes of the event ring, a power of two.
    pub events_bytes: u32,
    /// Bytes of the ring of samples, a power of two.
    pub samples_bytes: u32,
}

impl Capacities {
    /// Enough for a trial: the kernel takes some hundred KiB for it.
    pub const SMALL: Self = Self {
        slots: 64,
        histograms: 64,
        flights: 64,
        chunks: 64,
        targets: 64,
        events_bytes: 64 << 10,
        samples_bytes: 64 << 10,
    };
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            slots: capacity::SLOTS_DEFAULT,
            histograms: capacity::HISTOGRAMS_DEFAULT,
            flights: capacity::FLIGHTS_DEFAULT,
            chunks: capacity::CHUNKS_DEFAULT,
            targets: capacity::TARGETS_DEFAULT,
            events_bytes: capacity::EVENTS_BYTES,
            samples_bytes: capacity::SAMPLES_BYTES,
        }
    }
}

impl Capacities {
    /// Ceiling of the kernel memory they take, bytes.
    #[must_use]
    pub fn kernel_bytes(&self) -> u64 {
        capacity::kernel_bytes(
            self.slots.into(),
            self.histograms.into(),
            self.flights.into(),
            self.chunks.into(),
            self.targets.into(),
            self.events_bytes.into(),
            self.samples_bytes.into(),
        )
    }
}

/// Byte offsets in this kernel's structures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.group_leader`
    pub group_leader: u32,
    /// `task_struct.start_boottime`
    pub start_time: u32,
    /// `task_struct.mm`
    pub mm: u32,
    /// `mm_struct.brk`
    pub brk: u32,
    /// `task_struct.signal`
    pub signal: u32,
    /// `signal_struct.live`
    pub live: u32,
    /// `task_struct.tgid`
    pub tgid: u32,
    /// `task_struct.comm`
    pub comm: u32,
    /// `signal_struct.oom_mm`; `None`: not in this kernel
    pub oom_mm: Option<u32>,
}

/// What the programs are loaded with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Count every process, or the chosen ones.
    pub admit_all: bool,
    /// Send chains as events.
    pub tracing: bool,
    /// The allocator's functions are probed or may come to be: tell mapped chunks from other memory that is unmapped.
    pub chunks: bool,
    /// Count page faults of mapped chunks.
    pub faults: bool,
    /// How many stacks of crossings all processes together may send.
    pub stacks: Allowance,
    /// Offsets in this kernel's structures.
    pub offsets: Offsets,
    /// Sizes of the maps.
    pub capacities: Capacities,
    /// The kernel has uprobe links for many sites, with a working process filter (6.10).
    pub multi_uprobes: bool,
    /// Load only what a calibration needs: the programs of user space, and those of `munmap`.
    pub trial: bool,
}

/// Why the object cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file that the environment names cannot be read.
    #[error("cannot read the eBPF object {0}: {1}")]
    File(String, #[source] std::io::Error),
    /// The kernel or aya refuses the object or one of its maps.
    #[error("cannot load the eBPF object: {0}")]
    Object(#[source] Box<EbpfError>),
    /// The kernel refuses a program.
    #[error("the kernel refuses the program {0}: {1}")]
    Program(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The object lacks something that it must have.
    #[error("the eBPF object has no {0}: it does not belong to this daemon")]
    Lacks(String),
    /// A map cannot be filled.
    #[error("cannot fill the map {0}: {1}")]
    Map(String, #[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        LoadError::Object(Box::new(error))
    }
}

/// The loaded object. Dropping it detaches and unloads everything.
#[derive(Debug)]
pub struct Object {
    pub(super) ebpf: Ebpf,
    /// The uprobe programs once more, loaded for links with many sites; empty on kernels without.
    pub(super) multi: BTreeMap<&'static str, OwnedFd>,
    /// Sizes of its maps.
    pub capacities: Capacities,
    /// [`BLANK_VARIABLE`] is set.
    pub blank: bool,
}

impl Object {
    /// Creates the maps and loads the programs; nothing is attached.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        let bytes = match std::env::var_os(OBJECT_VARIABLE) {
            None => std::borrow::Cow::Borrowed(OBJECT),
            Some(path) => std::fs::read(&path)
                .map_err(|error| LoadError::File(path.to_string_lossy().into_owned(), error))?
                .into(),
        };
        let c = options.capacities;
        let flag = |on: bool| u32::from(on);
        let (admit_all, tracing, o) = (flag(options.admit_all), flag(options.tracing), options.offsets);
        let stacks = options.stacks;
        let (faults, oom_mm) = (flag(options.faults), o.oom_mm.unwrap_or(u32::MAX));
        let chunks = flag(options.chunks);
        let mut loader = EbpfLoader::new();
        loader
            // Nothing is relocated by the kernel's BTF; aya would parse all 5 MB of it.
            .btf(None)
            .override_global("ADMIT_ALL", &admit_all, true)
            .override_global("TRACING", &tracing, true)
            .override_global("CHUNKS_TOLD", &chunks, true)
            .override_global("FAULTS", &faults, true)
            .override_global("STACK_EVERY", &stacks.every_ns, true)
            .override_global("STACK_BURST", &stacks.burst_ns, true)
            .override_global("OFF_GROUP_LEADER", &o.group_leader, true)
            .override_global("OFF_START_TIME", &o.start_time, true)
            .override_global("OFF_MM", &o.mm, true)
            .override_global("OFF_BRK", &o.brk, true)
            .override_global("OFF_SIGNAL", &o.signal, true)
            .override_global("OFF_LIVE", &o.live, true)
            .override_global("OFF_TGID", &o.tgid, true)
            .override_global("OFF_COMM", &o.comm, true)
            .override_global("OFF_OOM_MM", &oom_mm, true)
            .map_max_entries("SLOTS", c.slots)
            .map_max_entries("STRIPES", c.slots * STRIPES)
            .map_max_entries("PROCESSES", c.slots)
            .map_max_entries("FREE_SLOTS", c.slots)
            .map_max_entries("HISTOGRAMS", c.histograms + capacity::spares(c.histograms))
            .map_max_entries("FREE_SPARES", capacity::spares(c.histograms))
            .map_max_entries("FREE_HISTS", c.histograms)
            .map_max_entries("FLIGHTS", c.flights)
            .map_max_entries("CHUNKS", c.chunks)
            .map_max_entries("TARGETS", c.targets)
            .map_max_entries("EVENTS", c.events_bytes)
            .map_max_entries("SAMPLES", c.samples_bytes);
        let mut ebpf = loader.load(&bytes)?;
        let multi = if options.multi_uprobes { load_multi(&bytes, &ebpf)? } else { BTreeMap::new() };
        for (name, program) in ebpf.programs_mut() {
            let refused = |error: ProgramError| LoadError::Program(name.to_owned(), Box::new(error));
            match program {
                Program::UProbe(p) if multi.is_empty() => p.load().map_err(refused)?,
                Program::TracePoint(_) | Program::RawTracePoint(_) if options.trial && !name.ends_with("_munmap") => {}
                Program::TracePoint(p) => p.load().map_err(refused)?,
                Program::RawTracePoint(p) => p.load().map_err(refused)?,
                Program::PerfEvent(p) if options.faults => p.load().map_err(refused)?,
                _ => {}
            }
        }
        Ok(Self { ebpf, multi, capacities: c, blank: std::env::var_os(BLANK_VARIABLE).is_some() })
    }

    /// Whether one link carries many uprobes.
    #[must_use]
    pub fn attaches_many(&self) -> bool {
        !self.multi.is_empty()
    }

    /// The file descriptor of a map.
    ///
    /// # Errors
    ///
    /// [`LoadError::Lacks`] when the object has no such map.
    pub fn map_fd(&self, name: &str) -> Result<BorrowedFd<'_>, LoadError> {
        self.ebpf.map(name).and_then(fd_of).ok_or_else(|| LoadError::Lacks(format!("map {name}")))
    }

    /// Takes a map out, to be used apart from the object.
    ///
    /// # Errors
    ///
    /// [`LoadError::Lacks`] when the object has no such map, [`LoadError::Map`] when it is of another kind.
    pub fn take_map<M: TryFrom<Map, Error = MapError>>(&mut self, name: &str) -> Result<M, LoadError> {
        let map = self.ebpf.take_map(name).ok_or_else(|| LoadError::Lacks(format!("map {name}")))?;
        M::try_from(map).map_err(|error| LoadError::Map(name.to_owned(), Box::new(error)))
    }

    /// File descriptors of all loaded programs, by name.
    #[must_use]
    pub fn program_fds(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let single = self.ebpf.programs().filter_map(|(name, program)| {
            let fd = match program {
                Program::UProbe(p) => p.fd(),
                Program::TracePoint(p) => p.fd(),
                Program::RawTracePoint(p) => p.fd(),
                Program::PerfEvent(p) => p.fd(),
                _ => return None,
            };
            Some((name.to_owned(), fd.ok()?.as_fd()))
        });
        self.multi.iter().map(|(name, fd)| ((*name).to_owned(), fd.as_fd())).chain(single).collect()
    }
}

/// aya 0.14 loads uprobe programs for one site each. This links their code to the maps that aya made and loads
/// it with the attach type that one link for many sites needs: detaching is then one wait for the kernel's
/// readers instead of one per site (about 100 ms each, kernel 6.18).
fn load_multi(bytes: &[u8], ebpf: &Ebpf) -> Result<BTreeMap<&'static str, OwnedFd>, LoadError> {
    let defect = |what: &str| LoadError::Lacks(what.to_owned());
    let mut object = aya_obj::Object::parse(bytes).map_err(|error| LoadError::from(EbpfError::from(error)))?;
    let maps = std::mem::take(&mut object.maps);
    let mut linked = Vec::new();
    for (name, map) in &maps {
        let fd = ebpf.map(name).and_then(fd_of).ok_or_else(|| defect(&format!("map {name}")))?;
        linked.push((name.as_str(), std::os::fd::AsRawFd::as_raw_fd(&fd), map));
    }
    let texts: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object
        .relocate_maps(linked.into_iter(), &texts)
        .and_then(|()| object.relocate_calls(&texts))
        .map_err(|error| LoadError::from(EbpfError::from(error)))?;
    object.sanitize_functions(aya::features());
    let mut programs = BTreeMap::new();
    for name in UPROBE_PROGRAMS {
        let program = object.programs.get(name).ok_or_else(|| defect(&format!("program {name}")))?;
        let function =
            object.functions.get(&program.function_key()).ok_or_else(|| defect(&format!("code of {name}")))?;
        let fd = super::syscall::load_multi_uprobe(name, &function.instructions, &program.license)
            .map_err(|error| LoadError::Program(name.to_owned(), Box::new(error)))?;
        programs.insert(name, fd);
    }
    Ok(programs)
}

fn fd_of(map: &Map) -> Option<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::Stack(data)
        | Map::RingBuf(data)
        | Map::PerCpuArray(data)
        | Map::PerfEventArray(data)
        | Map::Unsupported(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}
