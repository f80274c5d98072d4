//! Snapshots as JSON: chooses the document, converts, writes.

mod convert;
mod cost;
pub mod document;
mod estimate;
mod health;
pub mod heap;
pub mod history;
pub mod incidents;
pub mod meaning;
pub mod read;
mod told;

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

use self::document::{Failure, FailureCode, SCHEMA_VERSION};
use crate::aggregate::model::{Process, ProcessId, Snapshot};
use crate::report::escape::is_unsafe;

pub use self::health::{health, status};
pub use self::told::Told;

/// Processes of the snapshot document.
pub type Processes<'a> = Told<'a, document::Process<'a>>;

/// Processes of the list.
pub type Listed<'a> = Told<'a, document::ListedProcess<'a>>;

/// The snapshot document: `/v1/snapshot` and `record --format json`.
#[must_use]
pub fn snapshot(snapshot: &Snapshot) -> document::Snapshot<'_, Processes<'_>> {
    selected(snapshot, &|_| true)
}

fn selected<'a>(snapshot: &'a Snapshot, is_told: &dyn Fn(&Process) -> bool) -> document::Snapshot<'a, Processes<'a>> {
    document::Snapshot {
        schema_version: SCHEMA_VERSION,
        sequence: snapshot.sequence,
        host: convert::host(&snapshot.host),
        window: convert::window(snapshot.window),
        complete: snapshot.complete,
        losses: convert::every_loss(&snapshot.losses),
        processes: Told::of(snapshot, is_told, convert::process),
        processes_dropped: snapshot.processes_dropped,
    }
}

/// An image of a process: its identity and when it was first seen.
pub type ImageKey = (ProcessId, u64);

/// Images that changed and those that are gone since a snapshot; `None`: that is not known.
pub type Known<'a> = Option<(&'a [ImageKey], &'a [ImageKey])>;

/// `/v1/snapshot?since=`: where nothing is known, all are told.
#[must_use]
pub fn difference<'a>(now: &'a Snapshot, since: u64, known: Known<'_>) -> document::Difference<'a, Processes<'a>> {
    let Some((changed, gone)) = known else {
        return document::Difference { snapshot: snapshot(now), since, whole: true, gone: Vec::new() };
    };
    let changed: HashSet<&ImageKey> = changed.iter().collect();
    document::Difference {
        snapshot: selected(now, &|process| changed.contains(&key(process))),
        since,
        whole: false,
        gone: gone_from(now, gone),
    }
}

fn key(process: &Process) -> ImageKey {
    (process.id, process.image_ns)
}

/// What went after this snapshot is told with the next.
fn gone_from(now: &Snapshot, gone: &[ImageKey]) -> Vec<document::Gone> {
    let held: HashSet<ImageKey> = now.processes.iter().map(|process| key(process)).collect();
    let gone = gone.iter().filter(|gone| !held.contains(gone)).map(|(id, image_ns)| document::Gone {
        pid: id.pid,
        start_time_ticks: id.start_ticks,
        image_ns: *image_ns,
    });
    gone.collect()
}

/// `/v1/processes`: every image without its functions and histograms.
#[must_use]
pub fn process_list(snapshot: &Snapshot) -> document::ProcessList<Listed<'_>> {
    listed(snapshot, &|_| true)
}

fn listed<'a>(snapshot: &'a Snapshot, is_told: &dyn Fn(&Process) -> bool) -> document::ProcessList<Listed<'a>> {
    document::ProcessList {
        schema_version: SCHEMA_VERSION,
        sequence: snapshot.sequence,
        window: convert::window(snapshot.window),
        processes: Told::of(snapshot, is_told, |_, process| convert::listed(process)),
    }
}

/// `/v1/processes?since=`: where nothing is known, all are told.
#[must_use]
pub fn list_difference<'a>(now: &'a Snapshot, since: u64, known: Known<'_>) -> document::ListDifference<Listed<'a>> {
    let Some((changed, gone)) = known else {
        return document::ListDifference { list: process_list(now), since, whole: true, gone: Vec::new() };
    };
    let changed: HashSet<&ImageKey> = changed.iter().collect();
    document::ListDifference {
        list: listed(now, &|process| changed.contains(&key(process))),
        since,
        whole: false,
        gone: gone_from(now, gone),
    }
}

/// `/v1/processes/{pid}`: the newest image of that pid, a live one before those that ended; `None`: no such pid.
#[must_use]
pub fn one_process(snapshot: &Snapshot, pid: u32) -> Option<document::OneProcess<'_>> {
    let images = || snapshot.processes.iter().filter(move |process| process.id.pid == pid);
    let newest = images().max_by_key(|process: &&std::sync::Arc<Process>| {
        (process.ended.is_none(), process.id.start_ticks, process.image_ns)
    })?;
    Some(document::OneProcess {
        schema_version: SCHEMA_VERSION,
        sequence: snapshot.sequence,
        host: convert::host(&snapshot.host),
        window: convert::window(snapshot.window),
        images: images().count(),
        process: convert::process(snapshot, newest),
    })
}

/// The body of an answer that is not a success.
#[must_use]
pub fn failure<'a>(code: &'a str, message: &'a str) -> Failure<'a> {
    Failure { error: FailureCode { code: Cow::Borrowed(code), message: Cow::Borrowed(message) } }
}

