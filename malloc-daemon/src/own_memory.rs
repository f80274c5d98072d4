//! How this daemon's own heap behaves: what a burst took goes back to the kernel after it.

/// Gives free memory back after much of it was let go: what lies below a live block stays with the process otherwise.
/// Tens of milliseconds at most, for tens of megabytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the locks of the arenas, and moves nothing that is live.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Pins glibc's mmap threshold at its initial 128 KiB and allows two arenas. Left alone the threshold rises to 32 MiB with
/// the tables of one large program, whose holes then stay in one arena for each thread: 0.75 GB resident, half of it
/// unused, were seen after twenty minutes beside compilers (glibc 2.36, 2 processors).
///
/// To be called before there are other threads.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        /// 128 KiB: `DEFAULT_MMAP_THRESHOLD_MIN` of glibc 2.23 to 2.44.
        const THRESHOLD: libc::c_int = 128 << 10;
        const ARENAS: libc::c_int = 2;
        // SAFETY: mallopt changes parameters of the allocator, and no other thread is there yet.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD);
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        }
    }
}
