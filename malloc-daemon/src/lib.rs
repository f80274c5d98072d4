//! Watches memory allocation on a live machine, from `malloc` to the system call.

pub mod aggregate;
pub mod arenas;
pub mod budget;
pub mod cli;
pub mod collect;
pub mod command;
pub mod config;
pub mod daemon;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod history;
pub mod host;
pub mod http;
pub mod log;
pub mod observe;
pub mod own_memory;
pub mod probes;
pub mod report;
pub mod symbols;
pub mod systemd;
pub mod targets;
