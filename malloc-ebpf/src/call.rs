//! Entries of the public functions, and the allocator's own branches to them.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_attach_cookie;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use malloc_common::site::Cookie;
use malloc_common::tracker;

use crate::kernel::{Bpf, registers, stay_on_the_threads_stack};

#[uprobe]
fn call(ctx: ProbeContext) -> u32 {
    stay_on_the_threads_stack();
    // SAFETY: the context is the one this program was called with.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    tracker::call(&Bpf::here(), cookie, &registers(ctx.regs));
    0
}
