//! The only knowledge of outside formats: a snapshot, a trace or a finding goes in, text or bytes come out; pure.

pub mod doctor;
mod escape;
pub mod inference;
pub mod json;
pub mod locate;
pub mod otlp;
pub mod profile;
pub mod prometheus;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code, reason = "the fuzzer takes two of the samples"))]
pub(crate) mod sample;
pub mod text;
pub mod trace;
pub(crate) mod units;
mod words;

#[cfg(test)]
pub(crate) use escape::is_unsafe;
pub use escape::printable;
