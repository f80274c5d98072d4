//! Findings and estimates in sentences: the same in JSON and in the text report.

use crate::aggregate::explain::Finding;
use crate::aggregate::model::{Frame, Raise, Stack};
use crate::aggregate::what_if::{Assumption, Basis, Change, WhatIf, per_second};
use crate::report::escape::printable;
use crate::report::units::{bytes, count, exact_bytes, milliseconds, nanoseconds};

/// A finding. `libc` is the allocator's file, whose own frames nobody asks for.
pub(crate) fn finding(finding: &Finding, libc: Option<&str>) -> String {
    match finding {
        Finding::ThresholdRaised {
            from_bytes,
            to_bytes,
            trim_bytes,
            raises,
            requests,
            requests_estimated,
            last,
            last_ago_ns,
        } => {
            let who = match (last, last_ago_ns) {
                (Some(last), Some(ago)) => format!(" {}", raised_by(last, *ago, libc)),
                _ if *raises == 0 => " It rose before it was observed, so who raised it is not known.".to_owned(),
                _ => String::new(),
            };
            let how_many = requests.map_or_else(String::new, |requests| {
                let about = if *requests_estimated { "By an estimate " } else { "" };
                format!(" {about}{} of the recorded requests were of such sizes.", count(requests))
            });
            format!(
                "The mmap threshold stands at {}; glibc began with {} and raises it whenever a larger mapped chunk is \
                 freed.{who} Blocks between these sizes now come from the heap, where freeing one gives nothing back \
                 to the kernel while anything above it is live.{how_many} The top of the heap is given back only \
                 from {} on.",
                exact_bytes(*to_bytes),
                bytes(*from_bytes),
                exact_bytes(*trim_bytes),
            )
        }
        Finding::ThresholdPinned { bytes } => format!(
            "The mmap threshold is set to {} by the program, its environment or a tunable, and does not move.",
            exact_bytes(*bytes)
        ),
        Finding::Retained { bytes: all, complete, resident_bytes, top_bytes, free_bytes, system_bytes, trim_bytes } => {
            let least = if *complete { "" } else { "at least " };
            let resident =
                resident_bytes.map_or_else(String::new, |resident| format!("; {} of it is resident", bytes(resident)));
            let top = if *top_bytes >= *trim_bytes {
                "The tops are large enough to be given back, which happens when a block of 64 KiB or more beside \
                 one is freed"
                    .to_owned()
            } else {
                format!("A top is given back only from {} on", bytes(*trim_bytes))
            };
            format!(
                "The arenas hold {} of the kernel's memory, and {least}{} of that the program does not use: {} in free \
                 chunks that live blocks above them keep from being given back, {} at the tops{resident}. {top}. \
                 malloc_trim(0) would give the whole pages of all of it back at once.",
                bytes(*system_bytes),
                bytes(*all),
                bytes(*free_bytes),
                bytes(*top_bytes),
            )
        }
        Finding::Churn { chunks, per_second, bytes: mapped, kernel_ns, page_faults, threshold_bytes } => {
            let above = threshold_bytes.map_or_else(String::new, |threshold| {
                format!(", since their blocks are not below {}", bytes(threshold))
            });
            format!(
                "{} chunks ({} a second, {} in all) were mapped by mmap and unmapped again within a second{above}: each costs \
                 two system calls and a page fault for every page it touches. mmap and munmap took {} for all mapped chunks{}.",
                count(*chunks),
                count(*per_second),
                bytes(*mapped),
                nanoseconds(*kernel_ns),
                page_faults.map_or_else(String::new, |faults| format!(", which took {} page faults", count(faults))),
            )
        }
        Finding::HeapNotRead { why: Some(why) } => {
            format!("What the heap retains is not known: {}.", printable(why, 200))
        }
        Finding::HeapNotRead { why: None } => {
            "What the heap retains is not known: the process was not there long enough to be read.".to_owned()
        }
        Finding::NothingNotable => {
            "Nothing notable: the threshold stands where glibc begins, no chunk is mapped over and over, and the \
             memory that the heap is known to hold unused is little."
                .to_owned()
        }
    }
}

fn raised_by(raise: &Raise, ago_ns: u64, libc: Option<&str>) -> String {
    let ago = milliseconds(ago_ns / 1_000_000);
    match raise.stack.as_deref().and_then(|stack| caller(stack, libc)) {
        Some(caller) => format!(
            "Last it did so {ago} before the end of this report, when thread {} freed a chunk of {} in {caller}.",
            raise.tid,
            bytes(raise.to_bytes)
        ),
        None => format!("Last it did so {ago} before the end of this report; the stack is not known."),
    }
}

