//! Decodes x86-64, and knows which of its instructions the kernel's uprobes emulate.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter as _, Instruction as Raw, InstructionInfoFactory,
    IntelFormatter, Mnemonic, OpAccess, OpKind, Register,
};

use super::step::{Address, Convention, Operand, Registers, Step, Value};
use super::{Arguments, Emulation, Flow, Instruction, Stack};

/// The longest instruction the processor accepts.
pub const MAX_LENGTH: u64 = 15;

/// The System V convention: rdi, rsi, rdx, rcx, r8, r9; rax and r8 to r11 are lost too.
pub const CONVENTION: Convention = Convention { arguments: [7, 6, 2, 1, 8, 9], clobbered: Registers(0b1111_1100_0111) };

/// Decodes `code`, which is loaded at `vaddr`, to its end or to the first bytes that are no instruction.
pub fn decode(code: &[u8], vaddr: u64) -> impl Iterator<Item = Instruction> {
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut facts = InstructionInfoFactory::new();
    let mut raw = Raw::default();
    std::iter::from_fn(move || {
        if !decoder.can_decode() {
            return None;
        }
        let start = decoder.position();
        decoder.decode_out(&mut raw);
        if raw.is_invalid() {
            return None;
        }
        let bytes = code.get(start..decoder.position())?;
        Some(Instruction {
            vaddr: raw.ip(),
            length: u8::try_from(raw.len()).ok()?,
            emulation: emulation(bytes),
            flow: flow(&raw),
            writes: writes(&mut facts, &raw),
            stack: stack(&mut facts, &raw),
        })
    })
}

/// What the instructions of `code`, which is loaded at `vaddr`, do to values. Bytes that are no instruction are skipped
/// one by one.
pub fn steps(code: &[u8], vaddr: u64) -> impl Iterator<Item = Step> {
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut facts = InstructionInfoFactory::new();
    let mut raw = Raw::default();
    std::iter::from_fn(move || {
        while decoder.can_decode() {
            let start = decoder.position();
            decoder.decode_out(&mut raw);
            if !raw.is_invalid() {
                return Some(step(&mut facts, &raw));
            }
            decoder.set_position(start.checked_add(1)?).ok()?;
            decoder.set_ip(vaddr.wrapping_add(start as u64).wrapping_add(1));
        }
        None
    })
}

fn step(facts: &mut InstructionInfoFactory, raw: &Raw) -> Step {
    let length = u8::try_from(raw.len()).unwrap_or_default();
    let mut step = Step::new(raw.ip(), length, flow(raw));
    for used in facts.info(raw).used_registers() {
        let write = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        if write && let Some(register) = number(used.register()) {
            step.writes = step.writes.with(register);
        }
    }
    if (0..raw.op_count()).any(|operand| raw.op_kind(operand) == OpKind::Memory) {
        step.memory = address(raw);
    }
    let wide = |register: Register| register.is_gpr64().then(|| number(register)).flatten();
    match raw.mnemonic() {
        Mnemonic::Lea | Mnemonic::Mov => {
            let to = (raw.op0_kind() == OpKind::Register).then(|| wide(raw.op0_register())).flatten();
            let value = match (raw.mnemonic(), raw.op1_kind()) {
                (Mnemonic::Lea, _) => step.memory.map(Value::Address),
                (_, OpKind::Memory) => step.memory.map(Value::Loaded),
                (_, OpKind::Register) => wide(raw.op1_register()).map(Value::Copy),
                _ => None,
            };
            step.sets = to.zip(value);
        }
        Mnemonic::Cmp => {
            let operand = |index| match raw.op_kind(index) {
                OpKind::Register => wide(raw.op_register(index)).map_or(Operand::Other, Operand::Register),
                OpKind::Memory => step.memory.map_or(Operand::Other, Operand::Memory),
                _ => Operand::Other,
            };
            step.compares = Some([operand(0), operand(1)]);
        }
        Mnemonic::Call | Mnemonic::Jmp => {
            step.through = match raw.op0_kind() {
                OpKind::Register => wide(raw.op0_register()).map_or(Operand::Other, Operand::Register),
                OpKind::Memory => step.memory.map_or(Operand::Other, Operand::Memory),
                _ => Operand::Other,
            };
        }
        _ => {}
    }
    step
}

