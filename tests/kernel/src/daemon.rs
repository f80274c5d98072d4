//! Starts the built daemon in each of its ways and reads what it answers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::document::{Document, Image};
use crate::http::{Answer, get, try_get};
use crate::process::{Ended, Running, run, until, within_patience};
use crate::truth::Truth;
use crate::victim;

/// What `record --pid` says on standard error once every probe is in place.
pub const ATTACHED_LINE: &str = "recording";
/// What `serve` says on standard error before its address.
pub const LISTENING_LINE: &str = "listening on http://";

/// The daemon's binary.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MALLOC_DAEMON_BIN") {
        return PathBuf::from(path);
    }
    let candidates = ["release", "debug"].map(|profile| victim::target_directory().join(profile).join("malloc-daemon"));
    let newest = candidates.iter().filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    newest.expect("build malloc-daemon first, or name it in MALLOC_DAEMON_BIN").1.clone()
}

/// The daemon with these arguments, not yet started.
pub fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env("NO_COLOR", "1");
    command
}

/// Runs the daemon with these arguments to its end.
pub fn run_daemon<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ended {
    run(&mut command(arguments))
}

/// What `record -- COMMAND` saw and what the command said of itself.
pub struct Recording {
    /// How the daemon ended, with the command's own output.
    pub ended: Ended,
    /// The accounts that victims printed.
    pub truths: Vec<Truth>,
    /// The daemon's document.
    pub document: Document,
}

impl Recording {
    /// The only account and the image it belongs to.
    ///
    /// # Panics
    /// If there is another number of accounts.
    #[must_use]
    pub fn only(&self) -> (&Truth, Image) {
        assert_eq!(self.truths.len(), 1, "accounts in {:?}", self.ended);
        let truth = &self.truths[0];
        (truth, self.document.image(truth.pid, &truth.victim))
    }
}

/// Records a program from its first instruction to its end, at depth `call`.
///
/// # Panics
/// If the daemon writes no document.
#[must_use]
pub fn record_program(program: &Path, arguments: &[&str]) -> Recording {
    record_prepared(program, arguments, |_| {})
}

