//! Snapshots made by hand, one trait each, for the tests of all formats.

use std::sync::Arc;

use malloc_common::abi::{ALL_ORIGINS, Origin, Syscall};
use malloc_common::depth::Depth;
use malloc_common::function::Function;
use malloc_common::histogram::{bounds, bucket};
use malloc_common::loss::Loss;

use crate::aggregate::heap::{Arena, Free, FreeSizes, Heap};
use crate::aggregate::model::*;

/// Half a million `malloc`s, one crossing: every level measured.
pub(crate) fn sqlite() -> Process {
    Process {
        id: ProcessId { pid: 4242, start_ticks: 123_456 },
        image_ns: 1_234_560_000_100,
        comm: "sqlite3".to_owned(),
        exe: Some("/usr/bin/sqlite3".to_owned()),
        cgroup: Some("/system.slice/x.service".to_owned()),
        allocator: Some(Arc::new(Allocator {
            kind: "glibc".to_owned(),
            version: Some("2.36".to_owned()),
            build_id: Some("93ac00ff".to_owned()),
            path: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
            located_by: "symtab".to_owned(),
            not_counted: Vec::new(),
            also_mapped: Vec::new(),
            aliases: vec![("memalign".to_owned(), vec!["aligned_alloc".to_owned()])],
        })),
        depth: Depth::Call,
        not_measured: Vec::new(),
        exec_seen: true,
        from_start: true,
        complete: true,
        losses: Vec::new(),
        ended: None,
        observed_ms: 861,
        funnel: Funnel {
            call: Some(Count { calls: 618_427, bytes: 61_234_567 }),
            arena: Some(Count { calls: 18_146, bytes: 19_812_345 }),
            sysmalloc: Some(Count { calls: 164, bytes: 22_123_456 }),
            brk: Some(Count { calls: 163, bytes: 22_032_384 }),
            mmap: Some(Count { calls: 1, bytes: 1_052_672 }),
            call_estimate: None,
            arena_estimate: None,
        },
        counted_functions: None,
        over_budget: false,
        functions: Some(vec![
            sized(Function::Malloc, 0, &[(16, 200_000), (24, 120_000), (100, 250_000), (1024, 48_396), (1 << 20, 1)]),
            sized(Function::Realloc, 2, &[(64, 20), (4096, 7)]),
            sized(Function::Memalign, 0, &[(64, 3)]),
            FunctionCount {
                function: Function::Free,
                calls: 617_001,
                bytes: None,
                failed: None,
                sizes: None,
                estimate: None,
                shares_95: None,
            },
        ]),
        arena_sizes: Some(buckets(&[(1024, 18_145), (1 << 20, 1)])),
        sysmalloc_sizes: Some(buckets(&[(1040, 163), (1_048_592, 1)])),
        heap_events: None,
        threshold: Some(Threshold {
            bytes: 131_072,
            trim_bytes: 131_072,
            mode: ThresholdMode::Dynamic,
            source: ThresholdSource::Memory,
            raises: 0,
            mmapped_chunks: 1,
            mmapped_bytes: 1_052_672,
        }),
        heap: Some(Arc::new(heap())),
        heap_unread: None,
        crossings: Some(Crossings {
            count: Count { calls: 1, bytes: 1_052_672 },
            sizes: buckets(&[(1_052_672, 1)]),
            mmap_ns: 4_100,
            ends: Some(ChunkEnds::default()),
            faults: None,
        }),
        syscalls: syscalls(true),
        cost: Some(Cost {
            hits: Hits { call: 1_235_430, arena: 18_146, slow: 166, branch: 164, syscall: 203, ..Hits::default() },
            ns_by_depth: [60_900, 280_600, 11_432_000, 790_675_200],
            cpu_ns: Some(1_030_000_000),
        }),
    }
}

