//! Functions of one probed instruction each, and the clock that says what a hit on one costs.
#![allow(unsafe_code)]

use std::arch::naked_asm;
use std::hint::black_box;
use std::time::Instant;

/// A function whose first instruction is the one that its name says.
pub type Specimen = extern "C" fn(u64, u64);

macro_rules! specimens {
    ($($name:ident: $($code:literal),+;)+) => {
        $(
            // SAFETY: touches no register that the caller keeps, leaves the stack as it was and returns.
            #[unsafe(naked)]
            extern "C" fn $name(_: u64, _: u64) {
                naked_asm!($($code),+)
            }
        )+
    };
}

#[cfg(target_arch = "x86_64")]
specimens! {
    push: "push rdi", "pop rdi", "ret";
    nop: "nop", "ret";
    jcc: "jc 2f", "2: ret";
    jmp: "jmp 2f", "2: ret";
    call: "call 2f", "ret", "2: ret";
    stepped: "test rdi, rdi", "ret";
    push_call: "push rdi", "pop rdi", "nop", "ret";
    push_arena: "push rdi", "pop rdi", "nop", "nop", "ret";
    push_slow: "push rdi", "pop rdi", "nop", "nop", "nop", "ret";
    push_branch: "push rdi", "pop rdi", "nop", "nop", "nop", "nop", "ret";
}

/// Kinds that the table has as emulated, by the table's names.
#[cfg(target_arch = "x86_64")]
pub const KINDS: &[(&str, Specimen)] = &[("push", push), ("nop", nop), ("jcc", jcc), ("jmp", jmp), ("call", call)];
/// One that it has not.
#[cfg(target_arch = "x86_64")]
pub const STEPPED: Option<Specimen> = Some(stepped);
/// Programs that count, each with a pushing function of its own.
#[cfg(target_arch = "x86_64")]
pub const PROGRAMS: &[(&str, Specimen)] =
    &[("call", push_call), ("arena", push_arena), ("slow", push_slow), ("branch", push_branch)];

/// No object is built for another machine.
#[cfg(not(target_arch = "x86_64"))]
pub const KINDS: &[(&str, Specimen)] = &[];
/// None.
#[cfg(not(target_arch = "x86_64"))]
pub const STEPPED: Option<Specimen> = None;
/// None.
#[cfg(not(target_arch = "x86_64"))]
pub const PROGRAMS: &[(&str, Specimen)] = &[];

/// Nanoseconds of one call, the mean of `calls`.
#[must_use]
pub fn time_calls(specimen: Specimen, calls: u32) -> u64 {
    let started = Instant::now();
    for _ in 0..calls {
        black_box(specimen)(64, 64);
    }
    mean(started, calls)
}

/// Nanoseconds of one system call that frees nothing, the mean of `calls`.
#[must_use]
pub fn time_munmap(calls: u32) -> u64 {
    let started = Instant::now();
    for _ in 0..calls {
        // SAFETY: no bytes from address 0: the kernel refuses with EINVAL and changes nothing.
        let _ = unsafe { libc::munmap(std::ptr::null_mut(), 0) };
    }
    mean(started, calls)
}

/// Nanoseconds of a system call that no probe is on, the mean of `calls`.
#[must_use]
pub fn time_other_syscall(calls: u32) -> u64 {
    let started = Instant::now();
    for _ in 0..calls {
        let _ = black_box(rustix::process::getppid());
    }
    mean(started, calls)
}

fn mean(started: Instant, calls: u32) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX) / u64::from(calls.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::decode::{Emulation, Machine};

    /// The bytes of a function, from this program's own file: memory may carry a probe.
    fn first(specimen: Specimen) -> Option<Emulation> {
        let (file, offset) = crate::observe::own_file_offset(specimen as usize as u64).expect("mapped from a file");
        let mut code = [0; 16];
        let file = std::fs::File::open(file).expect("this program");
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut code, offset).expect("code");
        Machine::HOST.expect("decoded").decode(&code, 0)[0].emulation
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_specimen_begins_with_what_its_name_says() {
        let kinds = [Emulation::Push, Emulation::Nop, Emulation::Jcc, Emulation::Jmp, Emulation::Call];
        for ((name, specimen), kind) in KINDS.iter().zip(kinds) {
            assert_eq!(first(*specimen), Some(kind), "{name}");
        }
        assert_eq!(first(STEPPED.expect("there is one")), None);
        for (name, specimen) in PROGRAMS {
            assert_eq!(first(*specimen), Some(Emulation::Push), "{name}");
        }
    }

    #[test]
    fn a_system_call_takes_longer_than_a_call() {
        let Some(specimen) = STEPPED else { return };
        assert!(time_munmap(2000) > time_calls(specimen, 2000));
    }
}
