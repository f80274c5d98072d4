//! Puts the parts together: loads, attaches, follows processes, collects. One owner, one thread.

mod attaching;
pub mod cache;
mod calibrate;
mod candidates;
mod census;
mod changes;
mod cpu;
mod described;
mod disused;
mod faults;
mod files;
mod heaps;
mod known;
mod measured;
mod naming;
mod observer;
mod options;
pub mod pace;
mod probed;
mod programs;
mod selected;
mod serving;
mod shapes;
mod subject;
mod threshold;
mod windows;

pub use calibrate::own_file_offset;
pub use census::Expected;
pub use files::{FileRefused, PROBED_FILES};
pub use observer::Observer;
pub use options::{Options, Probing, Selection, StartError};

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
