//! Decides what an allocation is: which calls count, who asked for a system call, when a chunk crosses
//! the threshold. Compiled for the kernel and for a simulated one.
//!
//! No return probe is needed. A call is counted at the entry of its function; a branch inside the
//! allocator to such an entry (`realloc` into `malloc`, by `call` or by tail jump) carries a probe too
//! and is counted apart, so that *entries minus transfers* are the program's own, outermost calls. A
//! system call belongs to the branch that leads to it: the probe on that branch notes its stack pointer,
//! and the system call must come from at most [`BRANCH_WINDOW`] bytes below.

use crate::abi::{
    BORN_EXEC, BORN_UNSEEN, CHAIN_AT_BRANCH, Counter, EVENT_CROSSING, EVENT_EXEC, EVENT_EXIT, EVENT_FORK, EVENT_MAPPED,
    Flight, Origin, SLOT_EXITED, SLOT_OOM_KILLED, SLOT_REPLACED, Series, Syscall,
};
use crate::chunk::Chunk;
use crate::function::Request;
use crate::loss::Loss;
use crate::site::{Cookie, Role};

mod chunks;
mod faults;
mod kernel;
mod trace;

pub use faults::fault;
pub use kernel::{HistogramId, Kernel, Mp, Registers, SlotId};
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
            Request::Nothing => return k.add(slot, Counter::IdleHits, 1),
        },
        Some(Role::Transfer(f)) => match f.request(a, b, c) {
            Request::Bytes(n) => count(k, slot, Series::Transfer(f), n),
            Request::Impossible => k.add(slot, Counter::FailedTransfer(f), 1),
            Request::Release => k.add(slot, Counter::FreeTransfer, 1),
            Request::Nothing => return k.add(slot, Counter::IdleHits, 1),
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
            flight.arena_sp = 0;
            flight.chained = 0;
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
    k.add(slot, Counter::SlowHits, 1);
    look_at_mp(k, slot, cookie, r);
    if let Some(Role::Sysmalloc) = cookie.role() {
        // Where the build made `sysmalloc` a part of `_int_malloc`, `nb` is in whatever register it compares.
        let nb = match cookie.word() {
            None => r.arguments[0],
            Some(word) => k.user_register(word).unwrap_or(0),
        };
        count(k, slot, Series::Sysmalloc, nb);
        on_flight(k, |flight| {
            flight.nb = nb;
            flight.brk_failed = 0;
            flight.branch_role = 0;
        });
    }
    if k.tracing() {
        // An inlined function has no arguments to show.
        trace::chain(k, cookie, r, if cookie.word().is_some() { CHAIN_AT_BRANCH } else { 0 });
    }
}

/// A static probe of the allocator is reached.
#[inline(always)]
pub fn told<K: Kernel>(k: &K, cookie: Cookie, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    match cookie.told() {
        Some(Role::Told(event)) => k.add(slot, Counter::Told(event), 1),
        Some(Role::Raise) => {
            let Some(threshold) = cookie.word().and_then(|word| k.user_register(word)) else { return };
            // The compiler may put the stores to `mp_` behind the probe: only the registers are sure.
            let read = cookie.mp(r.ip).and_then(|(layout, address)| k.read_mp(layout, address));
            let before = match read {
                Some(mp) => {
                    let before = k.store_mp(slot, &Mp { threshold, trim_threshold: 2 * threshold, ..mp });
                    // A chunk of just the threshold's size: glibc sets what it has.
                    if before == threshold && mp.threshold == threshold {
                        return;
                    }
                    if before == 0 && mp.threshold < threshold { mp.threshold } else { before }
                }
                None => 0,
            };
            k.add(slot, Counter::Raises, 1);
            // glibc raises it to the size of the chunk it is about to unmap.
            trace::raise(k, [before, threshold, threshold, 0, 0]);
        }
        _ => k.lose(Loss::UnknownProbe),
    }
}

