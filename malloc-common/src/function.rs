//! The public allocator functions, what their arguments mean, and which requests cannot succeed.

/// A public entry point of the allocator.
///
/// The discriminants cross the kernel boundary: they index counters and travel in attach cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Function {
    /// `void *malloc(size_t size)`
    Malloc = 0,
    /// `void *calloc(size_t nmemb, size_t size)`
    Calloc = 1,
    /// `void *realloc(void *ptr, size_t size)`
    Realloc = 2,
    /// `void *memalign(size_t alignment, size_t size)`; up to glibc 2.37 `aligned_alloc` is the same address.
    Memalign = 3,
    /// `void *aligned_alloc(size_t alignment, size_t size)` as a function of its own (glibc 2.38 and later).
    AlignedAlloc = 4,
    /// `int posix_memalign(void **memptr, size_t alignment, size_t size)`
    PosixMemalign = 5,
    /// `void *valloc(size_t size)`
    Valloc = 6,
    /// `void *pvalloc(size_t size)`
    Pvalloc = 7,
    /// `void free(void *ptr)`
    Free = 8,
}

/// How many functions there are.
pub const FUNCTIONS: usize = 9;
/// How many of them request bytes; their discriminants come first.
pub const SIZED_FUNCTIONS: usize = 8;

/// More bytes than any 64-bit Linux gives a process: user addresses end at 2^56
/// (x86-64 with five-level page tables; aarch64 ends at 2^52).
pub const IMPOSSIBLE_BYTES: u64 = 1 << 56;

/// Every function, in the order of the discriminants.
pub const ALL: [Function; FUNCTIONS] = [
    Function::Malloc,
    Function::Calloc,
    Function::Realloc,
    Function::Memalign,
    Function::AlignedAlloc,
    Function::PosixMemalign,
    Function::Valloc,
    Function::Pvalloc,
    Function::Free,
];

/// What one call asks for, as far as its arguments tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// So many bytes.
    Bytes(u64),
    /// The call cannot succeed, whatever the heap holds.
    Impossible,
    /// A block goes back; nothing is requested.
    Release,
    /// `free(NULL)`: no call in any sense that matters.
    Nothing,
}

impl Function {
    /// The name a program calls it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Function::Malloc => "malloc",
            Function::Calloc => "calloc",
            Function::Realloc => "realloc",
            Function::Memalign => "memalign",
            Function::AlignedAlloc => "aligned_alloc",
            Function::PosixMemalign => "posix_memalign",
            Function::Valloc => "valloc",
            Function::Pvalloc => "pvalloc",
            Function::Free => "free",
        }
    }

    /// The function of that discriminant.
    #[must_use]
    #[inline(always)]
    pub const fn from_index(index: u8) -> Option<Self> {
        Some(match index {
            0 => Function::Malloc,
            1 => Function::Calloc,
            2 => Function::Realloc,
            3 => Function::Memalign,
            4 => Function::AlignedAlloc,
            5 => Function::PosixMemalign,
            6 => Function::Valloc,
            7 => Function::Pvalloc,
            8 => Function::Free,
            _ => return None,
        })
    }

    /// How many argument registers it reads: a probe must sit before any of them changes.
    #[must_use]
    pub const fn arguments(self) -> usize {
        match self {
            Function::Malloc | Function::Valloc | Function::Pvalloc | Function::Free => 1,
            Function::Calloc | Function::Realloc | Function::Memalign | Function::AlignedAlloc => 2,
            Function::PosixMemalign => 3,
        }
    }

    /// What a call with these first three arguments asks for.
    #[must_use]
    #[inline(always)]
    pub const fn request(self, a: u64, b: u64, c: u64) -> Request {
        match self {
            Function::Malloc | Function::Valloc | Function::Pvalloc => possible(a),
            Function::Calloc => product(a, b),
            Function::Realloc => possible(b),
            // glibc rounds other alignments up to a power of two.
            Function::Memalign => aligned(a, b),
            // From glibc 2.38: EINVAL unless a power of two.
            Function::AlignedAlloc => {
                if is_power_of_two(a) {
                    aligned(a, b)
                } else {
                    Request::Impossible
                }
            }
            // POSIX: EINVAL unless a power of two and a multiple of sizeof(void *).
            Function::PosixMemalign => {
                if is_power_of_two(b) && b >= 8 {
                    aligned(b, c)
                } else {
                    Request::Impossible
                }
            }
            Function::Free => {
                if a == 0 {
                    Request::Nothing
                } else {
                    Request::Release
                }
            }
        }
    }
}

