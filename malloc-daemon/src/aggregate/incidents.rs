//! The last raises and mappings: which process they belong to, which stack they happened on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use malloc_common::abi::{EVENT_CROSSING, EVENT_RAISE, Event};

use super::by_stack::ByStack;
use super::model::{CrossingStacks, INCIDENTS, MAPPINGS_OF_ONE, Mapping, ProcessId, RAISES_OF_ONE, Raise, Stack};
use super::recent::Recent;
use crate::collect::RawImage;

/// Numbers a stack that is being named.
pub type StackId = u64;

/// What happened, before it is known to whom.
#[derive(Clone, Debug)]
struct Pending {
    event: Event,
    unix_ms: u64,
    stack: StackId,
    /// The rows of one collection did not hold its process.
    tried: bool,
}

/// Recent raises and mappings.
#[derive(Debug)]
pub struct Incidents {
    next: StackId,
    pending: VecDeque<Pending>,
    raises: Recent<Raise>,
    mappings: Recent<Mapping>,
    /// Mappings whose stacks raises wait for, and those raises.
    awaited: VecDeque<(StackId, StackId)>,
    /// Raises and mappings so far.
    counted: [u64; 2],
    by_stack: ByStack,
    /// Incidents dropped because nobody collected for too long.
    pub dropped: u64,
}

impl Default for Incidents {
    fn default() -> Self {
        Self {
            next: 0,
            pending: VecDeque::new(),
            raises: Recent::new(RAISES_OF_ONE),
            mappings: Recent::new(MAPPINGS_OF_ONE),
            awaited: VecDeque::new(),
            counted: [0; 2],
            by_stack: ByStack::default(),
            dropped: 0,
        }
    }
}

impl Incidents {
    /// Takes an event in; returns the number under which its stack is to be delivered, or `None` when the event is none
    /// of these, or its stack would tell nothing.
    pub fn take(&mut self, event: &Event, unix_ms: u64) -> Option<StackId> {
        if event.kind != EVENT_RAISE && event.kind != EVENT_CROSSING {
            return None;
        }
        if self.pending.len() >= INCIDENTS {
            self.pending.pop_front();
            self.dropped += 1;
        }
        self.next += 1;
        self.pending.push_back(Pending { event: *event, unix_ms, stack: self.next, tried: false });
        let caused_elsewhere = event.kind == EVENT_RAISE && event.values[2] == 0;
        (!caused_elsewhere).then_some(self.next)
    }

    /// Finds the processes of what came since the last collection.
    pub fn settle(&mut self, images: &[Arc<RawImage>]) {
        // What came without a stack came another way.
        let mut pending = Vec::from(std::mem::take(&mut self.pending));
        pending.sort_by_key(|pending| pending.event.ns);
        // One pass over the rows for all of them: there may be a thousand of either.
        let mut of_pid: HashMap<u32, Vec<&RawImage>> =
            pending.iter().map(|pending| (pending.event.tgid, Vec::new())).collect();
        for image in images.iter().filter(|_| !pending.is_empty()) {
            if let Some(rows) = of_pid.get_mut(&image.slot.tgid) {
                rows.push(image);
            }
        }
        for Pending { event, unix_ms, stack, tried } in pending {
            let image = of_pid.get(&event.tgid).into_iter().flatten().find(|image| {
                let slot = &image.slot;
                slot.first_ns <= event.ns && (slot.end_ns == 0 || event.ns <= slot.end_ns)
            });
            let Some(image) = image else {
                // It may have come after the rows were read: then the next ones hold its process.
                match tried {
                    false => self.pending.push_back(Pending { event, unix_ms, stack, tried: true }),
                    true => self.dropped += 1,
                }
                continue;
            };
            let id = ProcessId::of(&image.slot);
            let [a, b, c, d, e, ..] = event.values;
            let (comm, tid, ns) = (name(&event.comm), event.tid, event.ns);
            if event.kind == EVENT_RAISE {
                let mapped = self.mapped(id, b, d);
                let mapped_by = mapped.and_then(|(_, mapping)| mapping.stack.clone());
                if let (Some(mapping), None) = (mapped.map(|(mapping, _)| mapping), &mapped_by) {
                    if self.awaited.len() >= INCIDENTS {
                        self.awaited.pop_front();
                    }
                    self.awaited.push_back((mapping, stack));
                }
                self.counted[0] += 1;
                let raise = Raise {
                    number: self.counted[0],
                    id,
                    comm,
                    tid,
                    ns,
                    unix_ms,
                    from_bytes: a,
                    to_bytes: b,
                    chunk_bytes: (c != 0).then_some(c),
                    stack: None,
                    mapped_by,
                };
                self.raises.push(stack, id, raise);
            } else {
                let weight = self.by_stack.sample((id, image.slot.first_ns), stack, e, a);
                self.counted[1] += 1;
                let mapping = Mapping {
                    number: self.counted[1],
                    id,
                    comm,
                    tid,
                    ns,
                    unix_ms,
                    address: c,
                    bytes: a,
                    nb: b,
                    mmap_ns: d,
                    nth: e,
                    weight,
                    stack: None,
                };
                self.mappings.push(stack, id, mapping);
            }
        }
        self.by_stack.settle(images);
    }

