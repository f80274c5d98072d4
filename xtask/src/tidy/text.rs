//! Rules over a file's lines: its first line, its length.
use super::{Violation, table::LONGEST};

/// Every file opens with one line that says what it is responsible for.
pub fn opens_with_purpose(path: &str, text: &str) -> Option<Violation> {
    let first = text.lines().next().unwrap_or_default();
    let says = first.strip_prefix("//! ").is_some_and(|purpose| !purpose.trim().is_empty());
    (!says).then(|| {
        Violation::new(path, 1, "purpose", "open with a `//!` line that says what this file is responsible for")
    })
}

/// A long file has a reason in the table.
pub fn length(path: &str, text: &str, reasons: &[(&str, &str)]) -> Option<Violation> {
    let lines = text.lines().count();
    let excused = reasons.iter().any(|(file, reason)| *file == path && !reason.is_empty());
    match (lines > LONGEST, excused) {
        (true, false) => Some(Violation::new(
            path,
            LONGEST + 1,
            "length",
            format!(
                "split it: {lines} lines are more than {LONGEST}; or give LONG_FILES in xtask/src/tidy/table.rs its reason"
            ),
        )),
        (false, true) => {
            Some(Violation::new(path, 1, "length", format!("drop it from LONG_FILES: it has only {lines} lines")))
        }
        _ => None,
    }
}

/// The table names no file that is gone.
pub fn stale_entries(paths: &[String], reasons: &[(&str, &str)]) -> Vec<Violation> {
    let gone = reasons.iter().filter(|(file, _)| !paths.iter().any(|path| path == file));
    gone.map(|(file, _)| Violation::new(file, 1, "length", "drop it from LONG_FILES: it is not in the tree")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_purpose_is_reported() {
        assert!(opens_with_purpose("a.rs", "//! Counts calls.\nfn a() {}").is_none());
        for text in ["", "fn a() {}", "\n//! late", "//!", "//! ", "// no"] {
            assert!(opens_with_purpose("a.rs", text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn a_long_file_needs_a_reason_and_a_short_one_none() {
        let (short, long) = ("x\n".repeat(LONGEST), "x\n".repeat(LONGEST + 1));
        assert!(length("a.rs", &short, &[]).is_none());
        assert!(length("a.rs", &long, &[]).is_some());
        assert!(length("a.rs", &long, &[("b.rs", "tables")]).is_some());
        assert!(length("a.rs", &long, &[("a.rs", "")]).is_some());
        assert!(length("a.rs", &long, &[("a.rs", "tables")]).is_none());
        assert!(length("a.rs", &short, &[("a.rs", "tables")]).is_some());
    }

    #[test]
    fn an_entry_for_a_file_that_is_gone_is_reported() {
        assert_eq!(stale_entries(&["b.rs".to_owned()], &[("a.rs", "r"), ("b.rs", "r")]).len(), 1);
    }
}
