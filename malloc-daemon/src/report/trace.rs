//! Slow-path chains put together from their events, thread by thread, and printed one step a line.
//!
//! The kernel sends a chain and its system calls as separate events. A chain is held until its first system call
//! has returned, the next chain of its thread begins, or it has waited for [`HOLD_NS`].

mod render;

use std::collections::BTreeMap;

use malloc_common::abi::{Origin, Syscall};
use malloc_common::function::{Function, Request};

pub use self::render::Wording;

/// How long a chain waits for its system call, nanoseconds: most chains have one within microseconds, and those
/// that have none (`sysmalloc` served from another arena) must not wait for the thread's next.
pub const HOLD_NS: u64 = 20_000_000;
/// Threads whose chain is remembered; the one that was silent longest is forgotten first.
/// 4,096 x 300 bytes = 1.2 MB.
pub const THREADS: usize = 4096;

/// One event of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainStep {
    /// A slow-path function was entered.
    Chain(Chain),
    /// A system call of the allocator returned.
    Syscall(Return),
    /// The mmap threshold rose.
    Raise(Raised),
}

/// The mmap threshold of a process rose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the thread; may hold anything.
    pub comm: String,
    /// When, nanoseconds since boot.
    pub ns: u64,
    /// Threshold before, bytes.
    pub from: u64,
    /// Threshold after, bytes.
    pub to: u64,
    /// The mapped chunk whose free raised it, bytes: the thread's next chain is that free. `None`: who raised it is
    /// not known.
    pub chunk: Option<u64>,
}

/// The way from the call to the slow path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the thread; may hold anything.
    pub comm: String,
    /// Counts the thread's chains.
    pub chain: u32,
    /// When, nanoseconds since boot.
    pub ns: u64,
    /// The public function and its first three arguments, when its probe was passed.
    pub call: Option<(Function, [u64; 3])>,
    /// `av` and `bytes` of `_int_malloc`, when its probe was passed.
    pub arena: Option<(u64, u64)>,
    /// The slow-path function.
    pub slow: Slow,
    /// The raise that this free made.
    pub raised: Option<Raised>,
}

/// A slow-path function and its first two arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Which.
    pub role: SlowRole,
    /// What it was called with; `None` where its entry was not seen because the build inlines it.
    pub args: Option<[u64; 2]>,
}

/// The slow-path functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SlowRole {
    /// `sysmalloc(nb, av)`
    Sysmalloc,
    /// `munmap_chunk(p)`
    MunmapChunk,
    /// `systrim(pad, av)`
    Systrim,
    /// `new_heap(size, top_pad)`
    NewHeap,
    /// `mremap_chunk(p, new_size)`
    MremapChunk,
    /// `heap_trim(heap, pad)` and `shrink_heap`
    HeapTrim,
}

/// A system call of the allocator that returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// The chain it belongs to.
    pub chain: u32,
    /// When it returned, nanoseconds since boot.
    pub ns: u64,
    /// Which.
    pub syscall: Syscall,
    /// Who asked.
    pub origin: Origin,
    /// Its arguments.
    pub args: [u64; 6],
    /// What it returned; from -4095 to -1 an error.
    pub result: i64,
    /// Nanoseconds from entry to return.
    pub latency_ns: u64,
}

/// Which chains to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only chains that ask the slow path or the kernel for at least so many bytes; 0: all.
    pub min_bytes: u64,
    /// Only so many chains; `None`: no end.
    pub count: Option<u64>,
}

/// Puts chains together. Feed it events in the order of the ring, and [`Tracer::flush`] when none came for a while.
#[derive(Debug)]
pub struct Tracer<W> {
    wording: W,
    filter: Filter,
    threads: BTreeMap<(u32, u32), Thread>,
    /// Raises whose chain comes next.
    raised: BTreeMap<(u32, u32), Raised>,
    printed: u64,
    forgotten: u64,
}

#[derive(Debug)]
struct Thread {
    chain: Chain,
    state: State,
    /// When it was last heard of.
    ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for its first system call.
    Held,
    /// Printed; later system calls are added.
    Printed,
    /// The filter does not want it.
    Dropped,
}

impl<W: Wording> Tracer<W> {
    /// An empty one.
    pub fn new(wording: W, filter: Filter) -> Self {
        Self { wording, filter, threads: BTreeMap::new(), raised: BTreeMap::new(), printed: 0, forgotten: 0 }
    }

    /// Takes one event in; gives back what is to be printed now, whole lines or nothing.
    pub fn feed(&mut self, step: ChainStep) -> String {
        match step {
            ChainStep::Chain(chain) => self.begin(chain),
            ChainStep::Syscall(call) => self.add(&call),
            ChainStep::Raise(raised) => self.raise(raised),
        }
    }

