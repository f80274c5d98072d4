//! Reads memory of the observed program, and the allocator's parameters in it.

use aya_ebpf::helpers::bpf_probe_read_user;
use malloc_common::site::{MP_MMAP_THRESHOLD, MP_TRIM_THRESHOLD, MpLayout, largest_heap};
use malloc_common::tracker::{Mp, MpPlace};

/// 64-bit words of `mp_` up to the end of `mmap_threshold`.
const FIRST_OF_MP: usize = 3;
/// 32-bit words of `mp_` that are read behind them.
const REST_OF_MP: usize = 12;

/// Where these words begin in `mp_`, and which of them are `n_mmaps`, which `n_mmaps_max` follows, `no_dyn_threshold`, and
/// the lower half of `mmapped_mem`; where there is a `hp_pagesize` they begin with it.
const fn rest(layout: MpLayout) -> (u32, [usize; 3]) {
    match layout {
        MpLayout::Upto234 | MpLayout::Unknown => (40, [0, 3, 4]),
        MpLayout::From235 => (48, [3, 6, 8]),
        MpLayout::From243 => (48, [5, 8, 10]),
    }
}

const _: () = {
    assert!(agrees(MpLayout::Upto234) && agrees(MpLayout::From235) && agrees(MpLayout::From243));
    assert!(MP_TRIM_THRESHOLD == 0 && MP_MMAP_THRESHOLD == 16);
};

/// Whether the words above are where the layout has these fields.
const fn agrees(layout: MpLayout) -> bool {
    let Some(o) = layout.offsets() else { return false };
    let (from, [chunks, pinned, bytes]) = rest(layout);
    let huge = match layout.hp_pagesize() {
        Some(offset) => offset == from,
        None => true,
    };
    huge && o.n_mmaps == from + 4 * chunks as u32
        && o.n_mmaps_max == o.n_mmaps + 4
        && o.no_dyn_threshold == from + 4 * pinned as u32
        && o.mmapped_mem == from + 4 * bytes as u32
        && bytes + 1 < REST_OF_MP
}

/// # Safety
///
/// Any bit pattern is a valid `T`.
#[inline(always)]
pub unsafe fn read_user<T>(address: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails on one that is not mapped.
    unsafe { bpf_probe_read_user(address.wrapping_add(u64::from(offset)) as *const T) }.ok()
}

/// `mp_` of the running program.
#[inline(always)]
pub fn read(place: MpPlace) -> Option<Mp> {
    match place.layout {
        MpLayout::Unknown => None,
        MpLayout::Upto234 => read_as(place.address, MpLayout::Upto234),
        MpLayout::From235 => read_as(place.address, MpLayout::From235),
        MpLayout::From243 => read_as(place.address, MpLayout::From243),
    }
}

/// Two reads for seven fields: each is a call that opens the door to user memory and closes it again.
#[inline(always)]
fn read_as(address: u64, layout: MpLayout) -> Option<Mp> {
    let (from, [chunks, pinned, bytes]) = rest(layout);
    // SAFETY: the reads are checked, and any bits are numbers.
    let (first, rest) =
        unsafe { (read_user::<[u64; FIRST_OF_MP]>(address, 0)?, read_user::<[u32; REST_OF_MP]>(address, from)?) };
    let long = |at: usize| u64::from(rest[at]) | u64::from(rest[at + 1]) << 32;
    let hp_pagesize = if layout.hp_pagesize().is_some() { long(0) } else { 0 };
    Some(Mp {
        threshold: first[2],
        trim_threshold: first[0],
        mmapped_chunks: u64::from(rest[chunks]),
        most_chunks: u64::from(rest[chunks + 1]),
        mmapped_bytes: long(bytes),
        pinned: rest[pinned],
        largest_heap: largest_heap(hp_pagesize),
    })
}
