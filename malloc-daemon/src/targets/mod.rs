//! Which files and processes carry probes, and where in them.
