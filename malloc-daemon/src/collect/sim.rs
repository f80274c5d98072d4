//! A kernel made of plain collections, with the same capacities: the tracker runs on it without root.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use malloc_common::abi::{Counter, Event, Flight, Histogram, Origin, SLOT_FREE, SLOT_LIVE, Series, Slot, Syscall};
use malloc_common::allowance::{FIRST_SAMPLES, SAMPLE_EVERY_NS};
use malloc_common::chunk::{Chunk, ChunkKey, WATCHES, Watch};
use malloc_common::function::Function;
use malloc_common::histogram;
use malloc_common::loss::{LOSSES, Loss};
use malloc_common::site::{Cookie, MpLayout, PtRegsWord, Role};
use malloc_common::tracker::{self, HistogramId, Kernel, Mp, MpPlace, Registers, SlotId, empty_flight};

use super::{Collector, RawImage, RawSnapshot};

/// How many of each the simulated kernel has room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Slots.
    pub slots: usize,
    /// Histograms.
    pub histograms: usize,
    /// Thread states.
    pub flights: usize,
    /// Mapped chunks.
    pub chunks: usize,
    /// Events that wait.
    pub events: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { slots: 64, histograms: 512, flights: 64, chunks: 64, events: 64 }
    }
}

/// What one process is, apart from what is counted of it.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    start_ns: u64,
    threads: u32,
    program_break: u64,
    mp: Option<Mp>,
    oom_killed: bool,
}

/// The simulated kernel; the thread that runs is chosen by [`Sim::run`].
#[derive(Debug)]
pub struct Sim {
    room: Room,
    running: Cell<(u32, u32)>,
    sp: Cell<u64>,
    now: Cell<u64>,
    tasks: RefCell<BTreeMap<u32, Task>>,
    slots: RefCell<Vec<Slot>>,
    free_slots: RefCell<VecDeque<u32>>,
    histograms: RefCell<Vec<Histogram>>,
    free_histograms: RefCell<VecDeque<u32>>,
    processes: RefCell<BTreeMap<u32, u32>>,
    inherited: RefCell<BTreeMap<u32, (u64, u64)>>,
    targets: Option<RefCell<BTreeSet<u32>>>,
    flights: RefCell<BTreeMap<u32, Flight>>,
    chunks: RefCell<BTreeMap<ChunkKey, Chunk>>,
    lost: RefCell<[u64; LOSSES]>,
    /// Registers other than those of arguments.
    pub user_registers: RefCell<BTreeMap<u32, u64>>,
    /// Words of user memory.
    pub words: RefCell<BTreeMap<u64, u64>>,
    /// Events that were sent.
    pub events: RefCell<Vec<Event>>,
    /// Page faults of mapped chunks are counted.
    pub faults: Cell<bool>,
    /// True while a tracer listens.
    pub tracing: Cell<bool>,
}

/// Where the top of every simulated stack is.
pub const STACK: u64 = 0x7fff_0000_0000;

impl Sim {
    /// A kernel that counts every process, or (`targets`) those given and their children.
    #[must_use]
    pub fn new(room: Room, targets: Option<&[u32]>) -> Self {
        Self {
            room,
            running: Cell::new((1, 1)),
            sp: Cell::new(STACK),
            now: Cell::new(1_000),
            tasks: RefCell::default(),
            slots: RefCell::new(vec![Slot::FREE; room.slots]),
            free_slots: RefCell::new((0..room.slots as u32).collect()),
            histograms: RefCell::new(vec![Histogram::EMPTY; room.histograms]),
            free_histograms: RefCell::new((0..room.histograms as u32).collect()),
            processes: RefCell::default(),
            inherited: RefCell::default(),
            targets: targets.map(|pids| RefCell::new(pids.iter().copied().collect())),
            flights: RefCell::default(),
            chunks: RefCell::default(),
            lost: RefCell::new([0; LOSSES]),
            user_registers: RefCell::default(),
            words: RefCell::default(),
            events: RefCell::default(),
            faults: Cell::new(true),
            tracing: Cell::new(false),
        }
    }

    /// Lets a thread run; a process that is new starts now.
    pub fn run(&self, tgid: u32, tid: u32) -> &Self {
        self.running.set((tgid, tid));
        self.sp.set(STACK - u64::from(tid) * 0x10_0000);
        let now = self.now.get();
        self.tasks.borrow_mut().entry(tgid).or_insert(Task { start_ns: now, threads: 1, ..Task::default() });
        self
    }

    fn task<R>(&self, f: impl FnOnce(&mut Task) -> R) -> R {
        f(self.tasks.borrow_mut().entry(self.running.get().0).or_default())
    }

