//! Which program serves which hook, and which hook measures a level.

use malloc_common::depth::Depth;
use malloc_common::function::Function;
use malloc_common::site::Role;

use crate::probes::Site;
use crate::targets::Hook;

/// Whether a probe of that role is what a level is measured by.
pub fn is_the_probe_of(role: Role, level: Depth) -> bool {
    match level {
        Depth::Syscall => false,
        Depth::Sysmalloc => role == Role::Sysmalloc,
        Depth::Arena => role == Role::Arena,
        Depth::Call => role == Role::Call(Function::Malloc),
    }
}

/// Roles that no probe is needed for, each of which would be a trap for every mapped chunk: `sysmalloc` is sure to map
/// one when its request and `mp_` say so, and what gives one back is known by its address
/// ([`tracker`](malloc_common::tracker)).
pub fn spared(hooks: &[Hook]) -> Vec<Role> {
    let mut entries = hooks.iter().filter(|hook| hook.role == Role::Sysmalloc).peekable();
    if entries.peek().is_none() || !entries.all(|hook| hook.cookie.mp(hook.vaddr).is_some()) {
        return Vec::new();
    }
    vec![Role::MapChunk, Role::MunmapChunk, Role::UnmapChunk]
}

/// Hooks by the program that serves them. Branches come first and transfers before calls: an entry that is counted
/// while the probe on the branch before it is not there yet would count twice.
pub fn programs<'a>(hooks: impl Iterator<Item = &'a Hook>) -> Vec<(&'static str, Vec<Site>)> {
    let mut by_program = ["branch", "told", "slow", "arena", "call"].map(|program| (program, Vec::new()));
    for hook in hooks {
        let index = match hook.role {
            Role::Call(_) | Role::Transfer(_) => 4,
            Role::Arena => 3,
            Role::Sysmalloc | Role::MunmapChunk | Role::Systrim | Role::NewHeap => 2,
            Role::Raise | Role::Told(_) => 1,
            _ => 0,
        };
        let site = Site { file_offset: hook.file_offset, cookie: hook.cookie.0 };
        by_program[index].1.push((matches!(hook.role, Role::Call(_)), site));
    }
    by_program
        .into_iter()
        .filter(|(_, sites)| !sites.is_empty())
        .map(|(program, mut sites)| {
            sites.sort_by_key(|(is_call, _)| *is_call);
            (program, sites.into_iter().map(|(_, site)| site).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use malloc_common::site::{Cookie, MpLayout};

    use super::*;
    use crate::targets::decode::{Emulation, Execution};

    fn hook(role: Role, distance: Option<i32>) -> Hook {
        let cookie = distance.map_or(Cookie::new(role), |d| Cookie::new(role).with_mp(MpLayout::From235, d));
        let execution = Execution::Emulated(Emulation::Call);
        let depth = Depth::of(role);
        Hook {
            role,
            symbol: String::new(),
            offset_in_symbol: 0,
            vaddr: 0x1000,
            file_offset: 0x1000,
            cookie,
            execution,
            pushed_bytes: 0,
            depth,
        }
    }

    #[test]
    fn probes_on_the_way_of_mapped_chunks_are_spared_where_every_sysmalloc_finds_mp() {
        let (branch, entry, blind) =
            (hook(Role::MapChunk, None), hook(Role::Sysmalloc, Some(64)), hook(Role::Sysmalloc, None));
        assert_eq!(spared(&[branch.clone(), entry.clone()]), [Role::MapChunk, Role::MunmapChunk, Role::UnmapChunk]);
        assert_eq!(spared(&[branch.clone(), entry, blind]), []);
        assert_eq!(spared(&[branch]), []);
    }
}
