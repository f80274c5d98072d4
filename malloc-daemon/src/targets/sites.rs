//! Chooses the instruction a probe belongs on, and finds the branches out of a function.

use std::collections::BTreeSet;

use super::decode::{Arguments, Execution, Flow, Instruction, Machine, Stack};

/// The instruction that carries an entry probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its address in the file's own numbering.
    pub vaddr: u64,
    /// Its distance in bytes from the function's entry.
    pub offset: u64,
    /// What a hit costs.
    pub execution: Execution,
    /// By how many bytes the stack pointer is lower than at the entry: the return address lies at
    /// `[stack pointer + pushed_bytes]`.
    pub pushed_bytes: u32,
}

/// Where a probe sees every entry of the function, with its `arguments` still in their registers.
///
/// That is the first instruction of the entry block the kernel emulates, unless an argument register is written
/// before it or one of `targets` (where branches lead) lies past the entry and not past that instruction: a probe there
/// would see more than entries. Failing that, it is the entry. `None` when `code` does not begin with an instruction.
#[must_use]
pub fn entry_site(
    machine: Machine,
    code: &[u8],
    body: &[Instruction],
    arguments: Arguments,
    targets: &BTreeSet<u64>,
) -> Option<Site> {
    let entry = body.first()?.vaddr;
    let mut pushed: i64 = 0;
    for instruction in body {
        if let Some(emulation) = instruction.emulation {
            let reached = targets.range(entry.saturating_add(1)..instruction.end().max(entry.saturating_add(1)));
            if reached.count() > 0 {
                break;
            }
            return Some(Site {
                vaddr: instruction.vaddr,
                offset: instruction.vaddr.checked_sub(entry)?,
                execution: Execution::Emulated(emulation),
                pushed_bytes: u32::try_from(pushed).ok()?,
            });
        }
        if instruction.flow != Flow::Next || instruction.writes.intersects(arguments) {
            break;
        }
        match instruction.stack {
            Stack::Down(bytes) => pushed = pushed.checked_add(bytes).filter(|pushed| *pushed >= 0).unwrap_or(-1),
            Stack::Unknown => break,
        }
        if !(0..=i64::from(u32::MAX)).contains(&pushed) {
            break;
        }
    }
    Some(Site { vaddr: entry, offset: 0, execution: execution(machine, body.first()?, code), pushed_bytes: 0 })
}

/// What a hit on `instruction` costs, whose bytes `code` begins with.
#[must_use]
pub fn execution(machine: Machine, instruction: &Instruction, code: &[u8]) -> Execution {
    match instruction.emulation {
        Some(emulation) => Execution::Emulated(emulation),
        None => Execution::SingleStepped(machine.mnemonic(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::decode::{Emulation, x86_64};

    const ENTRY: u64 = 0x98ef0;

    fn site(code: &[u8], arguments: usize) -> Site {
        let body: Vec<_> = x86_64::decode(code, ENTRY).collect();
        let targets = body.iter().filter_map(|instruction| instruction.flow.target()).collect();
        entry_site(Machine::X86_64, code, &body, Arguments::first(arguments), &targets).expect("an entry")
    }

    fn emulated(offset: u64, emulation: Emulation, pushed_bytes: u32) -> Site {
        Site { vaddr: ENTRY + offset, offset, execution: Execution::Emulated(emulation), pushed_bytes }
    }

    fn stepped(mnemonic: &str) -> Site {
        Site { vaddr: ENTRY, offset: 0, execution: Execution::SingleStepped(mnemonic.into()), pushed_bytes: 0 }
    }

    #[test]
    fn a_push_at_the_entry_is_taken_as_it_is() {
        assert_eq!(site(&[0x41, 0x54, 0x55], 1), emulated(0, Emulation::Push, 0));
    }

    #[test]
    fn a_conditional_jump_stands_for_the_test_before_it() {
        // free of glibc 2.36: test rdi, rdi; je +0x10; push rbp
        assert_eq!(site(&[0x48, 0x85, 0xff, 0x74, 0x10, 0x55], 1), emulated(3, Emulation::Jcc, 0));
    }

    #[test]
    fn an_endbr_is_stepped_over() {
        assert_eq!(site(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x54], 1), emulated(4, Emulation::Push, 0));
    }

    #[test]
    fn stack_reserved_before_the_site_is_counted() {
        // munmap_chunk of glibc 2.36: sub rsp, 8; mov rdx, [rdi + 8]; je
        let code = [0x48, 0x83, 0xec, 0x08, 0x48, 0x8b, 0x57, 0x08, 0x74, 0x10];
        assert_eq!(site(&code, 1), emulated(8, Emulation::Jcc, 8));
    }

    #[test]
    fn an_argument_overwritten_before_the_site_keeps_the_probe_at_the_entry() {
        // mov rsi, rdi; mov rdi, [rax]; jmp
        let code = [0x48, 0x89, 0xfe, 0x48, 0x8b, 0x38, 0xeb, 0x10];
        assert_eq!(site(&code, 1), stepped("mov"));
        // The same registers are no arguments of a function without any.
        assert_eq!(site(&code, 0), emulated(6, Emulation::Jmp, 0));
    }

    #[test]
    fn a_branch_to_the_site_keeps_the_probe_at_the_entry() {
        // test rdi, rdi; push rbx; nop; jne -4 (the push)
        let code = [0x48, 0x85, 0xff, 0x53, 0x90, 0x75, 0xfc];
        assert_eq!(site(&code, 1), stepped("test"));
        // A branch behind the site, or to the entry itself, does no harm: jne to the nop; jne to the entry.
        assert_eq!(site(&[0x48, 0x85, 0xff, 0x53, 0x90, 0x75, 0xfd], 1), emulated(3, Emulation::Push, 0));
        assert_eq!(site(&[0x48, 0x85, 0xff, 0x53, 0x90, 0x75, 0xf9], 1), emulated(3, Emulation::Push, 0));
    }

    #[test]
    fn the_search_ends_with_the_entry_block() {
        // syscall; push rbx
        assert_eq!(site(&[0x0f, 0x05, 0x53], 1), stepped("syscall"));
        // and rsp, -16; push rbx: the return address can no longer be found
        assert_eq!(site(&[0x48, 0x83, 0xe4, 0xf0, 0x53], 1), stepped("and"));
        // ret
        assert_eq!(site(&[0xc3, 0x53], 1), stepped("ret"));
    }
}
