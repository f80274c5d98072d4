//! Birth, change and end of processes. The only programs that log: they are rare.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::warn;
use malloc_common::loss::Loss;
use malloc_common::tracker::{self, Kernel as _};

use crate::kernel::{Bpf, tgid_of};

/// `sched_process_exec(task, old_pid, bprm)`: runs in the process, already with its new name.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn task_exec(ctx: RawTracePointContext) -> i32 {
    let k = Bpf::here();
    if let Err(Loss::ProcessTableFull) = tracker::exec(&k) {
        warn!(&ctx, "no free slot for pid {}: its calls are not counted", k.tgid());
    }
    0
}

/// `sched_process_fork(parent, child)`: runs in the parent before the child can run.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn task_fork(ctx: RawTracePointContext) -> i32 {
    let child = tgid_of(ctx.arg::<*const u8>(1));
    if tracker::fork(&Bpf::here(), child).is_err() {
        warn!(&ctx, "no room for pid {}: it is not recorded", child);
    }
    0
}

/// `sched_process_exit(task)`: runs in the thread that ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn task_exit(_ctx: RawTracePointContext) -> i32 {
    tracker::exit(&Bpf::here());
    0
}
