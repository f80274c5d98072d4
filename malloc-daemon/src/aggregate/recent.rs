//! The last incidents of all processes, of which no process pushes out the others'.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::incidents::StackId;
use super::model::{INCIDENTS, ProcessId};

/// At most [`INCIDENTS`], and `of_one` of one process.
#[derive(Debug)]
pub struct Recent<T> {
    held: VecDeque<(StackId, ProcessId, Arc<T>)>,
    of_one: usize,
    /// How many are held of each process.
    counts: BTreeMap<ProcessId, usize>,
}

impl<T> Recent<T> {
    /// Nothing yet.
    pub fn new(of_one: usize) -> Self {
        Self { held: VecDeque::new(), of_one, counts: BTreeMap::new() }
    }

    /// Adds one: what goes for it is the oldest of the process that has too many, or of the one that has most.
    pub fn push(&mut self, stack: StackId, id: ProcessId, new: T) {
        let crowded = if self.counts.get(&id).is_some_and(|count| *count >= self.of_one) {
            Some(id)
        } else if self.held.len() >= INCIDENTS {
            self.counts.iter().max_by_key(|(_, count)| **count).map(|(id, _)| *id)
        } else {
            None
        };
        if let Some(crowded) = crowded
            && let Some(at) = self.held.iter().position(|(_, id, _)| *id == crowded)
        {
            self.held.remove(at);
            if let Some(count) = self.counts.get_mut(&crowded) {
                *count -= 1;
            }
            self.counts.retain(|id, count| *id != crowded || *count > 0);
        }
        *self.counts.entry(id).or_default() += 1;
        self.held.push_back((stack, id, Arc::new(new)));
    }

    /// Those of one process, the newest first.
    pub fn of(&self, id: ProcessId) -> impl Iterator<Item = (StackId, &Arc<T>)> {
        let own = move |held: &&(StackId, ProcessId, Arc<T>)| held.1 == id;
        let has_any = self.counts.contains_key(&id);
        self.held.iter().rev().take(if has_any { usize::MAX } else { 0 }).filter(own).map(|(s, _, one)| (*s, one))
    }

    /// All, the oldest first.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.held.iter().map(|(_, _, one)| Arc::clone(one)).collect()
    }
}

impl<T: Clone> Recent<T> {
    /// Those whose stacks have these numbers, to be changed.
    pub fn with(&mut self, wanted: &[StackId]) -> impl Iterator<Item = &mut T> {
        // Numbers rise, so that most questions are about the end.
        let all = self.held.iter_mut().rev().filter(|(stack, ..)| wanted.contains(stack));
        all.take(wanted.len()).map(|(.., one)| Arc::make_mut(one))
    }
}
