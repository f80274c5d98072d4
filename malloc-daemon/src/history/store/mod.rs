//! The store on disk: tables, opening, setting aside what is damaged.

mod prune;
mod write;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, ConcurrencyMode, Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use rustix::fs::{Mode, OFlags};

use super::backend::{BoundedFile, Size};
use super::record::{ImageId, TextId};

pub(super) use write::{Batch, NewIncident};

type Records = TableDefinition<'static, u64, &'static [u8]>;
type Rows = TableDefinition<'static, (u64, ImageId), &'static [u8]>;

/// Steps of a tier, by the sequence of the finest step at which they end.
pub(super) const STEPS: [Records; 3] = [Records::new("steps_10s"), Records::new("steps_1m"), Records::new("steps_1h")];
/// Rows of a tier, by step and image.
pub(super) const ROWS: [Rows; 3] = [Rows::new("rows_10s"), Rows::new("rows_1m"), Rows::new("rows_1h")];
/// Images by number.
pub(super) const IMAGES: TableDefinition<'static, ImageId, &'static [u8]> = TableDefinition::new("images");
/// Frames and stacks, each once, by number.
pub(super) const TEXTS: TableDefinition<'static, TextId, &'static [u8]> = TableDefinition::new("texts");
/// Raises and sampled crossings, in the order in which they were written.
pub(super) const INCIDENTS: Records = Records::new("incidents");
/// Counters of the store itself.
pub(super) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");

/// Layout of the tables.
const FORMAT: u64 = 1;
/// The file in the folder.
pub const FILE: &str = "history.redb";
/// What a damaged store is called, followed by a date.
const DAMAGED: &str = "history.redb.damaged-";
/// Pages kept in memory, bytes: the right edges of the trees that are written.
const CACHE: usize = 4 << 20;
/// A store smaller than this has no room for one step beside what a commit needs.
pub const LEAST_BYTES: u64 = 8 << 20;

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon writes it.
    #[error("another malloc-daemon writes the history in {0}: give each daemon a folder of its own")]
    InUse(PathBuf),
    /// There is none.
    #[error("there is no history in {0}")]
    Missing(PathBuf),
    /// What it holds is not what was written.
    #[error("the history is damaged: {0}")]
    Damaged(String),
    /// Neither the disk nor the bound leaves room.
    #[error("there is no room for the history: {0}")]
    NoRoom(String),
    /// The system refused.
    #[error("the history cannot be used: {0}")]
    Failed(String),
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::of(error.into())
            }
        })*
    };
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::CompactionError
);

impl StoreError {
    fn of(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Damaged(error.to_string()),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    Self::NoRoom(error.to_string())
                }
                _ => Self::Failed(error.to_string()),
            },
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => Self::Damaged(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The numbers that come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Next {
    /// Sequence of the next step.
    pub(super) sequence: u64,
    /// Number of the next image.
    pub(super) image: ImageId,
    /// Number of the next incident.
    pub(super) incident: u64,
    /// This run of a daemon.
    pub(super) run: u64,
}

/// A store that this process writes.
pub(super) struct Store {
    db: Arc<Database>,
    size: Arc<Size>,
    pub(super) next: Next,
    /// Bytes written since the use of the file was looked at.
    unchecked: u64,
    /// The disk had no room for a larger file.
    disk_full: bool,
    /// Steps and incidents that went before their time because the store was full, in all its life.
    pub(super) pruned: u64,
}

/// A store that was opened, and the damaged one that it replaces.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) set_aside: Option<(PathBuf, String)>,
}

/// Opens the store in a folder; makes one where there is none, and where what is there is damaged.
pub(super) fn open(folder: &Path, max_bytes: u64, date: &str) -> Result<Opened, StoreError> {
    match open_as_it_is(folder, max_bytes).and_then(within) {
        Ok(store) => Ok(Opened { store, set_aside: None }),
        Err(StoreError::Damaged(why)) => {
            let aside = set_aside(folder, date)?;
            Ok(Opened { store: open_as_it_is(folder, max_bytes)?, set_aside: Some((aside, why)) })
        }
        Err(error) => Err(error),
    }
}

fn within(mut store: Store) -> Result<Store, StoreError> {
    match store.keep_within(&HashSet::new()) {
        // Not even the pages are left that taking something out needs.
        Err(StoreError::NoRoom(why)) => Err(StoreError::Damaged(why)),
        other => other.map(|()| store),
    }
}

fn open_as_it_is(folder: &Path, max_bytes: u64) -> Result<Store, StoreError> {
    let max_bytes = max_bytes.max(LEAST_BYTES);
    let file = open_file(folder, OFlags::RDWR | OFlags::CREATE)?;
    let held = file.metadata().map_err(|error| failed(folder, &error))?.len();
    let size = Size::new(max_bytes.max(held));
    let store = sound(|| {
        let file = BoundedFile::new(file, Arc::clone(&size)).map_err(|error| failed(folder, &error))?;
        let db = Builder::new()
            .set_cache_size(CACHE)
            .set_concurrency_mode(ConcurrencyMode::SingleWriter)
            // Reads the whole file: what was altered behind the store's back is found now, not in the middle of a night.
            .set_check_integrity_on_open(true)
            .create_with_backend(file)
            .map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(folder.to_owned()),
                other => other.into(),
            })?;
        Store::begin(db, Arc::clone(&size))
    })?;
    if held <= max_bytes {
        return Ok(store);
    }
    // The bound was larger when this was written.
    store.shrink(max_bytes)?;
    let held = size.now();
    if held > max_bytes {
        tracing::warn!(bytes = held, max_bytes, "the history does not fit into its new size: it is started anew");
        fs::remove_file(folder.join(FILE)).map_err(|error| failed(folder, &error))?;
    }
    open_as_it_is(folder, max_bytes)
}

