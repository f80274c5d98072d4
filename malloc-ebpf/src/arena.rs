//! Entries of `_int_malloc`.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use malloc_common::tracker;

use crate::kernel::{Bpf, registers, stay_on_the_threads_stack};

#[uprobe]
fn arena(ctx: ProbeContext) -> u32 {
    stay_on_the_threads_stack();
    tracker::arena(&Bpf::here(), &registers(ctx.regs));
    0
}
