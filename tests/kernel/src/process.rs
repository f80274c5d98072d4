//! Starts programs, waits for them and for what they write, always with a deadline.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than any step takes on a loaded machine with two processors; reached only when something hangs.
/// `MALLOC_DAEMON_PATIENCE` is another number of seconds, for a machine that is emulated.
#[must_use]
pub fn patience() -> Duration {
    let told = std::env::var("MALLOC_DAEMON_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(told.unwrap_or(60))
}

/// How a program ended and all it wrote.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status as the kernel gave it.
    pub status: ExitStatus,
    /// Everything written to standard output.
    pub stdout: String,
    /// Everything written to standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit code.
    ///
    /// # Panics
    /// If a signal ended the program.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {}", self.status.signal(), self.stderr))
    }
}

/// Runs a program to its end with nothing on its standard input.
///
/// # Panics
/// If it cannot be started or does not end within [`patience`].
pub fn run(command: &mut Command) -> Ended {
    Running::start(command).end()
}

/// Copies a file so that the copy may be executed.
///
/// By another process: while this one holds the copy open for writing, a test beside the caller's may fork, and nothing
/// can execute what a child still holds (`ETXTBSY`).
///
/// # Panics
/// If it cannot be copied.
pub fn copy_executable(from: &Path, to: &Path) {
    let ended = run(Command::new("install").args(["-m", "755"]).arg(from).arg(to));
    assert!(ended.status.success(), "install {} {}: {}", from.display(), to.display(), ended.stderr);
}

/// Writes a file of these bytes that may be executed, as [`copy_executable`] does.
///
/// # Panics
/// If it cannot be written.
pub fn write_executable(path: &Path, bytes: &[u8]) {
    let mut written = tempfile::NamedTempFile::new().expect("a temporary file");
    written.write_all(bytes).expect("a file");
    copy_executable(written.path(), path);
}

/// A program that runs, with its three streams in hand. Killed when dropped.
pub struct Running {
    child: Option<Child>,
    input: Option<ChildStdin>,
    output: Option<BufReader<std::process::ChildStdout>>,
    errors: Receiver<String>,
    seen_errors: Vec<String>,
}

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (line, errors) = channel();
        let stream = child.stderr.take().expect("piped");
        // Read at once, so that a program with much to say never blocks on it.
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut bytes = Vec::new();
            while stream.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
                bytes.clear();
                if line.send(text).is_err() {
                    return;
                }
            }
        });
        Running {
            input: child.stdin.take(),
            output: child.stdout.take().map(BufReader::new),
            child: Some(child),
            errors,
            seen_errors: Vec::new(),
        }
    }

    /// The process id.
    ///
    /// # Panics
    /// If it was already waited for.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// If the program no longer reads.
    pub fn write(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("open input");
        input.write_all(bytes).and_then(|()| input.flush()).expect("the program reads");
    }

    /// Reads exactly so many bytes from its standard output.
    ///
    /// # Panics
    /// If it writes fewer.
    pub fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.output.as_mut().expect("open output").read_exact(&mut bytes).expect("the program answers");
        bytes
    }

    /// Reads one line of its standard output, without the newline.
    ///
    /// # Panics
    /// If the output cannot be read.
    pub fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.output.as_mut().expect("open output").read_line(&mut line).expect("output");
        line.trim_end().to_owned()
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for a line on standard error that contains this text, and returns it.
    ///
    /// # Panics
    /// If the stream ends, or [`patience`] does, before such a line.
    pub fn wait_for_error_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + patience();
        loop {
            match self.errors.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen_errors.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => {
                    let why =
                        if error == RecvTimeoutError::Timeout { "no such line in time" } else { "the stream ended" };
                    panic!("waiting for {text:?} on standard error: {why}; seen:\n{}", self.seen_errors.join("\n"));
                }
            }
        }
    }

    /// Whether a line with this text has come on standard error by now.
    pub fn has_error_line(&mut self, text: &str) -> bool {
        self.seen_errors.extend(self.errors.try_iter());
        self.seen_errors.iter().any(|line| line.contains(text))
    }

    /// Sends it a signal; one that has ended already does not mind.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?)) {
            // The only error is that the process is gone.
            let _gone = kill_process(pid, signal);
        }
    }

    /// Closes its input, reads its streams to their end and waits for it.
    ///
    /// # Panics
    /// If it does not end within [`patience`].
    pub fn end(mut self) -> Ended {
        self.input = None;
        let mut output = self.output.take().expect("open output");
        let mut child = self.child.take().expect("running");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        let (done, finished) = channel();
        std::thread::spawn(move || {
            let mut stdout = Vec::new();
            // An unreadable pipe ends the output; the status tells the rest.
            let _ended = output.read_to_end(&mut stdout);
            let status = child.wait();
            let _receiver_gone = done.send((status, stdout));
        });
        let Ok((status, stdout)) = finished.recv_timeout(patience()) else {
            let _gone = kill_process(pid, Signal::KILL);
            panic!("process {pid:?} does not end; standard error so far:\n{}", self.drain_errors());
        };
        Ended {
            status: status.expect("a child can be waited for"),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: self.drain_errors(),
        }
    }

    /// What it wrote to standard error: all of it once it ended, up to a moment of silence before.
    fn drain_errors(&mut self) -> String {
        while let Ok(line) = self.errors.recv_timeout(Duration::from_millis(500)) {
            self.seen_errors.push(line);
        }
        self.seen_errors.join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            // Both fail only for a process that is gone.
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Asks again and again, until there is an answer.
///
/// # Panics
/// If there is none within [`patience`]; `what` says what was waited for.
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within_patience(ask).unwrap_or_else(|| panic!("waited in vain: {what}"))
}

/// The same; `None` if there is no answer within [`patience`].
pub fn within_patience<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
