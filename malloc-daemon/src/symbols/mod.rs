//! Turns registers and a copy of a stack, taken in the kernel, into the calls that led there, with their names.
//!
//! The path of a sample: `symbolizer` finds the process's mappings (`processes`) and the files behind them (`modules`),
//! steps from frame to frame by the files' call frame rules (`unwind`), then names each address from debug data
//! (`lines`, read through `metered`), symbol tables (`functions`) or what a just-in-time compiler wrote (`perf_map`).
//!
//! Files, stacks and maps are another's and may lie: all sizes are bounded, every loop ends, and what cannot be told is
//! left out instead of guessed. A separate debug file's supplement (`.gnu_debugaltlink`) is not read.

use std::sync::Arc;
use std::time::Duration;

mod demangle;
mod functions;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod lines;
mod metered;
mod modules;
mod perf_map;
mod processes;
mod symbolizer;
#[cfg(test)]
mod tests;
mod unwind;

pub use processes::{Code, Glimpse};
pub use symbolizer::Symbolizer;

/// The longest stack copy that is looked at, in bytes: what the kernel side copies at most.
pub const STACK_BYTES: usize = 64 << 10;

/// What the kernel saw of one thread at one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The process, in this daemon's pid namespace.
    pub pid: u32,
    /// The instruction it was at.
    pub ip: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its frame pointer register (`rbp`), whatever it is used for.
    pub bp: u64,
    /// The other registers that calls keep, where they were taken: `rbx`, `r12` to `r15`.
    pub kept: Option<[u64; 5]>,
    /// The bytes from `sp` upwards; what exceeds [`STACK_BYTES`] is ignored.
    pub stack: &'a [u8],
    /// Whether the stack goes on above the copied bytes.
    pub stack_cut: bool,
}

/// The ceilings of a [`Symbolizer`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most frames of one stack, inlined ones included.
    pub frames: usize,
    /// The most files kept open, one descriptor each.
    pub modules: usize,
    /// The most bytes of unwind, symbol and debug tables kept; what addr2line builds of them is estimated.
    pub table_bytes: u64,
    /// The most bytes of debug sections loaded of one file; a file with more has functions but no lines.
    pub debug_bytes: u64,
    /// The most processes whose mappings are known.
    pub processes: usize,
    /// How long the mappings of a process that ended are kept.
    pub keep_ended: Duration,
    /// The longest one stack may take; ten times as long with reading the files that it leads through. Reading one file
    /// is not interrupted, but is bounded by its own limits.
    pub deadline: Duration,
}

impl Limits {
    /// Of a daemon that stays: a quarter of the memory; files with more debug data have functions without lines.
    #[must_use]
    pub fn lean() -> Self {
        Self { table_bytes: 64 << 20, debug_bytes: 48 << 20, ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frames: 128,
            modules: 512,
            table_bytes: 256 << 20,
            // libc's takes 12 MiB uncompressed, a large Rust program's 100 MiB.
            debug_bytes: 128 << 20,
            processes: 1024,
            keep_ended: Duration::from_secs(60),
            deadline: Duration::from_secs(1),
        }
    }
}

/// The calls that led to a sample, the innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The calls.
    pub frames: Vec<Frame>,
    /// Why there are no more.
    pub end: StackEnd,
}

/// Why a stack has no further frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StackEnd {
    /// The first function of the thread was reached.
    Complete,
    /// There are more frames than are shown.
    FrameLimit,
    /// The copied bytes end before the stack does.
    StackCut,
    /// The bytes on the stack, or the file's rules for them, contradict themselves.
    Corrupt,
    /// The last frame's rules need a register that [`Sample`] does not hold, and no frame since has saved it. Where
    /// [`Sample::kept`] is missing that is so in the dynamic linker, which binds a function at its first call with the
    /// stack pointer kept in `rbx`.
    RegisterUnknown,
    /// The last frame's file has no rules for its address, and no plausible frame pointer helps.
    NoUnwindInformation {
        /// The file.
        module: String,
    },
    /// The last frame's address is in no executable mapping that is known.
    ModuleUnknown,
    /// The process ended before it was known what it maps.
    ProcessGone,
    /// The time for one stack was over: frames are missing, or the last ones have no names.
    Deadline,
}

/// One call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The instruction (first frame) or the address the call returns to.
    pub address: u64,
    /// The path of the mapped file, `[vdso]`, or `[anonymous]` for code that no file holds.
    pub module: Option<String>,
    /// The address in the file's own numbering, which `addr2line -e` and `objdump` take.
    pub offset: Option<u64>,
    /// The function, demangled and cut to a bounded length.
    pub function: Option<String>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// The compiler merged this call into the next frame's function.
    pub inlined: bool,
    /// Build id of the file, hexadecimal.
    pub build_id: Option<Arc<str>>,
    /// Found by following the frame pointer, because its callee's file has no rules: callers may be left out.
    pub by_frame_pointer: bool,
}
