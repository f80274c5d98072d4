//! Decides what an allocation is: which calls count, who asked for a system call, when a chunk crosses
//! the threshold. Compiled for the kernel and for a simulated one.
//!
//! No return probe is needed. A call is counted at the entry of its function; a branch inside the
//! allocator to such an entry (`realloc` into `malloc`, by `call` or by tail jump) carries a probe too
//! and is counted apart, so that *entries minus transfers* are the program's own, outermost calls. A
//! system call belongs to the branch that leads to it: the probe on that branch notes its stack pointer,
//! and the system call must come from at most [`BRANCH_WINDOW`] bytes below.

use crate::abi::{
    BORN_EXEC, BORN_UNSEEN, Counter, EVENT_EXEC, EVENT_EXIT, EVENT_MAPPED, Event, Flight, Origin, SLOT_EXITED,
    SLOT_REPLACED, Series, Syscall,
};
use crate::function::Request;
use crate::loss::Loss;
use crate::site::{Cookie, MpLayout, Role};

mod trace;

pub use trace::traced_function;

/// How far below the branch the stack pointer may be when the system call enters, in bytes.
///
/// A call pushes 8, the wrappers of glibc 2.23 to 2.44 push at most 64, `__glibc_morecore` and `sbrk`
/// together at most 120. A signal handler that runs in between stands lower: the kernel skips the red
/// zone (128) and pushes a frame of more than 900 bytes (x86-64, smallest floating-point state).
pub const BRANCH_WINDOW: u64 = 512;

const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_STACK: u64 = 0x2_0000;
const NO_FUNCTION: u8 = u8::MAX;

/// What `mp_` says, as read from the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mp {
    /// `mmap_threshold`, bytes.
    pub threshold: u64,
    /// `trim_threshold`, bytes.
    pub trim_threshold: u64,
    /// `n_mmaps`.
    pub mmapped_chunks: u64,
    /// `mmapped_mem`, bytes.
    pub mmapped_bytes: u64,
    /// `no_dyn_threshold`.
    pub pinned: u32,
}

/// An index into the table of process images.
pub type SlotId = u32;
/// An index into the pool of histograms.
pub type HistogramId = u32;

/// What the tracker needs from the kernel it runs in.
pub trait Kernel {
    /// Process id of the running thread.
    fn tgid(&self) -> u32;
    /// Thread id of the running thread.
    fn tid(&self) -> u32;
    /// Nanoseconds since boot.
    fn now_ns(&self) -> u64;
    /// Name of the running thread.
    fn comm(&self) -> [u8; 16];
    /// The stack pointer with which the running thread entered the kernel.
    fn user_sp(&self) -> u64;
    /// The break of the running process, before the system call in progress.
    fn program_break(&self) -> u64;
    /// True when the running thread is the last of its process.
    fn last_thread(&self) -> bool;
    /// True while a tracer listens.
    fn tracing(&self) -> bool;
    /// Reads `mp_` of the running process.
    fn read_mp(&self, layout: MpLayout, address: u64) -> Option<Mp>;

    /// The slot that counts for a process.
    fn slot(&self, tgid: u32) -> Option<SlotId>;
    /// Takes a free slot for the running process and makes it the one that counts; of two threads that
    /// try at once both get the same.
    fn open_slot(&self, born: u32) -> Option<SlotId>;
    /// Stops counting for a process; its slot keeps what it has, with this final state.
    fn close_slot(&self, tgid: u32, state: u32);
    /// Stores what `mp_` said; returns the threshold stored before (0: none).
    fn store_mp(&self, slot: SlotId, mp: &Mp) -> u64;
    /// Adds to a counter of a process.
    fn add(&self, slot: SlotId, counter: Counter, n: u64);
    /// The histogram of a series, taken from the pool at its first use.
    fn histogram(&self, slot: SlotId, series: Series) -> Option<HistogramId>;
    /// Adds one value to a histogram.
    fn record(&self, histogram: HistogramId, value: u64);

    /// True when this process is to be counted.
    fn admits(&self, tgid: u32) -> bool;
    /// Has a child counted like its parent; false when there is no room.
    fn admit_child(&self, parent: u32, child: u32) -> bool;
    /// Forgets a process that ended.
    fn dismiss(&self, tgid: u32);

    /// Runs `f` on the state of a thread, when it has one.
    fn with_flight<R, F: FnOnce(&mut Flight) -> R>(&self, tid: u32, f: F) -> Option<R>;
    /// Gives a thread an empty state unless it has one; false when there is no room.
    fn open_flight(&self, tid: u32) -> bool;
    /// Takes a thread's state away.
    fn close_flight(&self, tid: u32);

