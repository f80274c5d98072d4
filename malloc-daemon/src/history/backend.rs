//! The file under the store: never longer than it may be, and its space taken before it is used.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate};

/// A doubled file is longer than twice its length by no more than this: its first page counts once.
const DOUBLING: u64 = 4096;

/// How long the file is and may be, bytes; shared with the store.
#[derive(Debug)]
pub(super) struct Size {
    max: u64,
    now: AtomicU64,
    /// Neither the bound nor the disk left room: the library's own errors do not always say so.
    refused: AtomicBool,
    handle: OnceLock<File>,
}

impl Size {
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { max, now: AtomicU64::new(0), refused: AtomicBool::new(false), handle: OnceLock::new() })
    }

    /// Bytes of the file.
    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Whether room was refused.
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    fn noted(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result
            && matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            )
        {
            self.refused.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Takes from the disk what the file needs to double; false where that is not allowed, or not there.
    pub(super) fn reserve_double(&self) -> bool {
        let (now, handle) = (self.now(), self.handle.get());
        let reserve = |handle: &File| match fallocate(handle, FallocateFlags::KEEP_SIZE, now, now + DOUBLING) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => true,
            Err(_) => false,
        };
        self.may_double() && handle.is_none_or(reserve)
    }

    /// The store doubles its file: whether that is allowed once more.
    pub(super) fn may_double(&self) -> bool {
        self.now().saturating_mul(2) <= self.max
    }
}

/// A file that refuses to grow beyond a size.
#[derive(Debug)]
pub(super) struct BoundedFile {
    file: FileBackend,
    handle: File,
    size: Arc<Size>,
}

impl BoundedFile {
    pub(super) fn new(file: File, size: Arc<Size>) -> io::Result<Self> {
        let handle = file.try_clone()?;
        size.now.store(handle.metadata()?.len(), Ordering::Relaxed);
        // A size belongs to one file.
        let _ = size.handle.set(handle.try_clone()?);
        let file = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Self { file, handle, size })
    }

    fn lengthen(&self, len: u64) -> io::Result<()> {
        let now = self.file.len()?;
        if len > now {
            if len > self.size.max {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the history has its whole size"));
            }
            // A write into a hole could fail in the middle of a commit when the disk is full; this fails before it.
            match fallocate(&self.handle, FallocateFlags::empty(), now, len - now) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.file.set_len(len)?;
        self.size.now.store(len, Ordering::Relaxed);
        Ok(())
    }
}

impl StorageBackend for BoundedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.size.noted(self.lengthen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.size.noted(self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
