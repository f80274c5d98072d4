//! Watches memory allocation on a live machine, from `malloc` to the system call.

pub mod host;
pub mod targets;
