//! Reads the rows of one image: its slot, its stripes and its histograms, one by one and in sum.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use malloc_common::abi::{HISTOGRAM_WORDS, Histogram, SLOT_LIVE, Series, Slot};
use malloc_common::histogram::BUCKETS;
use malloc_common::stripe::{STRIPE_WORDS, STRIPED_COUNTERS, STRIPED_SERIES, STRIPES, Stripe, stripe};

use super::RawImage;
use crate::probes::MappedArray;

/// The rows of images, for reading one at a time.
#[derive(Clone, Debug)]
pub struct Rows {
    pub(super) slots: Arc<MappedArray>,
    pub(super) stripes: Arc<MappedArray>,
    pub(super) histograms: Arc<MappedArray>,
}

/// What the threads of an image count apart; none before the first of them counted.
type Stripes = Option<[Stripe; STRIPES as usize]>;

impl Rows {
    /// The row of the image that a process runs now.
    #[must_use]
    pub fn find(&self, pid: u32) -> Option<usize> {
        (0..self.slots.rows()).find(|index| self.runs(*index, pid))
    }

    fn runs(&self, index: usize, pid: u32) -> bool {
        let first = self.slots.row(index).first().map_or(0, |word| word.load(Ordering::Acquire));
        let [tgid, state] = if cfg!(target_endian = "little") {
            [first as u32, (first >> 32) as u32]
        } else {
            [(first >> 32) as u32, first as u32]
        };
        tgid == pid && state == SLOT_LIVE
    }

    /// The image in a row with what deep probes count of it; `None` when the row is another's now.
    #[must_use]
    pub fn deep(&self, index: usize, pid: u32, first_ns: Option<u64>) -> Option<RawImage> {
        if !self.runs(index, pid) {
            return None;
        }
        let image = self.image(index, self.slot(index), Series::Arena.index() + 1);
        // The row may have been given to another image meanwhile.
        (self.runs(index, pid) && first_ns.is_none_or(|ns| ns == image.slot.first_ns)).then_some(image)
    }

    /// A slot without what its stripes count.
    pub(super) fn slot(&self, index: usize) -> Slot {
        Slot::from_words(read(&self.slots, index))
    }

    /// An image whose slot holds this, with its histograms of the first `series`.
    pub(super) fn image(&self, index: usize, mut slot: Slot, series: usize) -> RawImage {
        let stripes = self.stripes(index, &slot);
        add_counters(&mut slot, &stripes);
        let all = (0..slot.series.len().min(series)).filter_map(|of| {
            let mut rows = rows_of(&slot, &stripes, of);
            let mut sum = self.histogram(rows.next()?);
            for row in rows {
                add(&mut sum, &self.histogram(row));
            }
            Some((of, sum))
        });
        let histograms = all.collect();
        RawImage { slot, histograms }
    }

    /// Whether the rows of a slot hold what was read of them last. Of a histogram only three words are compared: a value
    /// changes the sum, or the bucket of zeros. The last bucket's values alone are so large that a few of them could add
    /// up to nothing.
    pub(super) fn is_as_before(&self, index: usize, last: &RawImage) -> bool {
        const TELLING: [usize; 3] = [0, 1, HISTOGRAM_WORDS - 1];
        let mut slot = self.slot(index);
        let stripes = self.stripes(index, &slot);
        add_counters(&mut slot, &stripes);
        let held = |of: &usize| rows_of(&slot, &stripes, *of).next().is_some();
        let striped = stripes.map_or(0, |_| (0..STRIPED_SERIES).filter(held).count());
        slot == last.slot
            && last.histograms.iter().filter(|(of, _)| *of < STRIPED_SERIES).count() == striped
            && last.histograms.iter().all(|(of, last)| {
                let mut now = [0u64; TELLING.len()];
                for row in rows_of(&slot, &stripes, *of) {
                    let row = self.histograms.row(row);
                    for (sum, at) in now.iter_mut().zip(TELLING) {
                        *sum = sum.wrapping_add(row.get(at).map_or(0, |word| word.load(Ordering::Relaxed)));
                    }
                }
                now == [last.sum, last.buckets[0], last.buckets[BUCKETS - 1]]
            })
    }

