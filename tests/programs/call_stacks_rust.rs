//! Maps a chunk of 1 MiB and frees it in Rust; says on which lines, and waits for standard input to close.

use std::io::{Read, Write};

#[inline(never)]
fn make_large() -> (Vec<u8>, u32) {
    let line = line!() + 1;
    let bytes = Vec::with_capacity(std::hint::black_box(1 << 20));
    (bytes, line)
}

#[inline(never)]
fn drop_large(bytes: Vec<u8>) -> u32 {
    let line = line!() + 1;
    drop(std::hint::black_box(bytes));
    std::hint::black_box(line)
}

fn main() {
    let (bytes, mapped) = make_large();
    let freed = drop_large(bytes);
    let pid = std::process::id();
    println!(
        r#"{{"pid":{pid},"mapped":["call_stacks_rust::make_large",{mapped}],"freed":["call_stacks_rust::drop_large",{freed}]}}"#
    );
    std::io::stdout().flush().expect("an output");
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
}
