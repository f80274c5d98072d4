//! What the tests of real libcs share.
