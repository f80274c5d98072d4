//! What `doctor` found about this machine: the document, as JSON and as text.

use std::fmt::Write;

use malloc_common::depth::{DEPTHS, Depth};
use serde::Serialize;

use super::escape::printable;
use super::json::{self, document::SCHEMA_VERSION};
use crate::host::checks::{Check, Verdict};

/// Characters of one finding; a verifier's answer may have thousands of lines.
const LONG: usize = 400;

/// One thing that was looked at or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub name: String,
    /// How well it is met.
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// A sentence that says what to do.
    pub remedy: Option<String>,
}

/// What one depth lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DepthFinding {
    /// The depth.
    pub depth: Depth,
    /// Whether it works.
    pub verdict: Verdict,
    /// Why not wholly: a clause.
    pub why: Option<String>,
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// What the kernel and the rights of this process allow.
    pub host: Vec<Finding>,
    /// What this machine's libc allows.
    pub libc: Vec<Finding>,
    /// What was tried.
    pub trials: Vec<Finding>,
    /// What a hit of a probe costs.
    pub prices: Vec<Finding>,
    /// What comes of it, the cheapest depth first.
    pub depths: Vec<DepthFinding>,
    /// What else a reader should know, a sentence each.
    pub notes: Vec<String>,
}

/// What a depth's verdict rests on.
#[derive(Clone, Copy)]
pub struct Grounds<'a> {
    /// Why nothing can be loaded and attached to the kernel.
    pub not_started: Option<&'a str>,
    /// Why no probe can be attached to a program.
    pub not_attached: Option<&'a str>,
    /// Why no libc could be looked into.
    pub no_libc: Option<&'a str>,
    /// How many probes the libc offers at a depth.
    pub hooks: &'a dyn Fn(Depth) -> usize,
    /// Why the libc lacks some at a depth.
    pub lacks: &'a dyn Fn(Depth) -> Option<String>,
}

/// Which depths work.
#[must_use]
pub fn depths(grounds: Grounds<'_>) -> Vec<DepthFinding> {
    DEPTHS.into_iter().map(|depth| judge(depth, grounds)).collect()
}

fn judge(depth: Depth, grounds: Grounds<'_>) -> DepthFinding {
    let because = |verdict, why: String| DepthFinding { depth, verdict, why: Some(why) };
    let fine = DepthFinding { depth, verdict: Verdict::Ok, why: None };
    if let Some(why) = grounds.not_started {
        return because(Verdict::Missing, why.to_owned());
    }
    if depth == Depth::Syscall {
        return fine;
    }
    if let Some(why) = grounds.not_attached {
        return because(Verdict::Missing, why.to_owned());
    }
    // Probes go in, but what they can go to is known of each program only when it is observed.
    if let Some(why) = grounds.no_libc {
        return because(Verdict::Degraded, format!("not known beforehand: {why}"));
    }
    match ((grounds.hooks)(depth), (grounds.lacks)(depth)) {
        (0, why) => because(Verdict::Missing, why.unwrap_or_else(|| "this libc offers no probe for it".to_owned())),
        (_, Some(why)) => because(Verdict::Degraded, why),
        (_, None) => fine,
    }
}

impl From<Check> for Finding {
    fn from(check: Check) -> Self {
        Self { name: check.name.to_owned(), verdict: check.verdict, found: check.found, remedy: check.remedy }
    }
}

impl Diagnosis {
    /// How a depth fares.
    #[must_use]
    pub fn verdict(&self, depth: Depth) -> Verdict {
        self.depths.iter().find(|found| found.depth == depth).map_or(Verdict::Missing, |found| found.verdict)
    }
}

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    version: &'a str,
    host: Vec<JsonFinding<'a>>,
    libc: Vec<JsonFinding<'a>>,
    trials: Vec<JsonFinding<'a>>,
    prices: Vec<JsonFinding<'a>>,
    depths: Vec<JsonDepth<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    name: &'a str,
    verdict: &'static str,
    found: &'a str,
    remedy: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonDepth<'a> {
    depth: &'static str,
    verdict: &'static str,
    why: Option<&'a str>,
}

