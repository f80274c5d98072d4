//! Puts the parts together: loads, attaches, follows processes, collects. One owner, one thread.

pub mod cache;
mod census;
mod faults;
mod files;
mod heaps;
mod naming;
mod observer;
mod options;
mod selected;
mod serving;

pub use files::{FileRefused, PROBED_FILES};
pub use observer::{Observer, unix_ms};
pub use options::{Options, Selection, StartError};
