//! The observer: everything between a list of wishes and a snapshot.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use malloc_common::abi::{
    EVENT_EXEC, EVENT_EXIT, EVENT_FORK, EVENT_MAPPED, EVENT_RAISE, Event, SLOT_LIVE, SLOT_REPLACED,
};
use malloc_common::allowance::Allowance;
use malloc_common::depth::Depth;

use super::cache::Cache;
use super::calibrate::calibrate_while;
use super::census::{Census, Expected, Found, Serving};
use super::cpu::{self, CpuTimes};
use super::disused::Disused;
use super::faults;
use super::files::Files;
use super::heaps::{Heaps, Pace};
use super::known::Known;
use super::naming::{Naming, STACKS};
use super::options::{Options, Selection, StartError};
use super::selected::Selected;
use super::serving::serving;
use super::windows::{Windows, share};
use super::{threshold, unix_ms};
use crate::aggregate::incidents::{Incidents, StackId};
use crate::aggregate::model::{Calibration, Host, NANOSECONDS_PER_TICK, Probe, Snapshot, Stack, Verdict};
use crate::aggregate::{Aggregate, Moment};
use crate::collect::{BpfCollector, Collector, EventSource, Events, RawImage, Samples, boot_ns};
use crate::host::file::FileKey;
use crate::host::process::{self, Pid};
use crate::host::{HostError, btf, checks, kernel, tracefs};
use crate::probes::{self, Attached, KernelLog, LoadError, Object, Offsets, Scope, Targets};

/// When a process is looked at after its `exec`, until its allocator is known: its loader maps the libraries meanwhile.
const LOOK_AFTER_NS: [u64; 4] = [0, 3_000_000, 50_000_000, 500_000_000];
/// Processes waiting for such a look; more are found by the next collection.
const LOOKS: usize = 1024;
/// How long a last report waits for stacks to be named.
const NAMING_PATIENCE: Duration = Duration::from_secs(3);
/// After code of a file was mapped: the loader maps several files in a row, and one look sees them all. 1 ms.
const MAPPING_NS: u64 = 1_000_000;
/// Files are looked at this often for being overwritten. 500 ms: a process that starts on such a file before its
/// probes are gone crashes.
const OVERWRITTEN_NS: u64 = 500_000_000;
/// Looks between two waits: a machine that starts a thousand programs a second is not followed one by one.
const LOOKS_AT_ONCE: usize = 32;

/// A process to be looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    due_ns: u64,
    pid: Pid,
    attempt: usize,
}

/// Observes until it is dropped; dropping detaches everything.
pub struct Observer {
    pub(super) options: Options,
    // Before the object: links go first.
    pub(super) files: Files,
    disused: Disused,
    lifecycle: Attached,
    syscalls: Attached,
    /// `None`: page faults are not counted.
    faults: Option<Attached>,
    events: Events,
    samples: Samples,
    naming: Naming,
    incidents: Incidents,
    collector: BpfCollector,
    targets: Targets,
    pub(super) object: Object,
    log: Option<KernelLog>,
    pub(super) census: Census,
    heaps: Heaps,
    aggregate: Aggregate,
    tracking_since_ns: u64,
    window_since_ns: u64,
    /// New processes get probes, too.
    follows: bool,
    host: Host,
    looks: VecDeque<Look>,
    overwritten_checked_ns: u64,
    /// Processes probed for themselves, and how deep.
    pub(super) deep: HashMap<u32, Depth>,
    pub(super) selected: Selected,
    last_collect_us: u64,
    /// Images that ended since the last collection: each holds a row of the kernel's until the next.
    pub(super) endings: u32,
    notes: Vec<Probe>,
    /// Stacks that were waited for.
    late: Vec<(StackId, Arc<Stack>)>,
    calibration: Arc<Calibration>,
    cpu: CpuTimes,
}

