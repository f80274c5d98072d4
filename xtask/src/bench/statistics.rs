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
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let told = spread(vec![4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!(told, Spread { least: 1.0, median: 2.5, greatest: 4.0 });
        assert_eq!(spread(vec![7.0]).map(|told| told.median), Some(7.0));
        assert_eq!(spread(Vec::new()), None);
    }
}
