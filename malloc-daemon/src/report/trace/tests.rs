//! What a trace shows, told in events.

use proptest::prelude::*;

use super::*;
use crate::report::escape::is_unsafe;

/// A libc whose `main_arena` is known, at twelve o'clock.
struct Known;

impl Wording for Known {
    fn time_of_day(&self, ns: u64) -> u64 {
        (12 * 3_600_000_000_000u64).saturating_add(ns)
    }

    fn main_arena(&self, _tgid: u32) -> Option<u64> {
        Some(0x7f2e_fffc_ace0)
    }
}

/// A libc without symbols.
struct Stripped;

impl Wording for Stripped {
    fn time_of_day(&self, ns: u64) -> u64 {
        ns
    }

    fn main_arena(&self, _tgid: u32) -> Option<u64> {
        None
    }
}

fn crossing(tid: u32, chain: u32, ns: u64) -> Chain {
    Chain {
        tgid: 4242,
        tid,
        comm: "prog".to_owned(),
        chain,
        ns,
        call: Some((Function::Malloc, [1_048_576, 0, 0])),
        arena: Some((0x7f2e_fffc_ace0, 1_048_576)),
        slow: Slow { role: SlowRole::Sysmalloc, args: Some([1_048_592, 0x7f2e_fffc_ace0]) },
        raised: None,
    }
}

fn mmap(tid: u32, chain: u32, ns: u64, result: i64) -> Return {
    Return {
        tgid: 4242,
        tid,
        chain,
        ns,
        syscall: Syscall::Mmap,
        origin: Origin::MmapCrossing,
        args: [0, 1_052_672, 3, 34, u64::MAX, 0],
        result,
        latency_ns: 4_100,
    }
}

const MAPPED: i64 = 0x7f2e_feb0_0000;
const T: u64 = 1_123_456_000;

fn run<W: Wording>(tracer: &mut Tracer<W>, steps: impl IntoIterator<Item = ChainStep>) -> String {
    steps.into_iter().map(|step| tracer.feed(step)).collect()
}

#[test]
fn a_crossing_is_printed_from_call_to_system_call() {
    let mut tracer = Tracer::new(Known, Filter::default());
    let out =
        run(&mut tracer, [ChainStep::Chain(crossing(4242, 1, T)), ChainStep::Syscall(mmap(4242, 1, T + 9000, MAPPED))]);
    let expected = "\
12:00:01.123456  prog[4242]  thread 4242
  -> malloc (bytes=1048576)
  -> _int_malloc (av=0x7f2efffcace0 <main_arena>, bytes=1048576)
  -> sysmalloc (nb=1048592, av=0x7f2efffcace0 <main_arena>)
  -> mmap (addr=0x0, len=1052672, prot=3, flags=34, fd=-1, offset=0) = 0x7f2efeb00000  4.1 us
";
    assert_eq!(out, expected);
    assert_eq!(tracer.printed(), 1);
}

#[test]
fn every_kind_of_chain_has_its_words() {
    let mut tracer = Tracer::new(Known, Filter::default());
    let base = |chain| Chain { call: None, arena: None, ..crossing(4242, chain, T) };
    let call = |chain, syscall, args, result| {
        ChainStep::Syscall(Return { syscall, args, result, ..mmap(4242, chain, T, MAPPED) })
    };
    let free = Some((Function::Free, [0x7f2e_feb0_0010, 0, 0]));
    let realloc = Some((Function::Realloc, [0x7f2e_feb0_0010, 2_000_000, 0]));
    let out = run(
        &mut tracer,
        [
            ChainStep::Chain(Chain {
                call: free,
                slow: Slow { role: SlowRole::MunmapChunk, args: Some([0x7f2e_feb0_0000, 0]) },
                ..base(1)
            }),
            call(1, Syscall::Munmap, [0x7f2e_feb0_0000, 1_052_672, 0, 0, 0, 0], 0),
            ChainStep::Chain(Chain {
                call: free,
                slow: Slow { role: SlowRole::Systrim, args: Some([131_072, 0x7f2e_fffc_ace0]) },
                ..base(2)
            }),
            call(2, Syscall::Brk, [0x5555_0000, 0, 0, 0, 0, 0], 0x5555_0000),
            ChainStep::Chain(Chain { call: realloc, ..base(3) }),
            call(3, Syscall::Mremap, [0x7f2e_feb0_0000, 1_052_672, 2_002_944, 1, 0, 0], 0x7f2e_fe00_0000),
            ChainStep::Chain(Chain {
                slow: Slow { role: SlowRole::NewHeap, args: Some([135_168, 131_072]) },
                ..base(4)
            }),
            call(4, Syscall::Mmap, [0, 134_217_728, 0, 16_418, u64::from(u32::MAX), 0], -12),
        ],
    );
    insta::assert_snapshot!(out);
}

