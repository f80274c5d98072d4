//! Implements the tracker's `Kernel` with BPF helpers.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, pt_regs};
use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf,
    bpf_ktime_get_boot_ns, bpf_probe_read_kernel, bpf_task_pt_regs,
};
use malloc_common::abi::{Counter, EVENT_CROSSING, Event, Flight, Origin, SLOT_LIVE, SLOT_REPLACED, Sample, Series};
use malloc_common::allowance::{Allowance, FIRST_SAMPLES, RESERVED_SAMPLES, SAMPLE_EVERY_NS};
use malloc_common::chunk::{Chunk, ChunkKey, WATCHES, Watch};
use malloc_common::loss::Loss;
use malloc_common::maps::RECENT_SLOTS;
use malloc_common::site::PtRegsWord;
use malloc_common::tracker::{HistogramId, Kernel, Mp, MpPlace, Registers, SlotId};

use crate::counts;
use crate::fields::{
    OFF_BRK, OFF_LIVE, OFF_MM, OFF_OOM_MM, OFF_START_TIME, OFF_TGID, leader, name, read_kernel, read_signal,
};
use crate::machine;
use crate::maps::{
    CHUNKS, EVENTS, FLIGHTS, FREE_SLOTS, INHERITED, LOST, PROCESSES, RECENT, SAMPLES, SLOTS, STACKS, TARGETS,
    ZERO_FLIGHT,
};
use crate::mp::{self, read_user};
use crate::stack::{copy_stack, frame, saved};

/// 1: every process is counted; 0: those in `TARGETS`.
#[unsafe(no_mangle)]
static ADMIT_ALL: Global<u32> = Global::new(1);
/// 1: chains are sent as events.
#[unsafe(no_mangle)]
static TRACING: Global<u32> = Global::new(0);
/// 1: the allocator's own functions are probed, so that mapped chunks are known.
#[unsafe(no_mangle)]
static CHUNKS_TOLD: Global<u32> = Global::new(1);
/// 1: page faults of mapped chunks are counted.
#[unsafe(no_mangle)]
static FAULTS: Global<u32> = Global::new(0);
/// `Allowance::every_ns` of the stacks of crossings; 0: there is no limit.
#[unsafe(no_mangle)]
static STACK_EVERY: Global<u64> = Global::new(0);
/// `Allowance::burst_ns` of them.
#[unsafe(no_mangle)]
static STACK_BURST: Global<u64> = Global::new(0);

/// The kernel this program runs in.
pub struct Bpf {
    /// Process id (the upper half) and thread id of the running thread: every hit needs both, and asking is a call of
    /// the kernel's.
    id: u64,
}

impl Bpf {
    /// In the thread that runs the program.
    #[inline(always)]
    pub fn here() -> Self {
        Self { id: bpf_get_current_pid_tgid() }
    }
}

/// Keeps a uprobe's program on the stack of its thread.
///
/// From 6.13 on a program that needs 64 bytes of stack or more gets one for each processor. Who is preempted in it finds
/// there what another thread's hit left, unless the kernel keeps two runs of a program on one processor apart: it does so
/// for tracepoints, by skipping the second, which is a loss, and not for uprobes. Programs that call others in their place
/// get none; the call is never reached, and the verifier takes it out.
#[inline(always)]
pub fn stay_on_the_threads_stack() {
    if ADMIT_ALL.load() > 1 {
        machine::call_another();
    }
}

/// Where the stack pointer lies in `pt_regs`, bytes.
#[cfg(bpf_target_arch = "aarch64")]
const STACK_POINTER: u64 = core::mem::offset_of!(pt_regs, sp) as u64;
/// Where the stack pointer lies in `pt_regs`, bytes.
#[cfg(not(bpf_target_arch = "aarch64"))]
const STACK_POINTER: u64 = core::mem::offset_of!(pt_regs, rsp) as u64;

/// The registers of a uprobe's thread.
#[inline(always)]
pub fn registers(regs: *const pt_regs) -> Registers {
    // SAFETY: the kernel passes a valid `pt_regs` as the context of a uprobe program.
    let r = unsafe { &*regs };
    #[cfg(bpf_target_arch = "aarch64")]
    return Registers { arguments: [r.regs[0], r.regs[1], r.regs[2]], sp: r.sp, ip: r.pc };
    #[cfg(not(bpf_target_arch = "aarch64"))]
    return Registers { arguments: [r.rdi, r.rsi, r.rdx], sp: r.rsp, ip: r.rip };
}

