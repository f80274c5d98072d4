//! Compares a victim's account with the daemon's, number by number, and shows both where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::document::Image;
use crate::truth::{Row, Truth};

/// One number that both sides know.
struct Line {
    what: String,
    truth: Option<u64>,
    daemon: Option<u64>,
}

/// Proves that the daemon saw exactly the victim's calls: every function, its bytes, its failures, and every
/// bucket of its histogram (COUNT-1, COUNT-2, COUNT-3).
///
/// # Panics
/// With a table of both sides if any number differs.
pub fn assert_functions(truth: &Truth, image: &Image) {
    assert_functions_beyond(truth, &BTreeMap::new(), image);
}

/// The same, where the libc makes calls of its own beside the victim's.
///
/// # Panics
/// With a table of both sides if any number differs.
pub fn assert_functions_beyond(truth: &Truth, of_the_libc: &BTreeMap<String, Row>, image: &Image) {
    let seen = image.functions();
    let mut lines = Vec::new();
    for (name, known) in &truth.functions {
        let expected = of_the_libc.get(name).map_or_else(|| known.clone(), |more| known.plus(more));
        compare_rows(name, &expected, seen.get(name), &mut lines);
    }
    for (name, row) in seen.iter().filter(|(name, _)| !truth.functions.contains_key(*name)) {
        lines.push(Line { what: format!("{name} calls"), truth: None, daemon: Some(row.calls) });
    }
    assert_same(&format!("functions of {} ({})", truth.victim, truth.pid), lines);
}

/// Proves that the daemon saw exactly the chunks that malloc mapped, resized and gave back (CROSS-1).
///
/// # Panics
/// With a table of both sides if any number differs.
pub fn assert_crossings(truth: &Truth, image: &Image) {
    let mut lines = Vec::new();
    let seen = image.crossings();
    // Crossings count no failures: a mapping that was refused is a failed mmap.
    let expected = Row { failed: None, ..truth.crossings.clone() };
    compare_rows("crossings", &expected, Some(&Row { failed: None, ..seen }), &mut lines);
    let mut line = |what: &str, truth: u64, pointer: &str| {
        lines.push(Line { what: what.to_owned(), truth: Some(truth), daemon: Some(image.number(pointer)) });
    };
    line("mmap for crossings", truth.crossings.calls, "/syscalls/mmap/by_origin/crossing");
    line("munmap of chunks", truth.munmap_chunk, "/syscalls/munmap/by_origin/chunk");
    line("mremap of chunks", truth.mremap_chunk, "/syscalls/mremap/by_origin/chunk");
    assert_same(&format!("crossings of {} ({})", truth.victim, truth.pid), lines);
}

/// Proves that the reported threshold is where the libc's rule puts it (THRESH-1).
///
/// # Panics
/// With a table of both sides if any number differs.
pub fn assert_threshold(truth: &Truth, image: &Image) {
    let lines = vec![
        Line {
            what: "threshold bytes".to_owned(),
            truth: Some(truth.threshold.bytes),
            daemon: Some(image.number("/threshold/bytes")),
        },
        Line {
            what: "raises".to_owned(),
            truth: Some(truth.threshold.raises),
            daemon: Some(image.number("/threshold/raises")),
        },
    ];
    assert_same(&format!("threshold of {} ({})", truth.victim, truth.pid), lines);
    let mode = if truth.threshold.pinned { "pinned" } else { "dynamic" };
    assert_eq!(image.text("/threshold/mode"), mode, "threshold.mode");
}

/// A function without a row has not been called: every number of it is zero.
fn compare_rows(name: &str, expected: &Row, seen: Option<&Row>, lines: &mut Vec<Line>) {
    let zero = Row {
        calls: 0,
        bytes: expected.bytes.map(|_| 0),
        failed: expected.failed.map(|_| 0),
        sizes: expected.sizes.as_ref().map(|_| BTreeMap::new()),
    };
    let seen = seen.unwrap_or(&zero);
    let mut line = |what: String, truth, daemon| lines.push(Line { what, truth, daemon });
    line(format!("{name} calls"), Some(expected.calls), Some(seen.calls));
    line(format!("{name} bytes"), expected.bytes, seen.bytes);
    if expected.failed.is_some() {
        line(format!("{name} failed"), expected.failed, seen.failed);
    }
    let empty = BTreeMap::new();
    let (expected, seen) = (expected.sizes.as_ref().unwrap_or(&empty), seen.sizes.as_ref().unwrap_or(&empty));
    let buckets: BTreeSet<_> = expected.keys().chain(seen.keys()).collect();
    for bucket in buckets {
        let calls = |side: &BTreeMap<_, u64>| Some(side.get(bucket).copied().unwrap_or(0));
        line(format!("{name} {}..{}", bucket.0, bucket.1), calls(expected), calls(seen));
    }
}

fn assert_same(title: &str, lines: Vec<Line>) {
    let wrong: Vec<_> = lines.into_iter().filter(|line| line.truth != line.daemon).collect();
    assert!(wrong.is_empty(), "{}", table(title, &wrong));
}

fn table(title: &str, lines: &[Line]) -> String {
    let show = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let width = lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
    let mut text = format!(
        "{title}: {} numbers differ\n{:width$}  {:>20}  {:>20}  {:>12}\n",
        lines.len(),
        "",
        "truth",
        "daemon",
        "difference"
    );
    for line in lines {
        let difference = match (line.truth, line.daemon) {
            (Some(truth), Some(daemon)) => format!("{:+}", i128::from(daemon) - i128::from(truth)),
            _ => String::new(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:width$}  {:>20}  {:>20}  {difference:>12}",
            line.what,
            show(line.truth),
            show(line.daemon)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> Truth {
        let empty = r#"{"calls":0,"bytes":0,"failed":0,"sizes":[]}"#;
        Truth::parse(&format!(
            r#"{{"victim":"v","pid":1,"malloc":{{"calls":1,"bytes":8,"failed":0,"sizes":[{{"lo":8,"hi":9,"calls":1}}]}},
                "calloc":{empty},"realloc":{empty},"memalign":{empty},"aligned_alloc":{empty},"posix_memalign":{empty},
                "valloc":{empty},"pvalloc":{empty},"free":{{"calls":1}},"crossings":{empty},"munmap_chunk":0,"mremap_chunk":0,
                "threshold":{{"bytes":131072,"raises":0,"pinned":0}},"facts":{{}}}}"#
        ))
    }

    fn image(malloc: &str) -> Image {
        let text = format!(
            r#"{{"pid":1,"comm":"v","functions":[{malloc},{{"name":"free","calls":1,"bytes":null,"failed":0,"sizes":null}}]}}"#
        );
        Image(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn equal_accounts_agree() {
        assert_functions(
            &truth(),
            &image(r#"{"name":"malloc","calls":1,"bytes":8,"failed":0,"sizes":[{"lo":8,"hi":9,"calls":1}]}"#),
        );
    }

    #[test]
    #[should_panic(expected = "malloc 8..9")]
    fn a_call_in_another_bucket_is_shown() {
        assert_functions(
            &truth(),
            &image(r#"{"name":"malloc","calls":1,"bytes":8,"failed":0,"sizes":[{"lo":10,"hi":11,"calls":1}]}"#),
        );
    }

    #[test]
    #[should_panic(expected = "malloc failed")]
    fn failures_not_measured_are_not_zero_failures() {
        assert_functions(
            &truth(),
            &image(r#"{"name":"malloc","calls":1,"bytes":8,"failed":null,"sizes":[{"lo":8,"hi":9,"calls":1}]}"#),
        );
    }
}