    /// Prints the chains that have waited for [`HOLD_NS`] at `now_ns` (nanoseconds since boot); `u64::MAX`: all.
    pub fn flush(&mut self, now_ns: u64) -> String {
        let mut due: Vec<(u64, (u32, u32))> = self
            .threads
            .iter()
            .filter(|(_, t)| t.state == State::Held && now_ns.saturating_sub(t.chain.ns) >= HOLD_NS)
            .map(|(key, thread)| (thread.chain.ns, *key))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, key)| self.release(key)).collect()
    }

    /// The wanted number of chains is printed.
    #[must_use]
    pub fn finished(&self) -> bool {
        exhausted(&self.filter, self.printed)
    }

    /// Chains printed so far.
    #[must_use]
    pub fn printed(&self) -> u64 {
        self.printed
    }

    /// Chains that were printed early, without their system calls, because too many threads had one.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn raise(&mut self, raised: Raised) -> String {
        if raised.chunk.is_some() && self.raised.len() < THREADS {
            self.raised.insert((raised.tgid, raised.tid), raised);
            return String::new();
        }
        if self.finished() { String::new() } else { render::raise_alone(&self.wording, &raised) }
    }

    fn begin(&mut self, mut chain: Chain) -> String {
        chain.raised = self.raised.remove(&(chain.tgid, chain.tid));
        let key = (chain.tgid, chain.tid);
        let mut out = self.release(key);
        if !self.threads.contains_key(&key) && self.threads.len() >= THREADS {
            let silent = self.threads.iter().min_by_key(|(key, thread)| (thread.ns, **key)).map(|(key, _)| *key);
            if let Some(silent) = silent {
                let text = self.release(silent);
                self.forgotten += u64::from(!text.is_empty());
                out.push_str(&text);
                self.threads.remove(&silent);
            }
        }
        let ns = chain.ns;
        let state = if self.wants(&chain) { State::Held } else { State::Dropped };
        self.threads.insert(key, Thread { chain, state, ns });
        out
    }

    fn add(&mut self, call: &Return) -> String {
        let key = (call.tgid, call.tid);
        let Some(thread) = self.threads.get_mut(&key).filter(|thread| thread.chain.chain == call.chain) else {
            // Its chain was lost, or began before the trace: what is known is printed.
            if self.finished() || length(call) < self.filter.min_bytes {
                return String::new();
            }
            self.printed += 1;
            return render::orphan(&self.wording, call);
        };
        thread.ns = call.ns;
        match thread.state {
            State::Dropped if length(call) < self.filter.min_bytes || exhausted(&self.filter, self.printed) => {
                String::new()
            }
            State::Printed => render::later(&self.wording, &thread.chain, call),
            State::Held if exhausted(&self.filter, self.printed) => {
                thread.state = State::Dropped;
                String::new()
            }
            State::Held | State::Dropped => {
                thread.state = State::Printed;
                self.printed += 1;
                render::chain(&self.wording, &thread.chain) + &render::syscall(call)
            }
        }
    }

    /// Prints the chain of that thread without waiting any longer.
    fn release(&mut self, key: (u32, u32)) -> String {
        match self.threads.get_mut(&key) {
            Some(thread) if thread.state == State::Held => {
                if exhausted(&self.filter, self.printed) {
                    thread.state = State::Dropped;
                    return String::new();
                }
                thread.state = State::Printed;
                self.printed += 1;
                render::chain(&self.wording, &thread.chain)
            }
            _ => String::new(),
        }
    }

    /// By what the slow path is asked for, not by the call: under the first call of a thread, however large, malloc
    /// also makes room for the thread's cache.
    fn wants(&self, chain: &Chain) -> bool {
        let call = || {
            chain.call.map_or(0, |(function, [a, b, c])| match function.request(a, b, c) {
                Request::Bytes(bytes) => bytes,
                Request::Impossible | Request::Release | Request::Nothing => 0,
            })
        };
        let bytes = match (chain.slow.role, chain.slow.args) {
            (SlowRole::Sysmalloc, Some([nb, _])) => nb,
            _ => chain.arena.map_or_else(call, |(_, bytes)| bytes),
        };
        bytes >= self.filter.min_bytes && !self.finished()
    }
}

fn exhausted(filter: &Filter, printed: u64) -> bool {
    filter.count.is_some_and(|count| printed >= count)
}

/// The bytes a system call is about.
fn length(call: &Return) -> u64 {
    match call.syscall {
        Syscall::Mmap | Syscall::Munmap => call.args[1],
        Syscall::Mremap => call.args[1].max(call.args[2]),
        Syscall::Brk => 0,
    }
}

#[cfg(test)]
mod tests;
