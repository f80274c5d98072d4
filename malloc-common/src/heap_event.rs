//! What glibc's static probes tell of its arenas and heaps.

/// What glibc's static probes (`LIBC_PROBE`, provider `libc`) tell of its arenas and heaps. The discriminants index
/// counters and cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HeapEvent {
    /// A thread made an arena.
    ArenaMade = 0,
    /// A thread took over an arena that others use: the limit of arenas is reached.
    ArenaReused = 1,
    /// It had to wait for that arena's lock.
    ArenaWaited = 2,
    /// A thread took over an arena that nobody used any more.
    ArenaRecycled = 3,
    /// A request that failed in one arena was about to be tried in another.
    ArenaRetried = 4,
    /// A public function tried a request that failed once more.
    CallRetried = 5,
    /// An arena got a heap.
    HeapMade = 6,
    /// A heap grew in its reservation.
    HeapGrown = 7,
    /// A heap shrank.
    HeapShrunk = 8,
    /// A heap was given back.
    HeapFreed = 9,
    /// The main heap grew.
    SbrkMore = 10,
    /// The main heap was trimmed.
    SbrkLess = 11,
}

/// How many there are.
pub const HEAP_EVENTS: usize = 12;

impl HeapEvent {
    /// Every event, in the order of the discriminants.
    pub const ALL: [Self; HEAP_EVENTS] = [
        HeapEvent::ArenaMade,
        HeapEvent::ArenaReused,
        HeapEvent::ArenaWaited,
        HeapEvent::ArenaRecycled,
        HeapEvent::ArenaRetried,
        HeapEvent::CallRetried,
        HeapEvent::HeapMade,
        HeapEvent::HeapGrown,
        HeapEvent::HeapShrunk,
        HeapEvent::HeapFreed,
        HeapEvent::SbrkMore,
        HeapEvent::SbrkLess,
    ];

    /// The event of that discriminant.
    #[must_use]
    #[inline(always)]
    pub const fn from_index(index: u8) -> Option<Self> {
        Some(match index {
            0 => HeapEvent::ArenaMade,
            1 => HeapEvent::ArenaReused,
            2 => HeapEvent::ArenaWaited,
            3 => HeapEvent::ArenaRecycled,
            4 => HeapEvent::ArenaRetried,
            5 => HeapEvent::CallRetried,
            6 => HeapEvent::HeapMade,
            7 => HeapEvent::HeapGrown,
            8 => HeapEvent::HeapShrunk,
            9 => HeapEvent::HeapFreed,
            10 => HeapEvent::SbrkMore,
            11 => HeapEvent::SbrkLess,
            _ => return None,
        })
    }

    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            HeapEvent::ArenaMade => "arena_made",
            HeapEvent::ArenaReused => "arena_reused",
            HeapEvent::ArenaWaited => "arena_waited",
            HeapEvent::ArenaRecycled => "arena_recycled",
            HeapEvent::ArenaRetried => "arena_retried",
            HeapEvent::CallRetried => "call_retried",
            HeapEvent::HeapMade => "heap_made",
            HeapEvent::HeapGrown => "heap_grown",
            HeapEvent::HeapShrunk => "heap_shrunk",
            HeapEvent::HeapFreed => "heap_freed",
            HeapEvent::SbrkMore => "sbrk_more",
            HeapEvent::SbrkLess => "sbrk_less",
        }
    }

    /// The static probes that tell of it, from the sources of glibc 2.23 to 2.44.
    #[must_use]
    pub const fn probes(self) -> &'static [&'static str] {
        match self {
            HeapEvent::ArenaMade => &["memory_arena_new"],
            HeapEvent::ArenaReused => &["memory_arena_reuse"],
            HeapEvent::ArenaWaited => &["memory_arena_reuse_wait"],
            HeapEvent::ArenaRecycled => &["memory_arena_reuse_free_list"],
            HeapEvent::ArenaRetried => &["memory_arena_retry"],
            HeapEvent::CallRetried => {
                &["memory_malloc_retry", "memory_calloc_retry", "memory_realloc_retry", "memory_memalign_retry"]
            }
            HeapEvent::HeapMade => &["memory_heap_new"],
            HeapEvent::HeapGrown => &["memory_heap_more"],
            HeapEvent::HeapShrunk => &["memory_heap_less"],
            HeapEvent::HeapFreed => &["memory_heap_free"],
            HeapEvent::SbrkMore => &["memory_sbrk_more"],
            HeapEvent::SbrkLess => &["memory_sbrk_less"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_by_its_index() {
        for (index, event) in HeapEvent::ALL.into_iter().enumerate() {
            assert_eq!(HeapEvent::from_index(index as u8), Some(event));
        }
        assert_eq!(HeapEvent::from_index(HEAP_EVENTS as u8), None);
    }
}
