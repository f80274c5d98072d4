//! What a probe at one instruction stands for, packed into the attach cookie of that probe.

use crate::function::Function;
pub use crate::heap_event::{HEAP_EVENTS, HeapEvent};

/// What it means when a thread reaches an instruction that carries a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The entry of a public function: one call.
    Call(Function),
    /// A branch inside the allocator to the entry of a public function: the call that follows is not
    /// the program's, and is taken off that function's count.
    Transfer(Function),
    /// The entry of `_int_malloc(av, bytes)`.
    Arena,
    /// The entry of `sysmalloc(nb, av)`, or the instruction that stands for it.
    Sysmalloc,
    /// The entry of `munmap_chunk(p)`.
    MunmapChunk,
    /// The entry of `systrim(pad, av)`.
    Systrim,
    /// The entry of `new_heap(size, top_pad)` (`alloc_new_heap` from 2.35 does its work).
    NewHeap,
    /// A branch to `mmap` that maps a chunk; after a `brk` that failed in the same `sysmalloc` it is the fallback.
    MapChunk,
    /// A branch to `mmap` that stands in for a `brk` that failed.
    MapFallback,
    /// A branch to `mmap` that reserves the heap of an arena.
    MapHeap,
    /// A branch to `munmap` that gives a mapped chunk back.
    UnmapChunk,
    /// A branch to `munmap` that cuts or gives back the heap of an arena.
    UnmapHeap,
    /// A branch to `mremap` that resizes a mapped chunk.
    RemapChunk,
    /// A branch to `sbrk` (or `__glibc_morecore`) that grows the main heap.
    Grow,
    /// A branch to `sbrk` (or `__glibc_morecore`) that trims the main heap.
    Trim,
    /// A static probe: a free has just raised the mmap threshold to what a register holds.
    Raise,
    /// Another static probe of the allocator.
    Told(HeapEvent),
}

/// Where the fields of `struct malloc_par` (`mp_`) lie; the first three (`trim_threshold`, `top_pad`,
/// `mmap_threshold`) are at 0, 8 and 16 in every glibc from 2.23 to 2.44.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MpLayout {
    /// `mp_` was not found, or its layout is not one of those below.
    Unknown = 0,
    /// glibc 2.23 to 2.25 (88 bytes) and 2.26 to 2.34 (112 bytes): the fields read here agree.
    Upto234 = 1,
    /// glibc 2.35 to 2.42, 136 bytes.
    From235 = 2,
    /// glibc 2.43 (144 bytes) and 2.44 (136 bytes).
    From243 = 3,
}

/// Offsets in bytes from `mp_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpOffsets {
    /// `int n_mmaps`
    pub n_mmaps: u32,
    /// `int n_mmaps_max`
    pub n_mmaps_max: u32,
    /// `int no_dyn_threshold`
    pub no_dyn_threshold: u32,
    /// `INTERNAL_SIZE_T mmapped_mem`; `max_mmapped_mem` follows it
    pub mmapped_mem: u32,
}

/// Bytes that the heap of an arena other than the main one may have, by `hp_pagesize`: `HEAP_MAX_SIZE`, and four huge pages
/// where heaps are made of them (`heap_max_size` in `malloc/arena.c`, glibc 2.35 to 2.44).
#[must_use]
#[inline(always)]
pub const fn largest_heap(hp_pagesize: u64) -> u64 {
    if hp_pagesize == 0 { 64 << 20 } else { hp_pagesize.saturating_mul(4) }
}

/// `size_t trim_threshold` in `mp_`, every layout.
pub const MP_TRIM_THRESHOLD: u32 = 0;
/// `INTERNAL_SIZE_T top_pad` in `mp_`, every layout.
pub const MP_TOP_PAD: u32 = 8;
/// `size_t mmap_threshold` in `mp_`, every layout.
pub const MP_MMAP_THRESHOLD: u32 = 16;

impl MpLayout {
    /// The layout of that discriminant; unknown ones are [`MpLayout::Unknown`].
    #[must_use]
    #[inline(always)]
    pub const fn from_index(index: u8) -> Self {
        match index {
            1 => MpLayout::Upto234,
            2 => MpLayout::From235,
            3 => MpLayout::From243,
            _ => MpLayout::Unknown,
        }
    }

