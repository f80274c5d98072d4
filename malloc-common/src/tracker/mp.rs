//! What the allocator's parameters, `mp_`, say: read where a probe knows the way to them, or did before.

use crate::abi::Counter;
use crate::site::{Cookie, MpLayout, Role};

use super::{Kernel, Mp, MpPlace, Registers, SlotId, trace};

/// More than a heap needs beside what is asked of it, `heap_info` and the last chunk, bytes. A heap that has been used never
/// has so much left of it that the difference matters.
const HEAP_HEADER: u64 = 4096;

/// Where `mp_` is when a probe with this cookie is hit.
#[inline(always)]
pub(super) fn place(cookie: Cookie, r: &Registers) -> Option<MpPlace> {
    let (layout, address) = cookie.mp(r.ip)?;
    Some(MpPlace { layout, address, raises_told: cookie.raises_told() })
}

/// Reads `mp_` where the probe knows the way, and tells of a raise that nothing else tells of; zeros where it cannot be
/// read. (No `Option`, which the compiler would carry on without its value: verifiers before Linux 6.3 refuse that.)
#[inline(always)]
pub(super) fn look<K: Kernel>(k: &K, slot: SlotId, cookie: Cookie, r: &Registers) -> Mp {
    let Some(place) = place(cookie, r) else { return Mp::default() };
    let Some(mp) = k.read_mp(place) else { return Mp::default() };
    let before = k.store_mp(slot, place, &mp);
    if is_raise(before, place, &mp) {
        let chunk = match cookie.role() {
            Some(Role::MunmapChunk) => r.arguments[0],
            _ => 0,
        };
        raise(k, slot, before, &mp, chunk);
    }
    mp
}

/// The same when the `munmap` of a chunk enters, on the way to which no probe lies. Where a static probe tells of raises,
/// it compares with what is stored: a threshold that is another by now is left to it.
#[inline(always)]
pub(super) fn look_at_unmapping<K: Kernel>(k: &K, slot: SlotId, address: u64, bytes: u64) {
    let Some((threshold, place)) = k.stored_mp(slot) else { return };
    let Some(mp) = k.read_mp(place) else { return };
    if place.raises_told && mp.threshold != threshold {
        return;
    }
    let before = k.store_mp(slot, place, &mp);
    if is_raise(before, place, &mp) {
        // A chunk that was moved up for an alignment begins later in its mapping, and ends with it.
        let behind = if let MpLayout::From243 = place.layout { 16 } else { 0 };
        raise(k, slot, before, &mp, address.wrapping_add(bytes).wrapping_sub(mp.threshold).wrapping_sub(behind));
    }
}

#[inline(always)]
const fn is_raise(before: u64, place: MpPlace, mp: &Mp) -> bool {
    before != 0 && mp.threshold > before && mp.pinned == 0 && !place.raises_told
}

/// glibc sets the threshold to the size of the mapped chunk that it frees, and then gives the chunk back: only there is
/// the thread that runs the one that raised it. The size is the second word of the chunk; `chunk` 0: none is given back.
#[inline(always)]
fn raise<K: Kernel>(k: &K, slot: SlotId, before: u64, mp: &Mp, chunk: u64) {
    k.add(slot, Counter::Raises, 1);
    let size = if chunk == 0 { 0 } else { k.read_user_words(chunk).map_or(0, |[_, size]| size & !7) };
    let (cause, address) = if size == mp.threshold & !7 { (size, chunk) } else { (0, 0) };
    trace::raise(k, [before, mp.threshold, cause, address, 0]);
}

/// The cookie byte of the role that `sysmalloc(nb, av)` plays next when it is sure to map a chunk, else 0: when `nb`
/// reaches the threshold while there are less mapped chunks than there may be, which is a crossing; when there is no arena;
/// and when no heap of an arena can hold `nb`, unless it goes another way that has a probe, as the main arena does
/// (`sysmalloc` in `malloc/malloc.c`, glibc 2.23 to 2.44). Heaps of no size are such as were not read.
#[inline(always)]
pub(super) const fn maps_at_once(mp: &Mp, nb: u64, no_arena: bool) -> u8 {
    if mp.largest_heap == 0 {
        return 0;
    }
    let crosses = nb >= mp.threshold;
    let role = if crosses && (no_arena || mp.mmapped_chunks < mp.most_chunks) {
        Role::MapChunk
    } else if no_arena || nb > mp.largest_heap.saturating_sub(HEAP_HEADER) {
        Role::MapFallback
    } else {
        return 0;
    };
    Cookie::new(role).0 as u8
}
