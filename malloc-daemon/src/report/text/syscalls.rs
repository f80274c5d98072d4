//! The system calls by which memory comes and goes, and who in the process asked.

use malloc_common::abi::{SYSCALLS, Syscall};

use super::histogram::quantile;
use super::{Style, Tone, heading, push};
use crate::aggregate::model::{SyscallCount, Syscalls};
use crate::report::units::{bytes, count, nanoseconds};

/// Writes the section; system calls that were never made are left out.
pub(super) fn render(out: &mut String, syscalls: &Syscalls, style: Style) {
    let of = |syscall| match syscall {
        Syscall::Mmap => &syscalls.mmap,
        Syscall::Munmap => &syscalls.munmap,
        Syscall::Mremap => &syscalls.mremap,
        Syscall::Brk => &syscalls.brk,
    };
    if SYSCALLS.into_iter().all(|syscall| of(syscall).calls == 0) {
        return;
    }
    let title =
        format!("{:<18}{:>13}{:>12}{:>10}{:>12}{:>12}", "System calls", "calls", "bytes", "failed", "median", "p99");
    heading(out, &title, style);
    for syscall in SYSCALLS.into_iter().filter(|syscall| of(*syscall).calls > 0) {
        one(out, syscall, of(syscall), style);
        if syscall == Syscall::Brk && syscalls.brk_shrunk_bytes > 0 {
            push(
                out,
                &format!(
                    "    grew by {}, shrank by {}",
                    bytes(syscalls.brk_grown_bytes),
                    bytes(syscalls.brk_shrunk_bytes)
                ),
            );
        }
    }
}

fn one(out: &mut String, syscall: Syscall, counted: &SyscallCount, style: Style) {
    let latency = |permille| quantile(&counted.latency_ns, permille).map_or_else(|| "-".to_owned(), nanoseconds);
    push(
        out,
        &format!(
            "  {:<16}{:>13}{:>12}{:>10}{:>12}{:>12}",
            syscall.name(),
            count(counted.calls),
            bytes(counted.bytes),
            count(counted.failed),
            latency(500),
            latency(990)
        ),
    );
    for (origin, counted) in &counted.by_origin {
        if let Some(counted) = counted.filter(|counted| counted.calls > 0) {
            let (calls, bytes) = (count(counted.calls), bytes(counted.bytes));
            push(out, &format!("    {:<14}{calls:>13}{bytes:>12}", origin.name()));
        }
    }
    let unknown: Vec<&str> =
        counted.by_origin.iter().filter(|(_, count)| count.is_none()).map(|(origin, _)| origin.name()).collect();
    if !unknown.is_empty() {
        push(out, &format!("    {}", style.paint(Tone::Quiet, &format!("{}: not measured", unknown.join(", ")))));
    }
}
