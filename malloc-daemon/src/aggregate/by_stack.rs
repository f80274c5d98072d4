//! Who asked for mapped chunks: sampled crossings added up by image and stack.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::incidents::StackId;
use super::model::{CrossingStacks, ProcessId, Stack, StackShare};
use crate::collect::RawImage;

/// Distinct stacks of one image; what comes after them shares `other`.
pub const STACKS_OF_ONE: usize = 64;
/// Distinct stacks of all images: 4,096 x about 4 KiB of named frames = 16 MiB.
pub const STACKS_OF_ALL: usize = 4096;
/// Images that ended and are still told of.
pub const ENDED: usize = 256;
/// Samples of one image whose stacks are being named.
const UNNAMED: usize = 1024;

type ImageKey = (ProcessId, u64);

/// What makes two stacks one: module, offset and function of each frame.
type Places = Vec<(Option<String>, Option<u64>, Option<String>)>;

/// What one image's samples stand for.
#[derive(Debug, Default)]
struct Image {
    /// The ordinal of its last sampled crossing.
    last_nth: u64,
    samples: u64,
    /// Samples that wait for their stack, with what they stand for.
    unnamed: VecDeque<(StackId, StackShare)>,
    stacks: BTreeMap<Places, StackShare>,
    told: Option<Arc<CrossingStacks>>,
}

/// Sampled crossings by image and stack.
#[derive(Debug, Default)]
pub struct ByStack {
    images: BTreeMap<ImageKey, Image>,
    /// Whose stack each number is.
    waiting: BTreeMap<StackId, ImageKey>,
    ended: VecDeque<ImageKey>,
    distinct: usize,
}

impl ByStack {
    /// Takes the sample of the `nth` crossing of an image; returns how many crossings it stands for: itself and those
    /// since the last one that was sampled.
    pub fn sample(&mut self, key: ImageKey, id: StackId, nth: u64, bytes: u64) -> u64 {
        let image = self.images.entry(key).or_default();
        let weight = nth.saturating_sub(image.last_nth).max(1);
        image.last_nth = image.last_nth.max(nth);
        image.samples += 1;
        image.told = None;
        if image.unnamed.len() >= UNNAMED
            && let Some((lost, _)) = image.unnamed.pop_front()
        {
            self.waiting.remove(&lost);
        }
        let share =
            StackShare { calls: weight, bytes: weight.saturating_mul(bytes), samples: 1, stack: Arc::default() };
        image.unnamed.push_back((id, share));
        self.waiting.insert(id, key);
        weight
    }

    /// Delivers a stack.
    pub fn deliver(&mut self, id: StackId, stack: &Arc<Stack>) {
        let Some(image) = self.waiting.remove(&id).and_then(|key| self.images.get_mut(&key)) else { return };
        let Some(at) = image.unnamed.iter().position(|(waiting, _)| *waiting == id) else { return };
        let Some((_, share)) = image.unnamed.remove(at) else { return };
        image.told = None;
        let places: Places = stack.frames.iter().map(|f| (f.module.clone(), f.offset, f.function.clone())).collect();
        if let Some(held) = image.stacks.get_mut(&places) {
            held.calls = held.calls.saturating_add(share.calls);
            held.bytes = held.bytes.saturating_add(share.bytes);
            held.samples += 1;
        } else if image.stacks.len() < STACKS_OF_ONE && self.distinct < STACKS_OF_ALL {
            self.distinct += 1;
            image.stacks.insert(places, StackShare { stack: Arc::clone(stack), ..share });
        }
    }

