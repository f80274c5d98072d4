//! What is missing, in words: shown only when something is.

use malloc_common::loss::Loss;

use super::{Style, Tone, heading, push};
use crate::aggregate::model::{LossReason, Process, Snapshot, Verdict};
use crate::report::escape::printable;
use crate::report::units::count;

/// What one process lost.
pub(super) fn of_process(out: &mut String, process: &Process, style: Style) {
    let losses = present(&process.losses);
    if losses.is_empty() && process.complete {
        return;
    }
    heading(out, "Lost", style);
    list(out, &losses, style);
    if losses.is_empty() {
        style.sentence(out, 2, Tone::Warning, "the counts above are not complete");
    }
}

/// What cannot be laid to one process, and probes that should work and do not.
pub(super) fn of_all(out: &mut String, snapshot: &Snapshot, style: Style) {
    let losses = present(&snapshot.losses);
    let broken = || snapshot.probes.iter().filter(|probe| matches!(probe.verdict, Verdict::Broken(_)));
    let incomplete = !snapshot.complete && snapshot.processes.iter().all(|process| process.complete);
    if losses.is_empty() && snapshot.processes_dropped == 0 && broken().next().is_none() && !incomplete {
        return;
    }
    heading(out, "Lost, of all processes together", style);
    list(out, &losses, style);
    let dropped = snapshot.losses.iter().any(|(reason, count)| *reason == LossReason::ProcessDropped && *count > 0);
    if snapshot.processes_dropped > 0 && !dropped {
        line(out, snapshot.processes_dropped, meaning(LossReason::ProcessDropped), style);
    }
    for probe in broken() {
        if let Verdict::Broken(why) = &probe.verdict {
            let (name, why) = (printable(&probe.name, 200), printable(why, 200));
            style.sentence(out, 2, Tone::Warning, &format!("the probe {name} does not work: {why}"));
        }
    }
    if losses.is_empty() && incomplete {
        style.sentence(out, 2, Tone::Warning, "the counts above are not complete");
    }
}

fn present(losses: &[(LossReason, u64)]) -> Vec<(LossReason, u64)> {
    losses.iter().copied().filter(|(_, count)| *count > 0).collect()
}

fn list(out: &mut String, losses: &[(LossReason, u64)], style: Style) {
    for (reason, count) in losses {
        line(out, *count, &format!("{}: {}", reason.name(), meaning(*reason)), style);
    }
}

fn line(out: &mut String, times: u64, text: &str, style: Style) {
    let mut sentence = String::new();
    style.sentence(&mut sentence, 15, Tone::Warning, text);
    // The first line has room for the number in its indent.
    push(out, &format!("{:>13}  {}", count(times), sentence.trim_start_matches(' ').trim_end()));
}

/// What a reader of the counts must make of it.
fn meaning(reason: LossReason) -> &'static str {
    match reason {
        LossReason::Kernel(loss) => match loss {
            Loss::ProcessTableFull => "events of processes for which no slot was free; these processes are not counted",
            Loss::HistogramPoolFull => "calls missing from counts and sizes, no histogram was free",
            Loss::ThreadTableFull => "system calls without origin and time, or not counted, no thread state was free",
            Loss::EventRingFull => "events missing from traces, raises and mapped chunks; counts are not affected",
            Loss::UnknownProbe => "hits of a probe that the program does not know: a defect of the daemon",
            Loss::UnpairedReturn => "system calls not counted, their entry was not seen",
            Loss::UnpairedEntry => "system calls not counted, their return was not seen",
            Loss::TargetTableFull => "children that were not recorded, no room to mark them",
            Loss::ChunkTableFull => "mapped chunks whose lifetime is not known, no room to remember them",
        },
        LossReason::ProgramMissed => "hits not counted, another program was running on that processor",
        LossReason::IncidentDropped => {
            "raises or mapped chunks without their line or their stack, counts are not affected"
        }
        LossReason::HistoryDropped => "steps or incidents that are not in the history, counts are not affected",
        LossReason::ProcessDropped => "ended processes no longer in this report, the daemon keeps no more",
    }
}
