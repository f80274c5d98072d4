//! Decodes aarch64, and knows which of its instructions the kernel's uprobes simulate.

use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv8::a64::{InstDecoder, Instruction as Raw, Opcode, Operand as Part, ShiftStyle, SizeCode};

use super::step::{Address, Convention, Operand, Register, Registers, Step, Value};
use super::{Arguments, Emulation, Flow, Instruction, Stack};

/// The length of every instruction.
const LENGTH: usize = 4;
const SP: Register = 31;

/// The procedure call standard: x0 to x7, of which six are followed; x0 to x18 and the link register are lost.
pub const CONVENTION: Convention = Convention { arguments: [0, 1, 2, 3, 4, 5], clobbered: Registers(0x4007_ffff) };

/// Decodes `code`, which is loaded at `vaddr`, to its end. Words that are no instruction known here change nothing but
/// the register they would write, and end what comes before them.
pub fn decode(code: &[u8], vaddr: u64) -> impl Iterator<Item = Instruction> {
    words(code, vaddr).map(|(vaddr, word, raw)| {
        let Some(raw) = raw else {
            let writes = Arguments(0x3f);
            return Instruction { vaddr, length: 4, emulation: None, flow: Flow::Next, writes, stack: Stack::Unknown };
        };
        let step = step(vaddr, word, &raw);
        let writes = (0..6).filter(|register| step.writes.has(*register)).fold(0, |set, bit| set | 1 << bit);
        let (emulation, stack) = (emulation(&raw), stack(&raw, &step));
        Instruction { vaddr, length: 4, emulation, flow: step.flow, writes: Arguments(writes), stack }
    })
}

/// What the instructions of `code`, which is loaded at `vaddr`, do to values.
pub fn steps(code: &[u8], vaddr: u64) -> impl Iterator<Item = Step> {
    words(code, vaddr).map(|(vaddr, word, raw)| match raw {
        Some(raw) => step(vaddr, word, &raw),
        None => unknown(vaddr, word),
    })
}

/// The instruction `code` begins with, as an assembler would take it; branches by their distance.
#[must_use]
pub fn text(code: &[u8]) -> String {
    let raw = words(code, 0).next().and_then(|(_, _, raw)| raw);
    raw.map_or_else(|| "invalid".into(), |raw| raw.to_string())
}

/// The mnemonic of the instruction `code` begins with, in lower case.
#[must_use]
pub fn mnemonic(code: &[u8]) -> String {
    let raw = words(code, 0).next().and_then(|(_, _, raw)| raw);
    let text = raw.map(|raw| raw.to_string()).unwrap_or_default();
    text.split_whitespace().next().unwrap_or("invalid").to_lowercase()
}

fn words(code: &[u8], vaddr: u64) -> impl Iterator<Item = (u64, u32, Option<Raw>)> {
    let decoder = InstDecoder::default();
    let (words, _) = code.as_chunks::<LENGTH>();
    words.iter().enumerate().map(move |(index, bytes)| {
        let raw = decoder.decode(&mut U8Reader::new(bytes)).ok();
        (vaddr.wrapping_add((index * LENGTH) as u64), u32::from_le_bytes(*bytes), raw)
    })
}

/// Nearly all instructions name the register they write in their lowest five bits.
fn unknown(vaddr: u64, word: u32) -> Step {
    let mut step = Step::new(vaddr, 4, Flow::Next);
    step.writes = Registers(1 << (word & 31));
    step
}

/// `arch/arm64/kernel/probes/decode-insn.c`: what depends on its own place is simulated; `nop` is from 6.13 or so on,
/// and stepped before. Literal loads are simulated too and left out: no entry block begins with one.
fn emulation(raw: &Raw) -> Option<Emulation> {
    match (raw.opcode, raw.operands) {
        (Opcode::B, _) => Some(Emulation::Jmp),
        (Opcode::Bcc(_) | Opcode::CBZ | Opcode::CBNZ | Opcode::TBZ | Opcode::TBNZ, _) => Some(Emulation::Jcc),
        (Opcode::BL, _) => Some(Emulation::Call),
        (Opcode::ADR | Opcode::ADRP, _) => Some(Emulation::Adr),
        (Opcode::BR | Opcode::BLR | Opcode::RET, _) => Some(Emulation::Br),
        _ => None,
    }
}