    /// The mapping of the chunk at this address that makes a threshold of so many bytes, or else the last one of that
    /// size. A chunk ends with its mapping up to glibc 2.42, 16 bytes before it from 2.43 on; it begins with it unless
    /// an alignment was asked for.
    fn mapped(&self, id: ProcessId, threshold: u64, chunk: u64) -> Option<(StackId, &Arc<Mapping>)> {
        let sizes = [Some(threshold), threshold.checked_add(16)];
        let is_it = |m: &Mapping| {
            let before = chunk.checked_sub(m.address).filter(|_| chunk != 0);
            before.is_some_and(|before| sizes.contains(&m.bytes.checked_sub(before)))
        };
        let own = || self.mappings.of(id);
        own().find(|(_, m)| is_it(m)).or_else(|| own().find(|(_, m)| sizes.contains(&Some(m.bytes))))
    }

    /// Delivers a stack.
    pub fn deliver(&mut self, id: StackId, stack: &Arc<Stack>) {
        self.by_stack.deliver(id, stack);
        for raise in self.raises.with(&[id]) {
            raise.stack = Some(Arc::clone(stack));
        }
        for mapping in self.mappings.with(&[id]) {
            mapping.stack = Some(Arc::clone(stack));
        }
        // A raise may have come before the stack of the mapping that it undoes was named.
        let raises: Vec<StackId> =
            self.awaited.iter().filter(|(held, _)| *held == id).map(|(_, raise)| *raise).collect();
        self.awaited.retain(|(held, _)| *held != id);
        for raise in self.raises.with(&raises) {
            raise.mapped_by = Some(Arc::clone(stack));
        }
    }

    /// The raises, the oldest first.
    #[must_use]
    pub fn raises(&self) -> Vec<Arc<Raise>> {
        self.raises.all()
    }

    /// Sampled crossings by image and stack.
    pub fn stacks(&mut self) -> Vec<Arc<CrossingStacks>> {
        self.by_stack.told()
    }

    /// The mappings, the oldest first.
    #[must_use]
    pub fn mappings(&self) -> Vec<Arc<Mapping>> {
        self.mappings.all()
    }
}