    fn registers(&self, arguments: [u64; 3]) -> Registers {
        self.now.set(self.now.get() + 10);
        Registers { arguments, sp: self.sp.get(), ip: 0x1000 }
    }

    /// The program calls a public function.
    pub fn call(&self, function: Function, arguments: [u64; 3]) -> &Self {
        tracker::call(self, Cookie::new(Role::Call(function)), &self.registers(arguments));
        self
    }

    /// The allocator is about to enter a public function itself, by call or by tail jump, and does.
    pub fn transfer(&self, function: Function, arguments: [u64; 3]) -> &Self {
        tracker::call(self, Cookie::new(Role::Transfer(function)), &self.registers(arguments));
        self.call(function, arguments)
    }

    /// `_int_malloc` is entered.
    pub fn arena(&self, bytes: u64) -> &Self {
        tracker::arena(self, &self.registers([0x7f00, bytes, 0]));
        self
    }

    /// A slow-path function is entered, in a process whose `mp_` can be read when [`Sim::set_mp`] was called.
    pub fn slow(&self, role: Role, arguments: [u64; 3]) -> &Self {
        let cookie = Cookie::new(role).with_mp(MpLayout::From235, 64);
        tracker::slow(self, cookie, &self.registers(arguments));
        self
    }

    /// A slow-path function is entered, or a static probe reached, with this cookie.
    pub fn at(&self, cookie: Cookie, arguments: [u64; 3]) -> &Self {
        let registers = self.registers(arguments);
        match cookie.told() {
            Some(_) => tracker::told(self, cookie, &registers),
            None => tracker::slow(self, cookie, &registers),
        }
        self
    }

    /// A branch towards a system-call wrapper is taken: what follows runs 8 bytes deeper.
    pub fn branch(&self, role: Role, first_argument: u64) -> &Self {
        let cookie = Cookie::new(role).with_mp(MpLayout::From235, 64);
        tracker::branch(self, cookie, &self.registers([first_argument, 0, 0]));
        self.sp.set(self.sp.get() - 8);
        self
    }

    /// The stack pointer moves, down by a positive number of bytes.
    pub fn push(&self, bytes: i64) -> &Self {
        self.sp.set(self.sp.get().wrapping_add_signed(-bytes));
        self
    }

    /// Time passes.
    pub fn wait(&self, ns: u64) -> &Self {
        self.now.set(self.now.get() + ns);
        self
    }

    /// A system call enters and returns 1,000 ns later.
    pub fn syscall(&self, syscall: Syscall, args: [u64; 6], result: u64) -> &Self {
        self.enter(syscall, args);
        self.now.set(self.now.get() + 1_000);
        self.leave(syscall, result)
    }

    /// A system call enters.
    pub fn enter(&self, syscall: Syscall, args: [u64; 6]) -> &Self {
        tracker::syscall_enter(self, syscall, args);
        self
    }

    /// A system call returns.
    pub fn leave(&self, syscall: Syscall, result: u64) -> &Self {
        tracker::syscall_exit(self, syscall, result);
        if syscall == Syscall::Brk {
            self.task(|task| task.program_break = result);
        }
        self
    }

    /// The running process touches these pages for the first time.
    pub fn touch(&self, addresses: impl IntoIterator<Item = u64>) -> &Self {
        if self.faults.get() {
            addresses.into_iter().for_each(|address| tracker::fault(self, address));
        }
        self
    }

    /// What reading `mp_` of the running process finds from now on.
    pub fn set_mp(&self, mp: Mp) -> &Self {
        self.task(|task| task.mp = Some(mp));
        self
    }

    /// The running process starts a thread.
    pub fn start_thread(&self) -> &Self {
        self.task(|task| task.threads += 1);
        let _ = tracker::fork(self, self.running.get().0);
        self
    }

    /// The running process forks; the child runs from now on, on a copy of its parent's memory.
    pub fn fork(&self, child: u32) -> &Self {
        let _ = tracker::fork(self, child);
        let mp = self.task(|task| task.mp);
        self.run(child, child).task(|task| task.mp = mp);
        self
    }

    /// The running process becomes another program.
    pub fn exec(&self) -> &Self {
        self.now.set(self.now.get() + 10);
        self.task(|task| task.mp = None);
        let _ = tracker::exec(self);
        self
    }

    /// Memory ran out, and the kernel chose the running process; its threads still have to end.
    pub fn choose_for_memory(&self) -> &Self {
        self.task(|task| task.oom_killed = true);
        self
    }

    /// The running thread ends.
    pub fn exit(&self) -> &Self {
        let tgid = self.running.get().0;
        self.now.set(self.now.get() + 10);
        self.task(|task| task.threads -= 1);
        let gone = self.task(|task| task.threads) == 0;
        tracker::exit(self);
        if gone {
            // A number is not given out again within one clock tick.
            self.now.set(self.now.get() + 10_000_000);
            self.tasks.borrow_mut().remove(&tgid);
        }
        self
    }
}

