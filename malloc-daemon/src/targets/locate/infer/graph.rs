//! Which function calls which, and what each refers to: read from the code as far as it is asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;

use object::LittleEndian as LE;
use object::read::ReadRef;

use super::flow::{self, Exit, Facts, Known, Reading, Through};
use super::frames::Frames;
use crate::targets::decode::{BODY_LIMIT, Machine};
use crate::targets::elf::Elf;

/// The most code that is followed for one file: all that can lie near malloc, twice. In a file made to take long, functions
/// overlap, and each is followed anew.
const CODE_LIMIT: u64 = 512 << 10;

/// A function with the parts of it that lie elsewhere.
#[derive(Debug, Default)]
pub struct Whole {
    /// Where it and its parts begin; its own entry comes first.
    pub parts: Vec<u64>,
    /// The functions it calls, or ends by jumping to.
    pub callees: BTreeSet<u64>,
    /// Its calls and jumps, parts included.
    pub exits: Vec<Exit>,
    /// The addresses it reads, writes or takes.
    pub references: BTreeSet<u64>,
    /// Where it compares two values, and what is known of them.
    pub comparisons: Vec<(u64, [Option<Known>; 2])>,
    /// Its calls by way of a pointer.
    pub throughs: Vec<Through>,
}

/// The functions of one file.
pub struct Graph<'a, 'data, R> {
    elf: &'a Elf<'data, R>,
    machine: Machine,
    frames: &'a Frames,
    slots: &'a BTreeMap<u64, u64>,
    /// Where functions are taken for the allocator's own; beyond it none is looked into.
    near: Range<u64>,
    /// The linkage tables: their stubs unwind as one and belong together no more than that.
    linkage: Vec<Range<u64>>,
    allowance: u64,
    facts: HashMap<u64, Rc<Facts>>,
    wholes: HashMap<u64, Rc<Whole>>,
}

impl<'a, 'data, R: ReadRef<'data>> Graph<'a, 'data, R> {
    /// Of the functions whose entry lies in `near`; `slots` are those the dynamic linker fills.
    pub fn new(
        elf: &'a Elf<'data, R>,
        machine: Machine,
        frames: &'a Frames,
        slots: &'a BTreeMap<u64, u64>,
        near: Range<u64>,
    ) -> Self {
        let linkage = [&b".plt"[..], b".plt.got", b".plt.sec"].into_iter().filter_map(|name| {
            let section = elf.section(name)?;
            let start = section.sh_addr.get(LE);
            Some(start..start.saturating_add(section.sh_size.get(LE)))
        });
        Self {
            elf,
            machine,
            frames,
            slots,
            near,
            linkage: linkage.collect(),
            allowance: CODE_LIMIT,
            facts: HashMap::new(),
            wholes: HashMap::new(),
        }
    }

    /// Whether a function that may be the allocator's begins at `vaddr`.
    pub fn is_function(&self, vaddr: u64) -> bool {
        self.near.contains(&vaddr) && self.frames.length(vaddr).is_some()
    }

    /// The length in bytes of the function at `vaddr`, its other parts left out.
    pub fn length(&self, vaddr: u64) -> u64 {
        self.frames.length(vaddr).unwrap_or(0)
    }

    /// What the function at `vaddr` does.
    pub fn whole(&mut self, vaddr: u64) -> Rc<Whole> {
        if let Some(whole) = self.wholes.get(&vaddr) {
            return Rc::clone(whole);
        }
        let mut whole = Whole::default();
        let mut pending = vec![vaddr];
        while let Some(part) = pending.pop() {
            /// The most parts of one function; two or three are usual.
            const PARTS: usize = 16;
            if whole.parts.contains(&part) || whole.parts.len() >= PARTS {
                continue;
            }
            whole.parts.push(part);
            let facts = self.facts(part);
            for exit in &facts.exits {
                if exit.call {
                    whole.callees.insert(exit.target);
                    continue;
                }
                let Some(other) = self.frames.holding(exit.target) else { continue };
                if other == vaddr || self.linkage.iter().any(|table| table.contains(&exit.target)) {
                    continue;
                }
                // Nothing but a part of the same function is jumped into the middle of, or jumps back into it.
                if exit.target != other || self.comes_back(other, vaddr) {
                    pending.push(other);
                } else {
                    whole.callees.insert(other);
                }
            }
            whole.exits.extend_from_slice(&facts.exits);
            whole.references.extend(&facts.references);
            whole.comparisons.extend_from_slice(&facts.comparisons);
            whole.throughs.extend_from_slice(&facts.throughs);
        }
        let whole = Rc::new(whole);
        self.wholes.insert(vaddr, Rc::clone(&whole));
        whole
    }

    /// The functions that `vaddr` reaches by at most `depth` calls, and by how many; itself by none.
    pub fn reach(&mut self, vaddr: u64, depth: usize) -> BTreeMap<u64, usize> {
        let mut reached = BTreeMap::from([(vaddr, 0)]);
        let mut edge = vec![vaddr];
        for calls in 1..=depth {
            let mut next = Vec::new();
            for from in edge {
                for callee in &self.whole(from).callees {
                    if self.is_function(*callee) && !reached.contains_key(callee) {
                        reached.insert(*callee, calls);
                        next.push(*callee);
                    }
                }
            }
            edge = next;
        }
        reached
    }

    /// Whether `vaddr` calls `target`, by way of at most `depth - 1` others.
    pub fn leads(&mut self, vaddr: u64, target: u64, depth: usize) -> bool {
        let from = self.reach(vaddr, depth.saturating_sub(1));
        from.keys().any(|function| self.whole(*function).callees.contains(&target))
    }

    fn comes_back(&mut self, part: u64, function: u64) -> bool {
        let end = function.saturating_add(self.length(function));
        let inside = |target: u64| target > function && target < end;
        self.facts(part).exits.iter().any(|exit| !exit.call && inside(exit.target))
    }

    fn facts(&mut self, start: u64) -> Rc<Facts> {
        if let Some(facts) = self.facts.get(&start) {
            return Rc::clone(facts);
        }
        let length = self.length(start);
        let mut facts = Facts::default();
        if length <= BODY_LIMIT.min(self.allowance)
            && let Some(code) = self.elf.bytes_at(start, length)
        {
            self.allowance -= length;
            let steps = self.machine.steps(code, start);
            let reading = Reading { convention: self.machine.convention(), slots: self.slots };
            facts = flow::follow(&steps, start, start.saturating_add(length), reading);
        }
        let facts = Rc::new(facts);
        self.facts.insert(start, Rc::clone(&facts));
        facts
    }
}
