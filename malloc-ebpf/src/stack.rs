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

/// Copies the stack from `sp` upwards: the whole of [`STACK_BYTES`] or, where the stack ends before that, half of it,
/// and half again. Returns how many bytes were copied.
///
/// # Safety
///
/// `to` has room for [`STACK_BYTES`].
#[inline(always)]
pub unsafe fn copy_stack(to: *mut c_void, sp: u64) -> u64 {
    const SIZES: [u32; 7] = [16384, 8192, 4096, 2048, 1024, 512, 256];
    const { assert!(SIZES[0] as usize == STACK_BYTES) };
    let from = sp as *const c_void;
    // SAFETY: the helper checks the source and writes no more than the size.
    let copied = |size: u32| unsafe { bpf_probe_read_user_raw(to, size, from) } == 0;
    // Spelled out: the verifier wants every size to be a constant.
    if copied(SIZES[0]) {
        u64::from(SIZES[0])
    } else if copied(SIZES[1]) {
        u64::from(SIZES[1])
    } else if copied(SIZES[2]) {
        u64::from(SIZES[2])
    } else if copied(SIZES[3]) {
        u64::from(SIZES[3])
    } else if copied(SIZES[4]) {
        u64::from(SIZES[4])
    } else if copied(SIZES[5]) {
        u64::from(SIZES[5])
    } else if copied(SIZES[6]) {
        u64::from(SIZES[6])
    } else {
        0
    }
}