/// Whether a sample wakes the daemon: not where a long-lived process sends one after the other, which the daemon finds
/// within half a second. The others wake it whatever waits in the ring already.
#[inline(always)]
fn wakeup(event: &Event) -> u64 {
    let nth = event.values[4];
    let waits = STACK_EVERY.load() != 0 && event.kind == EVENT_CROSSING && nth > FIRST_SAMPLES;
    u64::from(if waits { BPF_RB_NO_WAKEUP } else { BPF_RB_FORCE_WAKEUP })
}

/// The process id of a task, for programs that are handed one.
#[inline(always)]
pub fn tgid_of(task: *const u8) -> u32 {
    // SAFETY: `bpf_probe_read_kernel` checks the address.
    unsafe { read_kernel::<u32>(task as u64, &OFF_TGID) }.unwrap_or(0)
}

impl Kernel for Bpf {
    type Flight<'a> = &'a mut Flight;

    #[inline(always)]
    fn tgid(&self) -> u32 {
        (self.id >> 32) as u32
    }

    #[inline(always)]
    fn tid(&self) -> u32 {
        self.id as u32
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn comm(&self) -> [u8; 16] {
        bpf_get_current_comm().unwrap_or([0; 16])
    }

    #[inline(always)]
    fn user_sp(&self) -> u64 {
        // SAFETY: the helpers return the running task and the registers with which it entered the kernel.
        let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(regs.wrapping_add(STACK_POINTER) as *const u64) }.unwrap_or(0)
    }

    #[inline(always)]
    fn program_break(&self) -> u64 {
        // SAFETY: a helper without arguments; the reads are checked.
        unsafe {
            let task = bpf_get_current_task();
            read_kernel::<u64>(task, &OFF_MM).and_then(|mm| read_kernel::<u64>(mm, &OFF_BRK)).unwrap_or(0)
        }
    }

    #[inline(always)]
    fn last_thread(&self) -> bool {
        // SAFETY: any bits are a number. `do_exit` has already taken this thread off `signal->live` when the
        // tracepoint fires (kernels 5.15 to 7.3).
        unsafe { read_signal::<u32>(&OFF_LIVE) }.unwrap_or(0) == 0
    }

    #[inline(always)]
    fn oom_killed(&self) -> bool {
        // SAFETY: any bits are a number. `mark_oom_victim` sets the pointer once, for as long as the structure lives.
        OFF_OOM_MM.load() != u32::MAX && unsafe { read_signal::<u64>(&OFF_OOM_MM) }.unwrap_or(0) != 0
    }

    #[inline(always)]
    fn tracing(&self) -> bool {
        TRACING.load() != 0
    }

    #[inline(always)]
    fn tells_chunks(&self) -> bool {
        CHUNKS_TOLD.load() != 0
    }

    #[inline(always)]
    fn read_mp(&self, place: MpPlace) -> Option<Mp> {
        mp::read(place)
    }

    #[inline(always)]
    fn slot(&self, tgid: u32) -> Option<SlotId> {
        let recent = RECENT.get_ptr_mut(tgid % RECENT_SLOTS)?;
        // SAFETY: an aligned word of a map value, read and written whole.
        let id = unsafe { recent.read_volatile() };
        if let Some(slot) = SLOTS.get_ptr(id) {
            // At most one live slot has this process's id, so whatever the hint was, it is right when these agree.
            // SAFETY: a map value; the first word of a slot holds both.
            if unsafe { (*slot).tgid == tgid && (*slot).state == SLOT_LIVE } {
                return Some(id);
            }
        }
        // SAFETY: entries are plain numbers; a stale one is at worst the slot of a process that just ended.
        let id = unsafe { PROCESSES.get(&tgid) }.copied()?;
        // SAFETY: as above.
        unsafe { recent.write_volatile(id) };
        Some(id)
    }

    #[inline(always)]
    fn open_slot(&self, born: u16) -> Option<SlotId> {
        let tgid = self.tgid();
        let id = FREE_SLOTS.pop().ok()??;
        let slot = SLOTS.get_ptr_mut(id)?;
        // SAFETY: the index came from the free list, so this program alone writes the slot.
        unsafe {
            let task = bpf_get_current_task();
            let leader = leader().unwrap_or(task);
            (*slot).tgid = tgid;
            (*slot).born = born;
            (*slot).start_ns = read_kernel::<u64>(leader, &OFF_START_TIME).unwrap_or(0);
            (*slot).first_ns = self.now_ns();
            name(leader, &mut (*slot).comm);
            [(*slot).threshold, (*slot).mp_place] = INHERITED.get_ptr(&tgid).map_or([0; 2], |kept| *kept);
            (*slot).state = SLOT_LIVE;
        }
        if PROCESSES.insert(&tgid, &id, u64::from(BPF_NOEXIST)).is_ok() {
            return Some(id);
        }
        // Another thread of the process was faster, or the table is full.
        // SAFETY: as above; nobody else knows this slot.
        unsafe {
            (*slot).state = 0;
        }
        let _ = FREE_SLOTS.push(id, 0);
        self.slot(tgid)
    }