#[inline(always)]
const fn possible(bytes: u64) -> Request {
    if bytes > IMPOSSIBLE_BYTES { Request::Impossible } else { Request::Bytes(bytes) }
}

#[inline(always)]
const fn aligned(alignment: u64, bytes: u64) -> Request {
    if alignment > IMPOSSIBLE_BYTES { Request::Impossible } else { possible(bytes) }
}

/// `nmemb * size` without a 128-bit product or a division, neither of which the BPF target has:
/// a product above [`IMPOSSIBLE_BYTES`] is impossible, so factors that do not fit in 32 bits each
/// need a closer look only when one of them is small.
#[inline(always)]
const fn product(nmemb: u64, size: u64) -> Request {
    let (small, large) = if nmemb < size { (nmemb, size) } else { (size, nmemb) };
    if small == 0 {
        return Request::Bytes(0);
    }
    // small >= 2^32 makes the product at least 2^64.
    if large > IMPOSSIBLE_BYTES || small >> 32 != 0 {
        return Request::Impossible;
    }
    // small < 2^32: split the large factor, so that neither partial product overflows
    // (2^32 * 2^24 = 2^56 and 2^32 * 2^32 = 2^64 - at most (2^32-1)^2).
    let high = (large >> 32) * small;
    if high >> 32 != 0 {
        return Request::Impossible;
    }
    let low = (large & 0xffff_ffff) * small;
    let high = high << 32;
    let total = high.wrapping_add(low);
    if total < high { Request::Impossible } else { possible(total) }
}

#[inline(always)]
const fn is_power_of_two(value: u64) -> bool {
    value != 0 && value & (value - 1) == 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn discriminants_are_the_indices() {
        for (index, function) in ALL.iter().enumerate() {
            assert_eq!(*function as usize, index);
            assert_eq!(Function::from_index(index as u8), Some(*function));
        }
        assert_eq!(Function::from_index(FUNCTIONS as u8), None);
    }

    #[test]
    fn a_request_no_machine_can_satisfy_is_impossible() {
        assert_eq!(Function::Malloc.request(i64::MAX as u64, 0, 0), Request::Impossible);
        assert_eq!(Function::Realloc.request(0, u64::MAX, 0), Request::Impossible);
        assert_eq!(Function::Calloc.request(1 << 33, 1 << 33, 0), Request::Impossible);
    }

    #[test]
    fn a_bad_alignment_is_impossible_where_the_function_refuses_it() {
        assert_eq!(Function::PosixMemalign.request(0x1000, 3, 64), Request::Impossible);
        assert_eq!(Function::PosixMemalign.request(0x1000, 4, 64), Request::Impossible);
        assert_eq!(Function::PosixMemalign.request(0x1000, 0, 64), Request::Impossible);
        assert_eq!(Function::PosixMemalign.request(0x1000, 64, 64), Request::Bytes(64));
        assert_eq!(Function::AlignedAlloc.request(48, 64, 0), Request::Impossible);
        assert_eq!(Function::Memalign.request(48, 64, 0), Request::Bytes(64));
    }

    #[test]
    fn freeing_null_is_nothing() {
        assert_eq!(Function::Free.request(0, 0, 0), Request::Nothing);
        assert_eq!(Function::Free.request(0x10, 0, 0), Request::Release);
    }

    proptest! {
        #[test]
        fn calloc_asks_for_the_exact_product(a in any::<u64>(), b in any::<u64>(), s in 0u32..64, t in 0u32..64) {
            let (a, b) = (a >> s, b >> t);
            let exact = u128::from(a) * u128::from(b);
            let want = if exact > u128::from(IMPOSSIBLE_BYTES) { Request::Impossible } else { Request::Bytes(exact as u64) };
            // A huge factor times nothing is nothing: calloc(SIZE_MAX, 0) succeeds.
            prop_assert_eq!(Function::Calloc.request(a, b, 0), want);
        }
    }
}
