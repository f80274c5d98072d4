//! How a file's allocator is described to users.

use malloc_common::function::Function;

use crate::aggregate::model::Allocator;
use crate::host::file::TargetFile;
use crate::targets::{AllocatorKind, Located, folded};

/// The allocator of a file; what else a process maps is not in it.
pub fn described(file: &TargetFile, located: &Located) -> Allocator {
    let counted = |name: &str| (0..9).filter_map(Function::from_index).any(|f| f.name() == name);
    Allocator {
        kind: located.kind.name().to_owned(),
        version: located.version().map(str::to_owned),
        build_id: located.build_id.as_ref().map(ToString::to_string),
        path: file.path.display().to_string(),
        located_by: located.located_by.name().to_owned(),
        aliases: match located.kind {
            AllocatorKind::Glibc { .. } | AllocatorKind::Unknown => located
                .functions
                .iter()
                .filter(|f| counted(&f.name))
                .map(|f| (f.name.clone(), f.aliases.iter().filter(|alias| counted(alias)).cloned().collect::<Vec<_>>()))
                .filter(|(_, aliases)| !aliases.is_empty())
                .collect(),
            _ => folded(located),
        },
        not_counted: located.uncounted().map(|missing| format!("{}: {}", missing.what, missing.why)).collect(),
        also_mapped: Vec::new(),
    }
}
