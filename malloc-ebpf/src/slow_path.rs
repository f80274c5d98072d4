//! Entries of the slow path, its branches to the system-call wrappers, and the allocator's static probes.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_attach_cookie;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use malloc_common::site::Cookie;
use malloc_common::tracker;

use crate::kernel::{Bpf, registers, stay_on_the_threads_stack};

#[uprobe]
fn slow(ctx: ProbeContext) -> u32 {
    stay_on_the_threads_stack();
    // SAFETY: the context is the one this program was called with.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    tracker::slow(&Bpf::here(), cookie, &registers(ctx.regs));
    0
}

#[uprobe]
fn branch(ctx: ProbeContext) -> u32 {
    stay_on_the_threads_stack();
    // SAFETY: the context is the one this program was called with.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    tracker::branch(&Bpf::here(), cookie, &registers(ctx.regs));
    0
}

#[uprobe]
fn told(ctx: ProbeContext) -> u32 {
    stay_on_the_threads_stack();
    // SAFETY: the context is the one this program was called with.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    tracker::told(&Bpf::here(), cookie, &registers(ctx.regs));
    0
}