/// The same, after a change to the command (environment, depth arguments come by [`record_at`]).
///
/// # Panics
/// If the daemon writes no document.
#[must_use]
pub fn record_prepared(program: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Recording {
    record_with("call", program, arguments, prepare)
}

/// Records a victim at another depth.
///
/// # Panics
/// If the daemon writes no document.
#[must_use]
pub fn record_at(depth: &str, name: &str, arguments: &[&str]) -> Recording {
    record_with(depth, &victim::program(name), arguments, |_| {})
}

/// Records a victim, which must end well.
///
/// # Panics
/// If the victim fails or the daemon writes no document.
#[must_use]
pub fn record(name: &str, arguments: &[&str]) -> Recording {
    let recording = record_program(&victim::program(name), arguments);
    assert_eq!(recording.ended.code(), 0, "{name} {arguments:?}: {}", recording.ended.stderr);
    recording
}

/// The general form: any depth, any program, any change to the command.
///
/// # Panics
/// If the daemon writes no document.
#[must_use]
pub fn record_with(depth: &str, program: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Recording {
    let report = Report::new();
    let mut command = report.command(depth);
    command.arg("--").arg(program).args(arguments);
    prepare(&mut command);
    let ended = run(&mut command);
    let document = report.read(&ended);
    Recording { truths: Truth::parse_all(&ended.stdout), ended, document }
}

/// A file that `record` writes its document to.
pub struct Report {
    directory: TempDir,
}

impl Report {
    /// A file that does not exist yet.
    ///
    /// # Panics
    /// If there is no place for temporary files.
    #[must_use]
    pub fn new() -> Self {
        Report { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    /// `record` at this depth into the file, still without its target; dear functions are counted as well.
    #[must_use]
    pub fn command(&self, depth: &str) -> Command {
        let mut command = self.default_command(depth);
        command.arg("--stepped");
        command
    }

    /// The same without the dear functions.
    #[must_use]
    pub fn default_command(&self, depth: &str) -> Command {
        let mut command = command(["record", "--depth", depth, "--format", "json", "--output"]);
        command.arg(self.path());
        command
    }

    /// The document, once the daemon has ended.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn read(&self, ended: &Ended) -> Document {
        let text = std::fs::read_to_string(self.path())
            .unwrap_or_else(|error| panic!("no report ({error}): {:?}\n{}", ended.status, ended.stderr));
        assert!(!text.is_empty(), "an empty report: {:?}\n{}", ended.status, ended.stderr);
        Document::parse(&text)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("report.json")
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

/// `record --pid` at work.
pub struct Attached {
    daemon: Running,
    report: Report,
}

impl Attached {
    /// Attaches to a running process and returns when every probe is in place.
    ///
    /// # Panics
    /// If the daemon does not say that it records.
    #[must_use]
    pub fn to(pid: u32) -> Self {
        Self::with(pid, &[])
    }

    /// The same with more arguments.
    ///
    /// # Panics
    /// If the daemon does not say that it records.
    #[must_use]
    pub fn with(pid: u32, arguments: &[&str]) -> Self {
        let report = Report::new();
        let mut daemon = Running::start(report.command("call").arg("--pid").arg(pid.to_string()).args(arguments));
        daemon.wait_for_error_line(ATTACHED_LINE);
        Attached { daemon, report }
    }

    /// Attaches to a victim that waits for a byte, gives it one, and sees both to their end: what the victim left, and
    /// what was recorded of it.
    #[must_use]
    pub fn until_the_end_of(mut waiting: Running) -> (Ended, Document) {
        let attached = Self::to(waiting.pid());
        waiting.write(b"x");
        let ended = waiting.end();
        (ended, attached.wait().1)
    }

    /// Interrupts the recording, as Ctrl-C does, and reads the document.
    #[must_use]
    pub fn interrupt(self) -> (Ended, Document) {
        self.daemon.signal(Signal::INT);
        self.wait()
    }

    /// Waits until the recording ends by itself and reads the document.
    #[must_use]
    pub fn wait(self) -> (Ended, Document) {
        let ended = self.daemon.end();
        let document = self.report.read(&ended);
        (ended, document)
    }

    /// Ends the daemon without a chance to clean up.
    #[must_use]
    pub fn kill(self) -> Ended {
        self.daemon.signal(Signal::KILL);
        self.daemon.end()
    }
}

/// A running `serve`.
pub struct Serving {
    daemon: Running,
    /// Where it listens, `127.0.0.1:PORT`.
    pub address: String,
}

impl Serving {
    /// Starts it on a free port and returns when it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let mut daemon = Running::start(command(["serve", "--listen", "127.0.0.1:0"]).args(arguments));
        let line = daemon.wait_for_error_line(LISTENING_LINE);
        let address = line.split(LISTENING_LINE).nth(1).unwrap_or_default();
        let address = address.split(|c: char| c.is_whitespace() || c == '/').next().unwrap_or_default().to_owned();
        // Who wants a token does not say without it whether it is ready.
        until("serve is ready", || try_get(&address, "/readyz").filter(|answer| [200, 401].contains(&answer.status)));
        Serving { daemon, address }
    }

    /// Asks it.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        get(&self.address, path)
    }

    /// The image of this process, as soon as it satisfies the condition.
    ///
    /// # Panics
    /// With the daemon's last answer, if the condition never holds.
    pub fn image_when(&self, what: &str, pid: u32, mut satisfied: impl FnMut(&Image) -> bool) -> Image {
        let mut last = None;
        let image = within_patience(|| {
            let answer = self.get(&format!("/v1/processes/{pid}"));
            let image = (answer.status == 200).then(|| Image(answer.json()["process"].clone())).filter(&mut satisfied);
            last = Some(answer);
            image
        });
        image.unwrap_or_else(|| panic!("waited in vain for process {pid}: {what}; the last answer was {last:?}"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.daemon.signal(signal);
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Waits for a line on standard error that contains this text, and returns it.
    ///
    /// # Panics
    /// If none comes.
    pub fn wait_for_error_line(&mut self, text: &str) -> String {
        self.daemon.wait_for_error_line(text)
    }

    /// Sends a signal and waits for the end.
    #[must_use]
    pub fn stop(self, signal: Signal) -> Ended {
        self.daemon.signal(signal);
        self.daemon.end()
    }
}
