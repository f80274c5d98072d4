//! The command line of `malloc-daemon`.
fn main() {}
