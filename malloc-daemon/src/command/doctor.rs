//! `doctor`: what this kernel, these privileges and this libc allow.

mod prices;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use malloc_common::depth::Depth;

use super::{COULD_NOT_RUN, INCOMPLETE, write_output};
use crate::aggregate::Keep;
use crate::aggregate::model::{Calibration, Verdict as ProbeVerdict};
use crate::cli::Doctor;
use crate::host::checks::{Check, Facts, Tracing, Verdict, checks, facts};
use crate::host::file::{Root, open_in_root};
use crate::host::kernel::Capability;
use crate::host::process::{self, Pid};
use crate::host::tracefs;
use crate::observe::{Observer, Options, Selection};
use crate::probes::{Capacities, Scope};
use crate::report::doctor::{self as report, Diagnosis, Finding, Grounds};
use crate::report::locate::STRIPPED_REMEDY;
use crate::targets::discover::{CandidateKind, candidates};
use crate::targets::symbols::Source;
use crate::targets::{AllocatorKind, Contents, Located};

/// Where distributions keep the C library, for a build of this program that maps none.
const LIBC_PATHS: [&str; 4] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
];

/// The most processes whose mappings are looked through for a C library.
const PROCESSES: usize = 256;
/// The most libraries that are looked into in vain.
const VAIN: usize = 4;

/// Depths that need probes in the libc.
const PROBED: [Depth; 3] = [Depth::Sysmalloc, Depth::Arena, Depth::Call];

/// Looks, tries and reports.
pub fn run(args: &Doctor) -> anyhow::Result<ExitCode> {
    let diagnosis = diagnose()?;
    let version = env!("CARGO_PKG_VERSION");
    let bytes = if args.json { report::json(&diagnosis, version) } else { report::text(&diagnosis).into_bytes() };
    write_output(Path::new("-"), &bytes)?;
    let works = |depth| diagnosis.verdict(depth) == Verdict::Ok;
    Ok(match (works(Depth::Syscall), works(Depth::Sysmalloc)) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(INCOMPLETE),
        (false, _) => ExitCode::from(COULD_NOT_RUN),
    })
}

fn diagnose() -> anyhow::Result<Diagnosis> {
    let mut notes = Vec::new();
    let facts = with_tracing(facts()?, &mut notes)?;
    let host: Vec<Check> = checks(&facts);
    let lacking: Vec<&str> = host.iter().filter(|c| c.verdict == Verdict::Missing).map(|c| c.name).collect();
    let libc = libc();
    let (trials, refused, calibration) = trials(&lacking, libc.as_ref().ok());
    let located = || libc.as_ref().ok().map(|library| &library.located);
    let prices = calibration.map_or_else(Vec::new, |c| prices::findings(&c, located()));
    let lacks = |depth: Depth| {
        let located = located()?;
        let missing: Vec<_> = located.missing.iter().filter(|missing| missing.depth == depth).collect();
        let why = missing.first()?.why.clone();
        if located.hooks.iter().all(|hook| hook.depth != depth) {
            return Some(why);
        }
        let names: Vec<&str> = missing.iter().map(|missing| missing.what.as_str()).collect();
        Some(format!("{}: {why}", names.join(", ")))
    };
    let hooks = |depth| located().map_or(0, |l| l.hooks.iter().filter(|hook| hook.depth == depth).count());
    let depths = report::depths(Grounds {
        not_started: refused.start.as_deref(),
        not_attached: refused.attach.as_deref(),
        no_libc: libc.as_ref().err().map(String::as_str),
        hooks: &hooks,
        lacks: &lacks,
    });
    let host = host.into_iter().map(Finding::from).collect();
    Ok(Diagnosis { host, libc: libc_findings(&libc), trials, prices, depths, notes })
}

/// Mounts the tracing file system where that is what lacks: the daemon would do so at its start.
fn with_tracing(before: Facts, notes: &mut Vec<String>) -> anyhow::Result<Facts> {
    if before.tracing != Tracing::NotMounted || !before.rights.capabilities.grant(Capability::SysAdmin) {
        return Ok(before);
    }
    match tracefs::find_or_mount() {
        Ok(mounted) => {
            let place = mounted.root().display();
            notes.push(format!("The tracing file system was not mounted; it is now, at {place}, and stays so."));
            Ok(facts()?)
        }
        Err(error) => {
            notes.push(format!("The tracing file system cannot be mounted: {error}."));
            Ok(before)
        }
    }
}

/// The C library of this machine.
struct Library {
    /// Where its path starts.
    root: Root,
    path: PathBuf,
    located: Located,
    /// How it was found.
    how: String,
}

/// It, or why there is none.
type Libc = Result<Library, String>;

