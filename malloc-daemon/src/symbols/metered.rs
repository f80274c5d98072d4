//! A reader of debug data that refuses to go on when its share of work, or of the thread's stack, is used up.
//!
//! The libraries that parse debug data build lists and recurse as the data says; data made for it would take all
//! memory or overflow the stack. Both need reads, and each read passes here.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gimli::{Error, LittleEndian, ReaderOffsetId};

/// The most of a thread's stack that parsing may take. New threads have 2 MiB.
const STACK_BYTES: usize = 512 << 10;

/// What may still be done. One thread uses it at a time; the atomics are there because readers have to be `Sync`.
#[derive(Debug, Default)]
pub struct Meter {
    left: AtomicU64,
    stack_base: AtomicUsize,
}

impl Meter {
    /// Allows `reads` steps from here on, with the caller's place on the stack as the beginning.
    pub fn refill(&self, reads: u64) {
        self.left.store(reads, Ordering::Relaxed);
        self.stack_base.store(place_on_stack(), Ordering::Relaxed);
    }

    /// The steps that are left.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    fn spend(&self, steps: u64) -> bool {
        let left = self.left();
        self.left.store(left.saturating_sub(steps), Ordering::Relaxed);
        left > steps && self.stack_base.load(Ordering::Relaxed).abs_diff(place_on_stack()) < STACK_BYTES
    }
}

#[inline(never)]
fn place_on_stack() -> usize {
    let marker = 0u8;
    std::hint::black_box(&raw const marker).addr()
}

struct Section {
    bytes: Vec<u8>,
    meter: Arc<Meter>,
}

/// A part of a debug section.
#[derive(Clone)]
pub struct Metered {
    section: Arc<Section>,
    start: usize,
    end: usize,
}

impl Metered {
    /// All of a section.
    pub fn new(bytes: Vec<u8>, meter: Arc<Meter>) -> Self {
        let end = bytes.len();
        Self { section: Arc::new(Section { bytes, meter }), start: 0, end }
    }

    fn bytes(&self) -> &[u8] {
        self.section.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn refusal(&self) -> Error {
        Error::UnexpectedEof(gimli::Reader::offset_id(self))
    }

    fn spend(&self, steps: usize) -> Result<(), Error> {
        if self.section.meter.spend(steps as u64) { Ok(()) } else { Err(self.refusal()) }
    }

    /// Moves the start, when there is that much.
    fn advance(&mut self, length: usize) -> Result<usize, Error> {
        let from = self.start;
        match from.checked_add(length) {
            Some(start) if start <= self.end => {
                self.start = start;
                Ok(from)
            }
            _ => Err(self.refusal()),
        }
    }
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metered({}..{})", self.start, self.end)
    }
}

impl gimli::Reader for Metered {
    type Endian = LittleEndian;
    type Offset = usize;

    fn endian(&self) -> LittleEndian {
        LittleEndian
    }

    fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    fn empty(&mut self) {
        self.end = self.start;
    }

    fn truncate(&mut self, length: usize) -> Result<(), Error> {
        match self.start.checked_add(length) {
            Some(end) if end <= self.end => {
                self.end = end;
                Ok(())
            }
            _ => Err(self.refusal()),
        }
    }

    fn offset_from(&self, base: &Self) -> usize {
        self.start.saturating_sub(base.start)
    }

    fn offset_id(&self) -> ReaderOffsetId {
        // The address tells sections apart; it is never followed.
        ReaderOffsetId((self.section.bytes.as_ptr().addr() as u64).wrapping_add(self.start as u64))
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let offset = usize::try_from(id.0.checked_sub(self.offset_id().0)?).ok()?;
        (offset <= self.len()).then_some(offset)
    }

    fn find(&self, byte: u8) -> Result<usize, Error> {
        let found = memchr::memchr(byte, self.bytes()).ok_or_else(|| self.refusal())?;
        self.spend(1 + found / 64)?;
        Ok(found)
    }

    fn skip(&mut self, length: usize) -> Result<(), Error> {
        self.advance(length).map(drop)
    }

    fn split(&mut self, length: usize) -> Result<Self, Error> {
        self.spend(1)?;
        let start = self.advance(length)?;
        Ok(Self { section: Arc::clone(&self.section), start, end: self.start })
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>, Error> {
        Ok(self.bytes().into())
    }

    fn to_string(&self) -> Result<Cow<'_, str>, Error> {
        str::from_utf8(self.bytes()).map(Cow::from).map_err(|_| Error::BadUtf8)
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>, Error> {
        Ok(String::from_utf8_lossy(self.bytes()))
    }

    fn read_slice(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.spend(1)?;
        let from = self.advance(buffer.len())?;
        let bytes = self.section.bytes.get(from..self.start).ok_or_else(|| self.refusal())?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use gimli::Reader as _;

    use super::*;

    fn reader(bytes: &[u8], reads: u64) -> Metered {
        let meter = Arc::new(Meter::default());
        meter.refill(reads);
        Metered::new(bytes.to_vec(), meter)
    }

    #[test]
    fn reading_ends_with_the_allowance() {
        let mut reader = reader(&[1; 100], 10);
        let read = std::iter::from_fn(|| reader.read_u8().ok()).count();
        assert_eq!(read, 9);
    }

    #[test]
    fn reading_deep_in_a_recursion_is_refused() {
        fn deep(reader: &mut Metered, levels: u32) -> u32 {
            let ballast = std::hint::black_box([levels; 256]);
            match reader.read_u8() {
                Ok(_) if levels > 0 => deep(reader, levels - 1) + ballast[0].min(1),
                _ => levels,
            }
        }
        let mut reader = reader(&[1; 10_000], 1 << 20);
        assert!(deep(&mut reader, 1500) > 1, "1,500 KiB of stack are never reached");
        assert!(reader.read_u8().is_ok());
    }

    #[test]
    fn parts_know_their_place_and_end() {
        let mut whole = reader(b"abc\0def", 100);
        let base = whole.clone();
        let name = whole.read_null_terminated_slice().unwrap();
        assert_eq!(name.to_string().unwrap(), "abc");
        assert_eq!((whole.offset_from(&base), whole.len()), (4, 3));
        assert_eq!(base.lookup_offset_id(whole.offset_id()), Some(4));
        assert!(whole.split(4).is_err() && whole.skip(usize::MAX).is_err() && whole.truncate(usize::MAX).is_err());
        assert!(whole.skip(3).is_ok() && whole.read_u8().is_err());
    }
}