/// Two arenas; the second changed while its bins were walked.
pub(crate) fn heap() -> Heap {
    let main = Arena {
        is_main: true,
        system_bytes: 22_032_384,
        max_system_bytes: 24_000_000,
        top_bytes: 90_112,
        top_resident_bytes: Some(40_960),
        threads: 1,
        free: Some(Free {
            chunks: 13,
            bytes: 2_100_064,
            complete: true,
            sizes: vec![
                FreeSizes { lo: 64, hi: 79, chunks: 1, bytes: 64, absent_bytes: 0 },
                FreeSizes { lo: 163_840, hi: 196_607, chunks: 12, bytes: 2_100_000, absent_bytes: 100_000 },
            ],
        }),
    };
    let other = Arena {
        is_main: false,
        system_bytes: 135_168,
        max_system_bytes: 135_168,
        free: Some(Free { complete: false, ..Free::default() }),
        ..main.clone()
    };
    Heap {
        read_ns: 1_234_560_000_100 + 741_000_000,
        took_us: 180,
        threshold: Threshold {
            bytes: 131_072,
            trim_bytes: 131_072,
            mode: ThresholdMode::Dynamic,
            source: ThresholdSource::Memory,
            raises: 0,
            mmapped_chunks: 1,
            mmapped_bytes: 1_052_672,
        },
        top_pad: 131_072,
        max_mmapped_bytes: 1_052_672,
        arenas: vec![main, other],
        every_arena: true,
        not_read: None,
        page_bytes: 4096,
        resident_bytes: Some(30_123_008),
        minor_faults: Some(7_100),
    }
}

/// Tracepoints only: who in the process asked is not known.
pub(crate) fn at_depth_syscall() -> Process {
    Process {
        id: ProcessId { pid: 77, start_ticks: 99 },
        image_ns: 991_000_000,
        comm: "java".to_owned(),
        exe: None,
        cgroup: None,
        allocator: None,
        depth: Depth::Syscall,
        not_measured: vec![(Depth::Sysmalloc, "the allocator is not glibc".to_owned())],
        exec_seen: true,
        from_start: false,
        funnel: Funnel::default(),
        functions: None,
        arena_sizes: None,
        sysmalloc_sizes: None,
        threshold: None,
        heap: None,
        crossings: None,
        syscalls: syscalls(false),
        cost: None,
        ..sqlite()
    }
}

/// A name chosen to harm whoever reads it.
pub(crate) fn hostile() -> Process {
    Process {
        id: ProcessId { pid: 666, start_ticks: 150_000 },
        comm: "\x1b[2J\"}\n\u{202e}\\".to_owned(),
        exe: Some("/tmp/\x07\u{9b}31m\u{2028}\"x".to_owned()),
        ..sqlite()
    }
}

/// Kernel tables ran full, one probe is broken, one is not offered.
pub(crate) fn lossy() -> Snapshot {
    let mut process = sqlite();
    process.complete = false;
    process.losses = vec![(LossReason::Kernel(Loss::HistogramPoolFull), 12)];
    let mut snapshot = snapshot(vec![process]);
    snapshot.complete = false;
    snapshot.losses = vec![(LossReason::Kernel(Loss::ProcessTableFull), 3), (LossReason::ProgramMissed, 1_234)];
    snapshot.processes_dropped = 5;
    snapshot.probes.push(Probe {
        name: "arena /lib/libc.so.6".to_owned(),
        depth: Depth::Arena,
        verdict: Verdict::Unsupported("no symbol table".to_owned()),
    });
    snapshot.probes.push(Probe {
        name: "call /lib/libc.so.6".to_owned(),
        depth: Depth::Call,
        verdict: Verdict::Broken("permission denied".to_owned()),
    });
    snapshot
}

