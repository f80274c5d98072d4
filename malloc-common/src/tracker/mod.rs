//! Decides what an allocation is: which calls count, who asked for a system call, when a chunk crosses
//! the threshold. Compiled for the kernel and for a simulated one.
//!
//! No return probe is needed. A call is counted at the entry of its function; a branch inside the
//! allocator to such an entry (`realloc` into `malloc`, by `call` or by tail jump) carries a probe too
//! and is counted apart, so that *entries minus transfers* are the program's own, outermost calls. A
//! system call belongs to the branch that leads to it: the probe on that branch notes its stack pointer,
//! and the system call must come from at most [`BRANCH_WINDOW`] bytes below. Mapped chunks need no such
//! probe: `sysmalloc` is sure to map one when its request and `mp_` say so, and a chunk that is given
//! back is known by its address.

use crate::abi::{
    BORN_EXEC, BORN_UNSEEN, CHAIN_AT_BRANCH, Counter, EVENT_EXEC, EVENT_EXIT, EVENT_FORK, Flight, SLOT_EXITED,
    SLOT_OOM_KILLED, SLOT_REPLACED, Series,
};
use crate::chunk::Chunk;
use crate::function::Request;
use crate::loss::Loss;
use crate::site::{Cookie, Role};

mod chunks;
mod faults;
mod kernel;
mod mp;
mod syscalls;
mod trace;

pub use faults::fault;
pub use kernel::{HistogramId, Kernel, Mp, MpPlace, Registers, SlotId};
pub use syscalls::{syscall_enter, syscall_exit};
pub use trace::traced_function;

/// How far below the branch the stack pointer may be when the system call enters, in bytes.
///
/// A call pushes 8, the wrappers of glibc 2.23 to 2.44 push at most 64, `__glibc_morecore` and `sbrk`
/// together at most 120, `sysmalloc` and what it calls to map a chunk at most 176 (Debian's 2.31 to 2.44, x86-64).
/// A signal handler that runs in between stands lower: the kernel skips the red zone (128) and pushes a frame of
/// more than 900 bytes (x86-64, smallest floating-point state).
pub const BRANCH_WINDOW: u64 = 512;

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
        && let Some(mut flight) = open_flight(k)
    {
        flight.function = f as u8;
        flight.call = r.arguments;
        flight.call_sp = r.sp;
        flight.arena_sp = 0;
        flight.chained = 0;
    }
}

/// `_int_malloc(av, bytes)` is entered.
#[inline(always)]
pub fn arena<K: Kernel>(k: &K, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    count(k, slot, Series::Arena, r.arguments[1]);
    if k.tracing()
        && let Some(mut flight) = open_flight(k)
    {
        flight.arena = [r.arguments[0], r.arguments[1]];
        flight.arena_sp = r.sp;
    }
}

/// A function of the slow path is entered.
#[inline(always)]
pub fn slow<K: Kernel>(k: &K, cookie: Cookie, r: &Registers) {
    let Some(slot) = slot(k) else { return };
    k.add(slot, Counter::SlowHits, 1);
    let mp = mp::look(k, slot, cookie, r);
    if let Some(Role::Sysmalloc) = cookie.role() {
        // Where the build made `sysmalloc` a part of `_int_malloc`, `nb` is in whatever register it compares.
        let nb = match cookie.word() {
            None => r.arguments[0],
            Some(word) => k.user_register(word).unwrap_or(0),
        };
        count(k, slot, Series::Sysmalloc, nb);
        // Where the function is a part of another, its second argument is nowhere.
        let no_arena = cookie.word().is_none() && r.arguments[1] == 0;
        let role = mp::maps_at_once(&mp, nb, no_arena);
        if let Some(mut flight) = open_flight(k) {
            flight.nb = nb;
            flight.brk_failed = 0;
            flight.branch_role = role;
            flight.branch_sp = r.sp;
            flight.sysmalloc_sp = r.sp;
        }
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
            let read = mp::place(cookie, r).and_then(|place| Some((place, k.read_mp(place)?)));
            let before = match read {
                Some((place, mp)) => {
                    let before = k.store_mp(slot, place, &Mp { threshold, trim_threshold: 2 * threshold, ..mp });
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
    let threshold = mp::look(k, slot, cookie, r).threshold;
    let role = match cookie.role() {
        // `sbrk(0)` asks for nothing and makes no system call.
        Some(Role::Grow | Role::Trim) if r.arguments[0] == 0 => return,
        Some(role) => role,
        None => return k.lose(Loss::UnknownProbe),
    };
    let chained = match open_flight(k) {
        Some(mut flight) => {
            let below_threshold = threshold != 0 && flight.nb != 0 && flight.nb < threshold;
            // `sysmalloc` maps a chunk in three cases: over the threshold; after a `brk` that failed; and below the
            // threshold for an arena whose heap cannot grow. Only the first is a crossing.
            let role = match role {
                Role::MapChunk if flight.brk_failed != 0 || below_threshold => Role::MapFallback,
                role => role,
            };
            flight.branch_role = Cookie::new(role).0 as u8;
            flight.branch_sp = r.sp;
            flight.chained
        }
        None => return k.add(slot, Counter::Unattributed, 1),
    };
    // A way to the kernel that passes no function with a probe of its own: what the build inlines, and resizing.
    if k.tracing() && chained == 0 {
        trace::chain(k, cookie, r, CHAIN_AT_BRANCH);
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

/// The running thread's state, made if need be; `None` (and a loss) when there is no room.
#[inline(always)]
fn open_flight<K: Kernel>(k: &K) -> Option<K::Flight<'_>> {
    let flight = k.open_flight();
    if flight.is_none() {
        k.lose(Loss::ThreadTableFull);
    }
    flight
}

/// A thread's state before anything happened in it.
#[must_use]
pub const fn empty_flight() -> Flight {
    Flight {
        branch_sp: 0,
        sysmalloc_sp: 0,
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
