//! What calls count, kept apart for threads that call at once: two processors that add to one cache line wait for each
//! other, longer than a probe takes.

use crate::abi::{Counter, Series};
use crate::function::SIZED_FUNCTIONS;

/// Stripes of each slot, a power of two. A thread counts in the one that the last bits of its id choose: a process of one
/// thread has one, threads that are started one after the other have different ones.
pub const STRIPES: u32 = 8;

/// Series that are striped: those of the public functions, the first in [`Slot::series`](crate::abi::Slot::series).
pub const STRIPED_SERIES: usize = 2 * SIZED_FUNCTIONS;

/// One stripe of a slot: a cache line that is read at each call, and one that is written.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// Indexed by [`Series::index`]: 1 + the index of a histogram; 0: nothing recorded yet.
    pub series: [u32; STRIPED_SERIES],
    /// [`Counter::Free`], [`Counter::FreeTransfer`], [`Counter::IdleHits`]; the rest is never written.
    pub counters: [u64; 8],
}

/// 64-bit words of a [`Stripe`].
pub const STRIPE_WORDS: usize = size_of::<Stripe>() / 8;

/// The counters of a stripe, in its order.
pub const STRIPED_COUNTERS: [Counter; 3] = [Counter::Free, Counter::FreeTransfer, Counter::IdleHits];

/// The index of a stripe among those of all slots.
#[must_use]
#[inline(always)]
pub const fn stripe(slot: u32, tid: u32) -> u32 {
    slot * STRIPES + tid % STRIPES
}

/// Whether each stripe has a histogram of its own for a series.
#[must_use]
#[inline(always)]
pub const fn is_striped(series: Series) -> bool {
    matches!(series, Series::Call(_) | Series::Transfer(_))
}

/// Where a stripe keeps a counter; `None`: the slot does.
#[must_use]
#[inline(always)]
pub const fn striped(counter: Counter) -> Option<usize> {
    match counter {
        Counter::Free => Some(0),
        Counter::FreeTransfer => Some(1),
        Counter::IdleHits => Some(2),
        _ => None,
    }
}

impl Stripe {
    /// A stripe from the words of its row, as the kernel wrote them.
    #[must_use]
    pub fn from_words(words: [u64; STRIPE_WORDS]) -> Self {
        let (halves, counters) = words.split_at(STRIPED_SERIES / 2);
        let mut stripe = Self { series: [0; STRIPED_SERIES], counters: [0; 8] };
        for (two, word) in stripe.series.chunks_exact_mut(2).zip(halves) {
            let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
            two.copy_from_slice(&[u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]);
        }
        stripe.counters.copy_from_slice(counters);
        stripe
    }
}

const _: () = {
    // Whole cache lines, and the array begins at a page.
    assert!(size_of::<Stripe>() == 128);
    assert!(STRIPES.is_power_of_two());
    assert!(Series::Arena.index() == STRIPED_SERIES);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{SERIES, Syscall};
    use crate::function::{ALL, Function};

    #[test]
    fn the_striped_series_are_those_of_the_calls() {
        for f in ALL.into_iter().filter(|f| *f != Function::Free) {
            for series in [Series::Call(f), Series::Transfer(f)] {
                assert!(is_striped(series) && series.index() < STRIPED_SERIES);
            }
        }
        for series in [Series::Arena, Series::Sysmalloc, Series::Crossing, Series::Latency(Syscall::Mmap)] {
            assert!(!is_striped(series) && (STRIPED_SERIES..SERIES).contains(&series.index()));
        }
    }

    #[test]
    fn counters_lie_where_they_are_said_to() {
        for (at, counter) in STRIPED_COUNTERS.into_iter().enumerate() {
            assert_eq!(striped(counter), Some(at));
        }
        assert_eq!(striped(Counter::Raises), None);
    }

    #[test]
    fn a_row_is_series_and_then_counters() {
        let mut words = [0; STRIPE_WORDS];
        words[0] = u64::from_ne_bytes([1, 0, 0, 0, 2, 0, 0, 0]);
        words[STRIPED_SERIES / 2] = 9;
        let stripe = Stripe::from_words(words);
        let first = if cfg!(target_endian = "little") { 1 } else { 1 << 24 };
        assert_eq!((stripe.series[0], stripe.series[1], stripe.counters[0]), (first, 2 * first, 9));
        assert_eq!(stripe.series[2..], [0; STRIPED_SERIES - 2]);
    }

    #[test]
    fn threads_of_a_slot_never_count_in_anothers() {
        assert_eq!(stripe(0, 7), 7);
        assert_eq!(stripe(1, 8), STRIPES);
        assert_eq!(stripe(2, u32::MAX), 3 * STRIPES - 1);
    }
}
