//! `/v1/raises` and `/v1/crossings`: who moved the threshold, who had chunks mapped.

use serde::Serialize;

use super::document::{self, SCHEMA_VERSION};
use crate::aggregate::model::{Frame, Mapping, Process, Raise, Snapshot, Stack, StackShare};

/// Which incidents are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only those of this process.
    pub pid: Option<u32>,
    /// Only the last so many.
    pub limit: Option<usize>,
}

/// `/v1/raises`
#[derive(Debug, Serialize)]
pub struct Raises<'a> {
    schema_version: u32,
    sequence: u64,
    raises: Vec<OneRaise<'a>>,
}

/// `/v1/crossings`
#[derive(Debug, Serialize)]
pub struct Crossings<'a> {
    schema_version: u32,
    sequence: u64,
    crossings: Vec<OneCrossing<'a>>,
}

/// `/v1/crossings?by=stack`
#[derive(Debug, Serialize)]
pub struct CrossingsByStack<'a> {
    schema_version: u32,
    sequence: u64,
    processes: Vec<OneProcess<'a>>,
}

/// The crossings of one image by stack; `stacks` and `other` together are `calls`.
#[derive(Debug, Serialize)]
struct OneProcess<'a> {
    pid: u32,
    start_time_ticks: u64,
    comm: &'a str,
    calls: u64,
    bytes: u64,
    samples: u64,
    /// Not every crossing was sampled: the shares are estimates, their sum is not.
    estimated: bool,
    stacks: Vec<OneShare<'a>>,
    other: Rest,
}

#[derive(Debug, Serialize)]
struct OneShare<'a> {
    calls: u64,
    bytes: u64,
    samples: u64,
    stack: OneStack<'a>,
}

#[derive(Debug, Serialize)]
struct Rest {
    calls: u64,
    bytes: u64,
}

/// What `record --format json` writes: the snapshot document with the incidents beside it.
#[derive(Debug, Serialize)]
pub struct Recording<'a> {
    #[serde(flatten)]
    snapshot: document::Snapshot<'a, super::Processes<'a>>,
    raises: Vec<OneRaise<'a>>,
    crossing_samples: Vec<OneCrossing<'a>>,
    crossing_stacks: Vec<OneProcess<'a>>,
}

#[derive(Debug, Serialize)]
struct OneRaise<'a> {
    pid: u32,
    start_time_ticks: u64,
    thread: u32,
    comm: &'a str,
    unix_ms: u64,
    from_bytes: Option<u64>,
    to_bytes: u64,
    /// `null`: seen only later; who raised it is not known.
    chunk_bytes: Option<u64>,
    freed_by: Option<OneStack<'a>>,
    mapped_by: Option<OneStack<'a>>,
}

#[derive(Debug, Serialize)]
struct OneCrossing<'a> {
    pid: u32,
    start_time_ticks: u64,
    thread: u32,
    comm: &'a str,
    unix_ms: u64,
    mapped_bytes: u64,
    /// `null`: its `sysmalloc` was not seen.
    nb: Option<u64>,
    mmap_ns: u64,
    nth: u64,
    weight: u64,
    stack: Option<OneStack<'a>>,
}

/// A stack.
#[derive(Debug, Serialize)]
pub(super) struct OneStack<'a> {
    frames: Vec<OneFrame<'a>>,
    /// Why the stack ends before the start of the thread; `null`: it does not.
    cut: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct OneFrame<'a> {
    function: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    module: Option<&'a str>,
    offset: Option<u64>,
    inlined: bool,
}

/// A whole recording; the incidents are in the order in which they happened.
#[must_use]
pub fn recording(snapshot: &Snapshot) -> Recording<'_> {
    Recording {
        snapshot: super::snapshot(snapshot),
        raises: snapshot.raises.iter().map(|raise| one_raise(raise)).collect(),
        crossing_samples: snapshot.mappings.iter().map(|mapping| one_crossing(mapping)).collect(),
        crossing_stacks: processes(snapshot, Selection::default()),
    }
}