    /// Makes the rows of an ended image empty; returns its histograms, which are free now. Nothing writes them any more:
    /// the last thread of the image set the final state.
    pub(super) fn clear(&self, index: usize, slot: &Slot) -> Vec<u32> {
        let stripes = self.stripes(index, slot);
        let taken: Vec<usize> = (0..slot.series.len()).flat_map(|of| rows_of(slot, &stripes, of)).collect();
        for row in &taken {
            self.histograms.clear(*row);
        }
        if stripes.is_some() {
            stripe_rows(index).for_each(|row| self.stripes.clear(row));
        }
        self.slots.clear(index);
        taken.into_iter().filter_map(|row| u32::try_from(row).ok()).collect()
    }

    fn stripes(&self, index: usize, slot: &Slot) -> Stripes {
        let mut rows = stripe_rows(index);
        let mut next = || rows.next().map_or([0; STRIPE_WORDS], |row| read(&self.stripes, row));
        (slot.striped != 0).then(|| std::array::from_fn(|_| Stripe::from_words(next())))
    }

    fn histogram(&self, row: usize) -> Histogram {
        Histogram::from_words(read::<HISTOGRAM_WORDS>(&self.histograms, row))
    }
}

fn stripe_rows(index: usize) -> std::ops::Range<usize> {
    let first = u32::try_from(index).map_or(usize::MAX, |slot| stripe(slot, 0) as usize);
    first..first.saturating_add(STRIPES as usize)
}

/// The rows of the histograms that an image has for a series: each is another.
fn rows_of<'a>(slot: &Slot, stripes: &'a Stripes, series: usize) -> impl Iterator<Item = usize> + use<'a> {
    let own = slot.series.get(series).copied();
    let striped = stripes.iter().flatten().filter_map(move |stripe| stripe.series.get(series).copied());
    own.into_iter().chain(striped).filter_map(|held| (held as usize).checked_sub(1))
}

fn add_counters(slot: &mut Slot, stripes: &Stripes) {
    for stripe in stripes.iter().flatten() {
        for (counter, count) in STRIPED_COUNTERS.into_iter().zip(stripe.counters) {
            if let Some(sum) = slot.counters.get_mut(counter.index()) {
                *sum = sum.wrapping_add(count);
            }
        }
    }
}

fn add(sum: &mut Histogram, one: &Histogram) {
    sum.sum = sum.sum.wrapping_add(one.sum);
    for (sum, one) in sum.buckets.iter_mut().zip(one.buckets) {
        *sum = sum.wrapping_add(one);
    }
}