pub(crate) fn snapshot(processes: Vec<Process>) -> Snapshot {
    Snapshot {
        sequence: 42,
        host: Host { kernel: "6.18.44".to_owned(), cpus: 2 },
        window: Window { start_unix_ms: 1_700_000_000_000, end_unix_ms: 1_700_000_010_000, duration_ms: 10_000 },
        complete: true,
        losses: Vec::new(),
        processes: processes.into_iter().map(Arc::new).collect(),
        processes_dropped: 0,
        raises: Vec::new(),
        mappings: Vec::new(),
        stacks: Vec::new(),
        probes: vec![Probe { name: "enter_mmap".to_owned(), depth: Depth::Syscall, verdict: Verdict::Attached }],
        cost: DaemonCost { cpu_ms: 120, resident_bytes: 12_000_000, kernel_bytes: 40_000_000, collect_us: 900 },
        calibration: Arc::new(Calibration::Measured(prices())),
    }
}

/// Of the machine this was written on.
pub(crate) fn prices() -> Prices {
    Prices {
        blank_ns: 600,
        stepped_ns: 10_600,
        call_ns: 640,
        arena_ns: 630,
        slow_ns: 900,
        branch_ns: 800,
        syscall_ns: 300,
        other_syscall_ns: 60,
        kinds: vec![("push", 600), ("nop", 580), ("jcc", 610), ("jmp", 605), ("call", 640)],
    }
}

/// Buckets of the real histogram for these values.
pub(crate) fn buckets(values: &[(u64, u64)]) -> Vec<Bucket> {
    values
        .iter()
        .map(|(value, calls)| {
            let (lo, hi) = bounds(bucket(*value) as usize);
            Bucket { lo, hi, calls: *calls }
        })
        .collect()
}

fn sized(function: Function, failed: u64, values: &[(u64, u64)]) -> FunctionCount {
    FunctionCount {
        function,
        calls: values.iter().map(|(_, calls)| calls).sum(),
        bytes: Some(values.iter().map(|(value, calls)| value * calls).sum()),
        failed: Some(failed),
        sizes: Some(buckets(values)),
        estimate: None,
        shares_95: None,
    }
}

fn syscalls(slow_path: bool) -> Syscalls {
    Syscalls {
        mmap: SyscallCount {
            calls: 32,
            failed: 1,
            bytes: 5_123_456,
            by_origin: by_origin(Syscall::Mmap, slow_path),
            sizes: buckets(&[(4096, 20), (200_000, 11), (1_052_672, 1)]),
            latency_ns: buckets(&[(2_000, 20), (4_100, 11), (90_000, 1)]),
        },
        munmap: SyscallCount {
            calls: 2,
            failed: 0,
            bytes: 8192,
            by_origin: by_origin(Syscall::Munmap, slow_path),
            sizes: buckets(&[(4096, 2)]),
            latency_ns: buckets(&[(3_200, 2)]),
        },
        mremap: SyscallCount { by_origin: by_origin(Syscall::Mremap, slow_path), ..SyscallCount::default() },
        brk: SyscallCount {
            calls: 169,
            failed: 0,
            bytes: 22_032_384,
            by_origin: by_origin(Syscall::Brk, slow_path),
            sizes: Vec::new(),
            latency_ns: buckets(&[(800, 169)]),
        },
        brk_grown_bytes: 22_032_384,
        brk_shrunk_bytes: 0,
    }
}

fn by_origin(syscall: Syscall, slow_path: bool) -> Vec<(Origin, Option<Count>)> {
    let count = |origin| {
        Some(match origin {
            Origin::MmapFile => Count { calls: 24, bytes: 3_000_000 },
            Origin::MmapThreadStack => Count::default(),
            Origin::MmapCrossing if slow_path => Count { calls: 1, bytes: 1_052_672 },
            Origin::MmapOther => Count { calls: 6, bytes: 1_070_784 },
            Origin::MunmapOther => Count { calls: 2, bytes: 8192 },
            Origin::BrkGrowth if slow_path => Count { calls: 163, bytes: 22_032_384 },
            Origin::BrkOther => Count { calls: 6, bytes: 0 },
            Origin::MremapOther => Count::default(),
            _ if slow_path => Count::default(),
            _ => return None,
        })
    };
    ALL_ORIGINS.into_iter().filter(|o| o.syscall() == syscall).map(|origin| (origin, count(origin))).collect()
}
