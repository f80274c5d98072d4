//! Tells the functions of memalign's family apart by the arguments with which each hands its call on.

use malloc_common::site::MpLayout;
use object::read::ReadRef;

use super::super::Unidentified;
use super::super::flow::{Exit, Known};
use super::{Program, one};
use crate::targets::decode::BODY_LIMIT;

/// `EINVAL`, as the end of an instruction's text: stored to `errno`, or returned.
const INVALID: &str = ", 0x16";
/// `EINVAL` and `ENOMEM` returned.
const RETURNED: [&str; 2] = ["mov eax, 0x16", "mov eax, 0xc"];

/// A landing pad, a load of the return address, and a jump.
const JUMP_BYTES: u64 = 16;

/// What was found of the family.
#[derive(Debug, Default)]
pub struct Family {
    /// Names and places; up to glibc 2.37 `memalign` and `aligned_alloc` are one.
    pub found: Vec<(&'static str, u64)>,
    /// The others.
    pub unidentified: Vec<Unidentified>,
}

impl Family {
    fn put(&mut self, name: &'static str, told: Result<u64, String>) {
        match told {
            Ok(vaddr) => self.found.push((name, vaddr)),
            Err(why) => self.unidentified.push(Unidentified { name, why }),
        }
    }
}

/// Those that hand on to `_mid_memalign`, by what they pass it: an alignment and a size.
#[derive(Debug, Default)]
struct Callers {
    /// Their own first argument: `memalign` and, from glibc 2.38 on, `aligned_alloc`.
    first: Vec<u64>,
    /// Their second and third argument: `posix_memalign`.
    second: Vec<u64>,
    /// What a variable holds, the length of a page, and their first argument: `valloc`.
    page: Vec<u64>,
    /// The same, and what they reckon: `pvalloc`.
    rounded: Vec<u64>,
    /// Anything else.
    others: usize,
}

impl<'data, R: ReadRef<'data>> Program<'_, 'data, R> {
    /// The family, given the functions that it relies on. All are told by their way into `_mid_memalign`, which has no name
    /// that anyone needs.
    pub fn family(&mut self, malloc: u64, realloc: u64, int_malloc: u64) -> Family {
        let mut family = Family::default();
        let callers = match self.mid_memalign(malloc, realloc, int_malloc) {
            Ok(mid) => self.callers(mid),
            Err(why) => {
                for name in ["memalign", "aligned_alloc", "posix_memalign", "valloc", "pvalloc"] {
                    family.put(name, Err(why.clone()));
                }
                return family;
            }
        };
        let (memalign, aligned_alloc) = self.by_alignment(&callers);
        family.put("memalign", memalign);
        family.put("aligned_alloc", aligned_alloc);
        let posix_memalign = one("posix_memalign", callers.second.iter().copied()).and_then(|function| {
            let returns = RETURNED.iter().all(|text| self.has(function, |one| one == *text));
            if returns { Ok(function) } else { Err("what passes on its arguments returns no errors".to_owned()) }
        });
        family.put("posix_memalign", posix_memalign);
        // One without the other would be the one whose second argument was not followed.
        let pages = one("valloc", callers.page.iter().copied())
            .and_then(|valloc| Ok((valloc, one("pvalloc", callers.rounded.iter().copied())?)));
        family.put("valloc", pages.clone().map(|(valloc, _)| valloc));
        family.put("pvalloc", pages.map(|(_, pvalloc)| pvalloc));
        family
    }

