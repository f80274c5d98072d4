//! Runs victims with the libcs of other releases, each by that libc's own loader.

use std::path::{Path, PathBuf};
use std::process::Command;

use libc_tests::archive::{self, Installed};

use crate::daemon::{Recording, record_with};
use crate::document::Image;
use crate::truth::Truth;
use crate::victim::{program_with, workspace};

/// The releases victims are run with; what links with the oldest runs with all. The first is kept by the archives no
/// longer than they like.
pub const SUITES: [&str; 5] = archive::SUITES;

/// The libc of one release.
pub struct Libc {
    /// Whose.
    pub suite: &'static str,
    installed: Installed,
    linked: PathBuf,
}

/// All libcs that can be had. A release other than the first that cannot be had is a failure.
///
/// # Panics
/// When it is not to be had.
#[must_use]
pub fn all() -> Vec<Libc> {
    SUITES.iter().filter_map(|suite| of(suite)).collect()
}

/// The libc of one release; `None` when it is the first and the archives no longer have it.
///
/// # Panics
/// When another one is not to be had.
#[must_use]
pub fn of(suite: &'static str) -> Option<Libc> {
    let installed = match archive::installed(suite) {
        Ok(installed) => installed,
        Err(why) => {
            assert_eq!(suite, SUITES[0], "{suite}: {why}");
            println!("not run: {suite}: {why}");
            return None;
        }
    };
    let oldest = SUITES.iter().find_map(|suite| archive::installed(suite).ok()).expect("one was just there");
    Some(Libc { suite, installed, linked: oldest.directory })
}

impl Libc {
    /// The minor version: 36 of 2.36.
    ///
    /// # Panics
    /// If the package has no version of that form.
    #[must_use]
    pub fn minor(&self) -> u32 {
        let version = self.installed.version.strip_prefix("2.").expect("glibc 2");
        version.split(['-', '.']).next().and_then(|minor| minor.parse().ok()).expect("a minor version")
    }

    /// The file `libc.so.6`.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.installed.directory.join("libc.so.6")
    }

    /// The victim of this name, which every libc here can run.
    ///
    /// # Panics
    /// If it cannot be compiled.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let start = workspace().join("tests/programs/start.c").display().to_string();
        let libraries = ["libc.so.6", "libpthread.so.0"].map(|name| self.linked.join(name).display().to_string());
        let mut flags = vec!["-nostdlib", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", &start];
        flags.extend(libraries.iter().map(String::as_str));
        program_with(name, name, Path::new("cc"), &flags).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The loader, told to run this program with this libc: arguments follow.
    #[must_use]
    pub fn words(&self, program: &Path) -> [PathBuf; 4] {
        [self.installed.loader.clone(), "--library-path".into(), self.installed.directory.clone(), program.to_owned()]
    }

    /// A command that runs the victim with this libc.
    #[must_use]
    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let [loader, rest @ ..] = self.words(&self.program(name));
        let mut command = Command::new(loader);
        command.args(rest).args(arguments);
        command
    }

    /// Records the victim, run with this libc, from its first instruction to its end.
    ///
    /// # Panics
    /// If it fails or the daemon writes no document.
    #[must_use]
    pub fn record(&self, depth: &str, name: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Recording {
        let [loader, rest @ ..] = self.words(&self.program(name));
        let mut words: Vec<&str> = rest.iter().map(|word| word.to_str().expect("a path in UTF-8")).collect();
        words.extend(arguments);
        let recording = record_with(depth, &loader, &words, prepare);
        assert_eq!(recording.ended.code(), 0, "{}, {name} {arguments:?}: {}", self.suite, recording.ended.stderr);
        recording
    }
}

/// The account of one process in a recording by [`Libc::record`], and its image, which bears the loader's name.
///
/// # Panics
/// Unless there is exactly one of each.
#[must_use]
pub fn only(recording: &Recording) -> (&Truth, Image) {
    assert_eq!(recording.truths.len(), 1, "accounts in {:?}", recording.ended);
    let truth = &recording.truths[0];
    (truth, recording.document.image(truth.pid, "ld-linux-x86-64.so.2"))
}
