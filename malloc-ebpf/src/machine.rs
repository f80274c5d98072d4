//! Atomic operations and a move that the compiler cannot see through: what BPF has and Rust gives no stable name.

#[cfg(not(target_arch = "bpf"))]
pub use checked::{add, call_another, opaque, replace};
#[cfg(target_arch = "bpf")]
pub use machine::{add, call_another, opaque, replace};

#[cfg(target_arch = "bpf")]
mod machine {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

    /// Adds without using the result: the one form that BPF compiles to a plain atomic add.
    ///
    /// # Safety
    ///
    /// `at` points into a map value.
    #[inline(always)]
    pub unsafe fn add(at: *mut u64, n: u64) {
        // SAFETY: the caller passes a pointer into a map value.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(at, n) };
    }

    /// Hides where an index comes from: the compiler would otherwise prove a bounds check needless and drop it,
    /// and the verifier, which cannot follow the proof, would refuse the program.
    #[inline(always)]
    pub fn opaque(mut index: u64) -> u64 {
        // SAFETY: one move of a register onto itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) index, options(pure, nomem, nostack)) };
        index
    }

    /// The call of another program in the place of this one (`bpf_tail_call`), without its arguments: the verifier
    /// refuses to walk through it.
    #[inline(always)]
    pub fn call_another() {
        // SAFETY: no program that gets here is loaded.
        unsafe {
            core::arch::asm!("call 12", out("r0") _, out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _);
        }
    }

    /// Stores `new` where `old` is stored; returns what was there.
    ///
    /// # Safety
    ///
    /// `at` points into a map value.
    #[inline(always)]
    pub unsafe fn replace(at: *mut u32, old: u32, new: u32) -> u32 {
        // SAFETY: the caller passes a pointer into a map value.
        unsafe { atomic_cxchg::<u32, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(at, old, new) }.0
    }
}

/// Type-checks the programs on the host, where none of them runs.
#[cfg(not(target_arch = "bpf"))]
mod checked {
    /// # Safety
    ///
    /// As on the target.
    pub unsafe fn add(at: *mut u64, n: u64) {
        // SAFETY: the caller passes a pointer into a map value.
        unsafe { *at += n };
    }

    pub fn opaque(index: u64) -> u64 {
        index
    }

    pub fn call_another() {}

    /// # Safety
    ///
    /// As on the target.
    pub unsafe fn replace(at: *mut u32, old: u32, new: u32) -> u32 {
        // SAFETY: the caller passes a pointer into a map value.
        let held = unsafe { &mut *at };
        if *held == old { core::mem::replace(held, new) } else { *held }
    }
}
