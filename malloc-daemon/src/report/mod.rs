//! The only knowledge of outside formats: a snapshot or a trace goes in, text or bytes come out; pure.

mod escape;
pub mod json;
pub mod prometheus;
#[cfg(test)]
pub(crate) mod sample;
pub mod text;
pub mod trace;
mod units;

pub use escape::printable;
