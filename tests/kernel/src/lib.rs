//! Runs victim programs under the built daemon and compares what both say.