    /// Offset of `INTERNAL_SIZE_T hp_pagesize`: the size of huge pages that the heaps are made of, 0 without; `None`:
    /// this version makes no such heaps.
    #[must_use]
    #[inline(always)]
    pub const fn hp_pagesize(self) -> Option<u32> {
        match self {
            MpLayout::Unknown | MpLayout::Upto234 => None,
            MpLayout::From235 | MpLayout::From243 => Some(48),
        }
    }

    /// The offsets, from the debug information of glibc 2.23 to 2.44 on x86-64 and aarch64, which agree.
    #[must_use]
    #[inline(always)]
    pub const fn offsets(self) -> Option<MpOffsets> {
        Some(match self {
            MpLayout::Unknown => return None,
            MpLayout::Upto234 => MpOffsets { n_mmaps: 40, n_mmaps_max: 44, no_dyn_threshold: 52, mmapped_mem: 56 },
            MpLayout::From235 => MpOffsets { n_mmaps: 60, n_mmaps_max: 64, no_dyn_threshold: 72, mmapped_mem: 80 },
            MpLayout::From243 => MpOffsets { n_mmaps: 68, n_mmaps_max: 72, no_dyn_threshold: 80, mmapped_mem: 88 },
        })
    }
}

/// The index of a 64-bit word in the kernel's `struct pt_regs`, below [`PtRegsWord::COUNT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PtRegsWord(u8);

impl PtRegsWord {
    /// The words that hold general registers, on the larger machine: aarch64's x0 to x30 and its stack pointer.
    pub const COUNT: u8 = 32;

    /// The word of x86-64's general register by its number in the instruction set (0 `rax`, 7 `rdi`, 15 `r15`).
    /// `arch/x86/include/asm/ptrace.h`, which user space sees as `user_regs_struct`.
    #[must_use]
    pub const fn x86_64(register: u8) -> Option<Self> {
        const WORDS: [u8; 16] = [10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0];
        if register < 16 { Some(Self(WORDS[register as usize])) } else { None }
    }

    /// The word of aarch64's `x0` to `x30`; 31 is the stack pointer.
    #[must_use]
    pub const fn aarch64(register: u8) -> Option<Self> {
        if register < Self::COUNT { Some(Self(register)) } else { None }
    }

    /// Bytes from the start of `pt_regs`.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 as u32 * 8
    }
}