/// This program's own, that of the first process that maps one, or the file at a usual place: in a container that holds
/// this program alone the other processes of the machine have theirs.
fn libc() -> Libc {
    let own = Pid(std::process::id());
    let others = process::pids().unwrap_or_default().into_iter().filter(|&pid| pid != own);
    let mut vain = Vec::new();
    for pid in std::iter::once(own).chain(others).take(PROCESSES) {
        if vain.len() >= VAIN {
            break;
        }
        let Ok(Some(found)) = candidates(pid) else { continue };
        let Some(libc) = found.files.into_iter().find(|file| file.kind == CandidateKind::Glibc) else { continue };
        let root = Root::Process(pid);
        let how = if pid == own { "this program maps it".to_owned() } else { format!("process {} maps it", pid.0) };
        match Contents.locate(&libc.file, root) {
            Ok(located) => return Ok(Library { root, path: libc.path, located, how }),
            Err(error) => vain.push(format!("{}: {error}", libc.path.display())),
        }
    }
    for path in LIBC_PATHS {
        let Ok(Some(file)) = open_in_root(Root::Host, Path::new(path)) else { continue };
        match Contents.locate(&file, Root::Host) {
            Ok(located) => {
                let how = "the usual place".to_owned();
                return Ok(Library { root: Root::Host, path: path.into(), located, how });
            }
            Err(error) => vain.push(format!("{path}: {error}")),
        }
    }
    let none = || "no process here maps a glibc, and there is none at the usual places".to_owned();
    Err(vain.pop().unwrap_or_else(none))
}

fn libc_findings(libc: &Libc) -> Vec<Finding> {
    let finding = |name: &str, verdict, found, remedy: Option<&str>| Finding {
        name: name.to_owned(),
        verdict,
        found,
        remedy: remedy.map(str::to_owned),
    };
    let Library { path, located, how, .. } = match libc {
        Ok(found) => found,
        Err(why) => {
            let remedy =
                "Each program is looked into when it is observed; `malloc-daemon locate FILE` says what one allows.";
            return vec![finding("library", Verdict::Degraded, why.clone(), Some(remedy))];
        }
    };
    let version = match &located.kind {
        AllocatorKind::Unknown => "not glibc".to_owned(),
        known => match known.version() {
            Some(version) => format!("{} {version}", known.name()),
            None => format!("{} of an unknown version", known.name()),
        },
    };
    let mut findings = vec![finding("library", Verdict::Ok, format!("{version}, {} ({how})", path.display()), None)];
    let stripped = located.located_by == Source::Exports;
    findings.push(match located.located_by {
        Source::Symtab => finding("internals", Verdict::Ok, "named by the file's .symtab".to_owned(), None),
        Source::DebugData => finding("internals", Verdict::Ok, "named by the file's .gnu_debugdata".to_owned(), None),
        Source::DebugFile => finding("internals", Verdict::Ok, "named by its debug file".to_owned(), None),
        Source::Usdt | Source::Inferred => {
            finding("internals", Verdict::Ok, "told by what its code does: it is stripped".to_owned(), None)
        }
        Source::Exports => finding("internals", Verdict::Missing, stripped_why(located), Some(STRIPPED_REMEDY)),
    });
    for depth in PROBED {
        let hooks = located.hooks.iter().filter(|hook| hook.depth == depth).count();
        let lacks: Vec<String> = located.missing.iter().filter(|m| m.depth == depth).map(|m| m.what.clone()).collect();
        let name = format!("probes of depth {depth}");
        let lacking = || format!("{hooks}, without {}", lacks.join(", "));
        findings.push(match (hooks, lacks.is_empty()) {
            (0, _) => finding(&name, Verdict::Missing, "none".to_owned(), stripped.then_some(STRIPPED_REMEDY)),
            (_, true) => finding(&name, Verdict::Ok, hooks.to_string(), None),
            (_, false) => finding(&name, Verdict::Degraded, lacking(), Some("See `malloc-daemon locate` for why.")),
        });
    }
    let thresholds = match located.mp {
        Some(mp) if mp.layout.offsets().is_some() => (Verdict::Ok, "mp_ found, its layout is known"),
        Some(_) => (Verdict::Degraded, "mp_ found, its layout is unknown: thresholds are not read"),
        None => (Verdict::Degraded, "mp_ not found: thresholds are not read"),
    };
    let remedy = match thresholds.0 {
        Verdict::Ok => None,
        _ if stripped => Some(STRIPPED_REMEDY),
        _ => Some("Report the version of this libc."),
    };
    findings.push(finding("thresholds", thresholds.0, thresholds.1.to_owned(), remedy));
    findings
}

fn stripped_why(located: &Located) -> String {
    located.missing.first().map_or_else(|| "not named".to_owned(), |missing| missing.why.clone())
}

/// Why the trials failed, where they did.
#[derive(Default)]
struct Refused {
    start: Option<String>,
    attach: Option<String>,
}

