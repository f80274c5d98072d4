//! The system calls that no library wraps: loading and attaching a multi-uprobe program, mapping a BPF array.
//!
//! The only unsafe code of the daemon.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aya_obj::generated::{
    bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type::BPF_PROG_TYPE_KPROBE,
};

/// One probed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Offset in the file, bytes.
    pub file_offset: u64,
    /// What the program is told about it.
    pub cookie: u64,
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of structs of integers; the kernel requires unused bytes to be zero.
    unsafe { std::mem::zeroed() }
}

fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a valid union whose pointers the callers keep alive; the commands used return a new file
    // descriptor or -1.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, cmd as libc::c_int, std::ptr::from_mut(attr), size_of::<bpf_attr>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// Loads a uprobe program that can be attached to many instructions by one link (kernel 6.6).
///
/// # Errors
///
/// The kernel's error; the verifier's log is appended when it refuses the program.
pub fn load_multi_uprobe(name: &str, instructions: &[bpf_insn], license: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let load = |log: &mut [u8]| {
        let mut attr = zeroed_attr();
        // SAFETY: writing plain fields of the union's program-load variant.
        let u = unsafe { &mut attr.__bindgen_anon_3 };
        u.prog_type = BPF_PROG_TYPE_KPROBE as u32;
        u.expected_attach_type = BPF_TRACE_UPROBE_MULTI as u32;
        u.insns = instructions.as_ptr() as u64;
        u.insn_cnt = instructions.len() as u32;
        u.license = license.as_ptr() as u64;
        for (to, from) in u.prog_name.iter_mut().zip(name.bytes().take(15)) {
            *to = from as std::ffi::c_char;
        }
        if !log.is_empty() {
            u.log_level = 1;
            u.log_buf = log.as_mut_ptr() as u64;
            u.log_size = log.len() as u32;
        }
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)
    };
    load(&mut []).or_else(|error| {
        let mut log = vec![0; 1 << 20];
        load(&mut log).map_err(|_| {
            let text = String::from_utf8_lossy(log.split(|b| *b == 0).next().unwrap_or(&[])).into_owned();
            let tail = text.lines().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
            if tail.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}\n{tail}")) }
        })
    })
}

/// Attaches a program to all sites of one file by one link; closing the link detaches them together.
///
/// # Errors
///
/// The kernel's error: `EINVAL` for a site that is no instruction of the file, `ESRCH` for a process that ended.
pub fn attach_multi_uprobe(
    program: BorrowedFd<'_>,
    file: &Path,
    sites: &[Site],
    pid: Option<u32>,
) -> io::Result<OwnedFd> {
    let path = CString::new(file.as_os_str().as_bytes())?;
    let offsets: Vec<u64> = sites.iter().map(|site| site.file_offset).collect();
    let cookies: Vec<u64> = sites.iter().map(|site| site.cookie).collect();
    let mut attr = zeroed_attr();
    // SAFETY: writing plain fields of the union's link-create variant; path and vectors outlive the call.
    unsafe {
        let u = &mut attr.link_create;
        u.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        u.attach_type = BPF_TRACE_UPROBE_MULTI as u32;
        let multi = &mut u.__bindgen_anon_3.uprobe_multi;
        multi.path = path.as_ptr() as u64;
        multi.offsets = offsets.as_ptr() as u64;
        multi.cookies = cookies.as_ptr() as u64;
        multi.cnt = sites.len() as u32;
        multi.pid = pid.unwrap_or(0);
    }
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// CPU time of a process since its start, all its threads together, nanoseconds; `None` when there is no such process.
/// Time of threads that run on other processors is as old as their last tick, unless they are asked one by one before.
#[must_use]
pub fn process_cpu_ns(pid: u32) -> Option<u64> {
    /// `CPUCLOCK_SCHED` in the lowest three bits of a clock of a process.
    const PROCESS: i32 = 2;
    clock_ns(pid, PROCESS)
}

/// CPU time of one thread, nanoseconds, up to now.
#[must_use]
pub fn thread_cpu_ns(tid: u32) -> Option<u64> {
    /// `CPUCLOCK_SCHED | CPUCLOCK_PERTHREAD_MASK`
    const THREAD: i32 = 6;
    clock_ns(tid, THREAD)
}

/// The kernel encodes the clocks of a process or thread as `!id << 3 | kind` (include/linux/posix-timers.h).
fn clock_ns(id: u32, kind: i32) -> Option<u64> {
    let clock = (!id.cast_signed() << 3) | kind;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel checks the clock and writes one timespec.
    let refused = unsafe { libc::clock_gettime(clock, &raw mut now) } != 0;
    if refused {
        None
    } else {
        Some(u64::try_from(now.tv_sec).ok()? * 1_000_000_000 + u64::try_from(now.tv_nsec).ok()?)
    }
}

/// Rows that are mapped together: 512 rows of any number of words are whole pages (512 x 8 = 4,096 bytes).
const WINDOW_ROWS: usize = 512;

/// A BPF array mapped into memory, rows of `words` 64-bit words. The kernel makes all pages of a mapping resident at
/// once, so it is mapped in windows, each when it is first looked at.
#[derive(Debug)]
pub struct MappedArray {
    fd: OwnedFd,
    rows: usize,
    words: usize,
    windows: Vec<OnceLock<Option<Window>>>,
}

#[derive(Debug)]
struct Window {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: all access goes through atomics.
unsafe impl Send for Window {}
// SAFETY: all access goes through atomics.
unsafe impl Sync for Window {}

impl MappedArray {
    /// The array behind `fd`, made with `BPF_F_MMAPABLE` and rows of `words` words.
    #[must_use]
    pub fn new(fd: OwnedFd, rows: usize, words: usize) -> Self {
        let windows = (0..rows.div_ceil(WINDOW_ROWS)).map(|_| OnceLock::new()).collect();
        Self { fd, rows, words, windows }
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The words of a row; empty past the end, or when the kernel refuses the mapping.
    #[must_use]
    pub fn row(&self, index: usize) -> &[AtomicU64] {
        let window = self.windows.get(index / WINDOW_ROWS).filter(|_| index < self.rows);
        let Some(Some(window)) = window.map(|window| window.get_or_init(|| self.map(index / WINDOW_ROWS).ok())) else {
            return &[];
        };
        // SAFETY: the window lies within its mapping, which lives as long as `self`.
        let all = unsafe { std::slice::from_raw_parts(window.base.as_ptr(), window.words) };
        let start = index % WINDOW_ROWS * self.words;
        all.get(start..start + self.words).unwrap_or(&[])
    }

    /// Sets a row to zero.
    pub fn clear(&self, index: usize) {
        for word in self.row(index) {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn map(&self, window: usize) -> io::Result<Window> {
        let rows = (self.rows - window * WINDOW_ROWS).min(WINDOW_ROWS);
        let words = rows * self.words;
        let offset = window * WINDOW_ROWS * self.words * 8;
        let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new shared mapping at an address the kernel chooses; the kernel refuses one beyond the array.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Window { base, words })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: unmaps what `map` mapped; no reference to a row outlives the array.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.words * 8);
        }
    }
}
