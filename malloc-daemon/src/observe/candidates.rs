//! Files of which one served a process that ended before it could be told which: a level is known if each of them has it.

use malloc_common::abi::Origin;
use malloc_common::depth::Depth;
use malloc_common::site::HeapEvent;

use super::files::{Files, ProbedFile};
use super::programs::is_the_probe_of;
use crate::host::file::FileKey;
use crate::targets::AllocatorKind;

/// The files that come into question.
pub struct Candidates<'a>(Vec<&'a ProbedFile>);

impl<'a> Candidates<'a> {
    /// Those that the process was seen to map, or else all; of them those with an `mp_` alone if one was read.
    pub fn of(files: &'a Files, seen: &[FileKey], has_mp: bool) -> Self {
        let among = |key: &FileKey| seen.is_empty() || seen.contains(key);
        let comes = |file: &ProbedFile| !has_mp || matches!(file.located.kind, AllocatorKind::Glibc { .. });
        Self(files.all().filter(|(key, file)| among(key) && comes(file)).map(|(_, file)| file).collect())
    }

    /// Levels up to `depth` that some file does not tell, and why.
    pub fn unmeasured_by_any(&self, depth: Depth) -> Vec<(Depth, String)> {
        let levels = [Depth::Sysmalloc, Depth::Arena, Depth::Call].into_iter().filter(|level| *level <= depth);
        let missing = levels.filter_map(|level| {
            let tells = |file: &ProbedFile| file.located.hooks.iter().any(|hook| is_the_probe_of(hook.role, level));
            let lacking = self.0.iter().find(|file| !tells(file))?.summary();
            Some((level, format!("it ended before its allocator could be told; {lacking} does not tell it")))
        });
        missing.collect()
    }

    /// Static probes that every file has.
    pub fn told_by_all(&self) -> Vec<HeapEvent> {
        let all = |event: &HeapEvent| self.0.iter().all(|file| file.tells(*event));
        if self.0.is_empty() { Vec::new() } else { HeapEvent::ALL.into_iter().filter(all).collect() }
    }

    /// Origins that some file does not tell.
    pub fn untold_by_any(&self) -> Vec<Origin> {
        let mut untold: Vec<Origin> = Vec::new();
        for origin in self.0.iter().flat_map(|file| file.untold()) {
            if !untold.contains(&origin) {
                untold.push(origin);
            }
        }
        untold
    }
}
