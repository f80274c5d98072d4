//! What the tracker needs from the kernel it runs in.

use core::ops::DerefMut;

use crate::abi::{Counter, Event, Flight, Series};
use crate::chunk::{Chunk, Watch};
use crate::loss::Loss;
use crate::site::{MpLayout, PtRegsWord};

/// What `mp_` says, as read from the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mp {
    /// `mmap_threshold`, bytes.
    pub threshold: u64,
    /// `trim_threshold`, bytes.
    pub trim_threshold: u64,
    /// `n_mmaps`.
    pub mmapped_chunks: u64,
    /// `mmapped_mem`, bytes.
    pub mmapped_bytes: u64,
    /// `n_mmaps_max`: with so many mapped chunks no other is mapped.
    pub most_chunks: u64,
    /// `no_dyn_threshold`.
    pub pinned: u32,
    /// [`largest_heap`](crate::site::largest_heap).
    pub largest_heap: u64,
}

/// Where `mp_` of a process lies, and its layout there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpPlace {
    /// The layout.
    pub layout: MpLayout,
    /// The address, below 2^56.
    pub address: u64,
    /// A static probe tells of raises: they are not to be looked for here.
    pub raises_told: bool,
}

impl MpPlace {
    /// The place as [`Slot::mp_place`](crate::abi::Slot::mp_place) holds it.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.address & ADDRESS | (self.layout as u64) << 56 | (self.raises_told as u64) << 63
    }

    /// The place in such a word; `None` where there is none.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Option<Self> {
        match MpLayout::from_index((word >> 56) as u8 & 0x7f) {
            MpLayout::Unknown => None,
            layout => Some(Self { layout, address: word & ADDRESS, raises_told: word >> 63 == 1 }),
        }
    }
}

const ADDRESS: u64 = (1 << 56) - 1;

/// An index into the table of process images.
pub type SlotId = u32;
/// An index into the pool of histograms.
pub type HistogramId = u32;

/// What the tracker needs from the kernel it runs in.
pub trait Kernel {
    /// How the state of a thread is reached.
    type Flight<'a>: DerefMut<Target = Flight>
    where
        Self: 'a;

    /// Process id of the running thread.
    fn tgid(&self) -> u32;
    /// Thread id of the running thread.
    fn tid(&self) -> u32;
    /// Nanoseconds since boot.
    fn now_ns(&self) -> u64;
    /// Name of the running thread.
    fn comm(&self) -> [u8; 16];
    /// The stack pointer with which the running thread entered the kernel.
    fn user_sp(&self) -> u64;
    /// The break of the running process, before the system call in progress.
    fn program_break(&self) -> u64;
    /// True when the running thread is the last of its process.
    fn last_thread(&self) -> bool;
    /// True when the kernel has chosen the running process to die for its memory; false also where it does not tell.
    fn oom_killed(&self) -> bool;
    /// True while a tracer listens.
    fn tracing(&self) -> bool;
    /// True when probes on the allocator tell which chunks it maps.
    fn tells_chunks(&self) -> bool;
    /// Reads `mp_` of the running process.
    fn read_mp(&self, place: MpPlace) -> Option<Mp>;

    /// The slot that counts for a process.
    fn slot(&self, tgid: u32) -> Option<SlotId>;
    /// Takes a free slot for the running process and makes it the one that counts; of two threads that
    /// try at once both get the same. Its threshold and the place of its `mp_` are what was kept for the process, if
    /// anything was.
    fn open_slot(&self, born: u16) -> Option<SlotId>;
    /// Stops counting for a process; its slot keeps what it has, with this final state.
    fn close_slot(&self, tgid: u32, state: u32);
    /// Stores what `mp_` said, and where it lies; returns the threshold stored before (0: none).
    fn store_mp(&self, slot: SlotId, place: MpPlace, mp: &Mp) -> u64;
    /// The threshold that is stored (0: none), and where `mp_` was read.
    fn stored_mp(&self, slot: SlotId) -> Option<(u64, MpPlace)>;
    /// Keeps the threshold that is stored for a process, if one is, and the place of its `mp_` for its child.
    fn bequeath(&self, slot: SlotId, child: u32);
    /// Forgets what is kept for a process that ended or runs another program.
    fn disinherit(&self, tgid: u32);
    /// Adds to a counter of a process.
    fn add(&self, slot: SlotId, counter: Counter, n: u64);
    /// The histogram of a series, taken from the pool at its first use.
    fn histogram(&self, slot: SlotId, series: Series) -> Option<HistogramId>;
    /// Adds one value to a histogram.
    fn record(&self, histogram: HistogramId, value: u64);