    /// What ends by giving its second argument to malloc, where the alignment is small, and else serves from `main_arena` by
    /// what calls `_int_malloc`.
    fn mid_memalign(&mut self, malloc: u64, realloc: u64, int_malloc: u64) -> Result<u64, String> {
        let arena = Some(self.main_arena);
        let mut found = Vec::new();
        for function in self.functions.clone() {
            let whole = self.graph.whole(function);
            // Code behind a call that does not come back seems to lead there too, with other values.
            let gives = |exit: &Exit| {
                let size = exit.passes[0] == Some(Known::Argument(1));
                exit.target == malloc && (size || (!exit.call && exit.passes[0].is_none()))
            };
            if function == realloc || !whole.exits.iter().any(gives) {
                continue;
            }
            let serving = whole.exits.iter().filter(|exit| exit.argument == arena && exit.target != malloc);
            let mut serving: Vec<u64> = serving.map(|exit| exit.target).collect();
            serving.retain(|to| *to == int_malloc || self.graph.whole(*to).callees.contains(&int_malloc));
            if !serving.is_empty() {
                found.push(function);
            }
        }
        one("_mid_memalign", found)
    }

    fn callers(&mut self, mid: u64) -> Callers {
        let mut callers = Callers::default();
        for function in self.functions.clone() {
            let whole = self.graph.whole(function);
            let passed: Vec<_> = whole.exits.iter().filter(|exit| exit.target == mid).map(|exit| exit.passes).collect();
            // A call that is made behind another one may have its arguments from the stack.
            let told: Vec<_> = passed.iter().filter(|passes| passes[0].is_some()).collect();
            let all = |wanted: fn(&Known) -> bool| {
                !told.is_empty() && told.iter().all(|passes| passes[0].is_some_and(|first| wanted(&first)))
            };
            let size = |wanted| told.iter().any(|passes| passes[1] == Some(wanted));
            if function == mid || passed.is_empty() {
                continue;
            }
            if all(|first| *first == Known::Argument(0)) {
                callers.first.push(function);
            } else if all(|first| *first == Known::Argument(1)) && size(Known::Argument(2)) {
                callers.second.push(function);
            } else if all(|first| matches!(first, Known::Loaded(_))) && size(Known::Argument(0)) {
                callers.page.push(function);
            } else if all(|first| matches!(first, Known::Loaded(_))) && told.iter().all(|p| p[1].is_none()) {
                callers.rounded.push(function);
            } else {
                callers.others += 1;
            }
        }
        callers
    }

    /// `memalign` and `aligned_alloc`. Where there are two, `aligned_alloc` is the one that refuses an alignment.
    fn by_alignment(&self, callers: &Callers) -> (Result<u64, String>, Result<u64, String>) {
        let refuses = |function: u64| self.has(function, |text| text.ends_with(INVALID));
        // Nobody else is left that could be the second of them.
        let rest = [&callers.second, &callers.page, &callers.rounded].iter().all(|one| one.len() == 1);
        let whole = rest && callers.others == 0;
        // Up to glibc 2.33 `memalign_hook_ini` is left, which makes a call first; memalign is a jump and an argument.
        let whole = |one| whole || (self.layout == MpLayout::Upto234 && self.graph.length(one) <= JUMP_BYTES);
        match *callers.first {
            [both] if whole(both) && !refuses(both) => (Ok(both), Ok(both)),
            [one, other] if refuses(one) != refuses(other) => {
                let (memalign, aligned_alloc) = if refuses(one) { (other, one) } else { (one, other) };
                (Ok(memalign), Ok(aligned_alloc))
            }
            _ => {
                let count = callers.first.len();
                let why = format!("of the functions that pass an alignment on, {count}, none can be told from another");
                (Err(why.clone()), Err(why))
            }
        }
    }

    /// Whether one of the function's instructions reads so.
    fn has(&self, function: u64, wanted: impl Fn(&str) -> bool) -> bool {
        let length = self.graph.length(function).min(BODY_LIMIT);
        let Some(code) = self.elf.bytes_at(function, length) else { return false };
        self.machine.decode(code, function).iter().any(|instruction| {
            let at = usize::try_from(instruction.vaddr.saturating_sub(function)).ok().and_then(|at| code.get(at..));
            wanted(&self.machine.text(at.unwrap_or_default(), instruction.vaddr))
        })
    }
}
