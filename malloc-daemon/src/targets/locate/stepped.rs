//! Which hot probes are left out because the kernel would have to step over their instruction.

use malloc_common::depth::Depth;
use malloc_common::site::Role;

use super::{Hook, Located, Missing};
use crate::targets::decode::Execution;

impl Hook {
    /// Whether it is hit at the pace of the program's calls and the kernel steps over its instruction.
    #[must_use]
    pub fn is_dear(&self) -> bool {
        matches!(self.role, Role::Call(_) | Role::Arena) && matches!(self.execution, Execution::SingleStepped(_))
    }
}

impl Located {
    /// Leaves out the dear probes of functions that are called often, and says which: they are probed when asked for.
    pub fn leave_stepped(&mut self) {
        let mut left = Vec::new();
        self.hooks.retain(|hook| {
            if hook.is_dear() {
                left.push((hook.role, hook.symbol.clone(), hook.depth));
            }
            !hook.is_dear()
        });
        // A transfer takes a call off its function's count, which holds none now.
        self.hooks.retain(|hook| {
            !matches!(hook.role, Role::Transfer(function)
            if left.iter().any(|(role, ..)| *role == Role::Call(function)))
        });
        self.missing.extend(left.into_iter().map(|(_, what, depth)| {
            Missing {
            depth,
            what,
            why: "no instruction of its entry is one that the kernel emulates; --stepped probes it, at about ten times \
                  the price of a hit"
                .to_owned(),
        }
        }));
    }

    /// Names of public functions that cannot be counted, or not cheaply enough.
    pub fn uncounted(&self) -> impl Iterator<Item = &Missing> {
        self.missing.iter().filter(|missing| missing.depth == Depth::Call)
    }
}
