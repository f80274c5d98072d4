//! Reads the real maps: rows through memory mappings, so that a collection makes no system call per process.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, MapData, RingBuf, Stack};
use malloc_common::abi::{
    Event, FLIGHT_WORDS, HISTOGRAM_WORDS, SERIES, SLOT_FREE, SLOT_LIVE, SLOT_WORDS, SampleRegisters, Slot,
    sample_from_bytes,
};
use malloc_common::chunk::{CHUNK_KEY_WORDS, CHUNK_WORDS, Chunk, ChunkKey};
use malloc_common::loss::LOSSES;
use malloc_common::maps::spares;
use malloc_common::stripe::{STRIPE_WORDS, STRIPES};
use malloc_common::tracker::{MpPlace, empty_flight};

use super::rows::Rows;
use super::{Collector, EventSource, RawImage, RawSnapshot};
use crate::host::fdinfo;
use crate::probes::{LoadError, MappedArray, Object};

/// Why the maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The object is not the daemon's.
    #[error(transparent)]
    Object(#[from] LoadError),
    /// The kernel refuses to map a BPF array.
    #[error("cannot map {0} into memory: {1}")]
    Mapping(&'static str, #[source] std::io::Error),
    /// A free list cannot be filled.
    #[error("cannot fill {0}: {1}")]
    FreeList(&'static str, #[source] aya::maps::MapError),
}

/// The maps of a loaded object.
pub struct BpfCollector {
    rows: Rows,
    lost: MappedArray,
    free_slots: Stack<MapData, u32>,
    free_histograms: Stack<MapData, u32>,
    free_spares: Stack<MapData, u32>,
    /// The first of the spare histograms.
    first_spare: u32,
    processes: HashMap<MapData, u32, u32>,
    chunks: HashMap<MapData, [u64; CHUNK_KEY_WORDS], [u64; CHUNK_WORDS]>,
    most_chunks: usize,
    programs: Vec<OwnedFd>,
    /// What was read of each slot last.
    last: Vec<Option<Arc<RawImage>>>,
    /// No slot from this one on was ever seen in use.
    unused: usize,
}

/// Slots are taken lowest first, so that behind so many that were never in use there is none: one that is just being
/// taken is free still when a later one counts already, and that many processors do not take one at once.
const UNUSED_AFTER: usize = 256;

impl BpfCollector {
    /// Maps the arrays and fills the free lists: must come before the first probe.
    ///
    /// # Errors
    ///
    /// See [`CollectError`].
    pub fn new(object: &mut Object) -> Result<Self, CollectError> {
        let rows = object.capacities;
        let map = |name: &'static str, rows: u32, words: usize| -> Result<MappedArray, CollectError> {
            let fd = object.map_fd(name)?.try_clone_to_owned().map_err(|error| CollectError::Mapping(name, error))?;
            Ok(MappedArray::new(fd, rows as usize, words))
        };
        let all_histograms = rows.histograms + spares(rows.histograms);
        let read = Rows {
            slots: Arc::new(map("SLOTS", rows.slots, SLOT_WORDS)?),
            stripes: Arc::new(map("STRIPES", rows.slots * STRIPES, STRIPE_WORDS)?),
            histograms: Arc::new(map("HISTOGRAMS", all_histograms, HISTOGRAM_WORDS)?),
        };
        // The kernel rounds a row of the mapped array up to eight bytes, and the array to whole pages.
        let lost = map("LOST", LOSSES as u32, 1)?;
        let zero = map("ZERO_FLIGHT", 1, FLIGHT_WORDS)?;
        for (word, value) in zero.row(0).iter().zip(empty_flight().to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        let programs = object.program_fds().into_iter().filter_map(|(_, fd)| fd.try_clone_to_owned().ok()).collect();
        let mut free_slots: Stack<MapData, u32> = object.take_map("FREE_SLOTS")?;
        let mut free_histograms: Stack<MapData, u32> = object.take_map("FREE_HISTS")?;
        for slot in (0..rows.slots).rev() {
            free_slots.push(slot, 0).map_err(|error| CollectError::FreeList("FREE_SLOTS", error))?;
        }
        for histogram in (0..rows.histograms).rev() {
            free_histograms.push(histogram, 0).map_err(|error| CollectError::FreeList("FREE_HISTS", error))?;
        }
        let mut free_spares: Stack<MapData, u32> = object.take_map("FREE_SPARES")?;
        for histogram in (rows.histograms..all_histograms).rev() {
            free_spares.push(histogram, 0).map_err(|error| CollectError::FreeList("FREE_SPARES", error))?;
        }
        let processes = object.take_map("PROCESSES")?;
        let (chunks, most_chunks) = (object.take_map("CHUNKS")?, rows.chunks as usize);
        let last = vec![None; rows.slots as usize];
        Ok(Self {
            rows: read,
            lost,
            free_slots,
            free_histograms,
            free_spares,
            first_spare: rows.histograms,
            processes,
            chunks,
            most_chunks,
            programs,
            last,
            unused: 0,
        })
    }

    /// Gives a process that runs already a slot before its first event, so that it is in the next snapshot. Does
    /// nothing when it has one, or when none is free: its first event then counts the loss.
    ///
    /// `threshold` is its mmap threshold as just read, 0 if it was not: a rise from there is the first that is seen.
    /// `place` is where its `mp_` lies.
    pub fn adopt(&mut self, pid: u32, start_ns: u64, comm: &str, threshold: u64, place: Option<MpPlace>) {
        let mp_place = place.map_or(0, MpPlace::to_word);
        if let Ok(index) = self.processes.get(&pid, 0) {
            // What the kernel side has read meanwhile is newer.
            let row = self.rows.slots.row(index as usize);
            let (threshold_at, place_at) =
                const { (std::mem::offset_of!(Slot, threshold) / 8, std::mem::offset_of!(Slot, mp_place) / 8) };
            for (at, value) in [(threshold_at, threshold), (place_at, mp_place)] {
                if let Some(word) = row.get(at) {
                    let _ = word.compare_exchange(0, value, Ordering::AcqRel, Ordering::Relaxed);
                }
            }
            return;
        }
        let Ok(index) = self.free_slots.pop(0) else { return };
        let mut slot = Slot { tgid: pid, start_ns, first_ns: boot_ns(), threshold, mp_place, ..Slot::FREE };
        for (to, from) in slot.comm.iter_mut().zip(comm.bytes().take(15)) {
            *to = from;
        }
        for (word, value) in self.rows.slots.row(index as usize).iter().zip(slot.to_words()) {
            word.store(value, Ordering::Release);
        }
        // BPF_NOEXIST: its first event may come first.
        if self.processes.insert(pid, index, 1).is_err() {
            self.rows.slots.clear(index as usize);
            let _ = self.free_slots.push(index, 0);
            return;
        }
        // Live only now that it counts, so that no program takes a hint to it before; not at all if it has ended since.
        let first = |slot: Slot| slot.to_words()[0];
        let live = first(Slot { state: SLOT_LIVE, ..slot });
        if let Some(word) = self.rows.slots.row(index as usize).first() {
            let _ = word.compare_exchange(first(slot), live, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The rows, to be read by another thread meanwhile.
    #[must_use]
    pub fn rows(&self) -> Rows {
        self.rows.clone()
    }

    /// Forgets the chunks that ended images had mapped; nobody adds any of theirs. One pass over the table whatever it
    /// holds: about a microsecond for each entry.
    fn forget_chunks(&mut self, ended: &BTreeSet<(u64, u64)>) {
        let pids: BTreeSet<u64> = ended.iter().map(|(pid, _)| *pid).collect();
        // Keys that come and go meanwhile can send the iteration back to the beginning.
        let most = self.most_chunks * 2;
        let own = |key: &[u64; CHUNK_KEY_WORDS]| pids.contains(&ChunkKey::from_words(*key).tgid);
        let keys: Vec<_> = self.chunks.keys().take(most).filter_map(Result::ok).filter(own).collect();
        for key in keys {
            let Ok(chunk) = self.chunks.get(&key, 0) else { continue };
            if ended.contains(&(ChunkKey::from_words(key).tgid, Chunk::from_words(chunk).image_ns)) {
                let _ = self.chunks.remove(&key);
            }
        }
    }

    /// Gives the row of an ended image and its histograms back.
    fn recycle(&mut self, index: u32, slot: &Slot) {
        for histogram in self.rows.clear(index as usize, slot) {
            let pool = if histogram < self.first_spare { &mut self.free_histograms } else { &mut self.free_spares };
            let _ = pool.push(histogram, 0);
        }
        let _ = self.free_slots.push(index, 0);
    }
}

impl Collector for BpfCollector {
    fn collect(&mut self) -> RawSnapshot {
        let mut images = Vec::new();
        let mut left_chunks = BTreeSet::new();
        for index in 0..self.rows.slots.rows() {
            if index >= self.unused + UNUSED_AFTER {
                break;
            }
            // The state is the upper half of the first word on a little-endian machine, the lower on a big one:
            // an all-zero word is a free row on both.
            if self.rows.slots.row(index).first().is_none_or(|word| word.load(Ordering::Acquire) == 0) {
                continue;
            }
            self.unused = self.unused.max(index + 1);
            let Some(held) = self.last.get_mut(index) else { break };
            if let Some(last) = held.as_ref().filter(|last| self.rows.is_as_before(index, last)) {
                images.push(Arc::clone(last));
                continue;
            }
            let slot = self.rows.slot(index);
            if slot.state == SLOT_FREE {
                continue;
            }
            let image = Arc::new(self.rows.image(index, slot, SERIES));
            images.push(Arc::clone(&image));
            if slot.state == SLOT_LIVE {
                *held = Some(image);
                continue;
            }
            *held = None;
            if image.mapped_chunks() != 0 {
                left_chunks.insert((u64::from(slot.tgid), slot.first_ns));
            }
            self.recycle(index as u32, &slot);
        }
        if !left_chunks.is_empty() {
            self.forget_chunks(&left_chunks);
        }
        let mut lost = [0; LOSSES];
        for (index, count) in lost.iter_mut().enumerate() {
            *count = self.lost.row(index).first().map_or(0, |word| word.load(Ordering::Relaxed));
        }
        let missed = self.programs.iter().filter_map(|fd| fdinfo::figure(fd.as_fd(), fdinfo::RECURSION_MISSES)).sum();
        RawSnapshot { now_ns: boot_ns(), images, lost, missed }
    }
}

/// The clock of the kernel side: nanoseconds since boot, time asleep included.
#[must_use]
pub fn boot_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The event ring.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Takes the ring out of the object.
    ///
    /// # Errors
    ///
    /// See [`CollectError`].
    pub fn new(object: &mut Object) -> Result<Self, CollectError> {
        Ok(Self { ring: object.take_map("EVENTS")? })
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.ring.as_raw_fd()
    }
}

impl EventSource for Events {
    fn drain(&mut self, f: &mut dyn FnMut(Event)) {
        while let Some(item) = self.ring.next() {
            if let Some(event) = Event::from_bytes(&item) {
                f(event);
            }
        }
    }
}

/// Receives one sample: the event, instruction, stack and frame pointer, the stack from the stack pointer upwards.
pub type OnSample<'a> = &'a mut dyn FnMut(Event, SampleRegisters, &[u8]);

/// The ring of events that carry a stack.
pub struct Samples {
    ring: RingBuf<MapData>,
}

impl Samples {
    /// Takes the ring out of the object.
    ///
    /// # Errors
    ///
    /// See [`CollectError`].
    pub fn new(object: &mut Object) -> Result<Self, CollectError> {
        Ok(Self { ring: object.take_map("SAMPLES")? })
    }

    /// Calls `f` for each sample that waits.
    pub fn drain(&mut self, f: OnSample<'_>) {
        while let Some(item) = self.ring.next() {
            if let Some((event, registers, stack)) = sample_from_bytes(&item) {
                f(event, registers, stack);
            }
        }
    }
}

impl AsFd for Samples {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
