//! Runs victim programs under the built daemon and compares what both say.
//!
//! The tests are in `tests/`, behind the feature `real-kernel`. They take the daemon from
//! `MALLOC_DAEMON_BIN`, or else from this workspace's target directory.

pub mod allocators;
pub mod compare;
pub mod daemon;
pub mod document;
pub mod http;
pub mod libcs;
pub mod process;
pub mod systemd;
pub mod text;
pub mod tracefs;
pub mod truth;
pub mod victim;
