//! Probing a file by its name, and what may be asked of an observer about the files that it probes.

use std::path::Path;

use malloc_common::depth::Depth;

use super::files::FileRefused;
use super::observer::Observer;
use super::serving::{HIDDEN, may_serve};
use crate::host::file::{FileKey, Root, open_in_root};
use crate::probes::Scope;
use crate::targets::{Contents, ElfFacts};

impl Observer {
    /// Probes a file for all its users, when it holds an allocator; returns its key.
    ///
    /// # Errors
    ///
    /// See [`FileRefused`].
    pub fn probe_path(&mut self, path: &Path) -> Result<Option<FileKey>, FileRefused> {
        self.probe_path_for(Root::Host, path, Scope::AllProcesses, self.options.depth)
    }

    /// The same for a path that starts elsewhere, for some of its users, down to another depth.
    ///
    /// # Errors
    ///
    /// See [`FileRefused`].
    pub fn probe_path_for(
        &mut self,
        root: Root,
        path: &Path,
        scope: Scope,
        depth: Depth,
    ) -> Result<Option<FileKey>, FileRefused> {
        let Ok(Some(file)) = open_in_root(root, path) else { return Ok(None) };
        if !Contents.defines_malloc(&file) || !(may_serve(path) || Contents.is_known_allocator(&file)) {
            return Ok(None);
        }
        let key = self.files.admit(file, root)?;
        self.files.attach(&mut self.object, &key, scope, depth);
        Ok(Some(key))
    }

    /// Why what is `malloc` in a program cannot be told, where that is so.
    #[must_use]
    pub fn untold(&self, path: &Path) -> Option<String> {
        let file = open_in_root(Root::Host, path).ok().flatten()?;
        Contents.hides_its_functions(&file).then(|| HIDDEN.to_owned())
    }

    /// How far `main_arena` lies from `mp_` in a file, bytes, for display.
    #[must_use]
    pub fn arena_distance(&self, key: &FileKey) -> Option<u64> {
        let located = &self.files.get(key)?.located;
        Some(located.main_arena?.wrapping_sub(located.mp?.vaddr))
    }

    /// Whether so many images ended since the last collection that their rows may be needed for others.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.endings >= self.options.capacities.slots / 8
    }

    /// How many groups of probes are attached to files.
    #[must_use]
    pub fn probed(&self) -> usize {
        self.files.sites()
    }
}
