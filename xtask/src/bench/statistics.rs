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

/// The ratio of two medians, with the interval that holds it in 95 of 100 cases, by drawing from the samples again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    pub low: f64,
    pub value: f64,
    pub high: f64,
}

/// CPU time of `above` as a multiple of that of `below`.
pub fn cpu_ratio(above: &Series, below: &Series) -> Option<Ratio> {
    const DRAWS: usize = 2000;
    let cpu = |series: &Series| series.samples.iter().map(|sample| sample.cpu).collect::<Vec<_>>();
    let (above, below) = (cpu(above), cpu(below));
    let median = |values: Vec<f64>| spread(values).map(|spread| spread.median).filter(|median| *median > 0.0);
    let value = median(above.clone())? / median(below.clone())?;
    // Numbers of this generator (xorshift, Marsaglia 2003) are the same in every run: the interval can be told again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut drawn = |from: &[f64]| {
        let one = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            from.get((state % from.len().max(1) as u64) as usize).copied().unwrap_or(0.0)
        };
        (0..from.len()).map(one).collect::<Vec<_>>()
    };
    let mut ratios: Vec<f64> =
        (0..DRAWS).filter_map(|_| Some(median(drawn(&above))? / median(drawn(&below))?)).collect();
    ratios.sort_by(f64::total_cmp);
    Some(Ratio { low: *ratios.get(DRAWS / 40)?, value, high: *ratios.get(DRAWS - DRAWS / 40)? })
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
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
        let series = |count: usize, shift: f64| Series {
            samples: (0..count)
                .map(|n| {
                    let cpu = shift + (n * 7 % 10) as f64;
                    Sample { cpu, wall: cpu }
                })
                .collect(),
        };
        let few = cpu_ratio(&series(10, 110.0), &series(10, 100.0)).expect("samples");
        let many = cpu_ratio(&series(200, 110.0), &series(200, 100.0)).expect("samples");
        assert!((few.value - 114.5 / 104.5).abs() < 1e-9 && few.low < few.value && few.value < few.high);
        assert!(many.high - many.low < few.high - few.low, "{many:?} {few:?}");
        assert_eq!(cpu_ratio(&Series::default(), &series(3, 1.0)), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let told = spread(vec![4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!(told, Spread { least: 1.0, median: 2.5, greatest: 4.0 });
        assert_eq!(spread(vec![7.0]).map(|told| told.median), Some(7.0));
        assert_eq!(spread(Vec::new()), None);
    }
}
