//! Loads the kernel programs and attaches them.

mod attach;
pub mod calibration;
mod handles;
mod object;
mod syscall;

pub use attach::{
    AttachError, Attached, FileProbes, SYSCALLS, Scope, attach_faults, attach_file, attach_processes, attach_syscalls,
};
pub use handles::{KernelLog, Targets};
pub use object::{BLANK_VARIABLE, Capacities, LoadError, Object, Offsets, Options};
pub use syscall::{MappedArray, Site};
