//! The bytes of a file until a deadline: no file and no file system takes the one thread that looks into files for long.

use std::ops::Range;
use std::time::{Duration, Instant};

use object::read::ReadRef;

use super::ElfError;

/// How long looking into one file may take: a libc takes a thousandth of that, or a twentieth on a machine that is busy
/// with much else, and the bounds on what is read and followed let few files come near.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
}

impl Deadline {
    /// [`PATIENCE`] from now.
    #[must_use]
    pub fn new() -> Self {
        Self::after(PATIENCE)
    }

    /// So long from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self { at: Instant::now() + time }
    }

    /// The bytes of `data` until then.
    #[must_use]
    pub const fn on<R>(self, data: R) -> Timed<R> {
        Timed { data, deadline: self }
    }

    /// What was found, unless it was found too late: parts of the file may be missing from it then.
    ///
    /// # Errors
    /// [`ElfError::TooSlow`]
    pub fn keeps<T>(self, found: Result<T, ElfError>) -> Result<T, ElfError> {
        if self.is_over() { Err(ElfError::TooSlow { seconds: PATIENCE.as_secs() }) } else { found }
    }

    fn is_over(self) -> bool {
        Instant::now() >= self.at
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that can be read until a deadline; later every read fails.
#[derive(Clone, Copy, Debug)]
pub struct Timed<R> {
    data: R,
    deadline: Deadline,
}

impl<'data, R: ReadRef<'data>> ReadRef<'data> for Timed<R> {
    fn len(self) -> Result<u64, ()> {
        self.data.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        if self.deadline.is_over() { Err(()) } else { self.data.read_bytes_at(offset, size) }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        if self.deadline.is_over() { Err(()) } else { self.data.read_bytes_at_until(range, delimiter) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::analyse;
    use crate::targets::fixture::{Symtab, libc};

    #[test]
    fn what_is_found_in_time_is_what_is_found_without_a_deadline() {
        let bytes = libc().bytes(Symtab::Kept);
        let deadline = Deadline::after(Duration::from_secs(3600));
        assert_eq!(deadline.keeps(analyse(deadline.on(&*bytes), None)), analyse(&*bytes, None));
    }

    #[test]
    fn what_is_found_too_late_is_nothing() {
        let bytes = libc().bytes(Symtab::Kept);
        let over = Deadline::after(Duration::ZERO);
        assert!(analyse(over.on(&*bytes), None).is_err());
        // Not even what was whole: nobody knows whether it was.
        assert_eq!(over.keeps(analyse(&*bytes, None)), Err(ElfError::TooSlow { seconds: 30 }));
    }
}
