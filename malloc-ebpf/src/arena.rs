//! Entries of `_int_malloc`.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use malloc_common::tracker;

use crate::kernel::{Bpf, registers};

#[uprobe]
fn arena(ctx: ProbeContext) -> u32 {
    tracker::arena(&Bpf, &registers(ctx.regs));
    0
}
