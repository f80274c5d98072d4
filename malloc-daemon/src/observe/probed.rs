//! What may be asked of an observer about the files that it probes.

use super::observer::Observer;
use crate::host::file::FileKey;

impl Observer {
    /// How far `main_arena` lies from `mp_` in a file, bytes, for display.
    #[must_use]
    pub fn arena_distance(&self, key: &FileKey) -> Option<u64> {
        let located = &self.files.get(key)?.located;
        Some(located.main_arena?.wrapping_sub(located.mp?.vaddr))
    }

    /// How many groups of probes are attached to files.
    #[must_use]
    pub fn probed(&self) -> usize {
        self.files.sites()
    }
}
