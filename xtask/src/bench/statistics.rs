//! Medians and spreads of what was measured.

use super::workloads::Sample;

/// The samples of one workload under one observer.
#[derive(Debug, Clone, Default)]
pub struct Series {
    samples: Vec<Sample>,
}

/// A median with the least and the greatest value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub greatest: f64,
}

impl Series {
    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// CPU time, in the unit of the workload.
    pub fn cpu(&self) -> Option<Spread> {
        spread(self.samples.iter().map(|sample| sample.cpu).collect())
    }

    /// Time on the wall clock, in the same unit.
    pub fn wall(&self) -> Option<Spread> {
        spread(self.samples.iter().map(|sample| sample.wall).collect())
    }
}

/// A ratio with the interval that holds it in 95 of 100 cases, by drawing from the samples again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    pub low: f64,
    pub value: f64,
    pub high: f64,
}

/// The median of the ratios of values that were measured one right after the other.
pub fn paired_ratio(above: &[f64], below: &[f64]) -> Option<Ratio> {
    let ratios: Vec<f64> = above.iter().zip(below).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect();
    let mut draws = Draws::new();
    interval(median(ratios.clone())?, || median(draws.from(&ratios)))
}

fn interval(value: f64, draw: impl FnMut() -> Option<f64>) -> Option<Ratio> {
    const DRAWS: usize = 2000;
    let mut ratios: Vec<f64> = std::iter::repeat_with(draw).take(DRAWS).flatten().collect();
    ratios.sort_by(f64::total_cmp);
    Some(Ratio { low: *ratios.get(DRAWS / 40)?, value, high: *ratios.get(DRAWS - DRAWS / 40)? })
}

/// `None` without values, and where it is no measure of anything.
pub fn median(values: Vec<f64>) -> Option<f64> {
    spread(values).map(|spread| spread.median).filter(|median| *median > 0.0)
}

/// Samples drawn from samples. Numbers of this generator (xorshift, Marsaglia 2003) are the same in every run: an
/// interval can be told again.
struct Draws(u64);

impl Draws {
    fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    fn from(&mut self, samples: &[f64]) -> Vec<f64> {
        let mut one = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            samples.get((self.0 % samples.len().max(1) as u64) as usize).copied().unwrap_or(0.0)
        };
        samples.iter().map(|_| one()).collect()
    }
}

/// Of some values; `None` without any.
pub fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let (least, greatest) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let median = if values.len().is_multiple_of(2) { (values.get(middle - 1)? + upper) / 2.0 } else { upper };
    Some(Spread { least, median, greatest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_ratio_holds_it_and_narrows_with_the_samples() {
        let values = |count: usize, shift: f64| (0..count).map(|n| shift + (n * 7 % 10) as f64).collect::<Vec<_>>();
        let ratio = |count| paired_ratio(&values(count, 110.0), &values(count, 100.0)).expect("values");
        let (few, many) = (ratio(10), ratio(200));
        assert!(few.low <= few.value && few.value <= few.high, "{few:?}");
        assert!(many.high - many.low < few.high - few.low, "{many:?} {few:?}");
    }

    #[test]
    fn pairs_tell_a_ratio_through_a_pace_that_changes() {
        let pace = |n: usize| 1.0 + (n / 40 % 2) as f64;
        let below: Vec<f64> = (0..400).map(|n| 100.0 * pace(n) + (n * 7 % 5) as f64).collect();
        let above: Vec<f64> = (0..400).map(|n| 105.0 * pace(n) + (n * 3 % 5) as f64).collect();
        let told = paired_ratio(&above, &below).expect("values");
        assert!(told.low > 1.04 && told.high < 1.06, "{told:?}");
        assert_eq!(paired_ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let told = spread(vec![4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!(told, Spread { least: 1.0, median: 2.5, greatest: 4.0 });
        assert_eq!(spread(vec![7.0]).map(|told| told.median), Some(7.0));
        assert_eq!(spread(Vec::new()), None);
    }
}
