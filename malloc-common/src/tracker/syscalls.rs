//! System calls: who asks for one, what it did, and how long it took.

use crate::abi::{Counter, EVENT_CROSSING, EVENT_MAPPED, Flight, Origin, Series, Syscall};
use crate::chunk::Chunk;
use crate::loss::Loss;
use crate::site::{Cookie, Role};

use super::{BRANCH_WINDOW, Kernel, SlotId, chunks, count, mp, open_flight, slot, trace};

const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_STACK: u64 = 0x2_0000;

/// A system call enters.
#[inline(always)]
pub fn syscall_enter<K: Kernel>(k: &K, syscall: Syscall, args: [u64; 6]) {
    let Some(slot) = slot(k) else { return };
    let sp = k.user_sp();
    let now = k.now_ns();
    let old_break = if syscall as u8 == Syscall::Brk as u8 { k.program_break() } else { 0 };
    // A chunk is known by its address and needs no probe on the way to its `munmap`.
    let (gives_back, chunk) = match syscall {
        Syscall::Munmap => chunks::given_back(k, slot, args[0], args[1]),
        _ => (false, Chunk::UNKNOWN),
    };
    let Some(mut flight) = open_flight(k) else { return k.add(slot, Counter::Unattributed, 1) };
    let unpaired = flight.entered != 0;
    let origin = match asker(&flight, syscall, &args, sp) {
        Some(origin) => {
            flight.branch_role = 0;
            origin
        }
        None if gives_back => Origin::MunmapChunk,
        None => by_arguments(syscall, &args),
    };
    flight.origin = origin as u8;
    flight.entered = 1 + syscall as u8;
    flight.entered_ns = now;
    flight.args = args;
    flight.old_break = old_break;
    if let Syscall::Munmap = syscall {
        flight.chunk = chunk;
    }
    drop(flight);
    if gives_back {
        mp::look_at_unmapping(k, slot, args[0], args[1]);
    }
    if let (Syscall::Mremap, Origin::MremapChunk) = (syscall, origin) {
        let chunk = chunks::take(k, slot, args[0]);
        if let Some(mut flight) = k.flight() {
            flight.chunk = chunk;
        }
    }
    if unpaired {
        k.lose(Loss::UnpairedEntry);
    }
}

/// A system call returns `result` (an address, zero, or a negative error number).
#[inline(always)]
pub fn syscall_exit<K: Kernel>(k: &K, syscall: Syscall, result: u64) {
    let Some(slot) = slot(k) else { return };
    let now = k.now_ns();
    // A thread without a state was in this call when the probes came, or its loss is counted already.
    let Some(mut flight) = k.flight() else { return };
    if flight.entered != 1 + syscall as u8 {
        drop(flight);
        return k.lose(Loss::UnpairedReturn);
    }
    flight.entered = 0;
    let (address, bytes) = (flight.args[0], length(syscall, &flight.args));
    // `brk` never reports an error: it returns the old break instead of the one asked for.
    let failed = match syscall {
        Syscall::Brk => address != 0 && address != result,
        _ => is_error(result),
    };
    let code = matches!(syscall, Syscall::Mmap) && flight.args[2] & PROT_EXEC != 0;
    let (origin, entered_ns, old_break, nb) = (flight.origin, flight.entered_ns, flight.old_break, flight.nb);
    // The system call is known when a program is compiled: the others carry no chunk around.
    let chunk = match syscall {
        Syscall::Munmap | Syscall::Mremap => flight.chunk,
        _ => Chunk::UNKNOWN,
    };
    if failed {
        expect_another(&mut flight, syscall);
    }
    drop(flight);
    let nanoseconds = now.saturating_sub(entered_ns);
    count(k, slot, Series::Latency(syscall), nanoseconds);
    if let Some(series) = size_series(syscall) {
        count(k, slot, series, bytes);
    }
    let Some(origin) = Origin::from_index(origin) else { return };
    // The others get no code for this.
    if let (Syscall::Munmap, Origin::MunmapChunk) | (Syscall::Mremap, Origin::MremapChunk) = (syscall, origin) {
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
                // The next one stands for one without room.
                let _ = trace::sample(k, EVENT_CROSSING, [bytes, nb, result, nanoseconds, nth]);
            }
        }
        // A file with code may bring an allocator: rare, a handful when a program starts.
        if let (true, Origin::MmapFile) = (code, origin) {
            let offset = k.flight().map_or(0, |flight| flight.args[5]);
            trace::lifecycle(k, EVENT_MAPPED, [result, bytes, offset]);
        }
    }
    if k.tracing() {
        trace::syscall(k, syscall, origin, result, nanoseconds, now);
    }
}

/// Who of the allocator asks for a system call that enters with this stack pointer; `None`: nobody.
#[inline(always)]
fn asker(flight: &Flight, syscall: Syscall, args: &[u64; 6], sp: u64) -> Option<Origin> {
    let near = sp <= flight.branch_sp && flight.branch_sp.wrapping_sub(sp) <= BRANCH_WINDOW;
    // The first `sbrk` of a process asks for the break before it moves it: the branch stands for the move.
    let query = syscall as u8 == Syscall::Brk as u8 && args[0] == 0;
    if !near || query {
        return None;
    }
    let origin = attributed(Cookie(flight.branch_role as u64).role()?, syscall)?;
    match origin {
        // What `sysmalloc` maps is of no file, and no less than its request.
        Origin::MmapCrossing | Origin::MmapFallback if args[3] & MAP_ANONYMOUS == 0 || args[1] < flight.nb => None,
        _ => Some(origin),
    }
}

/// After a call that failed `sysmalloc` tries another way, and no probe need lie on it: after a mapping in huge pages one
/// in plain pages, after a `brk` or the heap of an arena a mapped chunk.
#[inline(always)]
fn expect_another(flight: &mut Flight, syscall: Syscall) {
    let within_sysmalloc = flight.sysmalloc_sp != 0
        && flight.branch_sp <= flight.sysmalloc_sp
        && flight.sysmalloc_sp.wrapping_sub(flight.branch_sp) <= BRANCH_WINDOW;
    let role = match (syscall, Origin::from_index(flight.origin)) {
        (Syscall::Brk, Some(Origin::BrkGrowth)) => {
            flight.brk_failed = 1;
            Role::MapFallback
        }
        (Syscall::Mmap, Some(Origin::MmapCrossing)) => Role::MapChunk,
        (Syscall::Mmap, Some(Origin::MmapArenaHeap)) => Role::MapFallback,
        _ => return,
    };
    if within_sysmalloc {
        flight.branch_role = Cookie::new(role).0 as u8;
        flight.branch_sp = flight.sysmalloc_sp;
    }
}

#[inline(always)]
fn attributed(role: Role, syscall: Syscall) -> Option<Origin> {
    Some(match (role, syscall) {
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
