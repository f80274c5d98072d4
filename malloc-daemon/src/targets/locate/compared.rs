//! Finds where the code of an inlined `sysmalloc` begins: where `_int_malloc` compares the threshold with `nb`.

use std::collections::BTreeSet;

use malloc_common::site::PtRegsWord;

use super::infer::comparisons_with;
use crate::targets::decode::{Execution, Flow, Instruction, Machine};
use crate::targets::sites::execution;

/// A place that every run through the comparison passes, with `nb` in a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The probed instruction.
    pub vaddr: u64,
    /// What a hit costs.
    pub execution: Execution,
    /// Where `nb` is.
    pub nb: PtRegsWord,
}

/// The places in `code`, whose instructions are `body`, where the word at `threshold` is compared with a register. The
/// probe goes to the first instruction from there on that the kernel emulates (as a rule the branch that decides), in
/// the same block and before anything writes that register; failing that, to the comparison. `targets` are where
/// branches lead.
pub fn compared(
    machine: Machine,
    code: &[u8],
    body: &[Instruction],
    threshold: u64,
    targets: &BTreeSet<u64>,
) -> Vec<Compared> {
    let Some(start) = body.first().map(|first| first.vaddr) else { return Vec::new() };
    let mut found = Vec::new();
    for (vaddr, register) in comparisons_with(machine, code, start, threshold) {
        let nb = match machine {
            Machine::X86_64 => PtRegsWord::x86_64(register),
            Machine::Aarch64 => PtRegsWord::aarch64(register),
        };
        let (Some(nb), Some(at)) = (nb, body.iter().position(|instruction| instruction.vaddr == vaddr)) else {
            continue;
        };
        let steps = machine.steps(bytes_from(code, start, vaddr), vaddr);
        let mut site = body.get(at);
        for (instruction, step) in body.iter().skip(at).zip(steps) {
            if instruction.vaddr != vaddr && targets.contains(&instruction.vaddr) {
                break;
            }
            if instruction.emulation.is_some() {
                site = Some(instruction);
                break;
            }
            if instruction.flow != Flow::Next || step.writes.has(register) {
                break;
            }
        }
        if let Some(site) = site {
            let execution = execution(machine, site, bytes_from(code, start, site.vaddr));
            found.push(Compared { vaddr: site.vaddr, execution, nb });
        }
    }
    found
}

fn bytes_from(code: &[u8], start: u64, vaddr: u64) -> &[u8] {
    let at = vaddr.checked_sub(start).and_then(|at| usize::try_from(at).ok());
    at.and_then(|at| code.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::decode::Emulation;

    const CODE: u64 = 0xa1000;
    const THRESHOLD: u64 = 0x1e_7190;

    /// `opcode`, a distance to the threshold, and what follows.
    fn relative(opcode: &[u8], rest: &[u8]) -> Vec<u8> {
        let distance = (THRESHOLD - (CODE + opcode.len() as u64 + 4)) as u32;
        [opcode, &distance.to_le_bytes(), rest].concat()
    }

    fn found(machine: Machine, code: &[u8]) -> Vec<Compared> {
        let body = machine.decode(code, CODE);
        let targets = body.iter().filter_map(|instruction| instruction.flow.target()).collect();
        compared(machine, code, &body, THRESHOLD, &targets)
    }

    fn emulated(offset: u64, kind: Emulation, nb: Option<PtRegsWord>) -> Vec<Compared> {
        let nb = nb.expect("a register");
        vec![Compared { vaddr: CODE + offset, execution: Execution::Emulated(kind), nb }]
    }

    #[test]
    fn the_branch_after_the_comparison_stands_for_it() {
        // cmp [rip + threshold], rbx; jbe
        let code = relative(&[0x48, 0x39, 0x1d], &[0x76, 0x10, 0xc3]);
        assert_eq!(found(Machine::X86_64, &code), emulated(7, Emulation::Jcc, PtRegsWord::x86_64(3)));
        // mov rax, [rip + threshold]; cmp r12, rax; mov ecx, 1; jae
        let code = relative(&[0x48, 0x8b, 0x05], &[0x49, 0x39, 0xc4, 0xb9, 1, 0, 0, 0, 0x73, 0x10, 0xc3]);
        assert_eq!(found(Machine::X86_64, &code), emulated(15, Emulation::Jcc, PtRegsWord::x86_64(12)));
    }

    #[test]
    fn a_comparison_is_single_stepped_where_nothing_emulated_follows_with_nb_intact() {
        for rest in [
            // mov rbx, rax; jbe: nb is gone
            &[0x48, 0x89, 0xc3, 0x76, 0x10, 0xc3][..],
            // jbe is where another branch leads: nop-less loop back onto it
            &[0x31, 0xc0, 0x76, 0xfe, 0xc3],
            &[0xc3],
        ] {
            let found = found(Machine::X86_64, &relative(&[0x48, 0x39, 0x1d], rest));
            assert_eq!(found.len(), 1, "{rest:x?}");
            assert_eq!((found[0].vaddr, &found[0].execution), (CODE, &Execution::SingleStepped("cmp".to_owned())));
        }
    }

    #[test]
    fn a_threshold_that_is_compared_with_memory_tells_no_nb() {
        // mov rax, [rip + threshold]; cmp [rsp + 8], rax; jb
        let code = relative(&[0x48, 0x8b, 0x05], &[0x48, 0x39, 0x44, 0x24, 0x08, 0x72, 0x10, 0xc3]);
        assert_eq!(found(Machine::X86_64, &code), []);
    }

    #[test]
    fn aarch64_compares_what_it_has_loaded() {
        // adrp x0, threshold's page; add x0, x0, 0x180; ldr x1, [x0, 16]; cmp x20, x1; b.cs; ret
        let pages = ((THRESHOLD & !0xfff) - (CODE & !0xfff)) >> 12;
        let adrp = 0x9000_0000u32 | ((pages as u32 & 3) << 29) | ((pages as u32 >> 2) << 5);
        let words = [adrp, 0x9106_0000, 0xf940_0801, 0xeb01_029f, 0x5400_0082, 0xd65f_03c0];
        let code: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(found(Machine::Aarch64, &code), emulated(16, Emulation::Jcc, PtRegsWord::aarch64(20)));
    }
}