/// The cookie of one probe: its role, and how to reach `mp_` from the probed instruction.
///
/// Bits 0..8 role, 8..16 function or event, 16..24 layout of `mp_`, 24..31 which word of the kernel's `pt_regs` holds
/// the value that the role is about, plus one (0: the first argument's register), 31 set where the file tells of
/// raises by a static probe, 32..64 signed distance from the probed instruction to `mp_` (both in one ELF file, so it
/// fits; 0: not known).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Packs a role alone.
    #[must_use]
    pub const fn new(role: Role) -> Self {
        let (code, function) = match role {
            Role::Call(f) => (1, f as u64),
            Role::Transfer(f) => (2, f as u64),
            Role::Arena => (3, 0),
            Role::Sysmalloc => (4, 0),
            Role::MunmapChunk => (5, 0),
            Role::Systrim => (6, 0),
            Role::NewHeap => (7, 0),
            Role::MapChunk => (8, 0),
            Role::MapFallback => (9, 0),
            Role::MapHeap => (10, 0),
            Role::UnmapChunk => (11, 0),
            Role::UnmapHeap => (12, 0),
            Role::RemapChunk => (13, 0),
            Role::Grow => (14, 0),
            Role::Trim => (15, 0),
            Role::Raise => (16, 0),
            Role::Told(event) => (17, event as u64),
        };
        Self(code | function << 8)
    }

    /// Adds the way to `mp_`: `distance` is `mp_` minus the probed instruction, in bytes.
    #[must_use]
    pub const fn with_mp(self, layout: MpLayout, distance: i32) -> Self {
        Self(self.0 & 0xff00_ffff | (layout as u64) << 16 | (distance as u32 as u64) << 32)
    }

    /// Names the word of `pt_regs` that holds the value.
    #[must_use]
    pub const fn with_word(self, word: PtRegsWord) -> Self {
        Self(self.0 & !0x7f00_0000 | (word.0 as u64 + 1) << 24)
    }

    /// Says that raises are told by a static probe, and are not to be looked for in `mp_`.
    #[must_use]
    pub const fn with_raises_told(self) -> Self {
        Self(self.0 | 1 << 31)
    }

    /// The word of `pt_regs` that holds the value; `None`: it is the first argument.
    #[must_use]
    #[inline(always)]
    pub const fn word(self) -> Option<PtRegsWord> {
        match (self.0 >> 24) as u8 & 0x7f {
            0 => None,
            word => Some(PtRegsWord(word - 1)),
        }
    }

    /// Whether raises are told by a static probe.
    #[must_use]
    #[inline(always)]
    pub const fn raises_told(self) -> bool {
        self.0 >> 31 & 1 == 1
    }

    /// The role of a static probe. Apart from [`Cookie::role`], so that the programs of other probes need not tell so many
    /// roles apart.
    #[must_use]
    #[inline(always)]
    pub const fn told(self) -> Option<Role> {
        match (self.0 as u8, HeapEvent::from_index((self.0 >> 8) as u8)) {
            (16, _) => Some(Role::Raise),
            (17, Some(event)) => Some(Role::Told(event)),
            _ => None,
        }
    }

    /// The role, unless it is that of a static probe; `None` for a cookie this version did not make.
    #[must_use]
    #[inline(always)]
    pub const fn role(self) -> Option<Role> {
        let function = Function::from_index((self.0 >> 8) as u8);
        Some(match (self.0 as u8, function) {
            (1, Some(f)) => Role::Call(f),
            (2, Some(f)) => Role::Transfer(f),
            (3, _) => Role::Arena,
            (4, _) => Role::Sysmalloc,
            (5, _) => Role::MunmapChunk,
            (6, _) => Role::Systrim,
            (7, _) => Role::NewHeap,
            (8, _) => Role::MapChunk,
            (9, _) => Role::MapFallback,
            (10, _) => Role::MapHeap,
            (11, _) => Role::UnmapChunk,
            (12, _) => Role::UnmapHeap,
            (13, _) => Role::RemapChunk,
            (14, _) => Role::Grow,
            (15, _) => Role::Trim,
            _ => return None,
        })
    }

    /// Layout and address of `mp_`, for a probe hit at `ip`; `None` when the file's `mp_` is not known.
    #[must_use]
    #[inline(always)]
    pub const fn mp(self, ip: u64) -> Option<(MpLayout, u64)> {
        let layout = MpLayout::from_index((self.0 >> 16) as u8);
        let distance = (self.0 >> 32) as u32 as i32 as i64;
        if matches!(layout, MpLayout::Unknown) || distance == 0 {
            return None;
        }
        Some((layout, ip.wrapping_add(distance as u64)))
    }
}

/// Where the fields of `struct malloc_state` (an arena; `main_arena` is one) lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ArenaLayout {
    /// `main_arena` was not found, or its layout is not one of those below.
    Unknown = 0,
    /// glibc 2.23 to 2.26, 2192 bytes.
    Upto226 = 1,
    /// glibc 2.27 to 2.42, 2200 bytes.
    From227 = 2,
    /// glibc 2.43 and 2.44, 2112 bytes: no fastbins.
    From243 = 3,
}

/// Offsets in bytes from the start of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaOffsets {
    /// `int flags`
    pub flags: u32,
    /// `mfastbinptr fastbinsY[10]`; `None`: this version has none
    pub fastbins: Option<u32>,
    /// `mchunkptr top`; `last_remainder` follows it, then `bins`
    pub top: u32,
    /// `mchunkptr bins[254]`: two pointers for each bin from the first
    pub bins: u32,
    /// `struct malloc_state *next`: the ring of all arenas
    pub next: u32,
    /// `struct malloc_state *next_free`
    pub next_free: u32,
    /// `INTERNAL_SIZE_T attached_threads`
    pub attached_threads: u32,
    /// `INTERNAL_SIZE_T system_mem`: bytes the arena has of the kernel
    pub system_mem: u32,
    /// `INTERNAL_SIZE_T max_system_mem`
    pub max_system_mem: u32,
}