impl Kernel for Sim {
    type Flight<'a> = RefMut<'a, Flight>;

    fn tgid(&self) -> u32 {
        self.running.get().0
    }

    fn tid(&self) -> u32 {
        self.running.get().1
    }

    fn now_ns(&self) -> u64 {
        self.now.get()
    }

    fn comm(&self) -> [u8; 16] {
        *b"sim\0\0\0\0\0\0\0\0\0\0\0\0\0"
    }

    fn user_sp(&self) -> u64 {
        self.sp.get()
    }

    fn program_break(&self) -> u64 {
        self.task(|task| task.program_break)
    }

    fn last_thread(&self) -> bool {
        self.task(|task| task.threads) == 0
    }

    fn oom_killed(&self) -> bool {
        self.task(|task| task.oom_killed)
    }

    fn tracing(&self) -> bool {
        self.tracing.get()
    }

    fn tells_chunks(&self) -> bool {
        true
    }

    fn read_mp(&self, _: MpPlace) -> Option<Mp> {
        self.task(|task| task.mp)
    }

    fn slot(&self, tgid: u32) -> Option<SlotId> {
        self.processes.borrow().get(&tgid).copied()
    }

    fn open_slot(&self, born: u16) -> Option<SlotId> {
        let id = self.free_slots.borrow_mut().pop_front()?;
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[id as usize];
        slot.tgid = self.tgid();
        slot.born = born;
        slot.start_ns = self.task(|task| task.start_ns);
        slot.first_ns = self.now.get();
        slot.comm = self.comm();
        (slot.threshold, slot.mp_place) = self.inherited.borrow().get(&self.tgid()).copied().unwrap_or_default();
        slot.state = SLOT_LIVE;
        self.processes.borrow_mut().insert(self.tgid(), id);
        Some(id)
    }

    fn close_slot(&self, tgid: u32, state: u32) {
        if let Some(id) = self.processes.borrow_mut().remove(&tgid) {
            let slot = &mut self.slots.borrow_mut()[id as usize];
            slot.end_ns = self.now.get();
            slot.state = state;
        }
    }

    fn store_mp(&self, slot: SlotId, place: MpPlace, mp: &Mp) -> u64 {
        let slot = &mut self.slots.borrow_mut()[slot as usize];
        let before = slot.threshold;
        slot.threshold = mp.threshold;
        slot.trim_threshold = mp.trim_threshold;
        slot.mmapped_chunks = mp.mmapped_chunks;
        slot.mmapped_bytes = mp.mmapped_bytes;
        slot.threshold_pinned = mp.pinned;
        slot.threshold_ns = self.now.get();
        slot.mp_place = place.to_word();
        before
    }

    fn stored_mp(&self, slot: SlotId) -> Option<(u64, MpPlace)> {
        let slot = &self.slots.borrow()[slot as usize];
        Some((slot.threshold, MpPlace::from_word(slot.mp_place)?))
    }

    fn bequeath(&self, slot: SlotId, child: u32) {
        let Slot { threshold, mp_place, .. } = self.slots.borrow()[slot as usize];
        if threshold != 0 {
            self.inherited.borrow_mut().insert(child, (threshold, mp_place));
        }
    }

    fn disinherit(&self, tgid: u32) {
        self.inherited.borrow_mut().remove(&tgid);
    }

    fn add(&self, slot: SlotId, counter: Counter, n: u64) {
        self.slots.borrow_mut()[slot as usize].counters[counter.index()] += n;
    }

    fn histogram(&self, slot: SlotId, series: Series) -> Option<HistogramId> {
        let held = &mut self.slots.borrow_mut()[slot as usize].series[series.index()];
        if *held == 0 {
            *held = self.free_histograms.borrow_mut().pop_front()? + 1;
        }
        Some(*held - 1)
    }

    fn record(&self, histogram: HistogramId, value: u64) {
        let held = &mut self.histograms.borrow_mut()[histogram as usize];
        held.sum += value;
        held.buckets[histogram::bucket(value) as usize] += 1;
    }

    fn admits(&self, tgid: u32) -> bool {
        self.targets.as_ref().is_none_or(|targets| targets.borrow().contains(&tgid))
    }

    fn admit_child(&self, _parent: u32, child: u32) -> bool {
        if let Some(targets) = &self.targets {
            targets.borrow_mut().insert(child);
        }
        true
    }

    fn dismiss(&self, tgid: u32) {
        if let Some(targets) = &self.targets {
            targets.borrow_mut().remove(&tgid);
        }
    }

