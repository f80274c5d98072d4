//! The system calls by which memory comes and goes, and who in a process asks for them.

/// The system calls by which memory comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Syscall {
    /// `mmap(addr, len, prot, flags, fd, offset)`
    Mmap = 0,
    /// `munmap(addr, len)`
    Munmap = 1,
    /// `mremap(addr, old_len, new_len, flags, new_addr)`
    Mremap = 2,
    /// `brk(addr)`
    Brk = 3,
}

/// Every system call, in the order of the discriminants.
pub const SYSCALLS: [Syscall; 4] = [Syscall::Mmap, Syscall::Munmap, Syscall::Mremap, Syscall::Brk];

impl Syscall {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Syscall::Mmap => "mmap",
            Syscall::Munmap => "munmap",
            Syscall::Mremap => "mremap",
            Syscall::Brk => "brk",
        }
    }

    /// The system call of that discriminant.
    #[must_use]
    #[inline(always)]
    pub const fn from_index(index: u8) -> Option<Self> {
        Some(match index {
            0 => Syscall::Mmap,
            1 => Syscall::Munmap,
            2 => Syscall::Mremap,
            3 => Syscall::Brk,
            _ => return None,
        })
    }
}

/// Who in the process asked for a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Origin {
    /// `malloc` mapped a chunk because it was at or over the threshold.
    MmapCrossing = 0,
    /// `malloc` mapped memory because the heap could not grow.
    MmapFallback = 1,
    /// `malloc` reserved the heap of an arena.
    MmapArenaHeap = 2,
    /// A file was mapped.
    MmapFile = 3,
    /// `MAP_STACK`: the stack of a thread.
    MmapThreadStack = 4,
    /// None of these.
    MmapOther = 5,
    /// `free` or `realloc` gave a mapped chunk back.
    MunmapChunk = 6,
    /// `malloc` cut or gave back the heap of an arena.
    MunmapArenaHeap = 7,
    /// None of these.
    MunmapOther = 8,
    /// `realloc` resized a mapped chunk.
    MremapChunk = 9,
    /// Not the allocator.
    MremapOther = 10,
    /// `malloc` grew the main heap.
    BrkGrowth = 11,
    /// `free` trimmed the main heap.
    BrkTrim = 12,
    /// Not the allocator; a query (`brk(0)`) is one of these.
    BrkOther = 13,
}

/// How many origins there are.
pub const ORIGINS: usize = 14;

/// Every origin, in the order of the discriminants.
pub const ALL_ORIGINS: [Origin; ORIGINS] = [
    Origin::MmapCrossing,
    Origin::MmapFallback,
    Origin::MmapArenaHeap,
    Origin::MmapFile,
    Origin::MmapThreadStack,
    Origin::MmapOther,
    Origin::MunmapChunk,
    Origin::MunmapArenaHeap,
    Origin::MunmapOther,
    Origin::MremapChunk,
    Origin::MremapOther,
    Origin::BrkGrowth,
    Origin::BrkTrim,
    Origin::BrkOther,
];

impl Origin {
    /// The system call it is an origin of.
    #[must_use]
    pub const fn syscall(self) -> Syscall {
        match self as u8 {
            0..=5 => Syscall::Mmap,
            6..=8 => Syscall::Munmap,
            9..=10 => Syscall::Mremap,
            _ => Syscall::Brk,
        }
    }

    /// The name in JSON and metrics, below its system call.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Origin::MmapCrossing => "crossing",
            Origin::MmapFallback => "fallback",
            Origin::MmapArenaHeap | Origin::MunmapArenaHeap => "arena_heap",
            Origin::MmapFile => "file",
            Origin::MmapThreadStack => "thread_stack",
            Origin::MunmapChunk | Origin::MremapChunk => "chunk",
            Origin::BrkGrowth => "growth",
            Origin::BrkTrim => "trim",
            Origin::MmapOther | Origin::MunmapOther | Origin::MremapOther | Origin::BrkOther => "other",
        }
    }

    /// The origin of that discriminant.
    #[must_use]
    #[inline(always)]
    pub const fn from_index(index: u8) -> Option<Self> {
        if (index as usize) < ORIGINS { Some(ALL_ORIGINS[index as usize]) } else { None }
    }
}
