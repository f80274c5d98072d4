//! Loads the kernel programs and attaches them.

mod attach;
pub mod calibration;
mod handles;
mod object;
mod syscall;

pub use attach::{
    AttachError, Attached, FileProbes, MultiPrograms, SYSCALLS, Scope, attach_faults, attach_file, attach_processes,
    attach_syscalls, detach_all,
};
pub use handles::{KernelLog, Targets};
pub use object::{BLANK_VARIABLE, Capacities, LoadError, Object, Offsets, Options};
pub use syscall::{MappedArray, Site, process_cpu_ns, thread_cpu_ns};