impl Observer {
    /// Loads and attaches what every depth needs; no file carries a probe yet.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub fn start(options: Options) -> Result<Self, StartError> {
        // The kernel's own refusals name a map or a program, not what is lacking.
        let lacking =
            checks::checks(&checks::facts()?).into_iter().find(|check| check.verdict == checks::Verdict::Missing);
        if let Some(check) = lacking {
            let remedy = check.remedy.map(|remedy| format!(" {remedy}")).unwrap_or_default();
            return Err(StartError::Kernel(format!("{}: {}.{remedy}", check.name, check.found)));
        }
        let kernel = kernel::kernel()?;
        let version = kernel.version;
        if version.is_some_and(|v| (v.major, v.minor) < (5, 15)) {
            return Err(StartError::Kernel(format!(
                "Linux {} is too old: attach cookies need 5.15 or later",
                kernel.release
            )));
        }
        let btf = kernel::btf()?.ok_or_else(|| {
            StartError::Kernel("/sys/kernel/btf/vmlinux is missing: the kernel needs CONFIG_DEBUG_INFO_BTF".to_owned())
        })?;
        let task = btf::task_offsets(&btf)
            .map_err(|error| StartError::Kernel(format!("/sys/kernel/btf/vmlinux is not understood: {error}")))?;
        drop(btf);
        tracefs::find_or_mount()?;
        let load = probes::Options {
            admit_all: options.selection == Selection::Everything,
            tracing: options.tracing,
            chunks: options.depth > Depth::Syscall || options.deepens,
            faults: options.faults,
            stacks: match options.selection {
                Selection::Everything => STACKS,
                Selection::Chosen => Allowance::NO_LIMIT,
            },
            offsets: Offsets {
                group_leader: task.task_group_leader,
                start_time: task.task_start_boottime,
                mm: task.task_mm,
                brk: task.mm_brk,
                signal: task.task_signal,
                live: task.signal_live,
                tgid: task.task_tgid,
                comm: task.task_comm,
                oom_mm: task.signal_oom_mm,
            },
            capacities: options.capacities,
            // 6.6 has such links, but a wrong process filter until 6.10 ("Fix multi-uprobe PID filtering logic").
            multi_uprobes: version.is_none_or(|v| (v.major, v.minor) >= (6, 10)),
            trial: false,
        };
        let (calibration, object) = calibrate_while(&load, || Object::load(&load));
        let mut object = object?;
        let log = KernelLog::new(&mut object);
        let targets = Targets::new(&mut object)?;
        let events = Events::new(&mut object)?;
        let samples = Samples::new(&mut object)?;
        let naming = Naming::start(options.selection).map_err(StartError::Thread)?;
        let collector = BpfCollector::new(&mut object)?;
        let cpus = u32::try_from(kernel.online_cpus).unwrap_or(u32::MAX);
        let windows = Windows::of(&object, &collector, share(options.budget, &calibration, cpus))?;
        let lifecycle = probes::attach_processes(&mut object)?;
        let syscalls = probes::attach_syscalls(&mut object, probes::SYSCALLS)?;
        let mut notes = Vec::new();
        if task.signal_oom_mm.is_none() {
            let verdict = Verdict::Unsupported("this kernel has no signal_struct.oom_mm".to_owned());
            notes.push(Probe { name: "ends by lack of memory".to_owned(), depth: Depth::Syscall, verdict });
        }
        let faults = if options.faults { faults::attach(&mut object, &mut notes) } else { None };
        Ok(Self {
            options,
            disused: Disused::start().map_err(StartError::Thread)?,
            files: Files::new(options.stepped, options.tracing, windows),
            lifecycle,
            syscalls,
            faults,
            events,
            samples,
            naming,
            incidents: Incidents::default(),
            collector,
            targets,
            object,
            log,
            census: Census::default(),
            heaps: Heaps::new(if options.selection == Selection::Chosen { Pace::CLOSE } else { Pace::WIDE }),
            aggregate: Aggregate::new(options.keep),
            tracking_since_ns: boot_ns(),
            window_since_ns: boot_ns(),
            follows: options.selection == Selection::Everything,
            host: Host { kernel: kernel.release, cpus },
            looks: VecDeque::new(),
            overwritten_checked_ns: boot_ns(),
            deep: HashMap::new(),
            selected: Selected::default(),
            last_collect_us: 0,
            endings: 0,
            notes,
            late: Vec::new(),
            calibration: Arc::new(calibration),
            cpu: CpuTimes::default(),
        })
    }

    /// What was found in files before, and where that is kept.
    pub fn cache(&mut self) -> &mut Cache {
        &mut self.files.cache
    }

    /// Counts a process that runs already and, from now on, its children: the window begins.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub fn choose(&mut self, pid: u32) -> Result<(), LoadError> {
        self.window_since_ns = boot_ns();
        let serving = self.serving(Pid(pid), None).ok().flatten();
        self.adopt(Pid(pid), serving.as_ref());
        self.targets.choose(pid)
    }

    /// Counts a process that is about to become the command, with its children; whatever allocator these bring is
    /// probed for all its users.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub fn follow(&mut self, pid: u32) -> Result<(), LoadError> {
        self.follows = true;
        self.window_since_ns = boot_ns();
        self.targets.choose(pid)
    }

    /// What is attached to an allocator that a followed process brings.
    fn attach_new(&self) -> Option<(Scope, Depth)> {
        self.follows.then_some((Scope::AllProcesses, self.options.depth))
    }

    /// Probes the files of all processes, for all their users. At depth `syscall` there is none to probe, and the
    /// processes are known all the same. It ends early once `is_over` says so.
    ///
    /// # Errors
    ///
    /// When /proc cannot be listed.
    pub fn probe_everything(&mut self, is_over: &dyn Fn() -> bool) -> Result<(), HostError> {
        let pids = process::pids()?;
        let depth = self.options.depth;
        let mut used: Vec<FileKey> = Vec::new();
        // All thresholds are read before the first probe could see one rise.
        for pid in pids.into_iter().take_while(|_| !is_over()) {
            if depth == Depth::Syscall && matches!(process::exe(pid), Ok(Some(_))) {
                self.adopt(pid, None);
            } else if depth > Depth::Syscall
                && let Ok(Some(found)) = serving(pid, &mut self.files, &mut |_, key| {
                    if !used.contains(&key) {
                        used.push(key);
                    }
                })
            {
                self.adopt(pid, Some(&found));
            }
        }
        for key in used.into_iter().take_while(|_| !is_over()) {
            self.files.attach(&mut self.object, &key, Scope::AllProcesses, depth);
        }
        Ok(())
    }

    /// Probes the allocator of one process down to `depth`, for it alone. `Ok(None)`: the process vanished.
    ///
    /// # Errors
    ///
    /// Why it has no allocator that can be probed, in words.
    pub fn probe_process(&mut self, pid: u32, depth: Depth) -> Result<Option<FileKey>, String> {
        self.deep.insert(pid, depth);
        let found = self.serving(Pid(pid), Some((Scope::Process(pid), depth)))?;
        let files = &self.files;
        self.census.look(Pid(pid), &mut |_| Ok(found.clone()), &|serving| files.place(serving));
        Ok(found.map(|serving| serving.key))
    }

    /// Puts a process that runs already into the next snapshot, whether anything happens in it or not.
    fn adopt(&mut self, pid: Pid, serving: Option<&Serving>) {
        let place = serving.and_then(|serving| self.files.place(serving));
        let threshold = place.map_or(0, |place| threshold::resident(pid, place).unwrap_or(0));
        let place = serving.and_then(|serving| self.files.mp_place(serving));
        if let Ok(Some(stat)) = process::stat(pid) {
            self.collector.adopt(pid.0, stat.start_ticks * NANOSECONDS_PER_TICK, &stat.comm, threshold, place);
        }
    }

    /// The allocator of a process; new files are admitted and (`attach`) probed.
    fn serving(&mut self, pid: Pid, attach: Option<(Scope, Depth)>) -> Found {
        let (files, object) = (&mut self.files, &mut self.object);
        serving(pid, files, &mut |files, key| {
            if let Some((scope, depth)) = attach {
                files.attach(object, &key, scope, depth);
            }
        })
    }

    /// Takes the waiting events: follows executions, hands the rest to `f`.
    pub fn drain_events(&mut self, f: &mut dyn FnMut(&Event)) {
        let Self { looks, cpu, census, files, events, endings, .. } = self;
        let mut code = Vec::new();
        events.drain(&mut |event| {
            let pid = Pid(event.tgid);
            let is_allocator = census.follow(&event, &files.shapes);
            if matches!(event.kind, EVENT_EXEC | EVENT_FORK | EVENT_MAPPED | EVENT_RAISE) {
                code.push(event);
            }
            *endings += u32::from(matches!(event.kind, EVENT_EXEC | EVENT_EXIT));
            match event.kind {
                EVENT_EXIT => cpu.read_last(pid),
                EVENT_EXEC if looks.len() < LOOKS => {
                    looks.push_back(Look { due_ns: event.ns, pid, attempt: 0 });
                }
                EVENT_MAPPED if looks.len() < LOOKS => {
                    let due_ns = event.ns + if is_allocator { 0 } else { MAPPING_NS };
                    if !looks.iter().any(|look| look.pid == pid && look.due_ns >= event.ns && look.due_ns <= due_ns) {
                        looks.push_back(Look { due_ns, pid, attempt: LOOK_AFTER_NS.len() });
                    }
                }
                _ => {}
            }
            f(&event);
        });
        self.drain_samples(&code);
        self.naming.follow(&code, &self.files);
        if let Some(log) = &mut self.log {
            log.flush();
        }
        self.look_at_new();
    }

    fn drain_samples(&mut self, events: &[Event]) {
        self.naming.drain(&mut self.samples, &mut self.incidents, events);
    }

    /// Waits for the stacks that are still being named: before a last report.
    pub fn finish_naming(&mut self) {
        self.drain_samples(&[]);
        self.late = self.naming.finish(NAMING_PATIENCE);
    }

    /// Reads the heaps of the processes that run, as they are now: before a last report.
    pub fn finish_heaps(&mut self) {
        self.heaps.finish();
    }

    /// Looks at processes that executed a program or mapped code a moment ago, and at the files that carry probes;
    /// returns nanoseconds until the next look is due.
    pub fn look_at_new(&mut self) -> Option<u64> {
        let now = boot_ns();
        if now.saturating_sub(self.overwritten_checked_ns) >= OVERWRITTEN_NS {
            self.overwritten_checked_ns = now;
            self.files.check_overwritten();
        }
        let (due, later): (Vec<Look>, Vec<Look>) = self.looks.drain(..).partition(|look| look.due_ns <= now);
        self.looks.extend(later);
        for (done, look) in due.into_iter().enumerate() {
            if done >= LOOKS_AT_ONCE {
                self.looks.push_back(look);
                continue;
            }
            let everybody = self.serving(look.pid, self.attach_new());
            let found = match self.deep.get(&look.pid.0) {
                Some(depth) => self.serving(look.pid, Some((Scope::Process(look.pid.0), *depth))),
                None => everybody,
            };
            let files = &self.files;
            let known = matches!(found, Ok(Some(_)));
            self.census.look(look.pid, &mut |_| found.clone(), &|serving| files.place(serving));
            // A command may be over before its first stack is named, a static program has no library to wait for.
            if known && (self.options.selection == Selection::Chosen || look.attempt == 0) {
                self.naming.note(look.pid.0);
            }
            if known {
                self.probe_if_selected(look.pid);
            }
            if let (false, Some(after)) = (known, LOOK_AFTER_NS.get(look.attempt + 1)) {
                self.looks.push_back(Look { due_ns: now + after, attempt: look.attempt + 1, ..look });
            }
        }
        let next = self.looks.iter().map(|look| look.due_ns.saturating_sub(now)).min();
        let files = (self.overwritten_checked_ns + OVERWRITTEN_NS).saturating_sub(now);
        Some(next.map_or(files, |next| next.min(files)))
    }

    /// Says what will serve a process, for one that may end before it can be looked at.
    pub fn expect(&mut self, pid: u32, expected: Expected) {
        self.census.expect(pid, expected);
    }

    /// What is true now.
    pub fn collect(&mut self) -> Snapshot {
        let started = std::time::Instant::now();
        self.files.check_overwritten();
        self.endings = 0;
        let raw = self.collector.collect();
        // A process that runs another program now keeps the probes that were asked for it.
        let exited = |row: &&Arc<RawImage>| row.slot.state != SLOT_LIVE && row.slot.state != SLOT_REPLACED;
        let ended: Vec<u32> = raw.images.iter().filter(exited).map(|row| row.slot.tgid).collect();
        self.renew(&raw.images);
        self.drain_samples(&[]);
        self.incidents.settle(&raw.images);
        for (id, stack) in std::mem::take(&mut self.late).into_iter().chain(self.naming.named()) {
            self.incidents.deliver(id, &stack);
        }
        let moment = Moment {
            raises: self.incidents.raises(),
            mappings: self.incidents.mappings(),
            stacks: self.incidents.stacks(),
            incidents_lost: self.incidents.dropped + self.naming.refused,
            unix_ms: unix_ms(),
            tracking_since_ns: self.tracking_since_ns,
            window_since_ns: self.window_since_ns,
            host: self.host.clone(),
            probes: self.verdicts(),
            cost: cpu::own_cost(self.options.capacities.kernel_bytes(), self.last_collect_us),
            calibration: Arc::clone(&self.calibration),
        };
        self.cpu.renew(&raw.images);
        self.heaps.ask(&raw.images, &|row| self.census.place(row), &|row| self.cpu.of(row));
        let known = Known {
            census: &self.census,
            files: &self.files,
            state: self.files.state(),
            heaps: &self.heaps,
            cpu: &self.cpu,
            depth: self.options.depth,
            faults: self.faults.is_some(),
        };
        let snapshot = self.aggregate.apply(&raw, moment, &known);
        // Only now: what an image counted is described by the probes that it had.
        if !ended.is_empty() {
            self.let_go(&ended);
            self.heaps.forget(&ended);
        }
        self.disused.turn(&mut self.files);
        self.last_collect_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        snapshot
    }

    fn renew(&mut self, images: &[Arc<RawImage>]) {
        let attach = self.attach_new();
        let Self { census, files, object, .. } = self;
        // Two borrows of the files are never held at once: the first closure ends before the second runs.
        let files = std::cell::RefCell::new(files);
        census.renew(
            images,
            &mut |pid| {
                serving(pid, *files.borrow_mut(), &mut |files, key| {
                    if let Some((scope, depth)) = attach {
                        files.attach(object, &key, scope, depth);
                    }
                })
            },
            &|serving| files.borrow().place(serving),
        );
    }

    fn verdicts(&self) -> Vec<Probe> {
        let tracepoints = [
            ("tracepoints syscalls/sys_{enter,exit}_{mmap,munmap,mremap,brk}", &self.syscalls),
            ("raw tracepoints sched_process_{exec,fork,exit}", &self.lifecycle),
        ];
        let always = tracepoints.into_iter().map(|(name, _)| Probe {
            name: name.to_owned(),
            depth: Depth::Syscall,
            verdict: Verdict::Attached,
        });
        let faults = self.faults.iter().map(|_| faults::probe(Verdict::Attached));
        always.chain(faults).chain(self.files.verdicts()).chain(self.notes.iter().cloned()).collect()
    }

    /// Records something that could not be probed, for the list of probes.
    pub fn note(&mut self, name: String, depth: Depth, verdict: Verdict) {
        const NOTES: usize = 64;
        if self.notes.len() < NOTES {
            self.notes.push(Probe { name, depth, verdict });
        }
    }

    /// The descriptors that become readable when events or samples wait. A sample's process may end soon: whoever
    /// waits must not wait for a tick.
    pub fn wait_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.events.as_fd(), self.samples.as_fd()]
    }

    /// Whether one link carries many uprobes: without such links each needs `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn attaches_many(&self) -> bool {
        self.object.attaches_many()
    }
}
