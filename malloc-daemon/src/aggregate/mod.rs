//! Raw rows over time become what is true now: pure, one owner.

pub mod model;
