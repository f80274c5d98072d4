//! Watches memory allocation on a live machine, from `malloc` to the system call.

pub mod aggregate;
pub mod http;
pub mod report;
