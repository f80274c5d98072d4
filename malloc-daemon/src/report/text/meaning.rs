//! What the numbers above mean, in sentences, and what another threshold would have done.

use super::{Style, Tone, heading, push};
use crate::aggregate::explain::explain;
use crate::aggregate::model::{Process, Snapshot};
use crate::aggregate::what_if::what_if;
use crate::report::words;

pub(super) fn render(out: &mut String, snapshot: &Snapshot, process: &Process, style: Style) {
    let libc = process.allocator.as_ref().map(|allocator| allocator.path.as_str());
    let findings = explain(snapshot, process);
    if findings.is_empty() {
        return;
    }
    heading(out, "What this means", style);
    for finding in &findings {
        style.sentence(out, 2, Tone::Plain, &words::finding(finding, libc));
    }
    let estimates = what_if(process);
    if estimates.is_empty() {
        return;
    }
    heading(out, "What another threshold would have done (estimates)", style);
    for estimate in &estimates {
        style.sentence(out, 2, Tone::Plain, &words::estimate(estimate));
        let rests: Vec<String> = estimate.assumptions.iter().map(|assumption| words::assumption(*assumption)).collect();
        let basis = words::basis(estimate.basis);
        style.sentence(out, 4, Tone::Quiet, &format!("from {basis}; it assumes that {}", rests.join(", that ")));
    }
    push(out, "");
    while out.ends_with("\n\n") {
        out.pop();
    }
}
