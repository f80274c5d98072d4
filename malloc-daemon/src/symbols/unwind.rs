//! One step up a stack: from the registers of a call to those of its caller.
//!
//! Written on gimli itself: a profiler's unwinder follows the frame pointer without saying so where a file has no rules,
//! cannot read memory in a rule (which stack realignment and signal frames need), and adds without checking.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameOffset, Encoding, EndianSlice, EvaluationResult,
    FrameDescriptionEntry, LittleEndian, Location, Register, RegisterRule, UnwindContext, UnwindExpression,
    UnwindSection as _, Value, X86_64,
};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
/// What running a file's rules needs of memory; used again for each step.
pub type Context = UnwindContext<usize>;

/// The longest entry that is run: libc's longest has 400 bytes.
const ENTRY_BYTES: usize = 64 << 10;
/// The most operations of one expression; signal frames take three.
const OPERATIONS: u32 = 256;
/// The most entries indexed of a file whose index is missing.
const ENTRIES: usize = 1_000_000;

/// The general registers and the instruction pointer of x86-64, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers([Option<u64>; 17]);

impl Registers {
    /// What a sample tells.
    pub fn new(ip: u64, sp: u64, bp: u64) -> Self {
        let mut registers = Self([None; 17]);
        registers.set(X86_64::RA, Some(ip));
        registers.set(X86_64::RSP, Some(sp));
        registers.set(X86_64::RBP, Some(bp));
        registers
    }

    /// With the registers of [`super::Sample::kept`].
    pub fn keeping(mut self, kept: Option<[u64; 5]>) -> Self {
        let names = [X86_64::RBX, X86_64::R12, X86_64::R13, X86_64::R14, X86_64::R15];
        for (register, value) in names.into_iter().zip(kept.into_iter().flatten()) {
            self.set(register, Some(value));
        }
        self
    }

    /// The instruction pointer.
    pub fn ip(&self) -> u64 {
        self.get(X86_64::RA).unwrap_or_default()
    }

    fn sp(&self) -> u64 {
        self.get(X86_64::RSP).unwrap_or_default()
    }

    fn get(&self, register: Register) -> Option<u64> {
        *self.0.get(usize::from(register.0))?
    }

    fn set(&mut self, register: Register, value: Option<u64>) {
        if let Some(slot) = self.0.get_mut(usize::from(register.0)) {
            *slot = value;
        }
    }
}

/// The copied bytes of a stack.
#[derive(Clone, Copy, Debug)]
pub struct StackBytes<'a> {
    /// The address of the first.
    pub base: u64,
    /// The bytes.
    pub bytes: &'a [u8],
    /// Whether more follow that were not copied.
    pub cut: bool,
}

impl StackBytes<'_> {
    fn word(&self, address: u64) -> Result<u64, Stop> {
        let offset = address.checked_sub(self.base).ok_or(Stop::Corrupt)?;
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..)?.first_chunk::<8>());
        match bytes {
            Some(bytes) => Ok(u64::from_le_bytes(*bytes)),
            None if self.cut => Err(Stop::Cut),
            None => Err(Stop::Corrupt),
        }
    }
}

/// Where a step led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its registers.
    pub registers: Registers,
    /// Its address is the next instruction and not the one after a call, as below a signal handler.
    pub exact: bool,
}

/// Why no step is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No rules for the address.
    NoRules,
    /// The copied bytes end before the answer.
    Cut,
    /// A rule needs a register that the sample does not hold and no frame since has saved.
    RegisterUnknown,
    /// Stack or rules contradict themselves.
    Corrupt,
}

/// A section and where it is loaded, in the file's own numbering.
#[derive(Debug, Default)]
pub struct Placed {
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The call frame rules of one file.
#[derive(Debug, Default)]
pub struct CallFrames {
    entries: Placed,
    index: Index,
    text: u64,
    got: u64,
}

#[derive(Debug)]
enum Index {
    /// `.eh_frame_hdr`, with its sorted table of pairs of 32-bit distances from its own address from this byte on.
    Header { section: Placed, table: usize },
    /// Made here: the first address of each entry and where it begins.
    Made(Vec<(u64, usize)>),
}

impl Default for Index {
    fn default() -> Self {
        Self::Made(Vec::new())
    }
}

impl CallFrames {
    /// From the sections `.eh_frame` and `.eh_frame_hdr`, and the addresses of `.text` and `.got`.
    pub fn new(entries: Placed, header: Option<Placed>, text: u64, got: u64) -> Self {
        let mut frames = Self { entries, index: Index::default(), text, got };
        frames.index = match header {
            // Version 1, count as four bytes, pairs of 32-bit distances: what every linker writes.
            Some(section) if matches!(section.bytes.first_chunk::<4>(), Some([1, 0x1b | 0x3b, 0x03, 0x3b])) => {
                Index::Header { section, table: 12 }
            }
            _ => Index::Made(frames.entry_places()),
        };
        frames
    }