/// A document on one line, with its line end.
///
/// Characters that could mislead a terminal are written as `\u` escapes: the same text to a JSON reader.
///
/// # Panics
///
/// Never: the documents hold nothing that JSON cannot, and a `Vec` takes all that is written.
#[must_use]
pub fn to_vec<T: Serialize>(document: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Plain);
    if document.serialize(&mut serializer).is_err() {
        unreachable!("a document without maps of other keys than text always serializes");
    }
    out.push(b'\n');
    out
}

/// Compact JSON in which a name cannot hide a control character of the terminal.
struct Plain;

impl Formatter for Plain {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, letter)) = rest.char_indices().find(|(_, letter)| is_unsafe(*letter)) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            for unit in letter.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = tail.get(letter.len_utf8()..).unwrap_or_default();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use proptest::prelude::*;

    fn pretty<T: Serialize>(document: &T) -> String {
        serde_json::to_string_pretty(document).unwrap()
    }

    #[test]
    fn a_fully_probed_process_is_reported_whole() {
        insta::assert_snapshot!(pretty(&snapshot(&sample::snapshot(vec![sample::sqlite()]))));
    }

    #[test]
    fn what_is_not_measured_at_depth_syscall_is_null_and_never_zero() {
        let snapshot_ = sample::snapshot(vec![sample::at_depth_syscall()]);
        let text = pretty(&snapshot(&snapshot_));
        insta::assert_snapshot!(text);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let process = &value["processes"][0];
        for path in [
            "/funnel/call",
            "/funnel/arena",
            "/funnel/sysmalloc",
            "/funnel/brk",
            "/funnel/mmap",
            "/functions",
            "/threshold",
            "/crossings",
            "/syscalls/mmap/by_origin/crossing",
            "/syscalls/brk/bytes_by_origin/growth",
        ] {
            assert_eq!(process.pointer(path), Some(&serde_json::Value::Null), "{path}");
        }
        assert_eq!(process["syscalls"]["mmap"]["by_origin"]["file"], 24);
    }

    #[test]
    fn the_list_has_no_histograms() {
        let snapshot = sample::snapshot(vec![sample::sqlite(), sample::at_depth_syscall()]);
        let text = pretty(&process_list(&snapshot));
        insta::assert_snapshot!(text);
        assert!(!text.contains("\"lo\""));
    }

    #[test]
    fn of_several_images_the_live_one_is_shown() {
        let mut before = sample::sqlite();
        before.image_ns += 5;
        before.ended = Some(crate::aggregate::model::End::Replaced);
        before.comm = "before".to_owned();
        let snapshot = sample::snapshot(vec![sample::sqlite(), before]);
        let one = one_process(&snapshot, 4242).unwrap();
        assert_eq!((one.images, one.process.comm.as_ref()), (2, "sqlite3"));
        assert!(one_process(&snapshot, 1).is_none());
    }

    #[test]
    fn a_document_reads_back_as_it_was() {
        let model = sample::snapshot(vec![sample::sqlite(), sample::at_depth_syscall(), sample::hostile()]);
        let written = snapshot(&model);
        let read: document::Snapshot<'_> = serde_json::from_slice(&to_vec(&written)).unwrap();
        assert_eq!(read.processes, written.processes.iter().collect::<Vec<_>>());
        assert_eq!(to_vec(&read), to_vec(&written));
    }

    #[test]
    fn a_bucket_without_bound_says_null() {
        let mut process = sample::sqlite();
        process.crossings.as_mut().unwrap().sizes =
            vec![crate::aggregate::model::Bucket { lo: 7 << 45, hi: u64::MAX, calls: 1 }];
        let snapshot_ = sample::snapshot(vec![process]);
        let text = String::from_utf8(to_vec(&snapshot(&snapshot_))).unwrap();
        assert!(text.contains("\"hi\":null,"));
        assert!(!text.contains("18446744073709551615"));
    }

    #[test]
    fn the_calls_of_the_buckets_sum_to_the_calls() {
        let snapshot_ = sample::snapshot(vec![sample::sqlite()]);
        let process = snapshot(&snapshot_).processes.iter().next().unwrap();
        for function in process.functions.as_ref().unwrap() {
            if let Some(sizes) = &function.sizes {
                assert_eq!(sizes.iter().map(|bucket| bucket.calls).sum::<u64>(), function.calls);
            } else {
                assert_eq!(function.name, "free");
            }
        }
    }

    proptest! {
        #[test]
        fn a_hostile_name_stays_one_json_string_without_control_characters(comm in any::<String>(), exe in any::<String>()) {
            let mut process = sample::sqlite();
            process.comm = comm.clone();
            process.exe = Some(exe.clone());
            let model = sample::snapshot(vec![process]);
            let bytes = to_vec(&snapshot(&model));
            let text = std::str::from_utf8(&bytes).unwrap();
            prop_assert!(!text.trim_end_matches('\n').chars().any(is_unsafe));
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            prop_assert_eq!(value["processes"][0]["comm"].as_str(), Some(comm.as_str()));
            prop_assert_eq!(value["processes"][0]["exe"].as_str(), Some(exe.as_str()));
        }
    }
}
