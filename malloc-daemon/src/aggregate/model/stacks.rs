//! Call stacks, as far as they are known.

use std::sync::Arc;

/// A call stack, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Its frames.
    pub frames: Vec<Frame>,
    /// Why it ends where it does, when it does not end at the thread's start.
    pub cut: Option<String>,
}

/// One frame of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Function, demangled.
    pub function: Option<String>,
    /// File that holds the code.
    pub module: Option<String>,
    /// Offset in that file's addresses, bytes.
    pub offset: Option<u64>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// The compiler put this function into the one below.
    pub inlined: bool,
    /// Build id of the file that holds the code, hexadecimal; `None`: it has none, or it is not known.
    pub build_id: Option<Arc<str>>,
}
