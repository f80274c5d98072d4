//! Rows of a thousand processes, as the kernel side has them.

use std::sync::Arc;

use malloc_common::abi::{Counter, Histogram, SLOT_LIVE, Series, Slot};
use malloc_common::function::Function;
use malloc_common::histogram::bucket;
use malloc_common::loss::LOSSES;
use malloc_common::origin::{Origin, Syscall};
use malloc_daemon::collect::{RawImage, RawSnapshot};

pub const PROCESSES: u32 = 1000;

/// Every process with sizes of three functions, of the slow path and of two system calls, in twenty buckets each.
pub fn rows() -> RawSnapshot {
    let series = [
        Series::Call(Function::Malloc),
        Series::Call(Function::Calloc),
        Series::Call(Function::Realloc),
        Series::Arena,
        Series::Sysmalloc,
        Series::Sizes(Syscall::Mmap),
        Series::Latency(Syscall::Mmap),
        Series::Latency(Syscall::Brk),
    ];
    let image = |n: u32| {
        let mut slot =
            Slot { tgid: n + 1, state: SLOT_LIVE, start_ns: u64::from(n) * 20_000_000, first_ns: 1, ..Slot::FREE };
        slot.comm = *b"a-process\0\0\0\0\0\0\0";
        slot.comm[9] = b'0' + (n % 10) as u8;
        for counter in [Counter::Free, Counter::OriginCalls(Origin::MmapCrossing), Counter::BrkGrown] {
            slot.counters[counter.index()] = u64::from(n) + 17;
        }
        let mut histogram = Histogram::EMPTY;
        for exponent in 4..24 {
            histogram.buckets[bucket(1 << exponent) as usize] = u64::from(n) + exponent;
            histogram.sum += 1 << exponent;
        }
        RawImage { slot, histograms: series.iter().map(|series| (series.index(), histogram)).collect() }
    };
    RawSnapshot {
        now_ns: 1 << 40,
        images: (0..PROCESSES).map(image).map(Arc::new).collect(),
        lost: [0; LOSSES],
        missed: 0,
    }
}