fn flow(vaddr: u64, raw: &Raw) -> Flow {
    let target = raw.operands.iter().find_map(|operand| match operand {
        Part::PCOffset(distance) => Some(vaddr.wrapping_add_signed(*distance)),
        _ => None,
    });
    match (raw.opcode, target) {
        (Opcode::B, Some(target)) => Flow::Jump(target),
        (Opcode::Bcc(_) | Opcode::CBZ | Opcode::CBNZ | Opcode::TBZ | Opcode::TBNZ, Some(target)) => {
            Flow::Branch(target)
        }
        (Opcode::BL, Some(target)) => Flow::Call(target),
        (Opcode::BR, _) => Flow::Indirect { slot: None, call: false },
        (Opcode::BLR, _) => Flow::Indirect { slot: None, call: true },
        (Opcode::RET | Opcode::ERET | Opcode::BRK | Opcode::HLT | Opcode::UDF, _) => Flow::End,
        _ => Flow::Next,
    }
}

fn step(vaddr: u64, word: u32, raw: &Raw) -> Step {
    let mut step = Step::new(vaddr, 4, flow(vaddr, raw));
    let [first, second, third, _] = raw.operands;
    match raw.opcode {
        Opcode::B | Opcode::Bcc(_) | Opcode::CBZ | Opcode::CBNZ | Opcode::TBZ | Opcode::TBNZ | Opcode::BL => {}
        // They name first what they read.
        Opcode::CCMP | Opcode::CCMN => {}
        Opcode::BR | Opcode::BLR | Opcode::RET => {
            step.through = plain(first).map_or(Operand::Other, Operand::Register);
        }
        Opcode::ADR | Opcode::ADRP => {
            let base = if raw.opcode == Opcode::ADRP { vaddr & !0xfff } else { vaddr };
            if let (Some(to), Part::PCOffset(distance)) = (plain(first), second) {
                step.sets = Some((to, Value::Address(Address::Absolute(base.wrapping_add_signed(distance)))));
                step.writes = step.writes.with(to);
            }
        }
        Opcode::ADD | Opcode::SUB => {
            if let (Some(to), Some(from), Some(bytes)) = (plain(first), plain(second), immediate(third)) {
                let bytes = if raw.opcode == Opcode::SUB { -bytes } else { bytes };
                let address = Address::Based(from, bytes);
                step.sets = Some((to, Value::Address(address)));
                step.memory = Some(address);
            }
            write(&mut step, first);
        }
        Opcode::ORR => {
            if let (Some(to), Part::Register(SizeCode::X, 31), Some(from)) = (plain(first), second, unshifted(third)) {
                step.sets = Some((to, Value::Copy(from)));
            }
            write(&mut step, first);
        }
        Opcode::SUBS if matches!(first, Part::Register(_, 31)) => {
            let side = |part| {
                let register = plain(part).or_else(|| unshifted(part));
                register.map_or(Operand::Other, Operand::Register)
            };
            step.compares = Some([side(second), side(third)]);
        }
        _ => {
            access(&mut step, raw);
            if fetches(word) {
                step.writes = Registers(step.writes.0 | unknown(vaddr, word).writes.0);
            } else if !stores(word) {
                write(&mut step, first);
                if step.pair_bytes != 0 {
                    write(&mut step, second);
                }
            }
        }
    }
    step
}

