//! Questions to the history and what they are answered with: no format.

use super::record::{Image, Incident};
use super::row::Figures;
use super::store::StoreError;
use crate::aggregate::model::{End, Stack};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It would take too long.
    #[error("the answer takes longer than is allowed: ask for a shorter time, or for one process")]
    TooSlow,
}

macro_rules! through_store {
    ($($error:ty),*) => {
        $(impl From<$error> for QueryError {
            fn from(error: $error) -> Self {
                Self::Store(error.into())
            }
        })*
    };
}
through_store!(redb::TableError, redb::StorageError);

/// Which time, milliseconds since 1970, and how finely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// From when on.
    pub from_unix_ms: u64,
    /// Until when.
    pub to_unix_ms: u64,
    /// Wanted length of a step, milliseconds; `None`: as suits the length of the time.
    pub step_ms: Option<u64>,
}

/// Whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Processes with this number.
    pub pid: Option<u32>,
    /// Processes of this name.
    pub comm: Option<String>,
    /// Processes of this executable: its path, or the last part of it.
    pub exe: Option<String>,
}

impl Filter {
    pub(super) fn everyone(&self) -> bool {
        self == &Self::default()
    }

    pub(super) fn matches(&self, image: &Image) -> bool {
        let exe = |wanted: &String| {
            image.exe.as_ref().is_some_and(|exe| exe == wanted || exe.rsplit('/').next() == Some(wanted))
        };
        self.pid.is_none_or(|pid| pid == image.id.pid)
            && self.comm.as_ref().is_none_or(|comm| *comm == image.comm)
            && self.exe.as_ref().is_none_or(exe)
    }
}

/// A time without steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its begin, milliseconds since 1970.
    pub from_unix_ms: u64,
    /// Its end.
    pub to_unix_ms: u64,
    /// Another run of the daemon follows.
    pub restarted: bool,
    /// The clock went backwards, or further forward than the daemon was away.
    pub clock_changed: bool,
}

/// The time that an answer is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// Begin of the first step, milliseconds since 1970; `None`: there is no step.
    pub from_unix_ms: Option<u64>,
    /// End of the last.
    pub to_unix_ms: Option<u64>,
    /// Length of the longest step used, milliseconds.
    pub step_ms: u64,
    /// Steps used.
    pub steps: usize,
    /// Times without steps between them.
    pub gaps: Vec<Gap>,
    /// Losses that cannot be laid to one process.
    pub losses: u64,
    /// Images whose changes are not told apart.
    pub folded: u64,
}

/// A step of an answer, or several put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its begin, milliseconds since 1970.
    pub from_unix_ms: u64,
    /// Its end.
    pub to_unix_ms: u64,
    /// Sequence of its last step: grows whatever the clock does.
    pub sequence: u64,
    /// By how much counters grew.
    pub delta: Figures,
    /// The figures at its end; `None`: they are of several images.
    pub now: Option<Figures>,
}

/// How counters went over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Which time.
    pub covered: Covered,
    /// Whose.
    pub images: Vec<Image>,
    /// Steps in which something changed.
    pub points: Vec<Point>,
}

/// What changed of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose; `None`: of several that are put together.
    pub image: Option<Image>,
    /// By how much counters grew.
    pub delta: Figures,
    /// The figures at the last change.
    pub now: Figures,
    /// Begin of the first step with a change, milliseconds since 1970.
    pub from_unix_ms: u64,
    /// End of the last.
    pub to_unix_ms: u64,
    /// How it ended, if it did.
    pub ended: Option<End>,
    /// Nothing is missing from its counts.
    pub complete: bool,
}

/// An incident with its stacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What, to whom, when.
    pub incident: Incident,
    /// Name of the process.
    pub comm: Option<String>,
    /// On which stack.
    pub stack: Option<Stack>,
    /// Which stack mapped the chunk of a raise.
    pub mapped_by: Option<Stack>,
}

/// Crossings of one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossers {
    /// The stack; `None`: it was not named.
    pub stack: Option<Stack>,
    /// Crossings, those that samples stand for included.
    pub calls: u64,
    /// Their bytes, in the same way.
    pub bytes: u64,
    /// Names of the processes.
    pub comms: Vec<String>,
}

impl Account {
    /// Whether nothing is missing: the time is covered without a gap, and each account in it is complete.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.covered.gaps.is_empty()
            && self.covered.losses == 0
            && self.covered.steps > 0
            && self.changes.iter().all(|change| change.complete)
    }
}

/// What happened between two times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Which time.
    pub covered: Covered,
    /// Processes, those first that took most from the kernel.
    pub changes: Vec<Change>,
    /// Raises of thresholds, in the order in which they were written.
    pub raises: Vec<Told>,
    /// Crossings by stack, those first with most bytes.
    pub crossings: Vec<Crossers>,
}