    #[inline(always)]
    fn close_slot(&self, tgid: u32, state: u32) {
        let Some(id) = self.slot(tgid) else { return };
        let _ = PROCESSES.remove(&tgid);
        if let Some(slot) = SLOTS.get_ptr_mut(id) {
            // SAFETY: the last thread of the image runs here; nothing else writes the slot any more.
            unsafe {
                (*slot).end_ns = self.now_ns();
                // Of the process: which of its threads ends last tells nothing of it.
                if state != SLOT_REPLACED
                    && let Some(leader) = leader()
                {
                    name(leader, &mut (*slot).comm);
                }
                (*slot).state = state;
            }
        }
    }

    #[inline(always)]
    fn store_mp(&self, slot: SlotId, place: MpPlace, mp: &Mp) -> u64 {
        let Some(slot) = SLOTS.get_ptr_mut(slot) else { return 0 };
        // SAFETY: aligned words that the daemon reads; threads that store at once store what they read.
        unsafe {
            let before = (*slot).threshold;
            (*slot).threshold = mp.threshold;
            (*slot).trim_threshold = mp.trim_threshold;
            (*slot).mmapped_chunks = mp.mmapped_chunks;
            (*slot).mmapped_bytes = mp.mmapped_bytes;
            (*slot).threshold_pinned = mp.pinned;
            (*slot).threshold_ns = self.now_ns();
            (*slot).mp_place = place.to_word();
            before
        }
    }

    #[inline(always)]
    fn stored_mp(&self, slot: SlotId) -> Option<(u64, MpPlace)> {
        let slot = SLOTS.get_ptr(slot)?;
        // SAFETY: aligned words of a map value.
        unsafe { Some(((*slot).threshold, MpPlace::from_word((*slot).mp_place)?)) }
    }

    #[inline(always)]
    fn bequeath(&self, slot: SlotId, child: u32) {
        if let Some(slot) = SLOTS.get_ptr(slot) {
            // SAFETY: aligned words of a map value.
            let kept = unsafe { [(*slot).threshold, (*slot).mp_place] };
            if kept[0] != 0 {
                let _ = INHERITED.insert(&child, &kept, 0);
            }
        }
    }

    #[inline(always)]
    fn disinherit(&self, tgid: u32) {
        let _ = INHERITED.remove(&tgid);
    }

    #[inline(always)]
    fn add(&self, slot: SlotId, counter: Counter, n: u64) {
        counts::add(self.tid(), slot, counter, n);
    }

    #[inline(always)]
    fn histogram(&self, slot: SlotId, series: Series) -> Option<HistogramId> {
        counts::histogram(self.id, slot, series)
    }

    #[inline(always)]
    fn record(&self, histogram: HistogramId, value: u64) {
        counts::record(histogram, value);
    }

    #[inline(always)]
    fn admits(&self, tgid: u32) -> bool {
        // SAFETY: only presence matters.
        ADMIT_ALL.load() != 0 || unsafe { TARGETS.get(&tgid) }.is_some()
    }

    #[inline(always)]
    fn admit_child(&self, _parent: u32, child: u32) -> bool {
        ADMIT_ALL.load() != 0 || TARGETS.insert(&child, &1, 0).is_ok()
    }

    #[inline(always)]
    fn dismiss(&self, tgid: u32) {
        if ADMIT_ALL.load() == 0 {
            let _ = TARGETS.remove(&tgid);
        }
    }

    #[inline(always)]
    fn flight(&self) -> Option<&mut Flight> {
        let flight = FLIGHTS.get_ptr_mut(&self.tid())?;
        // SAFETY: only the thread itself touches its flight, and it runs here, in one place at a time.
        Some(unsafe { &mut *flight })
    }

    #[inline(always)]
    fn open_flight(&self) -> Option<&mut Flight> {
        if let Some(flight) = self.flight() {
            return Some(flight);
        }
        FLIGHTS.insert(&self.tid(), ZERO_FLIGHT.get(0)?, 0).ok()?;
        self.flight()
    }

    #[inline(always)]
    fn close_flight(&self, tid: u32) {
        let _ = FLIGHTS.remove(&tid);
    }

    #[inline(always)]
    fn remember_chunk(&self, address: u64, chunk: &Chunk) -> bool {
        CHUNKS.insert(&ChunkKey { tgid: u64::from(self.tgid()), address }, chunk, 0).is_ok()
    }

    #[inline(always)]
    fn chunk(&self, address: u64) -> Option<Chunk> {
        let key = ChunkKey { tgid: u64::from(self.tgid()), address };
        // SAFETY: a chunk is written before its address is the program's and taken by the call that gives it back.
        unsafe { CHUNKS.get(&key) }.copied()
    }

