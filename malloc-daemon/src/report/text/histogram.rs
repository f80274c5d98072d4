//! A distribution that one can read: at most a screenful of ranges, each with its bar.

use std::collections::BTreeMap;

use super::{Style, Tone, heading, push};
use crate::aggregate::model::Bucket;
use crate::report::units::{bar, bytes, count, share};

/// More ranges than this are merged to powers of two.
const ROWS: usize = 24;
/// Characters of the longest bar.
const CELLS: usize = 24;

/// Writes one section; nothing when nothing was counted.
pub(super) fn render<'a>(out: &mut String, title: &str, buckets: impl Iterator<Item = &'a Bucket>, style: Style) {
    let rows = readable(buckets);
    let total = rows.iter().fold(0u64, |sum, row| sum.saturating_add(row.calls));
    let longest = rows.iter().map(|row| row.calls).max().unwrap_or(0);
    if total == 0 {
        return;
    }
    heading(out, title, style);
    for row in &rows {
        let blocks = bar(row.calls, longest, CELLS);
        let padding = CELLS.saturating_sub(blocks.chars().count());
        push(
            out,
            &format!(
                "  {:>21}  {}{:padding$}{:>13}  {}",
                range(row),
                style.paint(Tone::Bar, &blocks),
                "",
                count(row.calls),
                share(row.calls, total).unwrap_or_default()
            ),
        );
    }
}

/// Buckets of equal bounds added up, merged to powers of two when they are many; ascending, none empty.
pub(super) fn readable<'a>(buckets: impl Iterator<Item = &'a Bucket>) -> Vec<Bucket> {
    let rows = merged(buckets.copied());
    if rows.len() <= ROWS {
        return rows;
    }
    merged(rows.into_iter().map(|bucket| {
        let Some(exponent) = bucket.lo.checked_ilog2() else { return bucket };
        let lo = 1u64 << exponent;
        let hi = if bucket.hi == u64::MAX { u64::MAX } else { lo + (lo - 1) };
        Bucket { lo, hi, ..bucket }
    }))
}

fn merged(buckets: impl Iterator<Item = Bucket>) -> Vec<Bucket> {
    let mut rows: BTreeMap<u64, Bucket> = BTreeMap::new();
    for bucket in buckets.filter(|bucket| bucket.calls > 0) {
        let row = rows.entry(bucket.lo).or_insert(Bucket { calls: 0, ..bucket });
        row.calls = row.calls.saturating_add(bucket.calls);
        row.hi = row.hi.max(bucket.hi);
    }
    rows.into_values().collect()
}

/// `24 B`, `80 - 95 B`, `1.0 KB - 1.3 KB`, `246.3 TB and more`
fn range(bucket: &Bucket) -> String {
    match bucket.hi {
        u64::MAX => format!("{} and more", bytes(bucket.lo)),
        hi if hi == bucket.lo => bytes(hi),
        hi if hi < 1000 => format!("{} - {hi} B", bucket.lo),
        hi => format!("{} - {}", bytes(bucket.lo), bytes(hi)),
    }
}

/// The value below which `permille` thousandths of the recorded ones lie, by straight line within the bucket:
/// off by less than a quarter of a power of two. `None` when nothing was recorded.
pub(super) fn quantile(buckets: &[Bucket], permille: u64) -> Option<u64> {
    let total: u128 = buckets.iter().map(|bucket| u128::from(bucket.calls)).sum();
    if total == 0 {
        return None;
    }
    let rank = (total * u128::from(permille)).div_ceil(1000).max(1);
    let mut below = 0u128;
    for bucket in buckets {
        let calls = u128::from(bucket.calls);
        if below + calls >= rank {
            if bucket.hi == u64::MAX {
                return Some(bucket.lo);
            }
            let width = u128::from(bucket.hi.saturating_sub(bucket.lo));
            let inside = width * (2 * (rank - below) - 1) / (2 * calls);
            return Some(bucket.lo.saturating_add(u64::try_from(inside).unwrap_or(u64::MAX)));
        }
        below += calls;
    }
    buckets.last().map(|bucket| bucket.lo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use malloc_common::histogram::{BUCKETS, bounds, bucket};
    use proptest::prelude::*;

    #[test]
    fn many_buckets_are_merged_to_powers_of_two_and_lose_no_call() {
        let fine: Vec<Bucket> = (0..BUCKETS)
            .map(|index| {
                let (lo, hi) = bounds(index);
                Bucket { lo, hi, calls: 1 }
            })
            .collect();
        let rows = readable(fine.iter());
        assert_eq!(rows.iter().map(|row| row.calls).sum::<u64>(), BUCKETS as u64);
        assert!(rows.windows(2).all(|pair| pair[0].hi + 1 == pair[1].lo));
        assert_eq!(rows.last().unwrap().hi, u64::MAX);
    }

    #[test]
    fn ranges_read_without_arithmetic() {
        assert_eq!(range(&Bucket { lo: 3, hi: 3, calls: 1 }), "3 B");
        assert_eq!(range(&Bucket { lo: 80, hi: 95, calls: 1 }), "80 - 95 B");
        assert_eq!(range(&Bucket { lo: 1024, hi: 1279, calls: 1 }), "1.0 KB - 1.3 KB");
        assert_eq!(range(&Bucket { lo: 7 << 45, hi: u64::MAX, calls: 1 }), "246.3 TB and more");
    }

    #[test]
    fn nothing_recorded_has_no_median() {
        assert_eq!(quantile(&[], 500), None);
    }

    proptest! {
        #[test]
        fn a_quantile_lies_in_the_bucket_of_the_value(mut values in prop::collection::vec(0u64..1 << 40, 1..60), permille in 0u64..=1000) {
            values.sort_unstable();
            let fine: Vec<Bucket> = values.iter().map(|value| {
                let (lo, hi) = bounds(bucket(*value) as usize);
                Bucket { lo, hi, calls: 1 }
            }).collect();
            let rank = (values.len() as u64 * permille).div_ceil(1000).max(1) as usize;
            let (lo, hi) = bounds(bucket(values[rank - 1]) as usize);
            let got = quantile(&merged(fine.into_iter()), permille).unwrap();
            prop_assert!(lo <= got && got <= hi);
        }
    }
}
