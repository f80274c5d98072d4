//! Reads memory of the observed program, and the allocator's parameters in it.

use aya_ebpf::helpers::bpf_probe_read_user;
use malloc_common::site::{MP_MMAP_THRESHOLD, MP_TRIM_THRESHOLD, MpLayout, largest_heap};
use malloc_common::tracker::{Mp, MpPlace};

/// 64-bit words of `mp_` up to the end of `mmap_threshold`.
const FIRST_OF_MP: usize = 3;
/// 32-bit words of `mp_` that are read behind them.
const REST_OF_MP: usize = 12;

/// Where these words begin in `mp_`, and which of them are `n_mmaps`, `n_mmaps_max`, `no_dyn_threshold` and the lower half
/// of `mmapped_mem`; where there is a `hp_pagesize` they begin with it. Found when this is compiled.
const fn rest(layout: MpLayout) -> (u32, [usize; 4]) {
    let Some(o) = layout.offsets() else { return (0, [0; 4]) };
    let from = match layout.hp_pagesize() {
        Some(offset) => offset,
        None => o.n_mmaps,
    };
    let mut words = [0; 4];
    let fields = [o.n_mmaps, o.n_mmaps_max, o.no_dyn_threshold, o.mmapped_mem];
    let mut at = 0;
    while at < fields.len() {
        words[at] = (fields[at] - from) as usize / 4;
        at += 1;
    }
    (from, words)
}

const UPTO_234: (u32, [usize; 4]) = rest(MpLayout::Upto234);
const FROM_235: (u32, [usize; 4]) = rest(MpLayout::From235);
const FROM_243: (u32, [usize; 4]) = rest(MpLayout::From243);
const _: () = {
    assert!(UPTO_234.1[3] + 1 < REST_OF_MP && FROM_235.1[3] + 1 < REST_OF_MP && FROM_243.1[3] + 1 < REST_OF_MP);
    assert!(MP_TRIM_THRESHOLD == 0 && MP_MMAP_THRESHOLD == 16);
};

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
        MpLayout::Upto234 => read_as(place.address, false, UPTO_234),
        MpLayout::From235 => read_as(place.address, true, FROM_235),
        MpLayout::From243 => read_as(place.address, true, FROM_243),
    }
}

/// Two reads for seven fields: each is a call that opens the door to user memory and closes it again.
#[inline(always)]
fn read_as(address: u64, huge: bool, (from, [chunks, most, pinned, bytes]): (u32, [usize; 4])) -> Option<Mp> {
    // SAFETY: the reads are checked, and any bits are numbers.
    let (first, rest) =
        unsafe { (read_user::<[u64; FIRST_OF_MP]>(address, 0)?, read_user::<[u32; REST_OF_MP]>(address, from)?) };
    let long = |at: usize| u64::from(rest[at]) | u64::from(rest[at + 1]) << 32;
    let hp_pagesize = if huge { long(0) } else { 0 };
    Some(Mp {
        threshold: first[2],
        trim_threshold: first[0],
        mmapped_chunks: u64::from(rest[chunks]),
        most_chunks: u64::from(rest[most]),
        mmapped_bytes: long(bytes),
        pinned: rest[pinned],
        largest_heap: largest_heap(hp_pagesize),
    })
}
