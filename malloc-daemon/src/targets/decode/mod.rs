//! What one machine instruction means to a probe, whatever the architecture.

use object::elf;

pub mod aarch64;
pub mod step;
pub mod x86_64;

use step::{Convention, Step};

/// An instruction set that is decoded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64
    X86_64,
    /// aarch64
    Aarch64,
}

impl Machine {
    /// The one this program runs on; `None` where that is not decoded.
    pub const HOST: Option<Self> = if cfg!(target_arch = "x86_64") {
        Some(Machine::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Machine::Aarch64)
    } else {
        None
    };

    /// That of an `e_machine`.
    #[must_use]
    pub const fn of(e_machine: u16) -> Option<Self> {
        match elf::Machine(e_machine) {
            elf::EM_X86_64 => Some(Machine::X86_64),
            elf::EM_AARCH64 => Some(Machine::Aarch64),
            _ => None,
        }
    }

    /// Decodes `code`, which is loaded at `vaddr`, to its end or as far as it can be told apart.
    #[must_use]
    pub fn decode(self, code: &[u8], vaddr: u64) -> Vec<Instruction> {
        match self {
            Machine::X86_64 => x86_64::decode(code, vaddr).collect(),
            Machine::Aarch64 => aarch64::decode(code, vaddr).collect(),
        }
    }

    /// What the instructions of `code`, which is loaded at `vaddr`, do to values.
    #[must_use]
    pub fn steps(self, code: &[u8], vaddr: u64) -> Vec<Step> {
        match self {
            Machine::X86_64 => x86_64::steps(code, vaddr).collect(),
            Machine::Aarch64 => aarch64::steps(code, vaddr).collect(),
        }
    }

    /// The mnemonic of the instruction `code` begins with, in lower case.
    #[must_use]
    pub fn mnemonic(self, code: &[u8]) -> String {
        match self {
            Machine::X86_64 => x86_64::mnemonic(code),
            Machine::Aarch64 => aarch64::mnemonic(code),
        }
    }

    /// The instruction `code` begins with, which lies at `vaddr`, as an assembler would take it.
    #[must_use]
    pub fn text(self, code: &[u8], vaddr: u64) -> String {
        match self {
            Machine::X86_64 => x86_64::text(code, vaddr),
            Machine::Aarch64 => aarch64::text(code),
        }
    }

    /// How its functions pass values.
    #[must_use]
    pub const fn convention(self) -> Convention {
        match self {
            Machine::X86_64 => x86_64::CONVENTION,
            Machine::Aarch64 => aarch64::CONVENTION,
        }
    }
}

/// The most of one function's body that is decoded; `_int_malloc`, the largest here, has 4 KiB.
pub const BODY_LIMIT: u64 = 64 << 10;

/// Instructions the kernel emulates at a probe instead of stepping over a copy of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Emulation {
    /// `push` of a general register.
    Push,
    /// `nop`
    Nop,
    /// A direct jump.
    Jmp,
    /// A conditional jump: the probe fires before it is decided.
    Jcc,
    /// A direct call.
    Call,
    /// aarch64: the address of something near the instruction.
    Adr,
    /// aarch64: a branch to what a register holds, or back to the caller.
    Br,
}

/// How the kernel executes the instruction under a probe, which decides what a hit costs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Execution {
    /// Emulated in the kernel: under a microsecond.
    Emulated(Emulation),
    /// Stepped out of line: ten times dearer. The instruction's mnemonic, in lower case.
    SingleStepped(String),
}

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next instruction.
    Next,
    /// To the target, always.
    Jump(u64),
    /// To the target or the next instruction.
    Branch(u64),
    /// To the target, and back.
    Call(u64),
    /// To an address read from memory; the address of the slot where the instruction names it.
    Indirect {
        /// Where the target is read from.
        slot: Option<u64>,
        /// It comes back: a call.
        call: bool,
    },
    /// Away, or into the kernel.
    End,
}

impl Flow {
    /// The address a direct branch or call leads to.
    #[must_use]
    pub const fn target(self) -> Option<u64> {
        match self {
            Flow::Jump(target) | Flow::Branch(target) | Flow::Call(target) => Some(target),
            Flow::Next | Flow::Indirect { .. } | Flow::End => None,
        }
    }
}

/// A set of argument registers: bit 0 the first, up to bit 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arguments(pub u8);

impl Arguments {
    /// The first `count` argument registers.
    #[must_use]
    pub const fn first(count: usize) -> Self {
        Self(if count >= 6 { 0x3f } else { (1u8 << count) - 1 })
    }

    /// Whether both sets hold a register.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What an instruction does to the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// Moves it down by so many bytes; negative: up.
    Down(i64),
    /// Sets it to something that is not known here.
    Unknown,
}

/// One decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its address in the file's own numbering.
    pub vaddr: u64,
    /// Its length in bytes.
    pub length: u8,
    /// Whether and as what the kernel emulates it.
    pub emulation: Option<Emulation>,
    /// Where control goes next.
    pub flow: Flow,
    /// The argument registers it writes, even in part.
    pub writes: Arguments,
    /// What it does to the stack pointer.
    pub stack: Stack,
}

impl Instruction {
    /// The address after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.vaddr.wrapping_add(self.length as u64)
    }
}
