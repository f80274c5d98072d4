//! Reads fields of the kernel's structures.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_kernel_buf};

/// Byte offsets in this kernel's structures, from its BTF.
#[unsafe(no_mangle)]
static OFF_GROUP_LEADER: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_START_TIME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_MM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_BRK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SIGNAL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_LIVE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_TGID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_COMM: Global<u32> = Global::new(0);
/// `u32::MAX`: this kernel has no such field.
#[unsafe(no_mangle)]
pub static OFF_OOM_MM: Global<u32> = Global::new(u32::MAX);

/// What lies at `base` plus an offset.
///
/// # Safety
///
/// Any bit pattern is a valid `T`.
#[inline(always)]
pub unsafe fn read_kernel<T>(base: u64, offset: &Global<u32>) -> Option<T> {
    let address = base.wrapping_add(u64::from(offset.load()));
    // SAFETY: the helper checks the address and fails on one that is not mapped.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// A field of the running process's `signal_struct`.
///
/// # Safety
///
/// Any bit pattern is a valid `T`.
#[inline(always)]
pub unsafe fn read_signal<T>(offset: &Global<u32>) -> Option<T> {
    // SAFETY: a helper without arguments; the reads are checked.
    unsafe { read_kernel(read_kernel::<u64>(bpf_get_current_task(), &OFF_SIGNAL)?, offset) }
}

/// The first thread of the running process, whose name is the process's.
#[inline(always)]
pub fn leader() -> Option<u64> {
    // SAFETY: a helper without arguments; the read is checked, and any bits are a number.
    unsafe { read_kernel(bpf_get_current_task(), &OFF_GROUP_LEADER) }
}

/// Copies the name of a task; leaves what is there where the kernel refuses.
#[inline(always)]
pub fn name(task: u64, to: &mut [u8; 16]) {
    let from = task.wrapping_add(u64::from(OFF_COMM.load())) as *const u8;
    // SAFETY: the helper checks the source.
    let _ = unsafe { bpf_probe_read_kernel_buf(from, to) };
}