/// `doctor --json`, ended by a newline; `version` is the daemon's.
#[must_use]
pub fn json(diagnosis: &Diagnosis, version: &str) -> Vec<u8> {
    json::to_vec(&document(diagnosis, version))
}

fn document<'a>(diagnosis: &'a Diagnosis, version: &'a str) -> Document<'a> {
    let findings = |findings: &'a [Finding]| {
        let one = |finding: &'a Finding| JsonFinding {
            name: &finding.name,
            verdict: word(finding.verdict),
            found: &finding.found,
            remedy: finding.remedy.as_deref(),
        };
        findings.iter().map(one).collect()
    };
    let depth = |found: &'a DepthFinding| JsonDepth {
        depth: found.depth.name(),
        verdict: word(found.verdict),
        why: found.why.as_deref(),
    };
    Document {
        schema_version: SCHEMA_VERSION,
        version,
        host: findings(&diagnosis.host),
        libc: findings(&diagnosis.libc),
        trials: findings(&diagnosis.trials),
        prices: findings(&diagnosis.prices),
        depths: diagnosis.depths.iter().map(depth).collect(),
        notes: &diagnosis.notes,
    }
}

/// The diagnosis as aligned text; the summary comes last, where a terminal stops.
#[must_use]
pub fn text(diagnosis: &Diagnosis) -> String {
    let mut out = String::new();
    let groups = [
        ("Kernel and rights", &diagnosis.host),
        ("This machine's libc", &diagnosis.libc),
        ("Tried", &diagnosis.trials),
        ("Price of a hit, measured", &diagnosis.prices),
    ];
    let every = groups.iter().flat_map(|(_, findings)| findings.iter());
    let width = every.map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    let mut remedies: Vec<&String> = Vec::new();
    for (title, findings) in groups {
        if findings.is_empty() {
            continue;
        }
        let _ = writeln!(out, "{title}");
        for finding in findings {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "  {:<8}  {:<width$}  {}",
                word(finding.verdict),
                finding.name,
                printable(&finding.found, LONG)
            );
            if let Some(remedy) = &finding.remedy {
                let again = remedies.contains(&remedy);
                let remedy_text = if again { "As above.".to_owned() } else { printable(remedy, LONG) };
                let _ = writeln!(out, "  {:<8}  -> {remedy_text}", "");
                remedies.push(remedy);
            }
        }
        out.push('\n');
    }
    for note in &diagnosis.notes {
        let _ = writeln!(out, "{}", printable(note, LONG));
    }
    if !diagnosis.notes.is_empty() {
        out.push('\n');
    }
    let summary: Vec<String> =
        diagnosis.depths.iter().map(|found| format!("{} {}", found.depth, word(found.verdict))).collect();
    let _ = writeln!(out, "Depths: {}", summary.join(", "));
    // One reason often stops several depths.
    let mut told: Vec<&str> = Vec::new();
    for why in diagnosis.depths.iter().filter_map(|found| found.why.as_deref()) {
        if told.contains(&why) {
            continue;
        }
        told.push(why);
        let same = diagnosis.depths.iter().filter(|found| found.why.as_deref() == Some(why));
        let names: Vec<&str> = same.map(|found| found.depth.name()).collect();
        let _ = writeln!(out, "  {}: {}", names.join(", "), printable(why, LONG));
    }
    out
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Degraded => "degraded",
        Verdict::Missing => "missing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::escape::is_unsafe;
    use proptest::prelude::*;

    const STRIPPED: &str = "this libc is stripped: no .symtab";

    fn finding(name: &str, verdict: Verdict, found: &str, remedy: Option<&str>) -> Finding {
        Finding { name: name.to_owned(), verdict, found: found.to_owned(), remedy: remedy.map(str::to_owned) }
    }

    fn good() -> Grounds<'static> {
        Grounds { not_started: None, not_attached: None, no_libc: None, hooks: &|_| 3, lacks: &|_| None }
    }

    fn verdicts(grounds: Grounds<'_>) -> Vec<Verdict> {
        depths(grounds).into_iter().map(|found| found.verdict).collect()
    }

    fn stripped() -> Diagnosis {
        let lacks = |depth| (depth != Depth::Call).then(|| STRIPPED.to_owned());
        let grounds = Grounds { hooks: &|depth| usize::from(depth == Depth::Call) * 13, lacks: &lacks, ..good() };
        Diagnosis {
            host: vec![
                finding("kernel version", Verdict::Ok, "6.18.44", None),
                finding(
                    "right to see other users' processes",
                    Verdict::Degraded,
                    "without CAP_SYS_PTRACE; /proc",
                    Some("Run the daemon with sudo."),
                ),
            ],
            libc: vec![
                finding("internals", Verdict::Missing, STRIPPED, Some("Install libc6-dbg.")),
                finding("probes of depth sysmalloc", Verdict::Missing, "none", Some("Install libc6-dbg.")),
            ],
            trials: vec![finding("load programs, attach tracepoints", Verdict::Ok, "done", None)],
            prices: vec![finding("a call, counted with its size", Verdict::Ok, "0.83 us", None)],
            depths: depths(grounds),
            notes: vec!["The tracing file system was mounted at /sys/kernel/tracing and stays so.".to_owned()],
        }
    }

    #[test]
    fn every_depth_works_when_nothing_lacks() {
        assert_eq!(verdicts(good()), [Verdict::Ok; 4]);
    }

    #[test]
    fn what_the_kernel_refuses_no_depth_has() {
        assert_eq!(verdicts(Grounds { not_started: Some("no"), ..good() }), [Verdict::Missing; 4]);
    }

    #[test]
    fn without_uprobes_or_a_probe_in_the_libc_system_calls_remain() {
        use Verdict::{Missing, Ok};
        let expected = [Ok, Missing, Missing, Missing];
        assert_eq!(verdicts(Grounds { not_attached: Some("no"), ..good() }), expected);
        assert_eq!(verdicts(Grounds { hooks: &|_| 0, ..good() }), expected);
    }

    #[test]
    fn where_no_libc_is_found_the_programs_may_still_have_one() {
        use Verdict::{Degraded, Ok};
        assert_eq!(verdicts(Grounds { no_libc: Some("none"), ..good() }), [Ok, Degraded, Degraded, Degraded]);
    }

    #[test]
    fn a_depth_with_some_of_its_probes_is_degraded() {
        let lacks = |depth| (depth == Depth::Sysmalloc).then(|| "systrim is inlined".to_owned());
        let found = verdicts(Grounds { lacks: &lacks, ..good() });
        assert_eq!(found, [Verdict::Ok, Verdict::Degraded, Verdict::Ok, Verdict::Ok]);
    }

    #[test]
    fn a_stripped_libc_is_told_with_its_remedy() {
        insta::assert_snapshot!(text(&stripped()));
    }

    #[test]
    fn the_json_says_the_same() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&document(&stripped(), "0.1.0")).unwrap());
    }

    proptest! {
        #[test]
        fn no_finding_reaches_the_terminal_raw(found in any::<String>()) {
            let mut diagnosis = stripped();
            diagnosis.host[0].found.clone_from(&found);
            diagnosis.libc[0].remedy = Some(found.clone());
            diagnosis.depths[1].why = Some(found.clone());
            diagnosis.notes.push(found);
            for out in [text(&diagnosis), String::from_utf8(json(&diagnosis, "0")).unwrap()] {
                prop_assert!(!out.chars().any(|letter| letter != '\n' && is_unsafe(letter)), "{}", out);
            }
        }
    }
}