fn number(register: Register) -> Option<u8> {
    let full = register.full_register();
    full.is_gpr64().then(|| u8::try_from(full.number()).ok()).flatten()
}

fn address(raw: &Raw) -> Option<Address> {
    if raw.is_ip_rel_memory_operand() {
        return Some(Address::Absolute(raw.ip_rel_memory_address()));
    }
    // An address relative to a segment lies elsewhere: fs holds the thread's own data.
    let plain = raw.memory_index() == Register::None && !raw.has_segment_prefix();
    let base = number(raw.memory_base()).filter(|_| plain)?;
    Some(Address::Based(base, raw.memory_displacement64().cast_signed()))
}

/// The instruction `code` begins with, which lies at `vaddr`, as an assembler would take it.
#[must_use]
pub fn text(code: &[u8], vaddr: u64) -> String {
    let raw = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).decode();
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_rip_relative_addresses(true);
    options.set_space_after_operand_separator(true);
    formatter.format(&raw, &mut text);
    if raw.is_invalid() { "invalid".into() } else { text }
}

/// The mnemonic of the instruction `code` begins with, in lower case.
#[must_use]
pub fn mnemonic(code: &[u8]) -> String {
    let raw = Decoder::new(64, code, DecoderOptions::NONE).decode();
    if raw.is_invalid() { "invalid".into() } else { format!("{:?}", raw.mnemonic()).to_lowercase() }
}

/// The table of `arch/x86/kernel/uprobes.c`: `push_setup_xol_ops` takes one-byte pushes and those with exactly
/// `REX.B`; `branch_setup_xol_ops` takes direct branches and `nop`. It also takes some prefixes, which no compiler
/// writes there; they are left out, for a wrong yes costs more than a wrong no. Kernels before 6.15 or so step over
/// `0f 1f`.
fn emulation(bytes: &[u8]) -> Option<Emulation> {
    match *bytes {
        [0x50..=0x57] | [0x41, 0x50..=0x57] => Some(Emulation::Push),
        [0x90] | [0x0f, 0x1f, ..] => Some(Emulation::Nop),
        [0xeb | 0xe9, ..] => Some(Emulation::Jmp),
        [0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..] => Some(Emulation::Jcc),
        [0xe8, ..] => Some(Emulation::Call),
        _ => None,
    }
}

fn flow(raw: &Raw) -> Flow {
    let near = matches!(raw.op0_kind(), OpKind::NearBranch64).then(|| raw.near_branch64());
    let slot = raw.is_ip_rel_memory_operand().then(|| raw.ip_rel_memory_address());
    match (raw.flow_control(), near) {
        (FlowControl::Next, _) => Flow::Next,
        (FlowControl::UnconditionalBranch, Some(target)) => Flow::Jump(target),
        (FlowControl::ConditionalBranch, Some(target)) => Flow::Branch(target),
        (FlowControl::Call, Some(target)) => Flow::Call(target),
        (FlowControl::IndirectBranch, _) => Flow::Indirect { slot, call: false },
        (FlowControl::IndirectCall, _) => Flow::Indirect { slot, call: true },
        _ => Flow::End,
    }
}