fn read<const N: usize>(array: &MappedArray, index: usize) -> [u64; N] {
    let mut words = [0; N];
    for (word, held) in words.iter_mut().zip(array.row(index)) {
        // In this order: a sum that is read has its value in a bucket, which is read after it.
        *word = held.load(Ordering::Acquire);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use malloc_common::abi::{Counter, SERIES};
    use malloc_common::function::Function;
    use malloc_common::histogram::bucket;

    const SLOT: usize = 3;
    const MALLOC: Series = Series::Call(Function::Malloc);

    /// Rows of eight slots and sixteen histograms in a file in memory.
    fn rows() -> Rows {
        let array = |rows: usize, words: usize| {
            let file = rustix::fs::memfd_create(c"rows", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, (rows * words * 8) as u64).unwrap();
            Arc::new(MappedArray::new(file, rows, words))
        };
        Rows {
            slots: array(8, malloc_common::abi::SLOT_WORDS),
            stripes: array(8 * STRIPES as usize, STRIPE_WORDS),
            histograms: array(16, HISTOGRAM_WORDS),
        }
    }

    fn write(array: &MappedArray, row: usize, words: &[u64]) {
        for (to, word) in array.row(row).iter().zip(words) {
            to.store(*word, Ordering::Relaxed);
        }
    }

    /// What a thread does at a call: its stripe takes a histogram, if it has none, and counts.
    fn count(rows: &Rows, tid: u32, histogram: u32, value: u64, frees: u64) {
        let row = stripe(SLOT as u32, tid) as usize;
        let mut held = Stripe::from_words(read(&rows.stripes, row));
        held.series[MALLOC.index()] = histogram + 1;
        held.counters[0] += frees;
        let mut words: Vec<u64> =
            held.series.chunks(2).map(|two| u64::from(two[0]) | u64::from(two[1]) << 32).collect();
        words.extend(held.counters);
        write(&rows.stripes, row, &words);
        let mut counted = rows.histogram(histogram as usize);
        counted.buckets[bucket(value) as usize] += 1;
        counted.sum = counted.sum.wrapping_add(value);
        write(&rows.histograms, histogram as usize, &counted.to_words());
    }

    fn living() -> Slot {
        Slot { tgid: 77, state: SLOT_LIVE, striped: 1, first_ns: 5, ..Slot::FREE }
    }

    #[test]
    fn what_threads_count_apart_is_one_sum() {
        let rows = rows();
        let mut slot = living();
        slot.counters[Counter::Free.index()] = 1;
        slot.series[Series::Sysmalloc.index()] = 16;
        write(&rows.slots, SLOT, &slot.to_words());
        count(&rows, 100, 4, 5, 3);
        count(&rows, 101, 9, 5, 4);
        count(&rows, 101, 9, 6, 0);
        let image = rows.image(SLOT, rows.slot(SLOT), SERIES);
        let of = image.histogram(MALLOC).unwrap();
        assert_eq!((of.buckets[5], of.buckets[6], of.sum), (2, 1, 16));
        assert_eq!(image.slot.counters[Counter::Free.index()], 8);
        assert!(image.histogram(Series::Sysmalloc).is_some());
        let deep = rows.deep(SLOT, 77, Some(5)).unwrap();
        assert_eq!(deep.histogram(MALLOC), image.histogram(MALLOC));
        assert!(deep.histogram(Series::Sysmalloc).is_none());
        assert!(rows.deep(SLOT, 77, Some(6)).is_none() && rows.deep(SLOT, 78, None).is_none());
    }

    #[test]
    fn each_count_of_any_thread_is_a_change() {
        let rows = rows();
        write(&rows.slots, SLOT, &living().to_words());
        let look = || rows.image(SLOT, rows.slot(SLOT), SERIES);
        let mut last = look();
        // The first of a stripe, one more, a free with it, the first of another stripe, no byte at all.
        for (tid, histogram, value, frees) in
            [(8, 1, 40, 0), (8, 1, 40, 0), (8, 1, 5, 1), (15, 2, 40, 0), (15, 2, 0, 0)]
        {
            assert!(rows.is_as_before(SLOT, &last));
            count(&rows, tid, histogram, value, frees);
            assert!(!rows.is_as_before(SLOT, &last), "thread {tid}, {value} bytes");
            last = look();
        }
        assert!(rows.is_as_before(SLOT, &last));
        // Two values that add up to nothing.
        count(&rows, 8, 1, 1 << 63, 0);
        count(&rows, 8, 1, 1 << 63, 0);
        assert!(!rows.is_as_before(SLOT, &last));
    }

    #[test]
    fn an_ended_image_gives_all_its_histograms_back_and_leaves_nothing() {
        let rows = rows();
        let mut slot = living();
        slot.series[Series::Crossing.index()] = 1;
        write(&rows.slots, SLOT, &slot.to_words());
        count(&rows, 1, 4, 20, 3);
        count(&rows, 2, 5, 20, 3);
        let mut free = rows.clear(SLOT, &rows.slot(SLOT));
        free.sort_unstable();
        assert_eq!(free, [0, 4, 5]);
        let is_empty = |array: &MappedArray| {
            (0..array.rows()).all(|row| array.row(row).iter().all(|word| word.load(Ordering::Relaxed) == 0))
        };
        assert!(is_empty(&rows.slots) && is_empty(&rows.stripes) && is_empty(&rows.histograms));
    }
}