/// Whether a frame is the allocator's own. By the file's name: one file has several paths where directories are links.
pub(crate) fn is_of(frame: &Frame, libc: Option<&str>) -> bool {
    let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
    libc.is_some() && frame.module.as_deref().and_then(name) == libc.and_then(name)
}

/// The innermost frame outside the allocator.
fn caller(stack: &Stack, libc: Option<&str>) -> Option<String> {
    let frame = stack.frames.iter().find(|frame| !is_of(frame, libc))?;
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => {
            format!(" ({}:{line})", printable(file.rsplit('/').next().unwrap_or(file), 80))
        }
        _ => String::new(),
    };
    match (&frame.function, &frame.module, frame.offset) {
        (Some(function), ..) => Some(format!("{}{place}", printable(function, 120))),
        (None, Some(module), Some(offset)) => {
            Some(format!("{}+{offset:#x}", printable(module.rsplit('/').next().unwrap_or(module), 80)))
        }
        _ => None,
    }
}

/// The value of `GLIBC_TUNABLES` that makes a setting.
pub(crate) fn setting(what_if: &WhatIf) -> String {
    let trim = what_if.trim_threshold.map_or_else(String::new, |trim| format!(":glibc.malloc.trim_threshold={trim}"));
    format!("glibc.malloc.mmap_threshold={}{trim}", what_if.mmap_threshold)
}

/// An estimate.
pub(crate) fn estimate(what_if: &WhatIf) -> String {
    let (low, high) = what_if.mmaps;
    let time = milliseconds(what_if.observed_ms);
    let a_second = |calls: u64| count(per_second(calls, what_if.observed_ms));
    let mmaps = match high {
        Some(high) if high == low => format!("{} ({} a second)", count(low), a_second(low)),
        Some(high) => format!("{} to {} ({} to {} a second)", count(low), count(high), a_second(low), a_second(high)),
        None => format!("at least {} ({} a second)", count(low), a_second(low)),
    };
    let faults = format!("about {}", more(what_if.faults, " page faults", count));
    let retained = what_if.retained.map_or_else(
        || "what it does to the retained bytes is not known, since the heap was not read".to_owned(),
        |retained| {
            let resident = what_if
                .resident
                .map_or_else(String::new, |resident| format!(" (resident: {})", more(resident, "", bytes)));
            format!("about {} retained{resident}", more(retained, "", bytes))
        },
    );
    format!(
        "With GLIBC_TUNABLES={} the same {time} would have had {mmaps} chunks mapped instead of {}, {faults}, and {retained}.",
        setting(what_if),
        count(what_if.mmaps_now),
    )
}

fn more(change: Change, what: &str, unit: impl Fn(u64) -> String) -> String {
    let amount = unit(change.about.unsigned_abs());
    let which = if change.about < 0 { "less" } else { "more" };
    let which = if what.is_empty() {
        which
    } else if change.about < 0 {
        "fewer"
    } else {
        "more"
    };
    if what.is_empty() { format!("{amount} {which}") } else { format!("{amount} {which}{what}") }
}

/// What an estimate rests on.
pub(crate) fn assumption(assumption: Assumption) -> String {
    match assumption {
        Assumption::SameRequests => "the program asks for the same blocks again".to_owned(),
        Assumption::TouchedPercent(percent) => {
            format!("{percent} % of a large block's pages are touched, as of those that were watched or are free now")
        }
        Assumption::FaultsPercent(percent) => {
            format!("mapped chunks take a page fault for {percent} % of their pages, as those that were watched did")
        }
        Assumption::AllTouched => "every page of a large block is touched".to_owned(),
        Assumption::FreeFromLarge => {
            "free chunks of at least the threshold were such blocks, and not small ones that came together".to_owned()
        }
        Assumption::HeapReuse => {
            "freed blocks are used again, so that the heap grows by the most that was mapped at a time".to_owned()
        }
        Assumption::InWindows(percent) => {
            format!("requests were as they were in the {percent} % of its running time in which they were counted")
        }
        Assumption::AtLeast => {
            "requests that free chunks served are not seen at this depth; record at depth call for those".to_owned()
        }
    }
}

/// What was replayed.
pub(crate) fn basis(basis: Basis) -> &'static str {
    match basis {
        Basis::Call => "the sizes that were requested",
        Basis::Arena => "the sizes that reached an arena",
        Basis::Sysmalloc => "the sizes that reached sysmalloc",
        Basis::Crossings => "the chunks that were mapped",
    }
}
