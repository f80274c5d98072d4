//! What one machine instruction does to values: as much of it as following addresses through a function needs.

use super::Flow;

/// A general register, by its number in the instruction set; x86-64's `rdi` is 7, aarch64's stack pointer 31.
pub type Register = u8;

/// How many registers are followed.
pub const REGISTERS: usize = 32;

/// A set of registers: bit n is register n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers(pub u32);

impl Registers {
    /// With `register` added.
    #[must_use]
    pub const fn with(self, register: Register) -> Self {
        Self(self.0 | 1 << (register & 31))
    }

    /// Whether `register` is in it.
    #[must_use]
    pub const fn has(self, register: Register) -> bool {
        self.0 >> (register & 31) & 1 == 1
    }
}

/// An address as an instruction spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Known from the instruction alone.
    Absolute(u64),
    /// So many bytes from what the register holds.
    Based(Register, i64),
}

/// What a comparison or an indirect branch looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The value in a register.
    Register(Register),
    /// The value at an address.
    Memory(Address),
    /// Anything else.
    Other,
}

/// Where a register's new value comes from, where that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// An address, not what is stored there.
    Address(Address),
    /// Another register.
    Copy(Register),
    /// What is stored at an address.
    Loaded(Address),
}

/// One instruction's effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its address in the file's own numbering.
    pub vaddr: u64,
    /// Its length in bytes.
    pub length: u8,
    /// Where control goes next.
    pub flow: Flow,
    /// What an indirect branch reads its target from.
    pub through: Operand,
    /// The memory it reads, writes or takes the address of.
    pub memory: Option<Address>,
    /// It reads or writes a second value so many bytes behind the first; 0: it does not.
    pub pair_bytes: u8,
    /// A register that takes a value which is followed.
    pub sets: Option<(Register, Value)>,
    /// Every register it writes.
    pub writes: Registers,
    /// What it compares, if that is all it does.
    pub compares: Option<[Operand; 2]>,
}

impl Step {
    /// An instruction that changes nothing.
    #[must_use]
    pub const fn new(vaddr: u64, length: u8, flow: Flow) -> Self {
        Self {
            vaddr,
            length,
            flow,
            through: Operand::Other,
            memory: None,
            pair_bytes: 0,
            sets: None,
            writes: Registers(0),
            compares: None,
        }
    }
}

/// How functions pass values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convention {
    /// The registers of the first arguments, in order.
    pub arguments: [Register; 6],
    /// What a call leaves changed.
    pub clobbered: Registers,
}
