//! Loads the kernel programs and attaches them.

mod attach;
mod handles;
mod object;
mod syscall;

pub use attach::{
    AttachError, Attached, FileProbes, Scope, attach_faults, attach_file, attach_processes, attach_syscalls,
};
pub use handles::{KernelLog, Targets};
pub use object::{Capacities, LoadError, Object, Offsets, Options};
pub use syscall::{MappedArray, Site};
