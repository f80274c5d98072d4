//! What to attach and what to detach so that the wanted probes are the attached ones: pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::file::FileKey;
use crate::host::process::ProcessIdentity;

/// Which processes a probe in a file counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Every process that maps the file, now or later.
    AllProcesses,
    /// One process; its forked children lose the probe at their first hit.
    Process(ProcessIdentity),
}

/// Where a set of hooks goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetKey {
    /// The file that carries the probes.
    pub file: FileKey,
    /// Whom they count for.
    pub scope: Scope,
}

/// Hooks by target; `H` is one hook. A target at a greater depth has more of them, so a change of depth touches only
/// the difference.
pub type Hooks<H> = BTreeMap<TargetKey, BTreeSet<H>>;

/// The way from the attached hooks to the wanted ones, ordered by target and hook. Detaching comes first: a hook that
/// moves from one process to all of them would otherwise count twice in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<H> {
    /// To be removed.
    pub detach: Vec<(TargetKey, H)>,
    /// To be added then.
    pub attach: Vec<(TargetKey, H)>,
}

impl<H> Plan<H> {
    /// Whether everything is as wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.detach.is_empty() && self.attach.is_empty()
    }
}

/// Wanted minus attached, and attached minus wanted. Wanted hooks are taken [`without_doubles`].
#[must_use]
pub fn plan<H: Ord + Clone>(wanted: &Hooks<H>, attached: &Hooks<H>) -> Plan<H> {
    let wanted = without_doubles(wanted);
    Plan { detach: difference(attached, &wanted), attach: difference(&wanted, attached) }
}

/// Leaves out of the hooks for one process those that the same file has for all processes: both would fire, and one
/// call would count twice.
#[must_use]
pub fn without_doubles<H: Ord + Clone>(wanted: &Hooks<H>) -> Hooks<H> {
    let kept = wanted.iter().map(|(&target, hooks)| {
        let everywhere = TargetKey { scope: Scope::AllProcesses, ..target };
        let shared = wanted.get(&everywhere).filter(|_| target != everywhere);
        let is_double = |hook: &&H| shared.is_some_and(|shared| shared.contains(*hook));
        (target, hooks.iter().filter(|hook| !is_double(hook)).cloned().collect::<BTreeSet<H>>())
    });
    kept.filter(|(_, hooks)| !hooks.is_empty()).collect()
}

fn difference<H: Ord + Clone>(these: &Hooks<H>, those: &Hooks<H>) -> Vec<(TargetKey, H)> {
    let each = these.iter().flat_map(|(&target, hooks)| hooks.iter().map(move |hook| (target, hook)));
    let is_missing = |(target, hook): &(TargetKey, &H)| !those.get(target).is_some_and(|hooks| hooks.contains(*hook));
    each.filter(is_missing).map(|(target, hook)| (target, hook.clone())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::process::Pid;

    fn file(ino: u64) -> FileKey {
        FileKey { dev: 1, ino, size: 100, mtime_ns: 0 }
    }

    fn process(pid: u32) -> Scope {
        Scope::Process(ProcessIdentity { pid: Pid(pid), start_ticks: 7 })
    }

    fn hooks(list: &[(u64, Scope, &[u8])]) -> Hooks<u8> {
        let entry = |&(ino, scope, hooks): &(u64, Scope, &[u8])| {
            (TargetKey { file: file(ino), scope }, hooks.iter().copied().collect())
        };
        list.iter().map(entry).collect()
    }

    fn apply(mut attached: Hooks<u8>, plan: &Plan<u8>) -> Hooks<u8> {
        for (target, hook) in &plan.detach {
            let hooks = attached.get_mut(target).expect("only what is attached is detached");
            assert!(hooks.remove(hook));
            if hooks.is_empty() {
                attached.remove(target);
            }
        }
        for (target, hook) in &plan.attach {
            assert!(attached.entry(*target).or_default().insert(*hook), "attached twice");
        }
        attached
    }

    #[test]
    fn a_greater_depth_attaches_only_the_hooks_it_adds() {
        let shallow = hooks(&[(1, Scope::AllProcesses, &[1, 2])]);
        let deep = hooks(&[(1, Scope::AllProcesses, &[1, 2, 3])]);
        let plan = plan(&deep, &shallow);
        assert!(plan.detach.is_empty());
        assert_eq!(plan.attach, [(TargetKey { file: file(1), scope: Scope::AllProcesses }, 3)]);
    }

    #[test]
    fn a_hook_for_all_processes_replaces_the_same_hook_for_one() {
        let attached = hooks(&[(1, process(9), &[1, 2])]);
        let wanted = hooks(&[(1, Scope::AllProcesses, &[1]), (1, process(9), &[1, 2]), (2, process(9), &[1])]);
        let after = apply(attached.clone(), &plan(&wanted, &attached));
        assert_eq!(after, hooks(&[(1, Scope::AllProcesses, &[1]), (1, process(9), &[2]), (2, process(9), &[1])]));
    }

    #[test]
    fn a_file_replaced_in_place_is_another_target() {
        let attached = hooks(&[(1, Scope::AllProcesses, &[1])]);
        let changed = FileKey { mtime_ns: 1, ..file(1) };
        let wanted = Hooks::from([(TargetKey { file: changed, scope: Scope::AllProcesses }, BTreeSet::from([1]))]);
        let plan = plan(&wanted, &attached);
        assert_eq!((plan.detach.len(), plan.attach.len()), (1, 1));
    }

    fn any_hooks() -> impl Strategy<Value = Hooks<u8>> {
        let scope = prop_oneof![Just(Scope::AllProcesses), (1u32..4).prop_map(process)];
        let target = (0u64..3, scope).prop_map(|(ino, scope)| TargetKey { file: file(ino), scope });
        prop::collection::btree_map(target, prop::collection::btree_set(0u8..6, 1..5), 0..8)
    }

    proptest! {
        #[test]
        fn applying_a_plan_gives_what_is_wanted(wanted in any_hooks(), attached in any_hooks()) {
            let wanted = without_doubles(&wanted);
            prop_assert_eq!(apply(attached.clone(), &plan(&wanted, &attached)), wanted);
        }

        #[test]
        fn nothing_is_planned_when_all_is_as_wanted(wanted in any_hooks()) {
            let wanted = without_doubles(&wanted);
            prop_assert!(plan(&wanted, &wanted).is_empty());
        }

        #[test]
        fn no_hook_fires_twice_in_one_process(wanted in any_hooks()) {
            for (target, hooks) in without_doubles(&wanted) {
                let everywhere = TargetKey { scope: Scope::AllProcesses, ..target };
                if target != everywhere && let Some(shared) = wanted.get(&everywhere) {
                    prop_assert!(hooks.is_disjoint(shared));
                }
            }
        }

        #[test]
        fn plans_are_in_order(wanted in any_hooks(), attached in any_hooks()) {
            let plan = plan(&wanted, &attached);
            prop_assert!(plan.attach.is_sorted() && plan.detach.is_sorted());
        }
    }
}