impl ArenaLayout {
    /// Every known layout.
    pub const KNOWN: [Self; 3] = [ArenaLayout::Upto226, ArenaLayout::From227, ArenaLayout::From243];

    /// The offsets, from the debug information of glibc 2.23 to 2.44 on x86-64 and aarch64, which agree.
    #[must_use]
    pub const fn offsets(self) -> Option<ArenaOffsets> {
        let (fastbins, top, next) = match self {
            ArenaLayout::Unknown => return None,
            ArenaLayout::Upto226 => (Some(8), 88, 2152),
            ArenaLayout::From227 => (Some(16), 96, 2160),
            ArenaLayout::From243 => (None, 8, 2072),
        };
        // The last five fields follow one another, eight bytes each.
        Some(ArenaOffsets {
            flags: 4,
            fastbins,
            top,
            bins: top + 16,
            next,
            next_free: next + 8,
            attached_threads: next + 16,
            system_mem: next + 24,
            max_system_mem: next + 32,
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::function;

    #[test]
    fn a_cookie_gives_back_its_role() {
        let mut roles = std::vec![
            Role::Arena,
            Role::Sysmalloc,
            Role::MunmapChunk,
            Role::Systrim,
            Role::NewHeap,
            Role::MapChunk,
            Role::MapFallback,
            Role::MapHeap,
            Role::UnmapChunk,
            Role::UnmapHeap,
            Role::RemapChunk,
            Role::Grow,
            Role::Trim,
        ];
        let told = HeapEvent::ALL.map(Role::Told).into_iter().chain([Role::Raise]);
        for role in told {
            assert_eq!((Cookie::new(role).told(), Cookie::new(role).role()), (Some(role), None));
        }
        for f in function::ALL {
            roles.push(Role::Call(f));
            roles.push(Role::Transfer(f));
        }
        for role in roles {
            assert_eq!((Cookie::new(role).role(), Cookie::new(role).told()), (Some(role), None));
            assert_eq!(Cookie::new(role).with_mp(MpLayout::From235, -4096).role(), Some(role));
        }
        assert_eq!(Cookie(0).role(), None);
        assert_eq!(Cookie(0x6301).role(), None);
    }

    #[test]
    fn no_part_of_a_cookie_disturbs_another() {
        let word = PtRegsWord::x86_64(7).expect("rdi");
        let cookie = Cookie::new(Role::Raise).with_word(word).with_raises_told().with_mp(MpLayout::From243, -4096);
        assert_eq!(cookie.told(), Some(Role::Raise));
        assert_eq!(cookie.word(), Some(word));
        assert_eq!(word.offset(), 14 * 8);
        assert!(cookie.raises_told());
        assert_eq!(cookie.mp(0x2000), Some((MpLayout::From243, 0x1000)));
        assert_eq!(
            cookie,
            Cookie::new(Role::Raise).with_mp(MpLayout::From243, -4096).with_raises_told().with_word(word)
        );
        let plain = Cookie::new(Role::Told(HeapEvent::SbrkLess));
        assert_eq!((plain.word(), plain.raises_told()), (None, false));
        assert_eq!(PtRegsWord::x86_64(16), None);
        assert_eq!(PtRegsWord::aarch64(32), None);
    }

    #[test]
    fn mp_is_reached_from_the_probed_instruction_in_both_directions() {
        let cookie = Cookie::new(Role::Sysmalloc);
        assert_eq!(cookie.mp(0x1000), None);
        assert_eq!(
            cookie.with_mp(MpLayout::From243, 0x13_c820).mp(0x7f00_0009_6b20),
            Some((MpLayout::From243, 0x7f00_001d_3340))
        );
        assert_eq!(cookie.with_mp(MpLayout::Upto234, -16).mp(0x1000), Some((MpLayout::Upto234, 0xff0)));
    }
}
