//! Measures at start what a hit of each probe costs on this machine, on functions of this program's own.
//!
//! A second, small set of maps and programs is loaded for it, so that none of it is in any count.

use std::path::PathBuf;

use malloc_common::function::Function;
use malloc_common::site::{Cookie, MpLayout, Role};

use crate::aggregate::model::{Calibration, Prices};
use crate::collect::BpfCollector;
use crate::host::process::{self, Pid};
use crate::probes::calibration::{KINDS, PROGRAMS, STEPPED, Specimen, time_calls, time_munmap, time_other_syscall};
use crate::probes::{self, Attached, Capacities, FileProbes, Object, Scope, Site};

/// Rounds over everything that is measured; the median of each counts. An interruption spoils one or two.
const ROUNDS: usize = 15;
/// Hits of one kind in a round: 15 x 40 x (10 x 0.7 us + 12 us) = 11 ms in all on the machine this was written on.
const HITS: u32 = 40;

fn calibrate(options: &probes::Options) -> Calibration {
    match measure(options) {
        Ok(prices) => Calibration::Measured(prices),
        Err(why) => Calibration::NotMeasured(why),
    }
}

/// The prices, or why there are none, while `other` does something that attaches nothing: a probe more would make them
/// dearer. `options` are those of the observer; nothing of it stays attached.
pub fn calibrate_while<T>(options: &probes::Options, other: impl FnOnce() -> T) -> (Calibration, T) {
    std::thread::scope(|scope| {
        let calibrating = scope.spawn(|| calibrate(options));
        let made = other();
        let panicked = |_| Calibration::NotMeasured("measuring failed".to_owned());
        (calibrating.join().unwrap_or_else(panicked), made)
    })
}

fn measure(options: &probes::Options) -> Result<Prices, String> {
    let stepped = STEPPED.ok_or("there are no functions to measure on this kind of machine")?;
    let options =
        probes::Options { admit_all: true, tracing: false, capacities: Capacities::SMALL, trial: true, ..*options };
    let mut object = Object::load(&options).map_err(|error| error.to_string())?;
    // Fills the free lists; its collections are not looked at.
    let collector = BpfCollector::new(&mut object).map_err(|error| error.to_string())?;
    let (mut free_munmap, mut free_other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        free_munmap.push(time_munmap(HITS));
        free_other.push(time_other_syscall(HITS));
    }
    let attached = attach(&mut object, stepped)?;
    let all: Vec<Specimen> = KINDS.iter().chain(PROGRAMS).map(|(_, specimen)| *specimen).chain([stepped]).collect();
    // The first hit of a process takes a slot, a histogram and the thread's state.
    let _ = (all.iter().map(|specimen| time_calls(*specimen, 4)).max(), time_munmap(4));
    let mut rounds = vec![Vec::new(); all.len()];
    let (mut munmap, mut other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (specimen, measured) in all.iter().zip(&mut rounds) {
            measured.push(time_calls(*specimen, HITS));
        }
        munmap.push(time_munmap(HITS));
        other.push(time_other_syscall(HITS));
    }
    // Detaching waits for the kernel's readers; nobody has to wait for that.
    std::thread::spawn(move || drop((attached, collector, object)));
    let mut medians = rounds.into_iter().map(median);
    let kinds: Vec<_> = KINDS.iter().map(|(name, _)| *name).zip(medians.by_ref()).collect();
    let mut next = || medians.next().unwrap_or(0);
    let (call_ns, arena_ns, slow_ns, branch_ns, stepped_ns) = (next(), next(), next(), next(), next());
    Ok(Prices {
        blank_ns: kinds.first().map_or(0, |(_, ns)| *ns),
        stepped_ns,
        call_ns,
        arena_ns,
        slow_ns,
        branch_ns,
        syscall_ns: median(munmap).saturating_sub(median(free_munmap)),
        other_syscall_ns: median(other).saturating_sub(median(free_other)),
        kinds,
    })
}

/// All probes at once: programs that count, the one that does nothing, the tracepoints of one system call.
fn attach(object: &mut Object, stepped: Specimen) -> Result<Vec<Attached>, String> {
    let mut file = PathBuf::new();
    let mut site = |specimen: Specimen, cookie: Cookie| -> Result<Site, String> {
        let (path, file_offset) =
            own_file_offset(specimen as usize as u64).ok_or("this program's own mappings cannot be read")?;
        file = path;
        Ok(Site { file_offset, cookie: cookie.0 })
    };
    let none = Cookie(0);
    let blanks = KINDS.iter().map(|(_, specimen)| *specimen).chain([stepped]);
    let mut programs = vec![("blank", blanks.map(|specimen| site(specimen, none)).collect::<Result<Vec<_>, _>>()?)];
    for (name, specimen) in PROGRAMS {
        // The slow path reads what it takes for `mp_`: here the code itself, whose values are as good as any.
        let cookie = match *name {
            "call" => Cookie::new(Role::Call(Function::Malloc)),
            "arena" => Cookie::new(Role::Arena),
            "slow" => Cookie::new(Role::Sysmalloc).with_mp(MpLayout::From235, 1),
            _ => Cookie::new(Role::MapChunk).with_mp(MpLayout::From235, 1),
        };
        programs.push((name, vec![site(*specimen, cookie)?]));
    }
    let probes = FileProbes { file, programs, scope: Scope::Process(std::process::id()) };
    let uprobes = probes::attach_file(object, &probes).map_err(|error| error.to_string())?;
    let tracepoints = probes::attach_syscalls(object, &["munmap"]).map_err(|error| error.to_string())?;
    Ok(vec![uprobes, tracepoints])
}

/// The file that this program's code at `address` is mapped from, and where in it that code lies.
pub fn own_file_offset(address: u64) -> Option<(PathBuf, u64)> {
    let own = Pid(std::process::id());
    let mappings = process::maps(own).ok()??;
    let held = mappings.into_iter().find(|m| m.is_executable_file() && (m.start..m.end).contains(&address))?;
    Some((PathBuf::from("/proc/self/exe"), address - held.start + held.offset))
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_not_moved_by_an_interruption() {
        assert_eq!(median(vec![5, 4, 90_000, 6, 5]), 5);
        assert_eq!(median(Vec::new()), 0);
    }

    #[test]
    fn no_address_outside_of_code_has_a_place_in_a_file() {
        assert_eq!(own_file_offset(8), None);
    }
}
