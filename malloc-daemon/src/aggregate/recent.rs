//! The last incidents of all processes, of which no process pushes out the others'.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::incidents::StackId;
use super::model::{INCIDENTS, ProcessId};

/// A process with no more than so many pushes nobody out: threshold raises of one that does not strive for them.
const FEW: usize = 32;

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

    /// Adds one: what goes for it is the oldest of the process that has too many; of those that have most, while they have
    /// more than [`FEW`]; else the oldest of all.
    pub fn push(&mut self, stack: StackId, id: ProcessId, new: T) {
        let count = |id: &ProcessId| self.counts.get(id).copied().unwrap_or(0);
        let at = if count(&id) >= self.of_one {
            self.held.iter().position(|(_, other, _)| *other == id)
        } else if self.held.len() >= INCIDENTS {
            let most = self.counts.values().max().copied().unwrap_or(0);
            self.held.iter().position(|(_, other, _)| most <= FEW || count(other) == most)
        } else {
            None
        };
        if let Some((_, gone, _)) = at.and_then(|at| self.held.remove(at))
            && let Some(count) = self.counts.get_mut(&gone)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&gone);
            }
        }
        *self.counts.entry(id).or_default() += 1;
        self.held.push_back((stack, id, Arc::new(new)));
    }

    /// Those of one process, the newest first.
    pub fn of(&self, id: ProcessId) -> impl Iterator<Item = (StackId, &Arc<T>)> {
        let own = move |held: &&(StackId, ProcessId, Arc<T>)| held.1 == id;
        self.held.iter().rev().filter(own).map(|(stack, _, one)| (*stack, one))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(of_one: usize, pids: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut recent = Recent::new(of_one);
        for (stack, pid) in pids.enumerate() {
            recent.push(stack as StackId, ProcessId { pid, start_ticks: 1 }, pid);
        }
        recent.all().iter().map(|one| **one).collect()
    }

    #[test]
    fn among_processes_that_have_few_the_oldest_goes() {
        let all: Vec<u32> = (0..4 * INCIDENTS as u32).map(|n| n / 8).collect();
        assert_eq!(pushed(128, all.iter().copied()), all[3 * INCIDENTS..]);
    }

    #[test]
    fn one_process_pushes_out_its_own() {
        let held = pushed(16, std::iter::once(7).chain(std::iter::repeat_n(9, 4 * INCIDENTS)));
        assert_eq!((held.len(), held[0]), (17, 7));
    }
}