/// The raises, the newest first.
#[must_use]
pub fn raises(snapshot: &Snapshot, which: Selection) -> Raises<'_> {
    let chosen = snapshot.raises.iter().rev().filter(|raise| which.pid.is_none_or(|pid| pid == raise.id.pid));
    Raises {
        schema_version: SCHEMA_VERSION,
        sequence: snapshot.sequence,
        raises: chosen.take(which.limit.unwrap_or(usize::MAX)).map(|raise| one_raise(raise)).collect(),
    }
}

/// The sampled crossings, the newest first.
#[must_use]
pub fn crossings(snapshot: &Snapshot, which: Selection) -> Crossings<'_> {
    let chosen = snapshot.mappings.iter().rev().filter(|mapping| which.pid.is_none_or(|pid| pid == mapping.id.pid));
    Crossings {
        schema_version: SCHEMA_VERSION,
        sequence: snapshot.sequence,
        crossings: chosen.take(which.limit.unwrap_or(usize::MAX)).map(|mapping| one_crossing(mapping)).collect(),
    }
}

/// Sampled crossings by image and stack; `limit`: so many stacks of each image, the others are in `other`.
#[must_use]
pub fn crossings_by_stack(snapshot: &Snapshot, which: Selection) -> CrossingsByStack<'_> {
    let (schema_version, sequence) = (SCHEMA_VERSION, snapshot.sequence);
    CrossingsByStack { schema_version, sequence, processes: processes(snapshot, which) }
}

fn processes(snapshot: &Snapshot, which: Selection) -> Vec<OneProcess<'_>> {
    let chosen = snapshot.stacks.iter().filter(|told| which.pid.is_none_or(|pid| pid == told.id.pid));
    chosen
        .filter_map(|told| {
            let same = |p: &&std::sync::Arc<Process>| p.id == told.id && p.image_ns == told.image_ns;
            let process = snapshot.processes.iter().find(same)?;
            let all = process.crossings.as_ref()?.count;
            let shown = told.stacks.get(..which.limit.unwrap_or(usize::MAX)).unwrap_or(&told.stacks);
            let sum = |of: fn(&StackShare) -> u64| shown.iter().map(of).fold(0, u64::saturating_add);
            Some(OneProcess {
                pid: told.id.pid,
                start_time_ticks: told.id.start_ticks,
                comm: &process.comm,
                calls: all.calls,
                bytes: all.bytes,
                samples: told.samples,
                estimated: told.samples < all.calls,
                stacks: shown.iter().map(one_share).collect(),
                other: Rest {
                    calls: all.calls.saturating_sub(sum(|share| share.calls)),
                    bytes: all.bytes.saturating_sub(sum(|share| share.bytes)),
                },
            })
        })
        .collect()
}

fn one_share(share: &StackShare) -> OneShare<'_> {
    OneShare { calls: share.calls, bytes: share.bytes, samples: share.samples, stack: one_stack(&share.stack) }
}

fn one_raise(raise: &Raise) -> OneRaise<'_> {
    OneRaise {
        pid: raise.id.pid,
        start_time_ticks: raise.id.start_ticks,
        thread: raise.tid,
        comm: &raise.comm,
        unix_ms: raise.unix_ms,
        from_bytes: (raise.from_bytes != 0).then_some(raise.from_bytes),
        to_bytes: raise.to_bytes,
        chunk_bytes: raise.chunk_bytes,
        freed_by: raise.stack.as_deref().map(one_stack),
        mapped_by: raise.mapped_by.as_deref().map(one_stack),
    }
}