/// A branch that leads to a system call is about to be taken.
#[inline(always)]
pub fn branch<K: Kernel>(k: &K, cookie: Cookie, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    k.add(slot, Counter::BranchHits, 1);
    let threshold = look_at_mp(k, slot, cookie, r).unwrap_or(0);
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
    // A way to the kernel that passes no function with a probe of its own: what the build inlines, and resizing.
    if k.tracing() && k.with_flight(k.tid(), |flight| flight.chained) == Some(0) {
        trace::chain(k, cookie, r, CHAIN_AT_BRANCH);
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
    let mut resizes = false;
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
        resizes = matches!(
            (syscall, origin),
            (Syscall::Munmap, Origin::MunmapChunk) | (Syscall::Mremap, Origin::MremapChunk)
        );
    });
    if resizes {
        let chunk = chunks::take(k, slot, args[0]);
        let _ = k.with_flight(k.tid(), |flight| flight.chunk = chunk);
    }
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
        // A thread without a state was in this call when the probes came, or its loss is counted already.
        if k.with_flight(k.tid(), |_| ()).is_some() {
            k.lose(Loss::UnpairedReturn);
        }
        return;
    };
    let nanoseconds = now.saturating_sub(entered_ns);
    count(k, slot, Series::Latency(syscall), nanoseconds);
    if let Some(series) = size_series(syscall) {
        count(k, slot, series, bytes);
    }
    let Some(origin) = Origin::from_index(origin) else { return };
    // The system call is known when a program is compiled: the others get no code for this.
    if let (Syscall::Munmap, Origin::MunmapChunk) | (Syscall::Mremap, Origin::MremapChunk) = (syscall, origin)
        && let Some((chunk, address)) = k.with_flight(k.tid(), |flight| (flight.chunk, flight.args[0]))
    {
        let call = chunks::Returned { chunk, address, bytes, result, failed, entered_ns, nanoseconds };
        chunks::returned(k, slot, syscall, &call);
    }
    if failed {
        k.add(slot, Counter::SyscallFailed(syscall), 1);
    } else {
        let bytes = match syscall {
            Syscall::Brk => moved(k, slot, old_break, result),
            _ => bytes,
        };
        k.add(slot, Counter::OriginCalls(origin), 1);
        k.add(slot, Counter::OriginBytes(origin), bytes);
        if let (Syscall::Mmap, Origin::MmapCrossing) = (syscall, origin) {
            count(k, slot, Series::Crossing, bytes);
            chunks::mapped(k, slot, result, bytes, now, nanoseconds);
            if let Some(nth) = k.crossing_to_sample(slot, now) {
                let nb = k.with_flight(k.tid(), |flight| flight.nb).unwrap_or(0);
                // The next one stands for one without room.
                let _ = trace::sample(k, EVENT_CROSSING, [bytes, nb, result, nanoseconds, nth]);
            }
        }
        // A file with code may bring an allocator: rare, a handful when a program starts.
        if let (true, Origin::MmapFile) = (code, origin) {
            let place = k.with_flight(k.tid(), |flight| [result, flight.args[1], flight.args[5]]);
            trace::lifecycle(k, EVENT_MAPPED, place.unwrap_or_default());
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
    k.disinherit(tgid);
    k.close_flight(k.tid());
    if !k.admits(tgid) {
        return Ok(());
    }
    let opened = k.open_slot(BORN_EXEC).is_some();
    trace::lifecycle(k, EVENT_EXEC, [0; 3]);
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
    // The child's heap is a copy, its threshold too: what it raises is raised from there.
    if child != parent
        && let Some(slot) = k.slot(parent)
    {
        k.bequeath(slot, child);
        trace::lifecycle(k, EVENT_FORK, [child as u64, 0, 0]);
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
        k.close_slot(tgid, if k.oom_killed() { SLOT_OOM_KILLED } else { SLOT_EXITED });
        trace::lifecycle(k, EVENT_EXIT, [0; 3]);
    }
    k.dismiss(tgid);
    k.disinherit(tgid);
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
fn look_at_mp<K: Kernel>(k: &K, slot: SlotId, cookie: Cookie, r: &Registers) -> Option<u64> {
    let (layout, address) = cookie.mp(r.ip)?;
    let mp = k.read_mp(layout, address)?;
    let before = k.store_mp(slot, &mp);
    if before != 0 && mp.threshold > before && mp.pinned == 0 && !cookie.raises_told() {
        k.add(slot, Counter::Raises, 1);
        // glibc sets the threshold to the size of the mapped chunk it frees and then calls `munmap_chunk(p)`: only
        // there is the thread that runs the one that raised it. The size is the second word of the chunk.
        let chunk = match cookie.role() {
            Some(Role::MunmapChunk) => k.read_user_word(r.arguments[0].wrapping_add(8)).unwrap_or(0) & !7,
            _ => 0,
        };
        let (cause, address) = if chunk == mp.threshold & !7 { (chunk, r.arguments[0]) } else { (0, 0) };
        trace::raise(k, [before, mp.threshold, cause, address, 0]);
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
        chunk: Chunk::UNKNOWN,
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
        chained: 0,
        pad: [0; 6],
    }
}
