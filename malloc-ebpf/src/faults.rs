//! Page faults: the software event of the perf subsystem, on every processor, while they are wanted.

use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use malloc_common::tracker;

use crate::kernel::Bpf;

/// `PERF_COUNT_SW_PAGE_FAULTS` with a period of one: each fault that the kernel accounts to a thread, as `getrusage`
/// counts it, whether the program touched the page or the kernel did for it.
#[perf_event]
fn fault(ctx: PerfEventContext) -> u32 {
    // SAFETY: the context is the one this program was called with; the kernel puts the fault's address there.
    tracker::fault(&Bpf::here(), unsafe { (*ctx.ctx).addr });
    0
}