    /// Notes which images ended; the oldest of these is forgotten when there are more than [`ENDED`].
    pub fn settle(&mut self, rows: &[Arc<RawImage>]) {
        for slot in rows.iter().map(|row| &row.slot).filter(|slot| slot.end_ns != 0) {
            let key = (ProcessId::of(slot), slot.first_ns);
            if self.images.contains_key(&key) {
                self.ended.push_back(key);
            }
        }
        while self.ended.len() > ENDED {
            if let Some(image) = self.ended.pop_front().and_then(|key| self.images.remove(&key)) {
                self.distinct = self.distinct.saturating_sub(image.stacks.len());
                for (id, _) in &image.unnamed {
                    self.waiting.remove(id);
                }
            }
        }
    }

    /// What is known now, by image; stacks with most bytes first.
    pub fn told(&mut self) -> Vec<Arc<CrossingStacks>> {
        let tell = |((id, image_ns), image): (&ImageKey, &mut Image)| {
            let Image { samples, stacks, told, .. } = image;
            Arc::clone(told.get_or_insert_with(|| {
                let mut stacks: Vec<StackShare> = stacks.values().cloned().collect();
                stacks.sort_by_key(|share| std::cmp::Reverse((share.bytes, share.calls)));
                Arc::new(CrossingStacks { id: *id, image_ns: *image_ns, samples: *samples, stacks })
            }))
        };
        self.images.iter_mut().map(tell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::model::Frame;

    fn stack(function: &str) -> Arc<Stack> {
        Arc::new(Stack { frames: vec![Frame { function: Some(function.to_owned()), ..Frame::default() }], cut: None })
    }

    const ONE: ImageKey = (ProcessId { pid: 1, start_ticks: 1 }, 5);

    #[test]
    fn samples_of_one_stack_add_up_to_the_ordinal_of_the_last() {
        // CROSS-2
        let mut by_stack = ByStack::default();
        for (id, nth) in [(1, 1), (2, 2), (3, 50), (4, 51)] {
            by_stack.sample(ONE, id, nth, 10);
        }
        for (id, function) in [(1, "a"), (2, "b"), (3, "a")] {
            by_stack.deliver(id, &stack(function));
        }
        let told = &by_stack.told()[0];
        let shares: Vec<_> = told.stacks.iter().map(|s| (s.calls, s.bytes, s.samples)).collect();
        assert_eq!((told.samples, shares), (4, vec![(49, 490, 2), (1, 10, 1)]), "the fourth is not named yet");
        by_stack.deliver(4, &stack("b"));
        assert_eq!(by_stack.told()[0].stacks.iter().map(|s| s.calls).sum::<u64>(), 51);
    }

    #[test]
    fn the_next_program_of_a_process_begins_anew() {
        // CROSS-2 IDENT-1
        let mut by_stack = ByStack::default();
        by_stack.sample(ONE, 1, 40, 10);
        assert_eq!(by_stack.sample((ONE.0, 6), 2, 3, 10), 3);
    }

    #[test]
    fn stacks_are_bounded_for_each_image_and_for_all() {
        // BOUND-1
        let mut by_stack = ByStack::default();
        let mut id = 0;
        for image in 0..=STACKS_OF_ALL / STACKS_OF_ONE {
            for n in 0..STACKS_OF_ONE + 1 {
                id += 1;
                by_stack.sample((ONE.0, image as u64), id, n as u64 + 1, 10);
                by_stack.deliver(id, &stack(&n.to_string()));
            }
        }
        let told = by_stack.told();
        assert_eq!(told[0].stacks.len(), STACKS_OF_ONE);
        assert_eq!(told.iter().map(|t| t.stacks.len()).sum::<usize>(), STACKS_OF_ALL);
        assert!(by_stack.waiting.is_empty());
    }

    #[test]
    fn a_stack_that_is_never_named_is_not_waited_for_without_end() {
        // BOUND-1
        let mut by_stack = ByStack::default();
        for id in 0..3 * UNNAMED as u64 {
            by_stack.sample(ONE, id, id + 1, 10);
        }
        assert_eq!((by_stack.waiting.len(), by_stack.images[&ONE].unnamed.len()), (UNNAMED, UNNAMED));
    }
}
