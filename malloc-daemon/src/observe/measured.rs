//! What the probes of a file measure and tell, and what they do not.

use malloc_common::abi::Origin;
use malloc_common::depth::Depth;
use malloc_common::site::{HeapEvent, Role};

use super::files::{Attachment, ProbedFile};
use super::programs::is_the_probe_of;
use crate::probes::Scope;
use crate::targets::Hook;
use crate::targets::decode::Execution;

impl ProbedFile {
    /// How deep a process that uses this file is probed, since when, and what of that is not measured. `off`: why nothing
    /// is attached.
    pub fn measures(&self, pid: u32, off: Option<&str>) -> (Depth, u64, Vec<(Depth, String)>) {
        if let Some(why) = off {
            let levels = [Depth::Sysmalloc, Depth::Arena, Depth::Call].map(|level| (level, why.to_owned()));
            return (Depth::Syscall, 0, levels.to_vec());
        }
        if self.overwritten {
            let why = "its libc was overwritten in place";
            let levels = [Depth::Sysmalloc, Depth::Arena, Depth::Call].map(|level| (level, why.to_owned()));
            return (Depth::Syscall, 0, levels.to_vec());
        }
        let mine = |a: &&Attachment| a.scope == Scope::AllProcesses || a.scope == Scope::Process(pid);
        let attached = || self.attachments.iter().filter(mine);
        let depth = attached().filter(|a| a.broken.is_none()).map(|a| a.depth).max().unwrap_or(Depth::Syscall);
        let since_ns = attached().map(|a| a.since_ns).max().unwrap_or(0);
        let mut not_measured: Vec<_> =
            attached().filter_map(|a| a.broken.as_ref().map(|broken| (a.depth, broken.why().to_owned()))).collect();
        for level in [Depth::Sysmalloc, Depth::Arena, Depth::Call] {
            if level <= depth && !self.located.hooks.iter().any(|hook| is_the_probe_of(hook.role, level)) {
                let why = self.located.missing.iter().find(|m| m.depth == level);
                not_measured.push((level, why.map_or_else(|| format!("no probe site for {level}"), |m| m.why.clone())));
            }
        }
        (depth, since_ns, not_measured)
    }

    /// Origins that no probe on this file tells; "other" is told only when all the rest are.
    pub fn untold(&self) -> Vec<Origin> {
        let has = |roles: &[Role]| self.located.hooks.iter().any(|hook| roles.contains(&hook.role));
        let told = [
            (Origin::MmapCrossing, has(&[Role::MapChunk])),
            (Origin::MmapFallback, has(&[Role::MapChunk, Role::MapFallback])),
            (Origin::MmapArenaHeap, has(&[Role::MapHeap])),
            (Origin::MunmapChunk, has(&[Role::UnmapChunk])),
            (Origin::MunmapArenaHeap, has(&[Role::UnmapHeap])),
            (Origin::MremapChunk, has(&[Role::RemapChunk])),
            (Origin::BrkGrowth, has(&[Role::Grow])),
            (Origin::BrkTrim, has(&[Role::Trim])),
        ];
        let mut untold: Vec<_> = told.iter().filter(|(_, told)| !told).map(|(origin, _)| *origin).collect();
        for other in [Origin::MmapOther, Origin::MunmapOther, Origin::MremapOther, Origin::BrkOther] {
            if untold.iter().any(|origin| origin.syscall() == other.syscall()) {
                untold.push(other);
            }
        }
        untold
    }

    /// Roles whose probe sits on an instruction that the kernel steps over.
    pub fn stepped(&self) -> Vec<Role> {
        let stepped =
            |hook: &&Hook| matches!(hook.execution, Execution::SingleStepped(_)) && !self.spared.contains(&hook.role);
        self.located.hooks.iter().filter(stepped).map(|hook| hook.role).collect()
    }

    /// What its static probes tell.
    pub fn told(&self) -> Vec<HeapEvent> {
        HeapEvent::ALL.into_iter().filter(|event| self.tells(*event)).collect()
    }

    /// Whether a static probe of it tells that.
    pub fn tells(&self, event: HeapEvent) -> bool {
        self.located.hooks.iter().any(|hook| hook.role == Role::Told(event))
    }
}
