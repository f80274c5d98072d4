//! The readers of call frames, debug information and maps of compiled code, for the fuzzer.

use gimli::UnwindContext;

use super::functions::Functions;
use super::lines::Lines;
use super::perf_map::PerfMap;
use super::unwind::{CallFrames, Placed, Registers, StackBytes};
use crate::targets::elf::Elf;

/// Where the tables are said to lie.
const ADDRESS: u64 = 0x1000;

/// A table of call frames, with and without an index, and a stack: the first half of the bytes, and the second.
pub fn unwind(bytes: &[u8]) {
    let (table, stack) = bytes.split_at(bytes.len() / 2);
    let placed = |bytes: &[u8]| Placed { address: ADDRESS, bytes: bytes.to_vec() };
    let stack = StackBytes { base: 0x7000, bytes: stack, cut: true };
    let mut context = UnwindContext::new();
    for header in [None, Some(placed(stack.bytes))] {
        let frames = CallFrames::new(placed(table), header, 0x400, 0x800);
        for lookup in [0, 0x400, 0x1234, ADDRESS, u64::MAX] {
            let registers = Registers::new(lookup, 0x7000, 0x7010);
            let _ = frames.step(&mut context, lookup, &registers, &stack);
        }
    }
    let _ = super::unwind::step_by_frame_pointer(&Registers::new(1, 0x7000, 0x7008), &stack);
}

/// The names of functions, from any of a file's tables.
pub fn functions(bytes: &[u8]) {
    let Ok(elf) = Elf::parse(bytes) else { return };
    let functions = Functions::read(&elf, Some(&elf));
    for address in [0, 0x40_0200, 0x40_0240, u64::MAX] {
        let _ = functions.name_at(address).map(super::demangle::demangled);
    }
}

/// Lines and inlined calls.
pub fn lines(bytes: &[u8]) {
    let Ok(elf) = Elf::parse(bytes) else { return };
    if let Some(lines) = Lines::load(&elf, bytes, 1 << 20) {
        for address in [0, 0x1139, 0x40_0200, u64::MAX] {
            let _ = lines.calls_at(address, 8);
        }
    }
}

/// What a just-in-time compiler wrote.
pub fn perf_map(bytes: &[u8]) {
    let map = PerfMap::parse(bytes.to_vec());
    for address in [0, 0x1000, 0x7f00_0000_0000, u64::MAX] {
        let _ = map.name_at(address);
    }
}
