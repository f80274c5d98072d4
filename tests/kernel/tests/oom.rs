//! Proves what is known of a process that the kernel kills when memory runs out, in a real memory control group.
#![cfg(feature = "real-kernel")]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_tests::compare::{assert_crossings, assert_functions};
use kernel_tests::daemon::Serving;
use kernel_tests::process::Running;
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use rustix::process::Signal;

/// Far below what the victim writes to, far above what it has before.
const LIMIT: &str = "33554432";

/// A control group with little memory, removed when dropped: whoever was in it must be gone by then.
struct Group(PathBuf);

impl Group {
    /// Makes it, in either version of control groups.
    fn new() -> Self {
        let (root, unified) = memory_controller();
        if unified {
            write(&root.join("cgroup.subtree_control"), "+memory");
        }
        let group = Group(root.join(format!("malloc-daemon-oom-{}", std::process::id())));
        std::fs::create_dir(&group.0).unwrap_or_else(|error| panic!("{}: {error}", group.0.display()));
        let (limit, swap, none) = if unified {
            ("memory.max", "memory.swap.max", "0")
        } else {
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", LIMIT)
        };
        write(&group.0.join(limit), LIMIT);
        // A kernel that does not account swap has no such file; where there is swap, it must not be the way out.
        if group.0.join(swap).exists() {
            write(&group.0.join(swap), none);
        }
        group
    }

    fn take(&self, pid: u32) {
        write(&self.0.join("cgroup.procs"), &pid.to_string());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Where the memory controller is mounted, and whether it is that of version 2.
fn memory_controller() -> (PathBuf, bool) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let found = mounts.lines().find_map(|line| {
        let [_, at, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let unified = || std::fs::read_to_string(Path::new(at).join("cgroup.controllers")).unwrap_or_default();
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Some((PathBuf::from(at), false)),
            "cgroup2" if unified().split_whitespace().any(|name| name == "memory") => Some((PathBuf::from(at), true)),
            _ => None,
        }
    });
    found.unwrap_or_else(|| {
        panic!("no memory controller of control groups is mounted here, in either version:\n{mounts}")
    })
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{text} into {}: {error}", path.display()));
}

// OOM-1, COUNT-1: the victim is marked and its account whole; its neighbour in the group, killed by hand, is not marked.
#[test]
fn a_process_that_the_kernel_kills_for_memory_is_marked_and_whole() {
    let serving = Serving::start(&["--depth", "call"]);
    let group = Group::new();
    let [mut victim, mut bystander] = [(); 2].map(|()| Running::start(&mut Command::new(victim::program("overrun"))));
    let [truth, other] = [&mut victim, &mut bystander].map(|running| Truth::parse(&running.read_line()));
    group.take(truth.pid);
    group.take(other.pid);
    victim.write(b"x");
    let ended = victim.end();
    assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
    bystander.signal(Signal::KILL);
    assert_eq!(bystander.end().status.signal(), Some(9));
    for (truth, end) in [(&truth, "oom_killed"), (&other, "exited")] {
        let image = serving.image_when("its end", truth.pid, |image| !image.is_null("/ended"));
        assert_eq!(image.text("/ended"), end);
        assert_functions(truth, &image);
        assert_crossings(truth, &image);
        image.assert_complete();
    }
    assert_eq!(truth.crossings.calls, 1, "the block that it died of is among what is known");
}