#[test]
fn an_inlined_step_is_named_and_not_invented() {
    let mut tracer = Tracer::new(Stripped, Filter::default());
    let chain = Chain { slow: Slow { role: SlowRole::Sysmalloc, args: None }, ..crossing(7, 1, T) };
    let out = run(&mut tracer, [ChainStep::Chain(chain), ChainStep::Syscall(mmap(7, 1, T, MAPPED))]);
    assert!(out.contains("\n  -> sysmalloc  (inlined in this build)\n"));
    assert!(out.contains("_int_malloc (av=0x7f2efffcace0, bytes"));
}

#[test]
fn a_further_system_call_says_to_which_chain_it_belongs() {
    let mut tracer = Tracer::new(Known, Filter::default());
    run(&mut tracer, [ChainStep::Chain(crossing(1, 1, T)), ChainStep::Syscall(mmap(1, 1, T, -12))]);
    let out = tracer.feed(ChainStep::Syscall(mmap(1, 1, T + 50_000, MAPPED)));
    assert!(out.starts_with("12:00:01.123506  prog[4242]  thread 1  (same chain)\n  -> mmap (addr=0x0"), "{out}");
    assert_eq!(tracer.printed(), 1);
}

#[test]
fn a_chain_without_system_call_is_printed_when_it_has_waited() {
    let mut tracer = Tracer::new(Known, Filter::default());
    assert_eq!(tracer.feed(ChainStep::Chain(crossing(1, 1, T))), "");
    assert_eq!(tracer.flush(T + HOLD_NS - 1), "");
    assert_eq!(tracer.flush(T + HOLD_NS).lines().count(), 4);
    assert_eq!(tracer.flush(u64::MAX), "");
}

#[test]
fn a_chain_without_system_call_is_printed_when_the_next_begins() {
    let mut tracer = Tracer::new(Known, Filter::default());
    tracer.feed(ChainStep::Chain(crossing(1, 1, T)));
    assert_eq!(tracer.feed(ChainStep::Chain(crossing(1, 2, T + 1))).lines().count(), 4);
}

#[test]
fn threads_do_not_mix() {
    let mut tracer = Tracer::new(Known, Filter::default());
    let out = run(
        &mut tracer,
        [
            ChainStep::Chain(crossing(1, 1, T)),
            ChainStep::Chain(crossing(2, 1, T + 1)),
            ChainStep::Syscall(mmap(2, 1, T + 2, MAPPED)),
            ChainStep::Syscall(mmap(1, 1, T + 3, MAPPED)),
        ],
    );
    let threads: Vec<&str> = out.lines().filter_map(|line| line.split("thread ").nth(1)).collect();
    assert_eq!(threads, ["2", "1"]);
}

#[test]
fn a_system_call_whose_chain_was_lost_is_printed_as_such() {
    let mut tracer = Tracer::new(Known, Filter::default());
    let out = tracer.feed(ChainStep::Syscall(mmap(1, 9, T, MAPPED)));
    assert!(out.starts_with("12:00:01.123456  process 4242  thread 1  (chain not seen)\n"));
    let mut tracer = Tracer::new(Known, Filter::default());
    tracer.feed(ChainStep::Chain(crossing(1, 8, T)));
    assert!(tracer.feed(ChainStep::Syscall(mmap(1, 9, T, MAPPED))).contains("(chain not seen)"));
}

#[test]
fn small_chains_are_left_out_when_only_large_ones_are_wanted() {
    let mut tracer = Tracer::new(Known, Filter { min_bytes: 1_048_577, count: None });
    let small = Chain {
        call: Some((Function::Calloc, [16, 4, 0])),
        arena: Some((0, 64)),
        slow: Slow { role: SlowRole::Sysmalloc, args: Some([80, 0]) },
        ..crossing(1, 1, T)
    };
    assert_eq!(
        run(
            &mut tracer,
            [ChainStep::Chain(small), ChainStep::Syscall(Return { syscall: Syscall::Brk, ..mmap(1, 1, T, MAPPED) })]
        ),
        ""
    );
    assert_eq!(tracer.flush(u64::MAX), "");
    // Its `nb` is large enough although its bytes are not.
    tracer.feed(ChainStep::Chain(crossing(1, 2, T)));
    assert_ne!(tracer.flush(u64::MAX), "");
}

