//! What the daemon knows of processes besides their counts, as the aggregate asks for it.

use super::Facts;
use crate::collect::RawImage;

/// Figures one of which is another whenever anything that is known of a process may be.
pub type Stamp = [u64; 6];

/// Answers what is known of a process.
pub trait Knowledge {
    /// `None`: only the facts themselves tell whether they have changed.
    fn stamp(&self, row: &RawImage) -> Option<Stamp>;
    /// All of it.
    fn facts(&self, row: &RawImage) -> Facts;
}

impl<F: Fn(&RawImage) -> Facts> Knowledge for F {
    fn stamp(&self, _row: &RawImage) -> Option<Stamp> {
        None
    }

    fn facts(&self, row: &RawImage) -> Facts {
        self(row)
    }
}
