//! The lines of a trace: the arguments a step really had, and nothing that was not seen.

use malloc_common::abi::Syscall;
use malloc_common::function::Function;

use super::{Chain, Raised, Return, Slow, SlowRole};
use crate::report::escape::printable;
use crate::report::units::nanoseconds;

/// What only the caller knows: the wall clock, and the libc that is traced.
pub trait Wording {
    /// Nanoseconds since midnight, in the zone of the reader, of a moment given in nanoseconds since boot.
    fn time_of_day(&self, ns: u64) -> u64;

    /// The address of `main_arena` in that process, when it is known.
    fn main_arena(&self, tgid: u32) -> Option<u64>;
}

/// Header and steps down to the slow path.
pub(super) fn chain(wording: &impl Wording, chain: &Chain) -> String {
    let mut out = header(wording, chain.ns, &chain.comm, chain.tgid, chain.tid);
    if let Some((function, args)) = chain.call {
        out.push_str(&format!("  -> {} ({})\n", function.name(), call_arguments(function, args)));
    }
    if let Some((av, bytes)) = chain.arena {
        let av = arena(wording, chain.tgid, av);
        out.push_str(&format!("  -> _int_malloc (av={av}, bytes={bytes})\n"));
    }
    out.push_str(&slow(wording, chain.tgid, chain.slow));
    if let Some(raised) = &chain.raised {
        out.push_str(&raise(raised));
    }
    out
}

/// A raise whose cause was not seen, below a header of its own.
pub(super) fn raise_alone(wording: &impl Wording, raised: &Raised) -> String {
    header(wording, raised.ns, &raised.comm, raised.tgid, raised.tid) + &raise(raised)
}

fn raise(raised: &Raised) -> String {
    let cause = match raised.chunk {
        Some(chunk) => format!("by the free of a mapped chunk of {chunk}"),
        None => "seen only now: who raised it is not known".to_owned(),
    };
    format!("  => mmap threshold {} -> {}  ({cause})\n", raised.from, raised.to)
}

/// The system call of a chain.
pub(super) fn syscall(call: &Return) -> String {
    let [a, b, c, d, e, f] = call.args;
    let arguments = match call.syscall {
        // File descriptors and protections are ints: the upper half of the register means nothing.
        Syscall::Mmap => {
            format!("addr={a:#x}, len={b}, prot={}, flags={}, fd={}, offset={f}", c as u32, d as u32, e as u32 as i32)
        }
        Syscall::Munmap => format!("addr={a:#x}, len={b}"),
        Syscall::Mremap => format!("addr={a:#x}, old_len={b}, new_len={c}, flags={}", d as u32),
        Syscall::Brk => format!("addr={a:#x}"),
    };
    let failed = (-4095..0).contains(&call.result);
    let result = match call.syscall {
        _ if failed => format!("{}{}", call.result, error_name(call.result)),
        Syscall::Munmap => call.result.to_string(),
        Syscall::Mmap | Syscall::Mremap | Syscall::Brk => format!("{:#x}", call.result),
    };
    format!("  -> {} ({arguments}) = {result}  {}\n", call.syscall.name(), nanoseconds(call.latency_ns))
}

/// A further system call of a chain that is already printed.
pub(super) fn later(wording: &impl Wording, chain: &Chain, call: &Return) -> String {
    let header = header(wording, call.ns, &chain.comm, chain.tgid, chain.tid);
    format!("{}  (same chain)\n{}", header.trim_end(), syscall(call))
}

/// A system call whose chain is not known.
pub(super) fn orphan(wording: &impl Wording, call: &Return) -> String {
    let place = format!("{}  process {}  thread {}", clock(wording, call.ns), call.tgid, call.tid);
    format!("{place}  (chain not seen)\n{}", syscall(call))
}

fn header(wording: &impl Wording, ns: u64, comm: &str, tgid: u32, tid: u32) -> String {
    format!("{}  {}[{tgid}]  thread {tid}\n", clock(wording, ns), printable(comm, 32))
}

/// `12:00:01.123456`
fn clock(wording: &impl Wording, ns: u64) -> String {
    let micros = wording.time_of_day(ns) / 1000;
    let seconds = micros / 1_000_000;
    format!("{:02}:{:02}:{:02}.{:06}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, micros % 1_000_000)
}

fn call_arguments(function: Function, [a, b, c]: [u64; 3]) -> String {
    match function {
        Function::Malloc | Function::Valloc | Function::Pvalloc => format!("bytes={a}"),
        Function::Calloc => format!("nmemb={a}, size={b}"),
        Function::Realloc => format!("ptr={a:#x}, bytes={b}"),
        Function::Memalign | Function::AlignedAlloc => format!("alignment={a}, bytes={b}"),
        Function::PosixMemalign => format!("memptr={a:#x}, alignment={b}, bytes={c}"),
        Function::Free => format!("ptr={a:#x}"),
    }
}

fn slow(wording: &impl Wording, tgid: u32, Slow { role, args }: Slow) -> String {
    let name = match role {
        SlowRole::Sysmalloc => "sysmalloc",
        SlowRole::MunmapChunk => "munmap_chunk",
        SlowRole::Systrim => "systrim",
        SlowRole::NewHeap => "new_heap",
        SlowRole::MremapChunk => "mremap_chunk",
        SlowRole::HeapTrim => "heap_trim",
    };
    let Some([a, b]) = args else { return format!("  -> {name}  (inlined in this build)\n") };
    let arguments = match role {
        SlowRole::Sysmalloc => format!("nb={a}, av={}", arena(wording, tgid, b)),
        SlowRole::MunmapChunk | SlowRole::MremapChunk => format!("p={a:#x}"),
        SlowRole::Systrim => format!("pad={a}, av={}", arena(wording, tgid, b)),
        SlowRole::NewHeap => format!("size={a}, top_pad={b}"),
        SlowRole::HeapTrim => format!("heap={a:#x}, pad={b}"),
    };
    format!("  -> {name} ({arguments})\n")
}

fn arena(wording: &impl Wording, tgid: u32, av: u64) -> String {
    let main = wording.main_arena(tgid) == Some(av);
    format!("{av:#x}{}", if main { " <main_arena>" } else { "" })
}

/// ` ENOMEM`: the errors of the four system calls (numbers are the same on x86-64 and aarch64); nothing for others.
fn error_name(result: i64) -> &'static str {
    match result {
        -1 => " EPERM",
        -4 => " EINTR",
        -9 => " EBADF",
        -11 => " EAGAIN",
        -12 => " ENOMEM",
        -13 => " EACCES",
        -14 => " EFAULT",
        -17 => " EEXIST",
        -19 => " ENODEV",
        -22 => " EINVAL",
        -23 => " ENFILE",
        -26 => " ETXTBSY",
        -75 => " EOVERFLOW",
        _ => "",
    }
}