/// Loads and stores: the memory operand, what is loaded, and the base register that moves.
fn access(step: &mut Step, raw: &Raw) {
    let pair = matches!(raw.opcode, Opcode::LDP | Opcode::STP | Opcode::LDPSW | Opcode::LDNP | Opcode::STNP);
    for operand in raw.operands {
        let (base, address, moves) = match operand {
            Part::RegPreIndex(base, bytes, moves) => (base, i64::from(bytes), moves),
            Part::RegPostIndex(base, _) => (base, 0, true),
            Part::RegPostIndexReg(base, _) => (base, 0, true),
            _ => continue,
        };
        let Ok(base) = Register::try_from(base) else { continue };
        step.memory = Some(Address::Based(base, address));
        if moves {
            step.writes = step.writes.with(base);
        }
    }
    if step.memory.is_none() {
        return;
    }
    if pair {
        step.pair_bytes = match raw.operands.first() {
            Some(Part::Register(SizeCode::X, _)) => 8,
            Some(Part::Register(..)) => 4,
            _ => 16,
        };
    } else if matches!(raw.opcode, Opcode::LDR | Opcode::LDUR)
        && let Some(to) = raw.operands.first().and_then(|part| plain(*part))
    {
        step.sets = step.memory.map(|address| (to, Value::Loaded(address)));
    }
}

/// Whether the instruction stores general or vector registers and so writes none of them: in the encoding groups of
/// pairs and of single registers, the bits that mean load are clear. Exclusive stores, which write their verdict, are in
/// another group.
fn stores(word: u32) -> bool {
    let (vector, opc) = (word >> 26 & 1 == 1, word >> 22 & 0b11);
    match word >> 27 & 0b111 {
        0b101 => opc & 1 == 0,
        0b111 if vector => opc & 1 == 0,
        0b111 => opc == 0 && !fetches(word),
        _ => false,
    }
}

/// Whether the instruction changes memory and loads what was there, as `ldadd` and `swp` do: encoded as stores are.
fn fetches(word: u32) -> bool {
    word >> 27 & 0b111 == 0b111 && word >> 26 & 1 == 0 && word >> 21 & 1 == 1 && word >> 10 & 0b11 == 0
}

fn write(step: &mut Step, part: Part) {
    let register = match part {
        Part::Register(_, 31) => None,
        Part::Register(_, number) | Part::RegisterOrSP(_, number) => Register::try_from(number).ok(),
        _ => None,
    };
    if let Some(register) = register {
        step.writes = step.writes.with(register);
    }
}

/// A whole general register, or the stack pointer; the register that is always zero is none.
fn plain(part: Part) -> Option<Register> {
    match part {
        Part::Register(SizeCode::X, 31) => None,
        Part::Register(SizeCode::X, number) | Part::RegisterOrSP(SizeCode::X, number) => number.try_into().ok(),
        _ => None,
    }
}

fn unshifted(part: Part) -> Option<Register> {
    match part {
        Part::RegShift(ShiftStyle::LSL, 0, size, number) => plain(Part::Register(size, number)),
        part => plain(part),
    }
}

fn immediate(part: Part) -> Option<i64> {
    match part {
        Part::Immediate(value) => Some(i64::from(value)),
        Part::ImmShift(value, by) => i64::from(value).checked_shl(u32::from(by)),
        _ => None,
    }
}

