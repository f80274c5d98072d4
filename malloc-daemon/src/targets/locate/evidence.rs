//! What a reader can judge a result by: the instructions under the probes, and what must be so if the names are right.

use object::read::ReadRef;

use super::infer::{self, Check};
use super::{AllocatorKind, Located};
use crate::targets::decode::Machine;
use crate::targets::elf::{Elf, ElfError};
use crate::targets::symbols::{Binding, Source, Symbol};

/// The longest instruction of x86-64.
const INSTRUCTION_BYTES: u64 = 15;

/// What the file itself says of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The instruction under each hook, in their order.
    pub instructions: Vec<String>,
    /// What must be so; only glibc's internals are checked.
    pub checks: Vec<Check>,
}

/// Reads the evidence for what was `located` in `file`.
///
/// # Errors
/// When the file cannot be read any more.
pub fn evidence<'data, R: ReadRef<'data>>(file: R, located: &Located) -> Result<Evidence, ElfError> {
    let elf = Elf::parse(file)?;
    let Some(machine) = Machine::of(elf.machine()) else { return Ok(Evidence::default()) };
    let code = |vaddr| elf.bytes_at(vaddr, INSTRUCTION_BYTES).unwrap_or_default();
    let instructions = located.hooks.iter().map(|hook| machine.text(code(hook.vaddr), hook.vaddr)).collect();
    let checks = match located.kind {
        AllocatorKind::Glibc { .. } => infer::checks(&elf, machine, &symbols(located)),
        _ => Vec::new(),
    };
    Ok(Evidence { instructions, checks })
}

fn symbols(located: &Located) -> Vec<Symbol> {
    let symbol = |name: &str, vaddr, size, source| {
        let binding = if source == Source::Exports { Binding::Default } else { Binding::Local };
        Symbol { name: name.to_owned(), vaddr, size, binding, source, file: None }
    };
    let functions = located.functions.iter().flat_map(|function| {
        let names = std::iter::once(&function.name).chain(&function.aliases);
        names.map(move |name| symbol(name, function.vaddr, function.size, function.source))
    });
    let objects = located.objects.iter().map(|object| symbol(&object.name, object.vaddr, 0, object.source));
    functions.chain(objects).collect()
}