fn writes(facts: &mut InstructionInfoFactory, raw: &Raw) -> Arguments {
    let mut written = Arguments::default();
    for used in facts.info(raw).used_registers() {
        let write = matches!(
            used.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        if write {
            written.0 |= match used.register().full_register() {
                Register::RDI => 1,
                Register::RSI => 1 << 1,
                Register::RDX => 1 << 2,
                Register::RCX => 1 << 3,
                Register::R8 => 1 << 4,
                Register::R9 => 1 << 5,
                _ => 0,
            };
        }
    }
    written
}

fn stack(facts: &mut InstructionInfoFactory, raw: &Raw) -> Stack {
    let increment = raw.stack_pointer_increment();
    if increment != 0 {
        return Stack::Down(-i64::from(increment));
    }
    match raw.code() {
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if raw.op0_register() == Register::RSP => {
            Stack::Down(raw.immediate64().cast_signed())
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if raw.op0_register() == Register::RSP => {
            Stack::Down(raw.immediate64().cast_signed().wrapping_neg())
        }
        _ if raw.mnemonic() == Mnemonic::Endbr64 => Stack::Down(0),
        _ => {
            let touched = facts.info(raw).used_registers().iter().any(|used| {
                used.register().full_register() == Register::RSP
                    && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
            });
            if touched { Stack::Unknown } else { Stack::Down(0) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::decode::Execution;

    fn one(bytes: &[u8]) -> Instruction {
        decode(bytes, 0x1000).next().expect("an instruction")
    }

    #[test]
    fn the_kernel_emulates_plain_pushes_branches_and_nops_only() {
        for (bytes, want) in [
            (&[0x55][..], Some(Emulation::Push)),
            (&[0x41, 0x57], Some(Emulation::Push)),
            (&[0x40, 0x55], None),
            (&[0x66, 0x55], None),
            (&[0xff, 0x35, 0, 0, 0, 0], None),
            (&[0x90], Some(Emulation::Nop)),
            (&[0x66, 0x90], None),
            (&[0x0f, 0x1f, 0x44, 0, 0], Some(Emulation::Nop)),
            (&[0x66, 0x0f, 0x1f, 0x44, 0, 0], None),
            (&[0xeb, 0x10], Some(Emulation::Jmp)),
            (&[0xe9, 0, 1, 0, 0], Some(Emulation::Jmp)),
            (&[0x74, 0x10], Some(Emulation::Jcc)),
            (&[0x0f, 0x84, 0, 1, 0, 0], Some(Emulation::Jcc)),
            (&[0xe8, 0, 1, 0, 0], Some(Emulation::Call)),
            (&[0xf2, 0xe8, 0, 1, 0, 0], None),
            (&[0xf3, 0x0f, 0x1e, 0xfa], None),
            (&[0x48, 0x85, 0xff], None),
            (&[0xc3], None),
        ] {
            assert_eq!(one(bytes).emulation, want, "{bytes:02x?}");
        }
    }

    #[test]
    fn a_branch_knows_its_target() {
        assert_eq!(one(&[0xe8, 0xfb, 0xff, 0xff, 0xff]).flow, Flow::Call(0x1000));
        assert_eq!(one(&[0xeb, 0xfe]).flow, Flow::Jump(0x1000));
        assert_eq!(one(&[0x0f, 0x85, 0x0a, 0, 0, 0]).flow, Flow::Branch(0x1010));
        assert_eq!(one(&[0xff, 0x25, 0x0a, 0, 0, 0]).flow, Flow::Indirect { slot: Some(0x1010), call: false });
        assert_eq!(one(&[0xff, 0xd0]).flow, Flow::Indirect { slot: None, call: true });
        assert_eq!(one(&[0x0f, 0x05]).flow, Flow::End);
    }

    #[test]
    fn writing_part_of_an_argument_register_writes_it() {
        assert_eq!(one(&[0x31, 0xff]).writes, Arguments(1)); // xor edi, edi
        assert_eq!(one(&[0x40, 0x88, 0xc6]).writes, Arguments(2)); // mov sil, al
        assert_eq!(one(&[0x48, 0xf7, 0xe6]).writes, Arguments(4)); // mul rsi
        assert_eq!(one(&[0x48, 0x89, 0xfb]).writes, Arguments(0)); // mov rbx, rdi
    }

    #[test]
    fn the_stack_pointer_is_followed_through_pushes_and_reservations() {
        assert_eq!(one(&[0x41, 0x54]).stack, Stack::Down(8));
        assert_eq!(one(&[0x48, 0x83, 0xec, 0x10]).stack, Stack::Down(16));
        assert_eq!(one(&[0x48, 0x83, 0xc4, 0x10]).stack, Stack::Down(-16));
        assert_eq!(one(&[0x48, 0x83, 0xe4, 0xf0]).stack, Stack::Unknown); // and rsp, -16
        assert_eq!(one(&[0x48, 0x89, 0xe5]).stack, Stack::Down(0)); // mov rbp, rsp
    }

    #[test]
    fn decoding_stops_at_bytes_that_are_no_instruction() {
        assert_eq!(decode(&[0x90, 0x06, 0x90], 0).count(), 1);
        assert_eq!(decode(&[0x90, 0xe8, 0x00], 0).count(), 1);
        assert_eq!(mnemonic(&[0x48, 0x85, 0xff]), "test");
        assert_ne!(Execution::SingleStepped(mnemonic(&[])), Execution::Emulated(Emulation::Nop));
    }
}
