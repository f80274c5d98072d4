//! Follows addresses and arguments through one stretch of code: what it refers to, calls, compares.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::targets::decode::Flow;
use crate::targets::decode::step::{Address, Convention, Operand, REGISTERS, Register, Step, Value};

/// How often one block may be looked at again: values only ever get less known, so honest code needs a few times.
const VISITS: u8 = 40;

/// What is known of a register's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is this address.
    Address(u64),
    /// It is the function's own argument, counted from 0.
    Argument(u8),
    /// It was loaded from this address.
    Loaded(u64),
}

type State = [Option<Known>; REGISTERS];

/// A branch out of the stretch, or a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The branch's address.
    pub vaddr: u64,
    /// Where it leads.
    pub target: u64,
    /// It comes back.
    pub call: bool,
    /// The first argument, where it is a known address.
    pub argument: Option<u64>,
    /// What is known of the first two arguments.
    pub passes: [Option<Known>; 2],
}

/// A call to what a pointer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// The branch's address.
    pub vaddr: u64,
    /// Where the pointer is stored.
    pub pointer: u64,
}

/// What the code is read with.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// How its functions pass values.
    pub convention: Convention,
    /// Slots the dynamic linker fills, and the address it stores.
    pub slots: &'a BTreeMap<u64, u64>,
}

/// What one stretch of code does.
#[derive(Debug, Default)]
pub struct Facts {
    /// Its calls and the branches that leave it.
    pub exits: Vec<Exit>,
    /// The addresses it reads, writes or takes.
    pub references: BTreeSet<u64>,
    /// Where it compares two values, and what is known of them.
    pub comparisons: Vec<(u64, [Option<Known>; 2])>,
    /// Calls by way of a pointer.
    pub throughs: Vec<Through>,
}

/// Follows `steps`, the whole of the stretch from `start` to `end`.
pub fn follow(steps: &[Step], start: u64, end: u64, reading: Reading<'_>) -> Facts {
    let index: BTreeMap<u64, usize> = steps.iter().enumerate().map(|(at, step)| (step.vaddr, at)).collect();
    let inside = |target: u64| index.get(&target).copied();
    let mut leaders = BTreeSet::from([0]);
    for (at, step) in steps.iter().enumerate() {
        if !matches!(step.flow, Flow::Next | Flow::Call(_) | Flow::Indirect { call: true, .. }) {
            leaders.insert(at + 1);
            if let Flow::Jump(target) | Flow::Branch(target) = step.flow {
                leaders.extend(inside(target));
            }
        }
    }
    leaders.remove(&steps.len());
    let block_end = |leader: usize| leaders.range(leader + 1..).next().copied().unwrap_or(steps.len());
    let mut entry: State = [None; REGISTERS];
    for (argument, register) in reading.convention.arguments.iter().enumerate() {
        set(&mut entry, *register, Some(Known::Argument(argument as u8)));
    }
    let mut states: BTreeMap<usize, (State, u8)> = BTreeMap::from([(0, (entry, 0))]);
    let mut pending = vec![0];
    while let Some(leader) = pending.pop() {
        let Some((state, visits)) = states.get_mut(&leader) else { continue };
        *visits += 1;
        if *visits > VISITS {
            continue;
        }
        let mut state = *state;
        let stop = block_end(leader);
        let Some(block) = steps.get(leader..stop) else { continue };
        for step in block {
            apply(&mut state, step, reading);
        }
        let Some(last) = block.last() else { continue };
        let mut next = Vec::new();
        if let Flow::Jump(target) | Flow::Branch(target) = last.flow {
            next.extend(inside(target));
        }
        let falls = !matches!(last.flow, Flow::Jump(_) | Flow::End | Flow::Indirect { call: false, .. });
        if falls && stop < steps.len() {
            next.push(stop);
        }
        for leader in next {
            match states.get_mut(&leader) {
                None => {
                    states.insert(leader, (state, 0));
                    pending.push(leader);
                }
                Some((known, _)) => {
                    let merged = merge(known, &state);
                    if merged != *known {
                        *known = merged;
                        pending.push(leader);
                    }
                }
            }
        }
    }
    let mut facts = Facts::default();
    for leader in &leaders {
        let mut state = states.get(leader).map_or([None; REGISTERS], |(state, _)| *state);
        for step in steps.get(*leader..block_end(*leader)).unwrap_or_default() {
            observe(&mut facts, &state, step, start..end, reading);
            apply(&mut state, step, reading);
        }
    }
    facts
}

