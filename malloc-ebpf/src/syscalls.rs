//! Entry and return of the system calls by which memory comes and goes.
//!
//! A record of `syscalls/sys_enter_*` holds the number at byte 8 and six arguments of eight bytes from 16;
//! one of `sys_exit_*` the result at 16 (kernels 5.15 to 7.3).

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use malloc_common::abi::Syscall;
use malloc_common::tracker;

use crate::kernel::Bpf;

const FIRST: usize = 16;

/// The `N` arguments that the system call has: a record is no longer than that.
#[inline(always)]
fn arguments<const N: usize>(ctx: &TracePointContext) -> [u64; 6] {
    // SAFETY: within the record, see above.
    let read = |n: usize| unsafe { ctx.as_ptr().cast::<u8>().add(FIRST + 8 * n).cast::<u64>().read() };
    // Spelled out: a loop over an array of zeros becomes a call of memset, which the verifier walks byte by byte.
    let given = |n: usize| if n < N { read(n) } else { 0 };
    [given(0), given(1), given(2), given(3), given(4), given(5)]
}

#[inline(always)]
fn result(ctx: &TracePointContext) -> u64 {
    // SAFETY: within the record, see above.
    unsafe { ctx.as_ptr().cast::<u8>().add(FIRST).cast::<u64>().read() }
}

#[tracepoint]
fn enter_mmap(ctx: TracePointContext) -> u32 {
    tracker::syscall_enter(&Bpf::here(), Syscall::Mmap, arguments::<6>(&ctx));
    0
}

#[tracepoint]
fn enter_munmap(ctx: TracePointContext) -> u32 {
    tracker::syscall_enter(&Bpf::here(), Syscall::Munmap, arguments::<2>(&ctx));
    0
}

#[tracepoint]
fn enter_mremap(ctx: TracePointContext) -> u32 {
    tracker::syscall_enter(&Bpf::here(), Syscall::Mremap, arguments::<5>(&ctx));
    0
}

#[tracepoint]
fn enter_brk(ctx: TracePointContext) -> u32 {
    tracker::syscall_enter(&Bpf::here(), Syscall::Brk, arguments::<1>(&ctx));
    0
}

#[tracepoint]
fn exit_mmap(ctx: TracePointContext) -> u32 {
    tracker::syscall_exit(&Bpf::here(), Syscall::Mmap, result(&ctx));
    0
}

#[tracepoint]
fn exit_munmap(ctx: TracePointContext) -> u32 {
    tracker::syscall_exit(&Bpf::here(), Syscall::Munmap, result(&ctx));
    0
}

#[tracepoint]
fn exit_mremap(ctx: TracePointContext) -> u32 {
    tracker::syscall_exit(&Bpf::here(), Syscall::Mremap, result(&ctx));
    0
}

#[tracepoint]
fn exit_brk(ctx: TracePointContext) -> u32 {
    tracker::syscall_exit(&Bpf::here(), Syscall::Brk, result(&ctx));
    0
}