/// Loads and attaches what every depth needs, then probes the libc for this process alone; all of it is gone after. A
/// daemon that is linked statically maps none that could be probed: the machine's stands for it or, where there is none,
/// this program's own code, on which the prices were measured.
fn trials(lacking: &[&str], libc: Option<&Library>) -> (Vec<Finding>, Refused, Option<Arc<Calibration>>) {
    let mut refused = Refused::default();
    let started = Instant::now();
    let ms = |since: Instant| since.elapsed().as_millis();
    let options = Options {
        depth: Depth::Syscall,
        deepens: true,
        selection: Selection::Chosen,
        tracing: false,
        faults: false,
        stepped: true,
        capacities: Capacities::SMALL,
        keep: Keep { ended_ns: 0, ended_images: 0, killed_ns: 0, killed_images: 0, unchanged_ns: 0 },
        budget: None,
    };
    let mut trials = Vec::new();
    let mut told = |name: &str, answer: Result<String, (String, String)>| {
        let (verdict, found, remedy) = match answer {
            Ok(found) => (Verdict::Ok, found, None),
            Err((why, remedy)) => (Verdict::Missing, why, Some(remedy)),
        };
        trials.push(Finding { name: name.to_owned(), verdict, found, remedy });
    };
    let load = "load programs, attach tracepoints";
    let report = || "Report this message with the kernel's release.".to_owned();
    if !lacking.is_empty() {
        // The observer refuses to start then: the kernel's own answers name a map or a program, not what lacks.
        let lacking = lacking.join(", ");
        told(load, Err(("not tried".to_owned(), format!("Do first what stands above for: {lacking}."))));
        refused.start = Some(format!("not without: {lacking}"));
        return (trials, refused, None);
    }
    let mut observer = match Observer::start(options) {
        Ok(observer) => observer,
        Err(error) => {
            let answer = outline(&with_causes(&error));
            told(load, Err((answer.clone(), report())));
            refused.start = Some(answer);
            return (trials, refused, None);
        }
    };
    told(load, Ok(format!("done in {} ms", ms(started))));
    let attaching = Instant::now();
    let own = std::process::id();
    let tried = observer.probe_process(own, Depth::Call).map_err(|why| outline(&why));
    let by_itself = observer.probed() > 0;
    let answer = match (tried, libc) {
        (_, Some(libc)) if !by_itself => {
            let tried = observer.probe_path_for(libc.root, &libc.path, Scope::Process(own), Depth::Call);
            tried.map_err(|why| outline(&why.to_string())).and_then(|_| attached(&mut observer))
        }
        (_, None) if !by_itself => match &*observer.collect().calibration {
            Calibration::Measured(_) => Ok(()),
            Calibration::NotMeasured(why) => Err(outline(why)),
        },
        (tried, _) => tried.and_then(|_| attached(&mut observer)),
    };
    refused.attach = answer.as_ref().err().cloned();
    let on = if by_itself || libc.is_some() { "this process" } else { "this program's own code" };
    let answer = answer.map(|()| format!("done for {on} alone in {} ms", ms(attaching)));
    told("attach uprobes", answer.map_err(|why| (why, report())));
    let calibration = observer.collect().calibration;
    let detaching = Instant::now();
    drop(observer);
    told("detach", Ok(format!("done in {} ms", ms(detaching))));
    (trials, refused, Some(calibration))
}

/// Whether all uprobes are attached, or why some are not.
fn attached(observer: &mut Observer) -> Result<(), String> {
    let probes = observer.collect().probes;
    let broken = probes.iter().find_map(|probe| match &probe.verdict {
        ProbeVerdict::Broken(why) => Some(outline(why)),
        _ => None,
    });
    match (broken, observer.probed()) {
        (Some(why), _) => Err(why),
        (None, 0) => Err("this program maps no allocator to try it on".to_owned()),
        (None, _) => Ok(()),
    }
}

/// The error and what led to it, each once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

/// The first and the last line: a verifier answers with its whole log, and these say why.
fn outline(answer: &str) -> String {
    let mut lines = answer.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("no reason given").to_owned();
    match lines.next_back() {
        Some(last) => format!("{first} ... {last}"),
        None => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        use crate::host::HostError;
        let read = |path: &str| HostError::Read { path: path.into(), source: std::io::ErrorKind::NotFound.into() };
        let cause = std::io::Error::other(read("/sys/x"));
        assert_eq!(with_causes(&cause), "cannot read /sys/x: entity not found");
        let outer = crate::observe::StartError::Host(read("/sys/x"));
        assert_eq!(with_causes(&outer), "cannot read /sys/x: entity not found");
    }

    #[test]
    fn a_long_answer_is_told_by_its_ends() {
        assert_eq!(outline("refused:\n\n0: r1 = 0\n1: exit\nR0 is not set\n"), "refused: ... R0 is not set");
        assert_eq!(outline("refused"), "refused");
        assert_eq!(outline(""), "no reason given");
    }
}