    /// The bytes of memory taken.
    pub fn bytes(&self) -> u64 {
        let index = match &self.index {
            Index::Header { section, .. } => section.bytes.len(),
            Index::Made(places) => places.len() * size_of::<(u64, usize)>(),
        };
        (self.entries.bytes.len() + index) as u64
    }

    /// From the registers of a call at `lookup`, an address in the file's own numbering, to those of its caller; `None`
    /// when there is none: this is the thread's first function.
    pub fn step(
        &self,
        context: &mut Context,
        lookup: u64,
        registers: &Registers,
        stack: &StackBytes<'_>,
    ) -> Result<Option<Caller>, Stop> {
        let (section, bases) = (self.section(), self.bases());
        let entry = self.entry_at(lookup).ok_or(Stop::NoRules)?;
        let is_sane = entry.entry_len() <= ENTRY_BYTES && entry.cie().entry_len() <= ENTRY_BYTES;
        if !is_sane {
            return Err(Stop::Corrupt);
        }
        let row = entry.unwind_info_for_address(&section, &bases, context, lookup).map_err(|_| Stop::Corrupt)?;
        let at = Evaluating { section: &section, encoding: entry.cie().encoding(), registers, stack };
        let return_address = entry.cie().return_address_register();
        // Without a rule for it the entry says that there is no caller.
        if matches!(row.register(return_address), None | Some(RegisterRule::Undefined)) {
            return Ok(None);
        }
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                registers.get(*register).ok_or(Stop::RegisterUnknown)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => at.expression(*expression, None)?,
        };
        // Each caller's frame lies above; only the kernel moves a thread to another stack.
        let exact = entry.is_signal_trampoline();
        if !exact && cfa <= registers.sp() {
            return Err(Stop::Corrupt);
        }
        let mut caller = Registers([None; 17]);
        for number in (0..17).map(Register) {
            let value = match row.register(number) {
                Some(rule) => at.rule(&rule, number, cfa),
                None if number == X86_64::RSP => Ok(Some(cfa)),
                None if is_kept_by_calls(number) => Ok(registers.get(number)),
                None => Ok(None),
            };
            match value {
                Ok(value) => caller.set(number, value),
                // A register that was popped already lies below the copied bytes; only the return address is needed.
                Err(stop) if number == return_address => return Err(stop),
                Err(_) => {}
            }
        }
        let ip = caller.get(return_address).ok_or(Stop::RegisterUnknown)?;
        caller.set(X86_64::RA, Some(ip));
        caller.set(X86_64::RSP, Some(caller.get(X86_64::RSP).unwrap_or(cfa)));
        Ok((ip != 0).then_some(Caller { registers: caller, exact }))
    }

    fn section(&self) -> EhFrame<Slice<'_>> {
        EhFrame::new(&self.entries.bytes, LittleEndian)
    }

    fn bases(&self) -> BaseAddresses {
        BaseAddresses::default().set_eh_frame(self.entries.address).set_text(self.text).set_got(self.got)
    }

    fn entry_at(&self, address: u64) -> Option<FrameDescriptionEntry<Slice<'_>>> {
        let place = match &self.index {
            Index::Header { section, table } => self.place_by_header(section, *table, address)?,
            Index::Made(places) => {
                let after = places.partition_point(|&(first, _)| first <= address);
                places.get(after.checked_sub(1)?)?.1
            }
        };
        let entry =
            self.section().fde_from_offset(&self.bases(), EhFrameOffset(place), EhFrame::cie_from_offset).ok()?;
        entry.contains(address).then_some(entry)
    }

    /// gimli's own search multiplies a count from the file without checking.
    fn place_by_header(&self, header: &Placed, table: usize, address: u64) -> Option<usize> {
        let (rows, _) = header.bytes.get(table..)?.as_chunks::<8>();
        let count = u32::from_le_bytes(*header.bytes.get(8..)?.first_chunk::<4>()?);
        let rows = rows.get(..rows.len().min(usize::try_from(count).ok()?))?;
        let distance = |bytes: &[u8]| bytes.first_chunk::<4>().map(|bytes| i64::from(i32::from_le_bytes(*bytes)));
        let absolute = |bytes: &[u8]| Some(header.address.wrapping_add_signed(distance(bytes)?));
        let after = rows.partition_point(|row| absolute(row).is_some_and(|first| first <= address));
        let row = rows.get(after.checked_sub(1)?)?;
        let entry = absolute(row.get(4..)?)?;
        usize::try_from(entry.checked_sub(self.entries.address)?).ok()
    }

    /// For files without an index, by reading all entries once.
    fn entry_places(&self) -> Vec<(u64, usize)> {
        let (section, bases) = (self.section(), self.bases());
        let mut places = Vec::new();
        let mut entries = section.entries(&bases);
        while let Ok(Some(entry)) = entries.next()
            && places.len() < ENTRIES
        {
            if let CieOrFde::Fde(entry) = entry
                && let Ok(entry) = entry.parse(EhFrame::cie_from_offset)
            {
                places.push((entry.initial_address(), entry.offset()));
            }
        }
        places.sort_unstable();
        places
    }
}

