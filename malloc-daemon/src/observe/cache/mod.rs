//! What was found in files before, by their content: in memory while the daemon runs, and what had to be inferred in a
//! folder from one start to the next.

mod folder;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use object::ReadCache;

pub use folder::{Folder, FolderError};

use crate::host::file::{FileKey, Root, TargetFile};
use crate::report::inference::{Refused, decode, encode};
use crate::targets::deadline::Deadline;
use crate::targets::symbols::Source;
use crate::targets::{ContentId, Contents, ElfError, Inference, Located, locate};

/// Results kept in memory: a machine has few different libcs, however many copies. 64 x about 60 KiB = 4 MiB.
const RESULTS: usize = 64;

/// A file's content and the debug file that was beside it.
type Known = (ContentId, Option<FileKey>);

/// What the cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files whose content was known in memory.
    pub from_memory: u64,
    /// Files whose inference was taken from the folder.
    pub from_folder: u64,
    /// Inferences put into the folder.
    pub stored: u64,
    /// Entries of the folder that were not believed, and taken out.
    pub refused: u64,
    /// Times the folder could not be read or written.
    pub failed: u64,
}

/// What was found before.
#[derive(Debug, Default)]
pub struct Cache {
    results: HashMap<Known, Located>,
    order: VecDeque<Known>,
    /// Files that took too long.
    slow: VecDeque<(FileKey, ElfError)>,
    folder: Option<Folder>,
    /// What it did so far.
    pub counts: Counts,
}

impl Cache {
    /// Keeps inferences in the folder at `path`, too.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn keep_in(&mut self, path: &Path) -> Result<(), FolderError> {
        self.folder = Some(Folder::open(path)?);
        Ok(())
    }

    /// [`Contents::locate`], or what it said of the same bytes before.
    ///
    /// # Errors
    /// As there.
    pub fn locate(&mut self, file: &TargetFile, root: Root) -> Result<Located, ElfError> {
        if let Some((_, error)) = self.slow.iter().find(|(key, _)| *key == file.key) {
            return Err(error.clone());
        }
        let Some(bytes) = Contents.whole(file) else {
            let found = Contents.locate(file, root);
            if let Err(error @ ElfError::TooSlow { .. }) = &found {
                self.give_up(file.key, error.clone());
            }
            return found;
        };
        let id = ContentId::of(&bytes);
        let debug = Contents.debug_file(id.build_id.as_ref(), root);
        let known = (id, debug.as_ref().map(|debug| debug.key));
        if let Some(located) = self.results.get(&known) {
            self.counts.from_memory += 1;
            return Ok(located.clone());
        }
        let id = &known.0;
        let before = self.stored(id);
        let debug = debug.as_ref().map(|debug| ReadCache::new(debug.reader()));
        let deadline = Deadline::new();
        let debug = debug.as_ref().map(|debug| deadline.on(debug));
        let found = deadline.keeps(locate::locate_knowing(deadline.on(&*bytes), debug, before.as_ref()));
        if let Err(error @ ElfError::TooSlow { .. }) = &found {
            self.give_up(file.key, error.clone());
        }
        let (located, made) = found?;
        match (before, made) {
            (None, Some(made)) => self.store(id, &made),
            (Some(_), Some(made)) => {
                self.refuse(id, "its functions do not begin where the file's do");
                self.store(id, &made);
            }
            // Where a table names the functions, nothing of the entry is used.
            (Some(_), None) => self.counts.from_folder += u64::from(located.located_by == Source::Inferred),
            (None, None) => {}
        }
        self.remember(known, located.clone());
        Ok(located)
    }

    /// Nobody waits for this file a second time.
    fn give_up(&mut self, key: FileKey, error: ElfError) {
        if self.slow.len() >= RESULTS {
            self.slow.pop_front();
        }
        self.slow.push_back((key, error));
    }

    fn remember(&mut self, known: Known, located: Located) {
        if self.order.len() >= RESULTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.results.remove(&oldest);
        }
        self.order.push_back(known.clone());
        self.results.insert(known, located);
    }

    fn stored(&mut self, id: &ContentId) -> Option<Inference> {
        let read = self.folder.as_ref()?.read(&id.to_string());
        let decoded = match read {
            Ok(bytes) => bytes.map(|bytes| decode(id, &bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.refuse(id, "it is no plain file of this user's, or too large");
                None
            }
            Err(error) => {
                self.fail(&error);
                None
            }
        };
        match decoded? {
            Ok(inference) => Some(inference),
            // It is written anew.
            Err(Refused::OtherVersion) => None,
            Err(why) => {
                self.refuse(id, &why.to_string());
                None
            }
        }
    }

    fn store(&mut self, id: &ContentId, made: &Inference) {
        let Some(folder) = &self.folder else { return };
        match folder.write(&id.to_string(), &encode(id, made)) {
            Ok(()) => self.counts.stored += 1,
            Err(error) => self.fail(&error),
        }
    }

    /// Takes an entry out. The first is told of; the rest is counted, for whoever spoils one may spoil them all.
    fn refuse(&mut self, id: &ContentId, why: &str) {
        if let Some(folder) = &self.folder {
            folder.remove(&id.to_string());
        }
        if self.counts.refused == 0 {
            tracing::warn!(entry = %id, why, "an entry of the cache folder was taken out; more are only counted");
        }
        self.counts.refused += 1;
    }

    fn fail(&mut self, error: &std::io::Error) {
        if self.counts.failed == 0 {
            tracing::warn!(%error, "the cache folder cannot be used; more failures are only counted");
        }
        self.counts.failed += 1;
    }
}