/// A damaged store may make the library panic; that is damage, too.
fn sound<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(StoreError::Damaged(panic_text(&*panic))))
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("reading it failed").chars().take(200).collect()
}

/// Only a regular file of that very name, followed through no link.
fn open_file(folder: &Path, flags: OFlags) -> Result<File, StoreError> {
    let mode = Mode::RUSR | Mode::WUSR;
    let opened =
        rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).and_then(|dir| {
            rustix::fs::openat(&dir, FILE, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK, mode)
        });
    let file = File::from(opened.map_err(|error| match error {
        rustix::io::Errno::NOENT => StoreError::Missing(folder.to_owned()),
        other => failed(folder, &other.into()),
    })?);
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(StoreError::Failed(format!("{} is not a regular file", folder.join(FILE).display()))),
        Err(error) => Err(failed(folder, &error)),
    }
}

fn failed(folder: &Path, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::NoRoom(format!("{}: {error}", folder.display()))
        }
        _ => StoreError::Failed(format!("{}: {error}", folder.display())),
    }
}

/// Renames the store, so that it can be looked at; one such is kept.
fn set_aside(folder: &Path, date: &str) -> Result<PathBuf, StoreError> {
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(DAMAGED)) {
        // What cannot be removed is no reason to go without a history.
        let _ = fs::remove_file(entry.path());
    }
    let aside = folder.join(format!("{DAMAGED}{date}"));
    fs::rename(folder.join(FILE), &aside).map_err(|error| failed(folder, &error))?;
    Ok(aside)
}

impl Store {
    fn begin(db: Database, size: Arc<Size>) -> Result<Self, StoreError> {
        let txn = db.begin_write()?;
        let mut next = Next::default();
        let pruned;
        {
            let mut meta = txn.open_table(META)?;
            let held =
                |name: &str| -> Result<Option<u64>, StoreError> { Ok(meta.get(name)?.map(|value| value.value())) };
            if held("format")?.is_some_and(|format| format != FORMAT) {
                return Err(StoreError::Damaged("it has the layout of another version".to_owned()));
            }
            next.sequence = held("next_sequence")?.unwrap_or(1);
            next.image = held("next_image")?.unwrap_or(1);
            next.incident = held("next_incident")?.unwrap_or(1);
            next.run = held("run")?.unwrap_or(0) + 1;
            pruned = held("pruned")?.unwrap_or(0);
            meta.insert("format", FORMAT)?;
            meta.insert("run", next.run)?;
        }
        for tier in 0..STEPS.len() {
            txn.open_table(STEPS[tier])?;
            txn.open_table(ROWS[tier])?;
        }
        txn.open_table(IMAGES)?;
        txn.open_table(TEXTS)?;
        txn.open_table(INCIDENTS)?;
        txn.commit()?;
        Ok(Self { db: Arc::new(db), size, next, unchecked: u64::MAX, disk_full: false, pruned })
    }

    /// The database, for readers of this process.
    pub(super) fn database(&self) -> Arc<Database> {
        Arc::clone(&self.db)
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.size.now()
    }

    /// An error, with the lack of room behind it.
    pub(super) fn told(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Failed(why) if self.size.was_refused() => StoreError::NoRoom(why),
            other => other,
        }
    }

    /// The file is not made longer for now.
    pub(super) fn note_full_disk(&mut self) {
        self.disk_full = true;
        self.unchecked = u64::MAX;
    }
}

/// Reads a store, which another process may be writing.
pub(super) enum Source {
    Shared(Arc<Database>),
    ReadOnly(redb::ReadOnlyDatabase),
}

impl Source {
    pub(super) fn begin(&self) -> Result<ReadTransaction, StoreError> {
        Ok(match self {
            Source::Shared(db) => db.begin_read()?,
            Source::ReadOnly(db) => db.begin_read()?,
        })
    }
}

/// Opens the store in a folder for reading, while a daemon writes it or not.
pub(super) fn open_for_reading(folder: &Path) -> Result<Source, StoreError> {
    let builder = || {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE).set_concurrency_mode(ConcurrencyMode::SingleWriter);
        builder
    };
    let file = open_file(folder, OFlags::RDONLY)?;
    let opened = sound(|| {
        let backend = redb::backends::FileBackend::new(file)?;
        Ok(builder().open_read_only_with_backend(backend))
    })?;
    match opened {
        Ok(db) => Ok(Source::ReadOnly(db)),
        // Its writer was killed: reading alone cannot mend that.
        Err(redb::DatabaseError::RepairAborted) => sound(|| {
            let file = open_file(folder, OFlags::RDWR)?;
            let held = file.metadata().map_err(|error| failed(folder, &error))?.len();
            let file = BoundedFile::new(file, Size::new(held)).map_err(|error| failed(folder, &error))?;
            Ok(Source::Shared(Arc::new(builder().create_with_backend(file)?)))
        }),
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse(folder.to_owned())),
        Err(error) => Err(error.into()),
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Source::Shared(_) => "Shared",
            Source::ReadOnly(_) => "ReadOnly",
        })
    }
}
