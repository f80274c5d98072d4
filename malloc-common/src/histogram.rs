//! Log-linear size classes: exact below 8, then four buckets per power of two.

/// Buckets of one histogram: four below 4, four for each of the exponents 2 to 47.
///
/// 2^48 is past what four-level page tables give a process; the last bucket holds everything above too.
pub const BUCKETS: usize = 4 + (47 - 2 + 1) * 4;

/// Values whose bucket is looked up.
const SMALL: usize = 1024;

/// What 8 bits more add to the bucket of a value.
const BY_EIGHT_BITS: u32 = 8 * 4;

/// The buckets of the values below [`SMALL`]. BPF has no instruction that counts leading zeros: the
/// compiler makes a chain of shifts and multiplications of it.
static BUCKET_OF: [u8; SMALL] = {
    let mut buckets = [0; SMALL];
    let mut value = 0;
    while value < SMALL {
        buckets[value] = by_leading_zeros(value as u64) as u8;
        value += 1;
    }
    buckets
};

/// The bucket a value falls into.
#[must_use]
#[inline(always)]
pub fn bucket(value: u64) -> u32 {
    bucket_by(value, |index| index)
}

/// The same for the kernel side, whose verifier has to see each index compared with the length of the table: `hide`
/// returns what it is given, and the compiler does not know that it does.
#[must_use]
#[inline(always)]
pub fn bucket_by(value: u64, hide: impl Fn(u64) -> u64) -> u32 {
    let small = |value: u64| BUCKET_OF.get(hide(value) as usize).map(|bucket| u32::from(*bucket));
    if let Some(bucket) = small(value) {
        return bucket;
    }
    // What is at least 4 here has its bucket from the exponent and the two bits below it.
    small(value >> 8).map_or_else(|| by_leading_zeros(value), |bucket| bucket + BY_EIGHT_BITS)
}

const fn by_leading_zeros(value: u64) -> u32 {
    if value < 4 {
        return value as u32;
    }
    let exponent = 63 - value.leading_zeros();
    let quarter = (value >> (exponent - 2)) as u32 & 3;
    let index = (exponent - 1) * 4 + quarter;
    if index < BUCKETS as u32 { index } else { BUCKETS as u32 - 1 }
}

/// The inclusive bounds of a bucket; the last one has no upper bound and says `u64::MAX`.
#[must_use]
pub const fn bounds(index: usize) -> (u64, u64) {
    if index < 4 {
        return (index as u64, index as u64);
    }
    let exponent = index / 4 + 1;
    let width = 1u64 << (exponent - 2);
    let lo = (4 + (index as u64 & 3)) << (exponent - 2);
    if index + 1 >= BUCKETS { (lo, u64::MAX) } else { (lo, lo + width - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_cover_all_values_without_gap_or_overlap() {
        let mut next = 0;
        for index in 0..BUCKETS {
            let (lo, hi) = bounds(index);
            assert_eq!(lo, next, "bucket {index}");
            assert!(hi >= lo);
            next = hi.wrapping_add(1);
        }
        assert_eq!(next, 0, "the last bucket ends at u64::MAX");
    }

    #[test]
    fn there_are_four_buckets_to_a_power_of_two() {
        assert_eq!(bounds(bucket(16) as usize), (16, 19));
        assert_eq!(bucket(31) - bucket(16), 3);
        assert_eq!(bounds(bucket(1 << 20) as usize), (1 << 20, (1 << 20) + (1 << 18) - 1));
    }

    proptest! {
        #[test]
        fn a_value_lies_within_the_bounds_of_its_bucket(value in any::<u64>(), shift in 0u32..64) {
            let value = value >> shift;
            let (lo, hi) = bounds(bucket(value) as usize);
            prop_assert!(lo <= value && value <= hi);
        }

        #[test]
        fn a_bucket_that_is_looked_up_is_the_one_that_is_computed(value in 0u64..1 << 20) {
            prop_assert_eq!(bucket(value), by_leading_zeros(value));
        }
    }
}