    fn flight(&self) -> Option<RefMut<'_, Flight>> {
        RefMut::filter_map(self.flights.borrow_mut(), |flights| flights.get_mut(&self.tid())).ok()
    }

    fn open_flight(&self) -> Option<RefMut<'_, Flight>> {
        let (tid, flights) = (self.tid(), self.flights.borrow_mut());
        let room = flights.contains_key(&tid) || flights.len() < self.room.flights;
        room.then(|| RefMut::map(flights, |flights| flights.entry(tid).or_insert_with(empty_flight)))
    }

    fn close_flight(&self, tid: u32) {
        self.flights.borrow_mut().remove(&tid);
    }

    fn remember_chunk(&self, address: u64, chunk: &Chunk) -> bool {
        let key = ChunkKey { tgid: self.tgid().into(), address };
        let mut chunks = self.chunks.borrow_mut();
        let room = chunks.len() < self.room.chunks || chunks.contains_key(&key);
        if room {
            chunks.insert(key, *chunk);
        }
        room
    }

    fn chunk(&self, address: u64) -> Option<Chunk> {
        self.chunks.borrow().get(&ChunkKey { tgid: self.tgid().into(), address }).copied()
    }

    fn forget_chunk(&self, address: u64) {
        self.chunks.borrow_mut().remove(&ChunkKey { tgid: self.tgid().into(), address });
    }

    fn counts_faults(&self) -> bool {
        self.faults.get()
    }

    fn with_watch<R, F: FnOnce(&mut Watch) -> R>(&self, slot: SlotId, index: u64, f: F) -> Option<R> {
        let index = usize::try_from(index).ok().filter(|index| *index < WATCHES)?;
        Some(f(&mut self.slots.borrow_mut()[slot as usize].watches[index]))
    }

    fn change_watch(&self, slot: SlotId, index: u64, from: u32, to: u32) -> bool {
        let same = self.with_watch(slot, index, |watch| watch.state == from) == Some(true);
        same && self.with_watch(slot, index, |watch| watch.state = to).is_some()
    }

    fn add_fault(&self, slot: SlotId, index: u64) {
        let _ = self.with_watch(slot, index, |watch| watch.faults += 1);
    }

    fn image_ns(&self, slot: SlotId) -> u64 {
        self.slots.borrow()[slot as usize].first_ns
    }

    fn lose(&self, loss: Loss) {
        self.lost.borrow_mut()[loss as usize] += 1;
    }

    fn emit(&self, event: &Event) -> bool {
        let mut events = self.events.borrow_mut();
        if events.len() >= self.room.events {
            return false;
        }
        events.push(*event);
        true
    }

    fn sample(&self, event: &Event) -> bool {
        self.emit(event)
    }

    fn crossing_to_sample(&self, slot: SlotId, now_ns: u64) -> Option<u64> {
        let slot = &mut self.slots.borrow_mut()[slot as usize];
        let nth = slot.counters[Counter::OriginCalls(Origin::MmapCrossing).index()];
        if nth > FIRST_SAMPLES && now_ns - slot.sampled_ns < SAMPLE_EVERY_NS {
            return None;
        }
        slot.sampled_ns = now_ns;
        Some(nth)
    }

    fn user_register(&self, word: PtRegsWord) -> Option<u64> {
        self.user_registers.borrow().get(&word.offset()).copied()
    }

    fn read_user_words(&self, address: u64) -> Option<[u64; 2]> {
        let words = self.words.borrow();
        let word = |at: u64| words.get(&at).copied();
        // What a scenario does not say is nothing.
        Some([word(address).unwrap_or(0), word(address + 8)?])
    }
}

impl Collector for Sim {
    fn collect(&mut self) -> RawSnapshot {
        let mut images = Vec::new();
        let mut slots = self.slots.borrow_mut();
        for (index, row) in slots.iter_mut().enumerate().filter(|(_, row)| row.state != SLOT_FREE) {
            let mut held = self.histograms.borrow_mut();
            let histograms = row.series.iter().enumerate().filter(|(_, held)| **held != 0);
            let histograms = histograms.map(|(series, id)| (series, held[*id as usize - 1])).collect();
            images.push(Arc::new(RawImage { slot: *row, histograms }));
            if row.state != SLOT_LIVE {
                let ended = (u64::from(row.tgid), row.first_ns);
                self.chunks.borrow_mut().retain(|key, chunk| (key.tgid, chunk.image_ns) != ended);
                for id in row.series.iter().filter(|id| **id != 0) {
                    held[*id as usize - 1] = Histogram::EMPTY;
                    self.free_histograms.borrow_mut().push_back(id - 1);
                }
                *row = Slot::FREE;
                self.free_slots.borrow_mut().push_back(index as u32);
            }
        }
        RawSnapshot { now_ns: self.now.get(), images, lost: *self.lost.borrow(), missed: 0 }
    }
}