/// The step for code without rules: a frame pointer, if there is a plausible one. `None` at the end of the chain.
pub fn step_by_frame_pointer(registers: &Registers, stack: &StackBytes<'_>) -> Result<Option<Caller>, Stop> {
    let bp = registers.get(X86_64::RBP).ok_or(Stop::NoRules)?;
    if bp < registers.sp() || !bp.is_multiple_of(8) {
        return Err(Stop::NoRules);
    }
    let above = |distance: u64| bp.checked_add(distance).ok_or(Stop::NoRules);
    let (caller_bp, ip, sp) = (stack.word(bp)?, stack.word(above(8)?)?, above(16)?);
    Ok((ip != 0).then(|| Caller { registers: Registers::new(ip, sp, caller_bp), exact: false }))
}

/// The registers that a function gives back as it found them, by the System V ABI.
fn is_kept_by_calls(register: Register) -> bool {
    [X86_64::RBX, X86_64::RBP, X86_64::R12, X86_64::R13, X86_64::R14, X86_64::R15].contains(&register)
}

struct Evaluating<'a, 'b> {
    section: &'a EhFrame<Slice<'b>>,
    encoding: Encoding,
    registers: &'a Registers,
    stack: &'a StackBytes<'a>,
}

impl Evaluating<'_, '_> {
    /// The caller's value of a register, `None` when it is lost.
    fn rule(&self, rule: &RegisterRule<usize>, register: Register, cfa: u64) -> Result<Option<u64>, Stop> {
        Ok(match rule {
            RegisterRule::SameValue => self.registers.get(register),
            RegisterRule::Offset(offset) => Some(self.stack.word(cfa.wrapping_add_signed(*offset))?),
            RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
            RegisterRule::Register(other) => self.registers.get(*other),
            RegisterRule::Expression(expression) => Some(self.stack.word(self.expression(*expression, Some(cfa))?)?),
            RegisterRule::ValExpression(expression) => Some(self.expression(*expression, Some(cfa))?),
            RegisterRule::Constant(value) => Some(*value),
            _ => None,
        })
    }

    fn expression(&self, expression: UnwindExpression<usize>, initial: Option<u64>) -> Result<u64, Stop> {
        let bytecode = expression.get(self.section).map_err(|_| Stop::Corrupt)?;
        let mut evaluation = bytecode.evaluation(self.encoding);
        evaluation.set_max_iterations(OPERATIONS);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut state = evaluation.evaluate();
        for _ in 0..OPERATIONS {
            state = match state.map_err(|_| Stop::Corrupt)? {
                EvaluationResult::Complete => {
                    return match evaluation.as_result() {
                        [piece] => match piece.location {
                            Location::Address { address } => Ok(address),
                            Location::Value { value: Value::Generic(value) } => Ok(value),
                            _ => Err(Stop::Corrupt),
                        },
                        _ => Err(Stop::Corrupt),
                    };
                }
                EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                    evaluation.resume_with_memory(Value::Generic(self.stack.word(address)?))
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = self.registers.get(register).ok_or(Stop::RegisterUnknown)?;
                    evaluation.resume_with_register(Value::Generic(value))
                }
                _ => return Err(Stop::Corrupt),
            };
        }
        Err(Stop::Corrupt)
    }
}
