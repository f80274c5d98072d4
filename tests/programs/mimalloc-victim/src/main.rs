//! A program with a mimalloc of its own inside, under names of its own: it counts what it asks of it and says so.
//!
//! mimalloc-victim: answers `.` and waits for a byte before the calls that it counts.

use std::alloc::{GlobalAlloc, Layout};
use std::io::{Read, Write};

use mimalloc::MiMalloc;

#[global_allocator]
static GLOBAL: MiMalloc = MiMalloc;

fn main() {
    std::io::stdout().write_all(b".").and_then(|()| std::io::stdout().flush()).expect("an output");
    std::io::stdin().read_exact(&mut [0]).expect("a byte");
    let (mut mallocs, mut reallocs, mut frees, mut bytes) = (0u64, 0u64, 0u64, 0u64);
    for size in 1..2000usize {
        for align in [1, 8, 64, 4096] {
            let layout = Layout::from_size_align(size, align).expect("a layout");
            // SAFETY: the layout is not empty; each block is given back with the layout it was asked for.
            unsafe {
                let block = GLOBAL.alloc(layout);
                let block = GLOBAL.realloc(block, layout, size * 2);
                GLOBAL.dealloc(block, Layout::from_size_align(size * 2, align).expect("a layout"));
                let block = GLOBAL.alloc_zeroed(layout);
                GLOBAL.dealloc(block, layout);
            }
            mallocs += 2;
            reallocs += 1;
            frees += 2;
            bytes += 2 * size as u64;
        }
    }
    println!("malloc {mallocs} {bytes} realloc {reallocs} free {frees}");
}