fn get(state: &State, register: Register) -> Option<Known> {
    state.get(usize::from(register)).copied().flatten()
}

fn set(state: &mut State, register: Register, known: Option<Known>) {
    if let Some(place) = state.get_mut(usize::from(register)) {
        *place = known;
    }
}

fn resolve(state: &State, address: Address) -> Option<u64> {
    match address {
        Address::Absolute(vaddr) => Some(vaddr),
        Address::Based(register, bytes) => match get(state, register)? {
            Known::Address(base) => Some(base.wrapping_add_signed(bytes)),
            _ => None,
        },
    }
}

fn value(state: &State, operand: Operand) -> Option<Known> {
    match operand {
        Operand::Register(register) => get(state, register),
        Operand::Memory(address) => resolve(state, address).map(Known::Loaded),
        Operand::Other => None,
    }
}

fn apply(state: &mut State, step: &Step, reading: Reading<'_>) {
    let new = step.sets.map(|(register, value)| {
        let known = match value {
            Value::Address(address) => resolve(state, address).map(Known::Address),
            Value::Copy(from) => get(state, from),
            Value::Loaded(address) => resolve(state, address).map(|from| match reading.slots.get(&from) {
                Some(stored) => Known::Address(*stored),
                None => Known::Loaded(from),
            }),
        };
        (register, known)
    });
    let call = matches!(step.flow, Flow::Call(_) | Flow::Indirect { call: true, .. });
    let lost = if call { step.writes.0 | reading.convention.clobbered.0 } else { step.writes.0 };
    for register in 0..REGISTERS as Register {
        if lost >> register & 1 == 1 {
            set(state, register, None);
        }
    }
    if let Some((register, known)) = new {
        set(state, register, known);
    }
}

fn merge(one: &State, other: &State) -> State {
    let mut merged = *one;
    for (place, known) in merged.iter_mut().zip(other) {
        if *place != *known {
            *place = None;
        }
    }
    merged
}

fn observe(facts: &mut Facts, state: &State, step: &Step, range: Range<u64>, reading: Reading<'_>) {
    if let Some(vaddr) = step.memory.and_then(|address| resolve(state, address)) {
        facts.references.insert(vaddr);
        if step.pair_bytes != 0 {
            facts.references.insert(vaddr.wrapping_add(u64::from(step.pair_bytes)));
        }
    }
    if let Some([one, other]) = step.compares {
        facts.comparisons.push((step.vaddr, [value(state, one), value(state, other)]));
    }
    let [first, second, ..] = reading.convention.arguments;
    let passes = [get(state, first), get(state, second)];
    let argument = match passes[0] {
        Some(Known::Address(vaddr)) => Some(vaddr),
        _ => None,
    };
    match step.flow {
        Flow::Call(target) => facts.exits.push(Exit { vaddr: step.vaddr, target, call: true, argument, passes }),
        Flow::Jump(target) | Flow::Branch(target) if !range.contains(&target) => {
            facts.exits.push(Exit { vaddr: step.vaddr, target, call: false, argument, passes });
        }
        Flow::Indirect { call: true, .. } => facts.throughs.extend(through(state, step)),
        _ => {}
    }
}

fn through(state: &State, step: &Step) -> Option<Through> {
    let pointer = match step.through {
        Operand::Memory(address) => resolve(state, address)?,
        Operand::Register(register) => match get(state, register)? {
            Known::Loaded(pointer) => pointer,
            _ => return None,
        },
        Operand::Other => return None,
    };
    Some(Through { vaddr: step.vaddr, pointer })
}
