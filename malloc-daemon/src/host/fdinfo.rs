//! What the kernel tells of a loaded program, in `/proc/self/fdinfo`.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use super::{SMALL_FILE_BYTES, read_bounded};

/// Times the kernel skipped the program because one was running on that processor (kernel 5.12).
pub const RECURSION_MISSES: &str = "recursion_misses";
/// Instructions that the verifier walked through, on all paths together (kernel 5.16).
pub const VERIFIED_INSTRUCTIONS: &str = "verified_insns";

/// One figure of a program; `None` on kernels that do not tell it.
#[must_use]
pub fn figure(program: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = read_bounded(Path::new(&path), SMALL_FILE_BYTES).ok()??;
    parse(std::str::from_utf8(&text).ok()?, name)
}

fn parse(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| *field == name)
        .and_then(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_whole_name() {
        // Kernel 6.18.
        let text = "pos:\t0\nflags:\t02000002\nprog_type:\t2\nrecursion_misses:\t3\nverified_insns:\t4711\n";
        assert_eq!(parse(text, VERIFIED_INSTRUCTIONS), Some(4711));
        assert_eq!(parse(text, RECURSION_MISSES), Some(3));
        assert_eq!(parse(text, "misses"), None);
    }
}