    /// Counts a loss.
    fn lose(&self, loss: Loss);
    /// Sends an event; false when the ring is full.
    fn emit(&self, event: &Event) -> bool;
}

/// Registers of the running thread at a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The first three arguments of the function at whose entry (or before whose call) the probe sits.
    pub arguments: [u64; 3],
    /// Stack pointer.
    pub sp: u64,
    /// Address of the probed instruction.
    pub ip: u64,
}

/// A public function is entered, or the allocator is about to enter one itself.
#[inline(always)]
pub fn call<K: Kernel>(k: &K, cookie: Cookie, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    let [a, b, c] = r.arguments;
    match cookie.role() {
        Some(Role::Call(f)) => match f.request(a, b, c) {
            Request::Bytes(n) => count(k, slot, Series::Call(f), n),
            Request::Impossible => k.add(slot, Counter::Failed(f), 1),
            Request::Release => k.add(slot, Counter::Free, 1),
            Request::Nothing => return,
        },
        Some(Role::Transfer(f)) => match f.request(a, b, c) {
            Request::Bytes(n) => count(k, slot, Series::Transfer(f), n),
            Request::Impossible => k.add(slot, Counter::FailedTransfer(f), 1),
            Request::Release => k.add(slot, Counter::FreeTransfer, 1),
            Request::Nothing => return,
        },
        _ => return k.lose(Loss::UnknownProbe),
    }
    if k.tracing()
        && let Some(Role::Call(f)) = cookie.role()
    {
        on_flight(k, |flight| {
            flight.function = f as u8;
            flight.call = r.arguments;
            flight.call_sp = r.sp;
        });
    }
}

/// `_int_malloc(av, bytes)` is entered.
#[inline(always)]
pub fn arena<K: Kernel>(k: &K, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    count(k, slot, Series::Arena, r.arguments[1]);
    if k.tracing() {
        on_flight(k, |flight| {
            flight.arena = [r.arguments[0], r.arguments[1]];
            flight.arena_sp = r.sp;
        });
    }
}

/// A function of the slow path is entered.
#[inline(always)]
pub fn slow<K: Kernel>(k: &K, cookie: Cookie, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    look_at_mp(k, slot, cookie, r.ip);
    if let Some(Role::Sysmalloc) = cookie.role() {
        let nb = r.arguments[0];
        count(k, slot, Series::Sysmalloc, nb);
        on_flight(k, |flight| {
            flight.nb = nb;
            flight.brk_failed = 0;
            flight.branch_role = 0;
        });
    }
    if k.tracing() {
        trace::chain(k, cookie, r);
    }
}

/// A branch that leads to a system call is about to be taken.
#[inline(always)]
pub fn branch<K: Kernel>(k: &K, cookie: Cookie, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    let threshold = look_at_mp(k, slot, cookie, r.ip).unwrap_or(0);
    let role = match cookie.role() {
        // `sbrk(0)` asks for nothing and makes no system call.
        Some(Role::Grow | Role::Trim) if r.arguments[0] == 0 => return,
        Some(role) => role,
        None => return k.lose(Loss::UnknownProbe),
    };
    let opened = on_flight(k, |flight| {
        let below_threshold = threshold != 0 && flight.nb != 0 && flight.nb < threshold;
        // `sysmalloc` maps a chunk in three cases: over the threshold; after a `brk` that failed; and below the
        // threshold for an arena whose heap cannot grow. Only the first is a crossing.
        let role = match role {
            Role::MapChunk if flight.brk_failed != 0 || below_threshold => Role::MapFallback,
            role => role,
        };
        flight.branch_role = Cookie::new(role).0 as u8;
        flight.branch_sp = r.sp;
    });
    if !opened {
        k.add(slot, Counter::Unattributed, 1);
    }
}

/// A system call enters.
#[inline(always)]
pub fn syscall_enter<K: Kernel>(k: &K, syscall: Syscall, args: [u64; 6]) {
    let Some(slot) = slot(k) else { return };
    let sp = k.user_sp();
    let now = k.now_ns();
    let old_break = if syscall as u8 == Syscall::Brk as u8 { k.program_break() } else { 0 };
    let mut unpaired = false;
    let opened = on_flight(k, |flight| {
        unpaired = flight.entered != 0;
        let role = Cookie(flight.branch_role as u64).role();
        let near = sp <= flight.branch_sp && flight.branch_sp.wrapping_sub(sp) <= BRANCH_WINDOW;
        // The first `sbrk` of a process asks for the break before it moves it: the branch stands for the move.
        let query = syscall as u8 == Syscall::Brk as u8 && args[0] == 0;
        let origin = match (near && !query, attributed(role, syscall)) {
            (true, Some(origin)) => {
                flight.branch_role = 0;
                origin
            }
            _ => by_arguments(syscall, &args),
        };
        flight.origin = origin as u8;
        flight.entered = 1 + syscall as u8;
        flight.entered_ns = now;
        flight.args = args;
        flight.old_break = old_break;
    });
    if unpaired {
        k.lose(Loss::UnpairedEntry);
    }
    if !opened {
        k.add(slot, Counter::Unattributed, 1);
    }
}