/// The return address lies in x30, but what a function pushed still tells where its caller's frame begins.
fn stack(raw: &Raw, step: &Step) -> Stack {
    let down = match (raw.opcode, step.sets) {
        (_, Some((SP, Value::Address(Address::Based(SP, bytes))))) => Some(-bytes),
        _ => raw.operands.iter().find_map(|operand| match operand {
            Part::RegPreIndex(31, bytes, true) | Part::RegPostIndex(31, bytes) => Some(-i64::from(*bytes)),
            _ => None,
        }),
    };
    match down {
        Some(bytes) => Stack::Down(bytes),
        None if step.writes.has(SP) => Stack::Unknown,
        None => Stack::Down(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: u64 = 0x1000;

    fn one(word: u32) -> Instruction {
        decode(&word.to_le_bytes(), AT).next().expect("an instruction")
    }

    fn effect(word: u32) -> Step {
        steps(&word.to_le_bytes(), AT).next().expect("an instruction")
    }

    #[test]
    fn the_kernel_simulates_what_depends_on_its_place() {
        for (word, want) in [
            (0x1400_0001, Some(Emulation::Jmp)),  // b
            (0x9400_0001, Some(Emulation::Call)), // bl
            (0x5400_0040, Some(Emulation::Jcc)),  // b.eq
            (0xb400_0040, Some(Emulation::Jcc)),  // cbz x0
            (0x3600_0040, Some(Emulation::Jcc)),  // tbz w0, #0
            (0x9000_0000, Some(Emulation::Adr)),  // adrp x0
            (0xd65f_03c0, Some(Emulation::Br)),   // ret
            (0xd503_233f, None),                  // paciasp
            (0xd503_245f, None),                  // bti c
            (0xa9be_7bfd, None),                  // stp x29, x30, [sp, #-32]!
        ] {
            assert_eq!(one(word).emulation, want, "{word:#x}");
        }
    }

    #[test]
    fn a_branch_knows_its_target() {
        assert_eq!(one(0x1400_0002).flow, Flow::Jump(AT + 8));
        assert_eq!(one(0x97ff_ffff).flow, Flow::Call(AT - 4));
        assert_eq!(one(0x5400_0040).flow, Flow::Branch(AT + 8));
        assert_eq!(one(0xb400_0040).flow, Flow::Branch(AT + 8));
        assert_eq!(one(0x3600_0040).flow, Flow::Branch(AT + 8));
        assert_eq!(one(0xd63f_0000).flow, Flow::Indirect { slot: None, call: true });
        assert_eq!(one(0xd65f_03c0).flow, Flow::End);
    }

    #[test]
    fn addresses_are_put_together_from_a_page_and_an_offset() {
        let page = Value::Address(Address::Absolute(0x2000));
        assert_eq!(effect(0xb000_0000).sets, Some((0, page))); // adrp x0, 0x2000
        let sum = Value::Address(Address::Based(0, 0x10));
        assert_eq!(effect(0x9100_4001).sets, Some((1, sum))); // add x1, x0, #0x10
        assert_eq!(effect(0xaa14_03e0).sets, Some((0, Value::Copy(20)))); // mov x0, x20
        let loaded = Value::Loaded(Address::Based(0, 0x10));
        assert_eq!(effect(0xf940_0801).sets, Some((1, loaded))); // ldr x1, [x0, #16]
    }

    #[test]
    fn a_store_writes_no_register_but_a_base_that_moves() {
        assert_eq!(effect(0xf900_0801).writes, Registers(0)); // str x1, [x0, #16]
        assert_eq!(effect(0xa900_0801).writes, Registers(0)); // stp x1, x2, [x0]
        assert_eq!(effect(0xa9be_7bfd).writes, Registers(1 << 31)); // stp x29, x30, [sp, #-32]!
        assert_eq!(effect(0xa940_0801).writes, Registers(0b110)); // ldp x1, x2, [x0]
        assert_eq!(effect(0xa940_0801).pair_bytes, 8);
        assert_eq!(effect(0x3d80_0000).writes, Registers(0)); // str q0, [x0]
        assert_eq!(effect(0xf820_0041).writes, Registers(0b10)); // ldadd x0, x1, [x2]
    }

    #[test]
    fn a_comparison_has_two_sides() {
        assert_eq!(effect(0xeb01_001f).compares, Some([Operand::Register(0), Operand::Register(1)])); // cmp x0, x1
        assert_eq!(effect(0xfa40_0804).writes, Registers(0)); // ccmp x0, #0, #4, eq
    }

    #[test]
    fn the_stack_pointer_is_followed() {
        assert_eq!(one(0xa9be_7bfd).stack, Stack::Down(32)); // stp x29, x30, [sp, #-32]!
        assert_eq!(one(0xd100_83ff).stack, Stack::Down(32)); // sub sp, sp, #32
        assert_eq!(one(0xa8c2_7bfd).stack, Stack::Down(-32)); // ldp x29, x30, [sp], #32
        assert_eq!(one(0x9100_03fd).stack, Stack::Down(0)); // mov x29, sp
    }

    proptest! {
        #[test]
        fn no_word_makes_the_decoder_panic(word: u32) {
            let _ = (one(word), effect(word), mnemonic(&word.to_le_bytes()));
        }
    }
}
