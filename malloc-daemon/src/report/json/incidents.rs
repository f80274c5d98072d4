//! `/v1/raises` and `/v1/crossings`: who moved the threshold, who had chunks mapped.

use serde::Serialize;

use super::document::{self, SCHEMA_VERSION};
use crate::aggregate::model::{Frame, Mapping, Raise, Snapshot, Stack};

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

/// What `record --format json` writes: the snapshot document with the incidents beside it.
#[derive(Debug, Serialize)]
pub struct Recording<'a> {
    #[serde(flatten)]
    snapshot: document::Snapshot<'a>,
    raises: Vec<OneRaise<'a>>,
    crossing_samples: Vec<OneCrossing<'a>>,
}

#[derive(Debug, Serialize)]
struct OneRaise<'a> {
    pid: u32,
    start_time_ticks: u64,
    thread: u32,
    comm: &'a str,
    unix_ms: u64,
    from_bytes: u64,
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

fn one_raise(raise: &Raise) -> OneRaise<'_> {
    OneRaise {
        pid: raise.id.pid,
        start_time_ticks: raise.id.start_ticks,
        thread: raise.tid,
        comm: &raise.comm,
        unix_ms: raise.unix_ms,
        from_bytes: raise.from_bytes,
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
    use crate::aggregate::model::ProcessId;
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
    fn the_newest_of_the_process_asked_for_come_first() {
        let mut snapshot = sample::snapshot(Vec::new());
        snapshot.raises = vec![raise(7, 1), raise(8, 2), raise(7, 3), raise(7, 4)];
        let chosen = raises(&snapshot, Selection { pid: Some(7), limit: Some(2) });
        let sizes: Vec<_> = chosen.raises.iter().map(|raise| raise.to_bytes).collect();
        assert_eq!(sizes, [4, 3]);
    }
}
