//! Where `sysmalloc` is entered in a libc, and where its code compares the threshold: the same moment, twice.

use malloc_common::site::Role;
use malloc_daemon::targets::{Located, analyse, analyse_at_comparison};

/// A place, and the register that holds `nb` there, as tracefs spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where in the file the instruction lies.
    pub file_offset: u64,
    /// `di`
    pub nb: &'static str,
    /// The kernel emulates the instruction.
    pub emulated: bool,
}

/// `struct pt_regs` of x86-64, word by word, as far as general registers go.
const REGISTERS: [&str; 15] =
    ["r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di"];

/// The entries of `sysmalloc`, and the comparisons that stand for them, in the bytes of a libc for x86-64.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn places(libc: &[u8]) -> (Vec<Place>, Vec<Place>) {
    (of(&analyse(libc, None).expect("a libc")), of(&analyse_at_comparison(libc, None).expect("a libc")))
}

fn of(located: &Located) -> Vec<Place> {
    let hooks = located.hooks.iter().filter(|hook| hook.role == Role::Sysmalloc);
    let place = |hook: &malloc_daemon::targets::Hook| Place {
        file_offset: hook.file_offset,
        nb: hook.cookie.word().map_or("di", |word| REGISTERS[word.offset() as usize / 8]),
        emulated: matches!(hook.execution, malloc_daemon::targets::decode::Execution::Emulated(_)),
    };
    hooks.map(place).collect()
}
