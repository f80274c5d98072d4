//! Which parts of a function's calls ask for which sizes: known far better than how many calls there are, since the price
//! of a hit and the time between hits cancel out.

use malloc_common::histogram::BUCKETS;

use super::interval::{FEW, poisson_highest, student};

/// Weighted sums over windows by size class.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// Weighted calls, and the sum of their squares.
    all: f64,
    square: f64,
    seen: f64,
    /// Empty until something is met. 188 x 32 bytes = 6 KiB.
    buckets: Vec<Bucket>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    sum: f64,
    square: f64,
    /// Products with the window's weighted calls.
    cross: f64,
    seen: f64,
}

impl Shares {
    /// Takes in what a window met.
    pub fn add(&mut self, weight: f64, calls: &[u64; BUCKETS]) {
        let seen = calls.iter().sum::<u64>() as f64;
        if seen == 0.0 {
            return;
        }
        if self.buckets.is_empty() {
            self.buckets = vec![Bucket::default(); BUCKETS];
        }
        let all = weight * seen;
        self.all += all;
        self.square += all * all;
        self.seen += seen;
        for (bucket, calls) in self.buckets.iter_mut().zip(calls).filter(|(_, calls)| **calls != 0) {
            let weighted = weight * *calls as f64;
            bucket.sum += weighted;
            bucket.square += weighted * weighted;
            bucket.cross += weighted * all;
            bucket.seen += *calls as f64;
        }
    }

    /// Both together, the other ones multiplied.
    #[must_use]
    pub fn and(&self, other: &Self, scale: f64) -> Self {
        let (longer, shorter) = (self.buckets.len().max(other.buckets.len()), Bucket::default());
        let bucket = |shares: &Self, index: usize| shares.buckets.get(index).copied().unwrap_or(shorter);
        let both = |index| {
            let (mine, other) = (bucket(self, index), bucket(other, index));
            Bucket {
                sum: mine.sum + scale * other.sum,
                square: mine.square + scale * scale * other.square,
                cross: mine.cross + scale * scale * other.cross,
                seen: mine.seen + other.seen,
            }
        };
        Self {
            all: self.all + scale * other.all,
            square: self.square + scale * scale * other.square,
            seen: self.seen + other.seen,
            buckets: (0..longer).map(both).collect(),
        }
    }

    /// The estimated part of each size class; `None`: nothing was met.
    #[must_use]
    pub fn parts(&self) -> Option<impl Iterator<Item = f64>> {
        (self.all > 0.0).then(|| self.buckets.iter().map(|bucket| bucket.sum / self.all))
    }

    /// Between these lies the part of each size class, 95 times in 100; `None`: too few windows to tell.
    #[must_use]
    pub fn intervals(&self) -> Option<impl Iterator<Item = (f64, f64)>> {
        let effective = if self.square > 0.0 { self.all * self.all / self.square } else { 0.0 };
        let t = student(effective - 2.0);
        let correction = effective / (effective - 1.0).max(1.0);
        (effective >= FEW).then(|| {
            self.buckets.iter().map(move |bucket| {
                let part = bucket.sum / self.all;
                let residual = (bucket.square - 2.0 * part * bucket.cross + part * part * self.square).max(0.0);
                let error = t * (residual * correction).sqrt() / self.all;
                let rare = poisson_highest(bucket.seen) / self.seen;
                ((part - error).max(0.0), (part + error).max(rare).min(1.0))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(small: u64, large: u64) -> [u64; BUCKETS] {
        let mut calls = [0; BUCKETS];
        (calls[10], calls[40]) = (small, large);
        calls
    }

    #[test]
    fn equal_windows_leave_little_doubt_and_too_few_tell_nothing() {
        let mut shares = Shares::default();
        assert!(shares.parts().is_none());
        for _ in 0..4 {
            shares.add(100.0, &met(900, 100));
        }
        assert!(shares.intervals().is_none());
        for _ in 0..6 {
            shares.add(100.0, &met(900, 100));
        }
        let parts: Vec<_> = shares.parts().expect("met").collect();
        let (low, high) = shares.intervals().expect("enough").nth(40).expect("there");
        assert!((parts[10] - 0.9).abs() < 1e-9 && low <= 0.1 && high >= 0.1 && high - low < 0.02, "{low} {high}");
        let (none, unseen) = shares.intervals().expect("enough").nth(99).expect("there");
        assert!(none == 0.0 && unseen > 0.0 && unseen < 1e-3);
    }

    #[test]
    fn windows_that_differ_leave_doubt() {
        let mut shares = Shares::default();
        for turn in 0..20 {
            shares.add(100.0, &if turn % 2 == 0 { met(1000, 0) } else { met(500, 500) });
        }
        let (low, high) = shares.intervals().expect("enough").nth(40).expect("there");
        assert!(low < 0.15 && high > 0.35, "{low} {high}");
    }
}
