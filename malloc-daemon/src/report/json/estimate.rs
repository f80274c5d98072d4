//! The public promise of figures that may be estimated.

use serde::{Deserialize, Serialize};

/// How many, and their bytes, counted or estimated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// How many.
    pub calls: u64,
    /// Sum of their bytes.
    pub bytes: u64,
    /// How sure that is; nothing: they were counted.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

/// How sure an estimate is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// True.
    pub estimated: bool,
    /// Part of the time in which calls were counted.
    pub coverage: f64,
    /// Between these lies the number of calls, 95 times in 100; `null`: too few windows to tell.
    pub interval_95: Option<[u64; 2]>,
    /// The same for bytes; `null` for `free`, too.
    pub bytes_interval_95: Option<[u64; 2]>,
}

/// One bucket of a histogram, inclusive and not cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Lowest value.
    pub lo: u64,
    /// Highest value; `null`: no bound. (2^64 - 1 would not survive a reader that keeps numbers as doubles.)
    pub hi: Option<u64>,
    /// How many values.
    pub calls: u64,
    /// Where calls are estimated: between these lies this bucket's part of them, 95 times in 100; `null`, or nothing:
    /// counted, or too few windows to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_interval_95: Option<[f64; 2]>,
}