/// A system call returns `result` (an address, zero, or a negative error number).
#[inline(always)]
pub fn syscall_exit<K: Kernel>(k: &K, syscall: Syscall, result: u64) {
    let Some(slot) = slot(k) else { return };
    let now = k.now_ns();
    let mut entered = None;
    let _ = k.with_flight(k.tid(), |flight| {
        if flight.entered == 1 + syscall as u8 {
            flight.entered = 0;
            let asked = flight.args[0];
            // `brk` never reports an error: it returns the old break instead of the one asked for.
            let failed = match syscall {
                Syscall::Brk => asked != 0 && asked != result,
                _ => is_error(result),
            };
            if let (Syscall::Brk, true, Some(Origin::BrkGrowth)) = (syscall, failed, Origin::from_index(flight.origin))
            {
                flight.brk_failed = 1;
            }
            let code = matches!(syscall, Syscall::Mmap) && flight.args[2] & PROT_EXEC != 0;
            entered =
                Some((flight.origin, flight.entered_ns, length(syscall, &flight.args), flight.old_break, failed, code));
        }
    });
    let Some((origin, entered_ns, bytes, old_break, failed, code)) = entered else {
        return k.lose(Loss::UnpairedReturn);
    };
    let nanoseconds = now.saturating_sub(entered_ns);
    count(k, slot, Series::Latency(syscall), nanoseconds);
    if let Some(series) = size_series(syscall) {
        count(k, slot, series, bytes);
    }
    let Some(origin) = Origin::from_index(origin) else { return };
    if failed {
        k.add(slot, Counter::SyscallFailed(syscall), 1);
    } else {
        let bytes = match syscall {
            Syscall::Brk => moved(k, slot, old_break, result),
            _ => bytes,
        };
        k.add(slot, Counter::OriginCalls(origin), 1);
        k.add(slot, Counter::OriginBytes(origin), bytes);
        if let Origin::MmapCrossing = origin {
            count(k, slot, Series::Crossing, bytes);
        }
        // A file with code may bring an allocator: rare, a handful when a program starts.
        if let (true, Origin::MmapFile) = (code, origin) {
            trace::lifecycle(k, EVENT_MAPPED);
        }
    }
    if k.tracing() {
        trace::syscall(k, syscall, origin, result, nanoseconds, now);
    }
}

/// The running process has become another program.
///
/// # Errors
///
/// The loss, already counted, when the process cannot be counted from here on.
#[inline(always)]
pub fn exec<K: Kernel>(k: &K) -> Result<(), Loss> {
    let tgid = k.tgid();
    k.close_slot(tgid, SLOT_REPLACED);
    k.close_flight(k.tid());
    if !k.admits(tgid) {
        return Ok(());
    }
    let opened = k.open_slot(BORN_EXEC).is_some();
    trace::lifecycle(k, EVENT_EXEC);
    if opened {
        Ok(())
    } else {
        k.lose(Loss::ProcessTableFull);
        Err(Loss::ProcessTableFull)
    }
}

/// The running process has a new thread (`child` is its own id) or a new child process.
///
/// # Errors
///
/// The loss, already counted, when the child is not counted.
#[inline(always)]
pub fn fork<K: Kernel>(k: &K, child: u32) -> Result<(), Loss> {
    let parent = k.tgid();
    if child != parent && k.admits(parent) && !k.admit_child(parent, child) {
        k.lose(Loss::TargetTableFull);
        return Err(Loss::TargetTableFull);
    }
    Ok(())
}

/// The running thread ends.
#[inline(always)]
pub fn exit<K: Kernel>(k: &K) {
    k.close_flight(k.tid());
    if !k.last_thread() {
        return;
    }
    let tgid = k.tgid();
    if k.slot(tgid).is_some() {
        k.close_slot(tgid, SLOT_EXITED);
        trace::lifecycle(k, EVENT_EXIT);
    }
    k.dismiss(tgid);
}