#[test]
fn a_free_of_a_large_chunk_is_wanted_for_its_munmap() {
    let mut tracer = Tracer::new(Known, Filter { min_bytes: 1_000_000, count: None });
    let free = Chain {
        call: Some((Function::Free, [0x10, 0, 0])),
        arena: None,
        slow: Slow { role: SlowRole::MunmapChunk, args: Some([0, 0]) },
        ..crossing(1, 1, T)
    };
    let out = run(
        &mut tracer,
        [ChainStep::Chain(free), ChainStep::Syscall(Return { syscall: Syscall::Munmap, ..mmap(1, 1, T, 0) })],
    );
    assert!(
        out.contains(
            "-> free (ptr=0x10)\n  -> munmap_chunk (p=0x0)\n  -> munmap (addr=0x0, len=1052672) = 0  4.1 us\n"
        )
    );
}

#[test]
fn after_the_wanted_number_nothing_more_is_printed() {
    let mut tracer = Tracer::new(Known, Filter { min_bytes: 0, count: Some(2) });
    let out = run(
        &mut tracer,
        (1..6)
            .flat_map(|chain| [ChainStep::Chain(crossing(1, chain, T)), ChainStep::Syscall(mmap(1, chain, T, MAPPED))]),
    );
    assert_eq!(out.matches("-> malloc").count(), 2);
    assert!(tracer.finished());
    assert_eq!(tracer.flush(u64::MAX), "");
}

#[test]
fn threads_are_forgotten_beyond_the_bound_and_none_of_their_chains_is_silent() {
    let mut tracer = Tracer::new(Known, Filter::default());
    let out =
        run(&mut tracer, (0..THREADS as u32 + 10).map(|tid| ChainStep::Chain(crossing(tid, 1, T + u64::from(tid)))));
    assert_eq!(tracer.threads.len(), THREADS);
    assert_eq!((tracer.forgotten(), out.matches("-> malloc").count()), (10, 10));
}

proptest! {
    #[test]
    fn no_event_brings_a_control_character_or_a_panic(comm in any::<String>(), args in any::<[u64; 6]>(), result in any::<i64>(),
        ns in any::<u64>(), f in 0u8..9, role in 0usize..4, syscall in 0u8..4) {
        let mut tracer = Tracer::new(Known, Filter::default());
        let role = [SlowRole::Sysmalloc, SlowRole::MunmapChunk, SlowRole::Systrim, SlowRole::NewHeap][role];
        let chain = Chain {
            comm,
            call: Function::from_index(f).map(|function| (function, [args[0], args[1], args[2]])),
            slow: Slow { role, args: Some([args[3], args[4]]) },
            ..crossing(1, 1, ns / 2)
        };
        let call = Return { args, result, latency_ns: ns, syscall: Syscall::from_index(syscall).unwrap(), ..mmap(1, 1, ns / 2, 0) };
        let out = run(&mut tracer, [ChainStep::Chain(chain), ChainStep::Syscall(call.clone()), ChainStep::Syscall(call)]);
        prop_assert_eq!(out.lines().count(), 7);
        prop_assert!(!out.chars().any(|letter| letter != '\n' && is_unsafe(letter)));
    }
}

#[test]
fn a_raise_stands_with_the_free_that_made_it_or_alone_when_nobody_is_known() {
    let mut tracer = Tracer::new(Known, Filter::default());
    let raised = Raised {
        tgid: 4242,
        tid: 7,
        comm: "prog".to_owned(),
        ns: T,
        from: 131_072,
        to: 1_052_672,
        chunk: Some(1_052_672),
    };
    assert_eq!(tracer.feed(ChainStep::Raise(raised.clone())), "", "the chain of its free comes next");
    let free = Chain {
        call: Some((Function::Free, [0x7f2e_feb0_0010, 0, 0])),
        arena: None,
        slow: Slow { role: SlowRole::MunmapChunk, args: Some([0x7f2e_feb0_0000, 0]) },
        ..crossing(7, 1, T)
    };
    tracer.feed(ChainStep::Chain(free));
    let text = tracer.flush(u64::MAX);
    let lines: Vec<&str> = text.lines().map(str::trim).skip(1).collect();
    let raise = "=> mmap threshold 131072 -> 1052672  (by the free of a mapped chunk of 1052672)";
    assert_eq!(lines, ["-> free (ptr=0x7f2efeb00010)", "-> munmap_chunk (p=0x7f2efeb00000)", raise]);
    let alone = tracer.feed(ChainStep::Raise(Raised { chunk: None, ..raised }));
    assert!(alone.ends_with("131072 -> 1052672  (seen only now: who raised it is not known)\n"), "{alone}");
}
