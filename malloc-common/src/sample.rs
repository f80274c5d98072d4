//! A rare event with the stack it happened on, as it crosses the kernel boundary.

use crate::abi::{EVENT_BYTES, Event};

/// How many registers a sample holds besides `ip`, `sp` and `bp`.
pub const SAVED_REGISTERS: usize = 12;

/// Bytes of the user stack that a sample copies at most.
pub const STACK_BYTES: usize = 16 << 10;

/// A rare event with the registers and the top of the stack of the thread it happened in, to be unwound by the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What happened.
    pub event: Event,
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer: the address of `stack[0]`.
    pub sp: u64,
    /// Frame pointer register.
    pub bp: u64,
    /// The registers that a call leaves as they are: x86-64's `rbx`, `r12` to `r15` and zeros; aarch64's `x19` to
    /// `x28`, `x29`, `x30`.
    pub saved: [u64; SAVED_REGISTERS],
    /// How many bytes of `stack` were read.
    pub stack_bytes: u64,
    /// The stack, upwards from `sp`.
    pub stack: [u8; STACK_BYTES],
}

/// The registers of a sample: `ip`, `sp`, `bp`, then [`Sample::saved`].
pub type SampleRegisters = [u64; 3 + SAVED_REGISTERS];

/// A sample from the bytes of a ring entry: the event, the registers, the stack that was read.
#[must_use]
pub fn sample_from_bytes(bytes: &[u8]) -> Option<(Event, SampleRegisters, &[u8])> {
    let event = Event::from_bytes(bytes)?;
    let word = |n: usize| {
        let at = EVENT_BYTES + 8 * n;
        Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let mut registers = [0; 3 + SAVED_REGISTERS];
    for (n, register) in registers.iter_mut().enumerate() {
        *register = word(n)?;
    }
    let stack = bytes.get(EVENT_BYTES + 8 * (registers.len() + 1)..)?;
    let length = usize::try_from(word(registers.len())?).ok()?.min(stack.len());
    Some((event, registers, stack.get(..length)?))
}