fn name(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(comm.get(..end).unwrap_or(comm)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::Collector;
    use crate::collect::sim::{Room, Sim};
    use malloc_common::abi::Syscall;
    use malloc_common::allowance::FIRST_SAMPLES;
    use malloc_common::site::Role;
    use malloc_common::tracker::Mp;

    const CHUNK: u64 = 0x7f00_0000_0000;

    fn mp(threshold: u64) -> Mp {
        Mp { threshold, trim_threshold: 2 * threshold, most_chunks: 65_536, ..Mp::default() }
    }

    fn cross(sim: &Sim, bytes: u64) {
        sim.slow(Role::Sysmalloc, [bytes - 4096, 0, 0]).branch(Role::MapChunk, 0);
        sim.syscall(Syscall::Mmap, [0, bytes, 3, 34, u64::MAX, 0], CHUNK).push(-8);
    }

    fn stack(function: &str) -> Arc<Stack> {
        let frame = super::super::model::Frame { function: Some(function.to_owned()), ..Default::default() };
        Arc::new(Stack { frames: vec![frame], cut: None })
    }

    fn settled(sim: &mut Sim) -> (Incidents, Vec<StackId>) {
        let mut incidents = Incidents::default();
        let ids = sim.events.borrow().iter().filter_map(|event| incidents.take(event, 0)).collect();
        incidents.settle(&sim.collect().images);
        (incidents, ids)
    }

    #[test]
    fn the_free_of_the_chunk_that_became_the_threshold_raised_it() {
        // THRESH-1
        let mut sim = Sim::new(Room::default(), None);
        sim.run(42, 42).set_mp(mp(131_072));
        cross(&sim, 1_052_672);
        sim.words.borrow_mut().insert(CHUNK + 8, 1_052_672 | 2);
        sim.set_mp(mp(1_052_672)).slow(Role::MunmapChunk, [CHUNK, 0, 0]);
        let (mut incidents, ids) = settled(&mut sim);
        let raise = &incidents.raises()[0];
        assert_eq!((raise.from_bytes, raise.to_bytes, raise.chunk_bytes), (131_072, 1_052_672, Some(1_052_672)));
        assert_eq!(ids.len(), 2, "the mapping's and the raise's");
        incidents.deliver(ids[0], &stack("make"));
        incidents.deliver(ids[1], &stack("drop"));
        let raise = &incidents.raises()[0];
        assert_eq!(raise.stack.as_ref(), Some(&stack("drop")));
        assert_eq!(raise.mapped_by.as_ref(), Some(&stack("make")), "named after the raise had come");
    }

    #[test]
    fn a_process_that_came_after_the_rows_were_read_is_found_in_the_next() {
        // THRESH-1 LOSS-1
        let mut sim = Sim::new(Room::default(), None);
        let before = sim.collect().images;
        sim.run(42, 42).set_mp(mp(131_072));
        cross(&sim, 1_052_672);
        let mut incidents = Incidents::default();
        for event in sim.events.borrow().iter() {
            incidents.take(event, 0);
        }
        incidents.settle(&before);
        assert_eq!((incidents.mappings().len(), incidents.dropped), (0, 0));
        incidents.settle(&sim.collect().images);
        assert_eq!((incidents.mappings().len(), incidents.dropped), (1, 0));
        let event = *sim.events.borrow().iter().find(|event| event.kind == EVENT_CROSSING).expect("a crossing");
        incidents.take(&Event { tgid: 43, ..event }, 0);
        (0..2).for_each(|_| incidents.settle(&before));
        assert_eq!(incidents.dropped, 1, "nobody's is not waited for without end");
    }

    #[test]
    fn a_raise_is_laid_to_the_mapping_of_its_own_chunk_before_another_of_that_size() {
        // THRESH-1
        let mut sim = Sim::new(Room::default(), None);
        sim.run(42, 42).set_mp(mp(131_072));
        // An aligned chunk: its mapping is larger than it is. Then one elsewhere of just the chunk's size.
        cross(&sim, 1_060_864);
        let elsewhere = CHUNK + (1 << 30);
        sim.slow(Role::Sysmalloc, [1_048_576, 0, 0]).branch(Role::MapChunk, 0);
        sim.syscall(Syscall::Mmap, [0, 1_052_672, 3, 34, u64::MAX, 0], elsewhere).push(-8);
        sim.words.borrow_mut().insert(CHUNK + 8192 + 8, 1_052_672 | 2);
        sim.set_mp(mp(1_052_672)).slow(Role::MunmapChunk, [CHUNK + 8192, 0, 0]);
        let (mut incidents, ids) = settled(&mut sim);
        assert_eq!(ids.len(), 3);
        for (id, function) in ids.iter().zip(["align", "make", "drop"]) {
            incidents.deliver(*id, &stack(function));
        }
        assert_eq!(incidents.raises()[0].mapped_by.as_ref(), Some(&stack("align")));
    }

    #[test]
    fn a_raise_seen_later_is_laid_to_nobody() {
        // HONEST-1
        let mut sim = Sim::new(Room::default(), None);
        sim.run(42, 42).set_mp(mp(131_072)).slow(Role::Sysmalloc, [64, 0, 0]);
        sim.set_mp(mp(1_052_672)).slow(Role::Sysmalloc, [64, 0, 0]);
        let (incidents, ids) = settled(&mut sim);
        assert_eq!(incidents.raises()[0].chunk_bytes, None);
        assert!(ids.is_empty(), "the stack at hand is not the cause's");
    }

    #[test]
    fn the_weights_of_sampled_mappings_add_up_to_the_crossings() {
        let mut sim = Sim::new(Room { events: 4096, ..Room::default() }, None);
        sim.run(42, 42).set_mp(mp(131_072));
        for _ in 0..500 {
            cross(&sim, 1_052_672);
        }
        let (incidents, _) = settled(&mut sim);
        let sampled = incidents.mappings();
        assert!(sampled.len() < 100, "{} stacks", sampled.len());
        assert!(sampled.iter().take(FIRST_SAMPLES as usize).all(|mapping| mapping.weight == 1));
        let weights: u64 = sampled.iter().map(|mapping| mapping.weight).sum();
        assert_eq!(weights, sampled.last().expect("some").nth);
    }

    #[test]
    fn a_process_with_many_raises_pushes_out_none_of_anothers() {
        // BOUND-1 THRESH-1
        let mut sim = Sim::new(Room { events: 4096, ..Room::default() }, None);
        let mut incidents = Incidents::default();
        for pid in 1..12 {
            sim.run(pid, pid);
            let steps = if pid == 1 { 1 } else { RAISES_OF_ONE as u64 + 9 };
            for step in 0..=steps {
                sim.set_mp(mp(131_072 + step * 4096)).slow(Role::Sysmalloc, [64, 0, 0]);
            }
            for event in sim.events.borrow_mut().drain(..) {
                incidents.take(&event, 0);
            }
            incidents.settle(&sim.collect().images);
        }
        let raises = incidents.raises();
        assert_eq!(raises.len(), INCIDENTS);
        let of = |pid: u32| raises.iter().filter(|raise| raise.id.pid == pid).count();
        assert_eq!(of(1), 1, "the first, although nine others had more than all the room");
        assert!((2..12).all(|pid| of(pid) <= RAISES_OF_ONE && of(pid) > 90));
        let newest = raises.iter().rfind(|raise| raise.id.pid == 11).expect("some");
        assert_eq!(newest.to_bytes, 131_072 + (RAISES_OF_ONE as u64 + 9) * 4096);
    }

    #[test]
    fn incidents_are_bounded_and_what_falls_out_before_it_is_seen_is_counted() {
        // BOUND-1 LOSS-1
        let mut incidents = Incidents::default();
        let sim = Sim::new(Room::default(), None);
        sim.run(42, 42).set_mp(mp(131_072));
        cross(&sim, 1_052_672);
        let event = *sim.events.borrow().first().expect("a mapping");
        for _ in 0..INCIDENTS + 5 {
            incidents.take(&event, 0);
        }
        assert_eq!(incidents.dropped, 5);
    }
}