#[inline(always)]
fn slot<K: Kernel>(k: &K) -> Option<SlotId> {
    let tgid = k.tgid();
    if let Some(slot) = k.slot(tgid) {
        return Some(slot);
    }
    if !k.admits(tgid) {
        return None;
    }
    let slot = k.open_slot(BORN_UNSEEN);
    if slot.is_none() {
        k.lose(Loss::ProcessTableFull);
    }
    slot
}

#[inline(always)]
fn count<K: Kernel>(k: &K, slot: SlotId, series: Series, value: u64) {
    match k.histogram(slot, series) {
        Some(histogram) => k.record(histogram, value),
        None => {
            k.add(slot, Counter::Uncounted, 1);
            k.lose(Loss::HistogramPoolFull);
        }
    }
}

/// Runs `f` on the thread's state, made if need be; false (and a loss) when there is no room.
#[inline(always)]
fn on_flight<K: Kernel>(k: &K, f: impl FnOnce(&mut Flight)) -> bool {
    let tid = k.tid();
    if !k.open_flight(tid) {
        k.lose(Loss::ThreadTableFull);
        return false;
    }
    k.with_flight(tid, f).is_some()
}

/// Reads `mp_` where the probe knows the way; returns the threshold.
#[inline(always)]
fn look_at_mp<K: Kernel>(k: &K, slot: SlotId, cookie: Cookie, ip: u64) -> Option<u64> {
    let (layout, address) = cookie.mp(ip)?;
    let mp = k.read_mp(layout, address)?;
    let before = k.store_mp(slot, &mp);
    if before != 0 && mp.threshold > before && mp.pinned == 0 {
        k.add(slot, Counter::Raises, 1);
    }
    Some(mp.threshold)
}

#[inline(always)]
fn attributed(role: Option<Role>, syscall: Syscall) -> Option<Origin> {
    Some(match (role?, syscall) {
        (Role::MapChunk, Syscall::Mmap) => Origin::MmapCrossing,
        (Role::MapFallback, Syscall::Mmap) => Origin::MmapFallback,
        (Role::MapHeap, Syscall::Mmap) => Origin::MmapArenaHeap,
        (Role::UnmapChunk, Syscall::Munmap) => Origin::MunmapChunk,
        (Role::UnmapHeap, Syscall::Munmap) => Origin::MunmapArenaHeap,
        (Role::RemapChunk, Syscall::Mremap) => Origin::MremapChunk,
        (Role::Grow, Syscall::Brk) => Origin::BrkGrowth,
        (Role::Trim, Syscall::Brk) => Origin::BrkTrim,
        _ => return None,
    })
}

#[inline(always)]
fn by_arguments(syscall: Syscall, args: &[u64; 6]) -> Origin {
    match syscall {
        Syscall::Mmap if args[3] & MAP_ANONYMOUS == 0 => Origin::MmapFile,
        Syscall::Mmap if args[3] & MAP_STACK != 0 => Origin::MmapThreadStack,
        Syscall::Mmap => Origin::MmapOther,
        Syscall::Munmap => Origin::MunmapOther,
        Syscall::Mremap => Origin::MremapOther,
        Syscall::Brk => Origin::BrkOther,
    }
}

#[inline(always)]
const fn size_series(syscall: Syscall) -> Option<Series> {
    match syscall {
        Syscall::Brk => None,
        _ => Some(Series::Sizes(syscall)),
    }
}

#[inline(always)]
const fn length(syscall: Syscall, args: &[u64; 6]) -> u64 {
    match syscall {
        Syscall::Mmap | Syscall::Munmap => args[1],
        Syscall::Mremap => args[2],
        Syscall::Brk => 0,
    }
}

#[inline(always)]
fn moved<K: Kernel>(k: &K, slot: SlotId, old_break: u64, new_break: u64) -> u64 {
    if old_break == 0 || new_break == old_break {
        0
    } else if new_break > old_break {
        k.add(slot, Counter::BrkGrown, new_break - old_break);
        new_break - old_break
    } else {
        k.add(slot, Counter::BrkShrunk, old_break - new_break);
        old_break - new_break
    }
}

/// The kernel returns error numbers 1 to 4095, negated.
#[inline(always)]
const fn is_error(result: u64) -> bool {
    result > (-4096i64) as u64
}

/// A thread's state before anything happened in it.
#[must_use]
pub const fn empty_flight() -> Flight {
    Flight {
        branch_sp: 0,
        nb: 0,
        entered_ns: 0,
        args: [0; 6],
        old_break: 0,
        call: [0; 3],
        call_sp: 0,
        arena: [0; 2],
        arena_sp: 0,
        chain: 0,
        branch_role: 0,
        entered: 0,
        origin: 0,
        brk_failed: 0,
        function: NO_FUNCTION,
        pad: [0; 7],
    }
}
