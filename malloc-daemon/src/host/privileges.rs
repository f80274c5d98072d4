//! Gives up what a thread does not need of its privileges; threads that it starts begin with what it kept.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// What loading and attaching may need on any kernel from 5.15 on, and mounting tracefs.
    Starting,
    /// What attaching to new programs, and looking at new processes, needs where one link carries many uprobes.
    Observing,
    /// What reading other processes' files needs.
    Reading,
    /// Nothing.
    Nothing,
}

impl Keep {
    fn capabilities(self) -> CapabilitySet {
        const READING: CapabilitySet =
            CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH).union(CapabilitySet::CHECKPOINT_RESTORE);
        const OBSERVING: CapabilitySet = READING.union(CapabilitySet::BPF).union(CapabilitySet::PERFMON);
        match self {
            Keep::Starting => OBSERVING.union(CapabilitySet::SYS_ADMIN),
            Keep::Observing => OBSERVING,
            Keep::Reading => READING,
            Keep::Nothing => CapabilitySet::empty(),
        }
    }
}

/// Gives up every other capability of this thread for good, and the way back to them by executing a program.
///
/// # Errors
///
/// The kernel refuses; nothing is known of what was given up then.
pub fn keep(what: Keep) -> io::Result<()> {
    let kept = what.capabilities();
    set_no_new_privs(true)?;
    let others = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)).filter(|one| !kept.contains(*one));
    for one in others {
        // Without CAP_SETPCAP the bounding set stays, which is no more than what a set-user-id program could get, and
        // there is none of these any more. A number that this kernel does not know is refused.
        let _ = remove_capability_from_bounding_set(one);
        let _ = configure_capability_in_ambient_set(one, false);
    }
    let now = capabilities(None)?;
    let permitted = now.permitted & kept;
    Ok(set_capabilities(
        None,
        CapabilitySets { effective: now.effective & permitted, permitted, inheritable: now.inheritable & permitted },
    )?)
}

/// The same; a thread that keeps more than it needs works all the same, and the log says so.
pub fn keep_or_say(what: Keep) {
    if let Err(error) = keep(what) {
        tracing::warn!(%error, "privileges that are not needed are kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_what_it_needs_and_its_neighbours_keep_theirs() {
        let before = capabilities(None).unwrap();
        let inside = |what| {
            let thread = std::thread::spawn(move || {
                keep(what).unwrap();
                let own = capabilities(None).unwrap();
                let child = std::thread::spawn(|| capabilities(None).unwrap()).join().unwrap();
                (own, child)
            });
            thread.join().unwrap()
        };
        for what in [Keep::Starting, Keep::Observing, Keep::Reading, Keep::Nothing] {
            let (own, child) = inside(what);
            assert_eq!(own.permitted, before.permitted & what.capabilities(), "{what:?}");
            assert_eq!(own.effective, before.effective & what.capabilities(), "{what:?}");
            assert_eq!(own, child, "{what:?}");
        }
        assert_eq!(capabilities(None).unwrap(), before);
    }
}