    #[inline(always)]
    fn forget_chunk(&self, address: u64) {
        let _ = CHUNKS.remove(&ChunkKey { tgid: u64::from(self.tgid()), address });
    }

    #[inline(always)]
    fn counts_faults(&self) -> bool {
        FAULTS.load() != 0
    }

    #[inline(always)]
    fn with_watch<R, F: FnOnce(&mut Watch) -> R>(&self, slot: SlotId, index: u64, f: F) -> Option<R> {
        let watch = watch_of(slot, index)?;
        // SAFETY: aligned words of a map value; who changes it has made it its own, who reads it alone may see it change.
        Some(f(unsafe { &mut *watch }))
    }

    #[inline(always)]
    fn change_watch(&self, slot: SlotId, index: u64, from: u32, to: u32) -> bool {
        // SAFETY: a map value.
        watch_of(slot, index)
            .is_some_and(|watch| unsafe { machine::replace(&raw mut (*watch).state, from, to) } == from)
    }

    #[inline(always)]
    fn add_fault(&self, slot: SlotId, index: u64) {
        if let Some(watch) = watch_of(slot, index) {
            // SAFETY: a map value.
            unsafe { machine::add(&raw mut (*watch).faults, 1) };
        }
    }

    #[inline(always)]
    fn image_ns(&self, slot: SlotId) -> u64 {
        // SAFETY: a map value; written before the slot counts.
        SLOTS.get_ptr(slot).map_or(0, |slot| unsafe { (*slot).first_ns })
    }

    #[inline(always)]
    fn lose(&self, loss: Loss) {
        if let Some(lost) = LOST.get_ptr_mut(loss as u32) {
            // SAFETY: a map value.
            unsafe { machine::add(lost, 1) };
        }
    }

    #[inline(always)]
    fn emit(&self, event: &Event) -> bool {
        EVENTS.output::<Event>(event, 0).is_ok()
    }

    #[inline(always)]
    fn sample(&self, event: &Event) -> bool {
        // SAFETY: as in `user_sp`.
        let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
        // SAFETY: the helper checks the address.
        let Ok(regs) = (unsafe { bpf_probe_read_kernel(regs) }) else { return false };
        let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else { return false };
        let at = entry.as_mut_ptr();
        let (ip, sp, bp) = frame(&regs);
        // SAFETY: the entry is as large as a sample, and every field is written before it is submitted; bytes of the
        // stack past `stack_bytes` keep what the ring held before, which the daemon does not look at.
        unsafe {
            (*at).event = *event;
            (*at).ip = ip;
            (*at).sp = sp;
            (*at).bp = bp;
            (*at).saved = saved(&regs);
            (*at).stack_bytes = copy_stack((&raw mut (*at).stack).cast(), sp);
        }
        entry.submit(wakeup(event));
        true
    }

    #[inline(always)]
    fn crossing_to_sample(&self, slot: SlotId, now_ns: u64) -> Option<u64> {
        let slot = SLOTS.get_ptr_mut(slot)?;
        // SAFETY: map values; threads that cross at once may both be sampled.
        unsafe {
            let nth = (*slot).counters[const { Counter::OriginCalls(Origin::MmapCrossing).index() }];
            if nth > FIRST_SAMPLES && now_ns.wrapping_sub((*slot).sampled_ns) < SAMPLE_EVERY_NS {
                return None;
            }
            let allowance = Allowance { every_ns: STACK_EVERY.load(), burst_ns: STACK_BURST.load() };
            if allowance.every_ns != 0 {
                let paid = STACKS.get_ptr_mut(u32::from(nth > RESERVED_SAMPLES))?;
                *paid = allowance.take(*paid, now_ns)?;
            }
            (*slot).sampled_ns = now_ns;
            Some(nth)
        }
    }

    #[inline(always)]
    fn user_register(&self, word: PtRegsWord) -> Option<u64> {
        // SAFETY: as in `user_sp`.
        let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
        let at = regs.wrapping_add(machine::opaque(u64::from(word.offset())));
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(at as *const u64) }.ok()
    }

    #[inline(always)]
    fn read_user_words(&self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: the read is checked.
        unsafe { read_user(address, 0) }
    }
}

#[inline(always)]
fn watch_of(slot: SlotId, index: u64) -> Option<*mut Watch> {
    let slot = SLOTS.get_ptr_mut(slot)?;
    let index = machine::opaque(index);
    if index >= WATCHES as u64 {
        return None;
    }
    // SAFETY: the index was just checked.
    Some(unsafe { (&raw mut (*slot).watches).cast::<Watch>().add(index as usize) })
}
