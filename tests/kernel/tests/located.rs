//! Proves where debug files are found, and that what was inferred of a libc is kept from one start to the next without
//! ever being believed against the file.
#![cfg(feature = "real-kernel")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_tests::compare::assert_functions;
use kernel_tests::daemon::{Serving, run_daemon};
use kernel_tests::process::{Running, copy_executable};
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// A root directory with a libc that no other file system has: its build id is its own.
struct OwnRoot {
    root: TempDir,
    /// Hexadecimal, as the libc has it now.
    build_id: String,
    /// The bytes of the debug file with that build id.
    debug: Vec<u8>,
}

impl OwnRoot {
    fn new(mark: u8) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |path: &str| root.path().join(path.trim_start_matches('/'));
        for file in [LOADER, LIBC] {
            fs::create_dir_all(at(file).parent().expect("a directory")).expect("a directory");
        }
        copy_executable(Path::new(LOADER), &at(LOADER));
        let program = victim::program_with("portable", "portable", Path::new("cc"), &[]).expect("a compiler");
        copy_executable(&program, &at("/portable"));
        let old = locate(&[LIBC])["allocator"]["build_id"].as_str().expect("a build id").to_owned();
        let debug = fs::read(debug_path(Path::new("/usr/lib/debug"), &old)).expect("the libc's debug symbols");
        let changed = |bytes: Vec<u8>| with_build_id(bytes, &old, mark);
        fs::write(at(LIBC), changed(fs::read(LIBC).expect("a libc"))).expect("a file");
        let build_id = format!("{}{mark:02x}", &old[..old.len() - 2]);
        Self { debug: changed(debug), root, build_id }
    }

    fn libc(&self) -> String {
        self.root.path().join(LIBC.trim_start_matches('/')).display().to_string()
    }

    fn put_debug_file(&self, directory: &Path) -> PathBuf {
        let path = debug_path(directory, &self.build_id);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, &self.debug).expect("a file");
        path
    }

    fn victim(&self) -> Running {
        let mut command = Command::new("chroot");
        let mut victim = Running::start(command.arg(self.root.path()).args(["/portable", "alias", "multiply", "wait"]));
        assert_eq!(victim.read(1), b".");
        victim
    }
}

fn debug_path(directory: &Path, build_id: &str) -> PathBuf {
    directory.join(format!(".build-id/{}/{}.debug", &build_id[..2], &build_id[2..]))
}

fn with_build_id(mut bytes: Vec<u8>, hex: &str, last: u8) -> Vec<u8> {
    let id: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("a digit")).collect();
    let at = bytes.windows(id.len()).position(|part| part == id).expect("the build id");
    bytes[at + id.len() - 1] = last;
    bytes
}

fn locate(arguments: &[&str]) -> Value {
    let ended = run_daemon(["locate", "--json"].iter().chain(arguments));
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stderr))
}

fn told_by(document: &Value) -> (&str, &str) {
    let text = |name: &str| document["allocator"][name].as_str().unwrap_or("none");
    (text("located_by"), text("debug_file"))
}

/// Where the probes go and what they stand for; code without a symbol is named by its neighbour.
fn places(document: &Value) -> Vec<(Value, Value, Value)> {
    let depths = document["depths"].as_array().expect("depths").iter();
    let hooks = depths.flat_map(|depth| depth["hooks"].as_array().expect("hooks"));
    hooks.map(|hook| (hook["role"].clone(), hook["function"].clone(), hook["file_offset"].clone())).collect()
}

#[test]
fn a_debug_file_is_found_in_the_processs_root_and_in_a_configured_directory() {
    let root = OwnRoot::new(0x5a);
    let victim = root.victim();
    let pid = victim.pid().to_string();
    assert_eq!(told_by(&locate(&["--pid", &pid])), ("inferred", "none"));
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let directory = elsewhere.path().display().to_string();
    let configured = root.put_debug_file(elsewhere.path());
    let by_option = locate(&["--debug-dir", &directory, "--pid", &pid]);
    assert_eq!(told_by(&by_option), ("debug_file", configured.to_str().expect("a path")));
    assert_eq!(told_by(&locate(&["--debug-dir", &directory, &root.libc()])), told_by(&by_option));
    // The probes are the same, whoever names the functions.
    assert_eq!(places(&by_option), places(&locate(&["--pid", &pid])));
    root.put_debug_file(&root.root.path().join("usr/lib/debug"));
    let in_its_root = locate(&["--pid", &pid]);
    let path = debug_path(Path::new("/usr/lib/debug"), &root.build_id);
    assert_eq!(told_by(&in_its_root), ("debug_file", path.to_str().expect("a path")));
    // The host has none for that build id.
    assert_eq!(told_by(&locate(&[&root.libc()])), ("inferred", "none"));
    let refused = run_daemon(["--debug-dir", "/nowhere", "locate", &root.libc()]);
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("/nowhere: there is no such directory"), "{}", refused.stderr);
}

/// Serves with the folder, counts the victim, and says what became of the folder's entries.
fn served(root: &OwnRoot, folder: &Path) -> String {
    let victim = root.victim();
    let folder = folder.display().to_string();
    let serving = Serving::start(&["-v", "--depth", "call", "--interval", "100ms", "--cache-dir", &folder]);
    let pid = victim.pid();
    let mut victim = victim;
    let is_probed = |image: &kernel_tests::document::Image| {
        image.0["allocator"]["build_id"] == root.build_id.as_str() && image.0["depth"] == "call"
    };
    let image = serving.image_when("it is probed", pid, is_probed);
    assert_eq!(image.text("/allocator/located_by"), "inferred");
    victim.write(b"x");
    let ended = victim.end();
    let truth = Truth::parse_all(&ended.stdout).pop().expect("an account");
    let image = serving.image_when("it ended", pid, |image| image.0["ended"].is_string());
    assert_functions(&truth, &image);
    serving.stop(Signal::TERM).stderr
}

fn entry(folder: &Path, build_id: &str) -> PathBuf {
    let entries = fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let is_of_it = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(build_id));
    entries.into_iter().find(is_of_it).expect("an entry for the libc")
}

// COUNT-1: with an entry that was kept, with none, and with a damaged one, the counts are the program's own.
#[test]
fn what_is_kept_of_a_stripped_libc_changes_no_count() {
    let root = OwnRoot::new(0xa5);
    let place = tempfile::tempdir().expect("a temporary directory");
    let folder = place.path().join("cache");
    let log = served(&root, &folder);
    assert!(log.contains("from_folder: 0"), "{log}");
    let path = entry(&folder, &root.build_id);
    let kept = fs::read(&path).expect("an entry");
    let log = served(&root, &folder);
    assert!(!log.contains("from_folder: 0") && log.contains("refused: 0"), "{log}");
    let mut damaged = kept.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&path, damaged).expect("a file");
    let log = served(&root, &folder);
    assert!(log.contains("refused: 1") && log.contains("its checksum does not fit its text"), "{log}");
    assert_eq!(fs::read(&path).expect("an entry"), kept);
}
