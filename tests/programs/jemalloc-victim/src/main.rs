//! A program with a jemalloc of its own inside, under names of its own: it counts what it asks of it and says so.
//!
//! jemalloc-victim: answers `.` and waits for a byte before the calls that it counts.

use std::alloc::{GlobalAlloc, Layout};
use std::io::{Read, Write};

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static GLOBAL: Jemalloc = Jemalloc;

fn main() {
    std::io::stdout().write_all(b".").and_then(|()| std::io::stdout().flush()).expect("an output");
    std::io::stdin().read_exact(&mut [0]).expect("a byte");
    let (mut mallocs, mut callocs, mut reallocs, mut frees, mut bytes) = (0u64, 0u64, 0u64, 0u64, 0u64);
    for size in 1..2000usize {
        for align in [1, 8, 64, 4096] {
            let layout = Layout::from_size_align(size, align).expect("a layout");
            // SAFETY: the layout is not empty; each block is given back with the layout it was asked for.
            unsafe {
                let block = GLOBAL.alloc(layout);
                mallocs += 1;
                bytes += size as u64;
                let block = GLOBAL.realloc(block, layout, size * 2);
                reallocs += 1;
                GLOBAL.dealloc(block, Layout::from_size_align(size * 2, align).expect("a layout"));
                let block = GLOBAL.alloc_zeroed(layout);
                // Small alignments are calloc, others are mallocx with a flag.
                if align <= 16 && align <= size { callocs += 1 } else { mallocs += 1; bytes += size as u64 }
                GLOBAL.dealloc(block, layout);
                frees += 2;
            }
        }
    }
    println!("malloc {mallocs} {bytes} calloc {callocs} realloc {reallocs} free {frees}");
}
