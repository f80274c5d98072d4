//! What is copied of a thread for its stack to be named: registers, and the top of the stack.

use core::ffi::c_void;

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::bpf_probe_read_user as bpf_probe_read_user_raw;
use malloc_common::abi::{SAVED_REGISTERS, STACK_BYTES};

/// Instruction, stack and frame pointer.
#[inline(always)]
pub fn frame(r: &pt_regs) -> (u64, u64, u64) {
    #[cfg(bpf_target_arch = "aarch64")]
    return (r.pc, r.sp, r.regs[29]);
    #[cfg(not(bpf_target_arch = "aarch64"))]
    return (r.rip, r.rsp, r.rbp);
}

/// The registers that a call leaves as they are, as [`Sample::saved`] has them.
#[inline(always)]
pub fn saved(r: &pt_regs) -> [u64; SAVED_REGISTERS] {
    #[cfg(bpf_target_arch = "aarch64")]
    return [
        r.regs[19], r.regs[20], r.regs[21], r.regs[22], r.regs[23], r.regs[24], r.regs[25], r.regs[26], r.regs[27],
        r.regs[28], r.regs[29], r.regs[30],
    ];
    #[cfg(not(bpf_target_arch = "aarch64"))]
    return [r.rbx, r.r12, r.r13, r.r14, r.r15, 0, 0, 0, 0, 0, 0, 0];
}

/// Copies the stack from `sp` upwards: the whole of [`STACK_BYTES`] or, where the stack ends before that, up to the end
/// of its last page. Returns how many bytes were copied.
///
/// # Safety
///
/// `to` has room for [`STACK_BYTES`].
#[inline(always)]
pub unsafe fn copy_stack(to: *mut c_void, sp: u64) -> u64 {
    /// The smallest page of both architectures: stacks end where a page does.
    const PAGE: u64 = 4096;
    const { assert!(STACK_BYTES as u64 == 4 * PAGE) };
    let from = sp as *const c_void;
    let before = sp & (PAGE - 1);
    // SAFETY: the helper checks the source and writes no more than the size, which is at most `STACK_BYTES`.
    let copied = |size: u64| unsafe { bpf_probe_read_user_raw(to, size as u32, from) } == 0;
    // Spelled out: the verifier has to see of each size how large it may be.
    if copied(4 * PAGE) {
        4 * PAGE
    } else if copied(4 * PAGE - before) {
        4 * PAGE - before
    } else if copied(3 * PAGE - before) {
        3 * PAGE - before
    } else if copied(2 * PAGE - before) {
        2 * PAGE - before
    } else if copied(PAGE - before) {
        PAGE - before
    } else {
        0
    }
}