    /// True when this process is to be counted.
    fn admits(&self, tgid: u32) -> bool;
    /// Has a child counted like its parent; false when there is no room.
    fn admit_child(&self, parent: u32, child: u32) -> bool;
    /// Forgets a process that ended.
    fn dismiss(&self, tgid: u32);

    /// The state of the running thread, when it has one. Nothing else is asked of the kernel while it is held.
    fn flight(&self) -> Option<Self::Flight<'_>>;
    /// The same, an empty one where it had none; `None` when there is no room.
    fn open_flight(&self) -> Option<Self::Flight<'_>>;
    /// Takes a thread's state away.
    fn close_flight(&self, tid: u32);

    /// Remembers a mapped chunk of the running process in place of what was known of that address; false when there is
    /// no room.
    fn remember_chunk(&self, address: u64, chunk: &Chunk) -> bool;
    /// What is known of the chunk at that address of the running process.
    fn chunk(&self, address: u64) -> Option<Chunk>;
    /// Forgets it.
    fn forget_chunk(&self, address: u64);
    /// True when page faults are counted.
    fn counts_faults(&self) -> bool;
    /// Runs `f` on a place for a watched chunk; indices from [`crate::chunk::WATCHES`] on have none.
    fn with_watch<R, F: FnOnce(&mut Watch) -> R>(&self, slot: SlotId, index: u64, f: F) -> Option<R>;
    /// Changes the state of such a place; false when it was not `from`: of two threads that try, one succeeds.
    fn change_watch(&self, slot: SlotId, index: u64, from: u32, to: u32) -> bool;
    /// Adds one to its page faults.
    fn add_fault(&self, slot: SlotId, index: u64);
    /// When the image that a slot counts for was first seen, nanoseconds since boot.
    fn image_ns(&self, slot: SlotId) -> u64;

    /// Counts a loss.
    fn lose(&self, loss: Loss);
    /// Sends an event; false when the ring is full.
    fn emit(&self, event: &Event) -> bool;
    /// Sends an event with registers and stack of the running thread; false when the ring is full.
    fn sample(&self, event: &Event) -> bool;
    /// Which crossing of its process this one is, from 1, when its stack is to be sent: each of the first
    /// [`FIRST_SAMPLES`](crate::allowance::FIRST_SAMPLES), then one in [`SAMPLE_EVERY_NS`](crate::allowance::SAMPLE_EVERY_NS), as far as the allowances of the machine go: one is for
    /// [`RESERVED_SAMPLES`](crate::allowance::RESERVED_SAMPLES) of each process alone.
    fn crossing_to_sample(&self, slot: SlotId, now_ns: u64) -> Option<u64>;
    /// A register of the running thread, as it entered the kernel.
    fn user_register(&self, word: PtRegsWord) -> Option<u64>;
    /// The two words at a user address.
    fn read_user_words(&self, address: u64) -> Option<[u64; 2]>;
}

/// Registers of the running thread at a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The first three arguments of the function at whose entry (or before whose call) the probe sits.
    pub arguments: [u64; 3],
    /// Stack pointer.
    pub sp: u64,
    /// Address of the probed instruction.
    pub ip: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_out_of_its_word() {
        assert_eq!(MpPlace::from_word(0), None);
        for raises_told in [false, true] {
            for layout in [MpLayout::Upto234, MpLayout::From235, MpLayout::From243] {
                let place = MpPlace { layout, address: 0x7f00_001d_3340, raises_told };
                assert_eq!(MpPlace::from_word(place.to_word()), Some(place));
            }
        }
    }
}