fn one_crossing(mapping: &Mapping) -> OneCrossing<'_> {
    OneCrossing {
        pid: mapping.id.pid,
        start_time_ticks: mapping.id.start_ticks,
        thread: mapping.tid,
        comm: &mapping.comm,
        unix_ms: mapping.unix_ms,
        mapped_bytes: mapping.bytes,
        nb: (mapping.nb != 0).then_some(mapping.nb),
        mmap_ns: mapping.mmap_ns,
        nth: mapping.nth,
        weight: mapping.weight,
        stack: mapping.stack.as_deref().map(one_stack),
    }
}

pub(super) fn one_stack(stack: &Stack) -> OneStack<'_> {
    OneStack { frames: stack.frames.iter().map(one_frame).collect(), cut: stack.cut.as_deref() }
}

fn one_frame(frame: &Frame) -> OneFrame<'_> {
    OneFrame {
        function: frame.function.as_deref(),
        file: frame.file.as_deref(),
        line: frame.line,
        module: frame.module.as_deref(),
        offset: frame.offset,
        inlined: frame.inlined,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::aggregate::model::{CrossingStacks, ProcessId};
    use crate::report::json::to_vec;
    use crate::report::sample;

    fn raise(pid: u32, to_bytes: u64) -> Arc<Raise> {
        let frame = Frame {
            function: Some("release_buffer".to_owned()),
            file: Some("/src/buffers.c".to_owned()),
            line: Some(42),
            module: Some("/usr/bin/server".to_owned()),
            offset: Some(0x1234),
            inlined: false,
            build_id: None,
        };
        Arc::new(Raise {
            number: 1,
            id: ProcessId { pid, start_ticks: 99 },
            comm: "server".to_owned(),
            tid: pid + 1,
            ns: 5,
            unix_ms: 1_700_000_000_000,
            from_bytes: 131_072,
            to_bytes,
            chunk_bytes: Some(to_bytes),
            stack: Some(Arc::new(Stack { frames: vec![frame], cut: None })),
            mapped_by: None,
        })
    }

    #[test]
    fn a_raise_names_who_freed_and_says_what_is_not_known() {
        let mut snapshot = sample::snapshot(Vec::new());
        snapshot.raises = vec![raise(7, 1_052_672)];
        let document = to_vec(&raises(&snapshot, Selection::default()));
        insta::assert_snapshot!(String::from_utf8(document).expect("text"));
    }

    #[test]
    fn shares_of_stacks_and_the_rest_add_up_to_the_crossings() {
        // CROSS-2
        let mut process = sample::sqlite();
        process.crossings.as_mut().expect("measured").count =
            crate::aggregate::model::Count { calls: 100, bytes: 100_000 };
        let share = |calls| StackShare { calls, bytes: calls * 1000, samples: 1, stack: Arc::default() };
        let told = CrossingStacks {
            id: process.id,
            image_ns: process.image_ns,
            samples: 3,
            stacks: vec![share(60), share(30), share(5)],
        };
        let mut snapshot = sample::snapshot(vec![process]);
        snapshot.stacks = vec![Arc::new(told)];
        for (limit, other) in [(None, 5), (Some(1), 40), (Some(9), 5)] {
            let told = &crossings_by_stack(&snapshot, Selection { pid: None, limit }).processes[0];
            let shares: u64 = told.stacks.iter().map(|share| share.calls).sum();
            assert_eq!((told.other.calls, told.other.bytes), (other, other * 1000));
            assert_eq!((shares + told.other.calls, told.estimated), (told.calls, true));
        }
        assert!(crossings_by_stack(&snapshot, Selection { pid: Some(1), limit: None }).processes.is_empty());
    }

    #[test]
    fn the_newest_of_the_process_asked_for_come_first() {
        let mut snapshot = sample::snapshot(Vec::new());
        snapshot.raises = vec![raise(7, 1), raise(8, 2), raise(7, 3), raise(7, 4)];
        let chosen = raises(&snapshot, Selection { pid: Some(7), limit: Some(2) });
        let sizes: Vec<_> = chosen.raises.iter().map(|raise| raise.to_bytes).collect();
        assert_eq!(sizes, [4, 3]);
    }
}
