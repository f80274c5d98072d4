//! Builds a program, runs it until it stops itself, and reads what the kernel side would have copied.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use malloc_daemon::symbols::{Frame, Limits, Sample, Stack, Symbolizer};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The top of a stack and the registers.
pub struct Taken {
    pub pid: u32,
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    pub kept: Option<[u64; 5]>,
    pub stack: Vec<u8>,
    pub cut: bool,
}

impl Taken {
    pub fn sample(&self) -> Sample<'_> {
        Sample {
            pid: self.pid,
            ip: self.ip,
            sp: self.sp,
            bp: self.bp,
            kept: self.kept,
            stack: &self.stack,
            stack_cut: self.cut,
        }
    }
}

/// A program that stopped itself and is traced.
pub struct Victim {
    child: Child,
    pid: Pid,
    _directory: tempfile::TempDir,
}

impl Victim {
    pub fn start(source: &str, compiler: &str, options: &[&str], way: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("victim");
        build(&programs().join(source), compiler, options, &program);
        let child = Command::new(&program).arg(way).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let mut victim = Self { child, pid, _directory: directory };
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP), "{source} {way}");
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
        // Only a stop that is reported to the tracer lets it read registers.
        ptrace::interrupt(pid).unwrap();
        victim.wait();
        victim
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self) -> WaitStatus {
        waitpid(self.pid, None).unwrap()
    }

    /// Lets it run to the beginning or end of its next system call with that number.
    pub fn run_to_syscall(&mut self, number: i64) {
        loop {
            ptrace::syscall(self.pid, None).unwrap();
            let status = self.wait();
            assert!(!matches!(status, WaitStatus::Exited(..)), "the victim made no such system call");
            let is_syscall = matches!(status, WaitStatus::PtraceSyscall(_));
            if is_syscall && ptrace::getregs(self.pid).unwrap().orig_rax == number.cast_unsigned() {
                return;
            }
        }
    }

    pub fn step(&mut self) {
        ptrace::step(self.pid, None).unwrap();
        self.wait();
    }

    /// At most `limit` bytes of its stack.
    pub fn take(&self, limit: usize) -> Taken {
        let registers = ptrace::getregs(self.pid).unwrap();
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.id())).unwrap();
        let mut stack = vec![0; limit];
        let mut filled = 0;
        // The stack's mapping ends somewhere, and so does reading.
        while let Some(rest) = stack.get_mut(filled..).filter(|rest| !rest.is_empty())
            && let Ok(count @ 1..) = memory.read_at(rest, registers.rsp + filled as u64)
        {
            filled += count;
        }
        stack.truncate(filled);
        let (ip, sp, bp) = (registers.rip, registers.rsp, registers.rbp);
        let kept = Some([registers.rbx, registers.r12, registers.r13, registers.r14, registers.r15]);
        Taken { pid: self.id(), ip, sp, bp, kept, cut: filled == limit, stack }
    }

    /// Ends it, as it stands.
    pub fn end(self) {}
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended already, when a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Patient: unoptimized code takes seconds to read the debug data of libc.
pub fn limits() -> Limits {
    Limits { deadline: std::time::Duration::from_secs(120), ..Limits::default() }
}

/// The stack at the place where a program stops itself.
pub fn stack_of(source: &str, compiler: &str, options: &[&str], way: &str) -> Stack {
    let victim = Victim::start(source, compiler, options, way);
    let stack = Symbolizer::new(limits()).stack(&victim.take(64 << 10).sample());
    victim.end();
    stack
}

pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/symbols/programs")
}

/// The number of the first line that holds `text`.
pub fn line_of(source: &str, text: &str) -> u32 {
    let content = std::fs::read_to_string(programs().join(source)).unwrap();
    let line = content.lines().position(|line| line.contains(text)).unwrap();
    u32::try_from(line + 1).unwrap()
}

/// The names of the frames, `?` for none.
pub fn names(stack: &Stack) -> Vec<&str> {
    stack.frames.iter().map(|frame| frame.function.as_deref().unwrap_or("?")).collect()
}

/// Asserts that the names appear one directly after the other.
#[track_caller]
pub fn assert_in_a_row<'a>(stack: &'a Stack, wanted: &[&str]) -> &'a [Frame] {
    let at = names(stack).windows(wanted.len()).position(|names| names == wanted);
    let at = at.unwrap_or_else(|| panic!("no {wanted:?} in {:?}, {:?}", names(stack), stack.end));
    &stack.frames[at..at + wanted.len()]
}

fn build(source: &Path, compiler: &str, options: &[&str], program: &Path) {
    let output = Command::new(compiler).args(options).arg(source).arg("-o").arg(program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
