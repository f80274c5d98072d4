//! Feeds what libFuzzer makes up to one reader of hostile bytes: the one that `FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use malloc_daemon::fuzzing::{Target, target};

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let chosen = target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET names no target: {name:?}"));
        let _ = TARGET.set(chosen);
    },
    |bytes: &[u8]| {
        if let Some(read) = TARGET.get() {
            read(bytes);
        }
    }
);
