//! Proves that processes are counted wherever their files lie and whenever they come: in other mount namespaces, on
//! overlays, on files that were deleted, replaced or overwritten, with libraries that are loaded late.
#![cfg(feature = "real-kernel")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kernel_tests::allocators::{JEMALLOC, musl_gcc};
use kernel_tests::compare::assert_functions;
use kernel_tests::daemon::{Attached, Serving};
use kernel_tests::document::Image;
use kernel_tests::process::{Running, copy_executable, run, until};
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use tempfile::TempDir;

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

fn portable(flags: &[&str]) -> PathBuf {
    victim::program_with("portable", "portable", Path::new("cc"), flags).expect("a compiler")
}

fn serve() -> Serving {
    // What is counted here is compared function by function: with those that musl's build makes dear.
    Serving::start(&["--depth", "call", "--interval", "100ms", "--stepped"])
}

/// A root directory with the victim, the loader and a libc of its own, as a container's image has them.
fn small_root() -> TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    let at = |path: &str| root.path().join(path.trim_start_matches('/'));
    for file in [LOADER, LIBC] {
        fs::create_dir_all(at(file).parent().expect("a directory")).expect("a directory");
        copy_executable(Path::new(file), &at(file));
    }
    copy_executable(&portable(&[]), &at("/portable"));
    root
}

fn in_root(root: &Path, arguments: &[&str]) -> Running {
    in_root_with(root, arguments, |_| {})
}

fn in_root_with(root: &Path, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Running {
    let mut command = Command::new("chroot");
    command.arg(root).arg("/portable").args(arguments).arg("wait");
    change(&mut command);
    let mut victim = Running::start(&mut command);
    assert_eq!(victim.read(1), b".");
    victim
}

fn is_probed(image: &Image) -> bool {
    image.comm() == "portable" && image.0["allocator"]["kind"].is_string() && image.0["depth"] == "call"
}

/// Waits until the victim is probed, lets it run, and compares its account with the daemon's.
fn finish(serving: &Serving, mut victim: Running) -> Image {
    let pid = victim.pid();
    serving.image_when("it is probed", pid, is_probed);
    victim.write(b"x");
    let ended = victim.end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let truth = Truth::parse_all(&ended.stdout).pop().expect("an account");
    let image = serving.image_when("it ended", pid, |image| image.comm() == "portable" && image.0["ended"].is_string());
    assert_functions(&truth, &image);
    image
}

// IDENT-1, COUNT-1: a process that starts after the daemon is probed by what it maps, not by the host's paths.
#[test]
fn a_process_in_another_mount_namespace_is_counted_on_its_own_libc() {
    let serving = serve();
    let copy = tempfile::tempdir().expect("a temporary directory");
    let libc = copy.path().join("libc.so.6");
    fs::copy(LIBC, &libc).expect("a copy");
    let real = fs::canonicalize(LIBC).expect("a libc");
    let script =
        format!("mount --bind {} {} && exec {} alias wait", libc.display(), real.display(), portable(&[]).display());
    let mut victim = Running::start(Command::new("unshare").args(["-m", "sh", "-c", &script]));
    assert_eq!(victim.read(1), b".");
    let image = finish(&serving, victim);
    assert_eq!(image.text("/allocator/kind"), "glibc");
    let _ended = serving.stop(rustix::process::Signal::TERM);
}

// COUNT-1: the kernel's path of a mapping does not lead there from the daemon's root.
#[test]
fn a_process_in_a_root_of_its_own_is_counted() {
    let serving = serve();
    let root = small_root();
    let image = finish(&serving, in_root(root.path(), &["alias", "multiply"]));
    assert_eq!(image.text("/allocator/kind"), "glibc");
}

struct Overlay {
    at: PathBuf,
}

impl Overlay {
    fn new(lower: &Path, work: &Path, name: &str) -> Self {
        let directory = |part: &str| {
            let path = work.join(format!("{name}-{part}"));
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        let (upper, scratch, at) = (directory("upper"), directory("work"), directory("merged"));
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), scratch.display());
        let ended = run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&at));
        assert!(ended.status.success(), "mount: {}", ended.stderr);
        Overlay { at }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ended = run(Command::new("umount").arg("-l").arg(&self.at));
    }
}

/// Two mounts over one lower directory: one inode under two devices.
fn assert_overlays(root: &TempDir, arguments: &[&str]) {
    let work = tempfile::tempdir().expect("a temporary directory");
    let overlays = ["a", "b"].map(|name| Overlay::new(root.path(), work.path(), name));
    let serving = serve();
    let victims = overlays.each_ref().map(|overlay| in_root(&overlay.at, arguments));
    for victim in victims {
        finish(&serving, victim);
    }
    // What comes after both were seen is not counted twice either.
    finish(&serving, in_root(&overlays[0].at, arguments));
    finish(&serving, in_root(root.path(), arguments));
}

// COUNT-1: one real inode is probed once, however many mounts show it.
#[test]
fn two_overlay_mounts_of_one_libc_count_each_call_once() {
    assert_overlays(&small_root(), &["alias"]);
}

// COUNT-1: a file without a build id too.
#[test]
fn two_overlay_mounts_of_one_static_executable_count_each_call_once() {
    let program =
        victim::program_with("portable", "portable", &musl_gcc(), &["-static", "-no-pie", "-Wl,--build-id=none"]);
    let root = tempfile::tempdir().expect("a temporary directory");
    copy_executable(&program.expect("musl's compiler"), &root.path().join("portable"));
    assert_overlays(&root, &[]);
}

// COUNT-1, SAFE-1: what a package upgrade does. Who runs on the old file goes on, who starts gets the new one.
#[test]
fn a_library_that_was_replaced_is_followed_to_its_new_file() {
    let root = small_root();
    let libc = root.path().join(LIBC.trim_start_matches('/'));
    let serving = serve();
    let old = in_root(root.path(), &["alias"]);
    serving.image_when("the old file is probed", old.pid(), is_probed);
    let new = libc.with_extension("new");
    fs::copy(LIBC, &new).and_then(|_| fs::rename(&new, &libc)).expect("a replaced file");
    let replaced = Instant::now();
    let young = in_root(root.path(), &["alias"]);
    serving.image_when("the new file is probed", young.pid(), is_probed);
    assert!(replaced.elapsed() < Duration::from_secs(2), "probed after {:?}", replaced.elapsed());
    finish(&serving, young);
    finish(&serving, old);
}

// SAFE-1: the kernel keeps the instruction that it found at a probe and would put it into the new content.
#[test]
fn a_library_that_is_overwritten_in_place_is_let_go_within_a_second() {
    let root = small_root();
    let libc = root.path().join(LIBC.trim_start_matches('/'));
    let serving = serve();
    let mut old = in_root(root.path(), &["alias"]);
    serving.image_when("it is probed", old.pid(), is_probed);
    // Not cut first: that would take the running process's own pages away, daemon or not.
    let mut file = fs::OpenOptions::new().write(true).open(&libc).expect("the libc");
    file.write_all(&fs::read(LIBC).expect("a libc")).expect("an overwritten file");
    drop(file);
    let overwritten = Instant::now();
    until("the health says so", || {
        let health = serving.get("/v1/health").json().to_string();
        health.contains("overwritten in place").then_some(())
    });
    assert!(overwritten.elapsed() < Duration::from_secs(1), "let go after {:?}", overwritten.elapsed());
    // HONEST-1: what is not counted any more is said.
    let why = serving.image_when("its libc is gone", old.pid(), |image| {
        image.0["not_measured"].to_string().contains("overwritten in place")
    });
    assert!(!why.0["complete"].as_bool().expect("complete"), "{}", why.0);
    old.write(b"x");
    assert_eq!(old.end().code(), 0, "the process on the old file goes on");
    let mut young = in_root(root.path(), &["alias"]);
    young.write(b"x");
    assert_eq!(young.end().code(), 0, "a new process runs fine");
    // COUNT-1: nobody maps it any more, so it is let go, and the next to map it finds it probed by what it holds now.
    until("it is let go", || {
        let health = serving.get("/v1/health").json().to_string();
        (!health.contains("overwritten in place")).then_some(())
    });
    finish(&serving, in_root(root.path(), &["alias", "multiply"]));
}

// BOUND-1: a file that was deleted is not held for ever: nobody can map it again.
#[test]
fn a_deleted_library_is_let_go_with_its_last_user() {
    // A folder of its own: roots of tests beside this one have a libc in the usual place, too.
    const FOLDER: &str = "/lib/of-the-deleted";
    let root = small_root();
    let folder = root.path().join(FOLDER.trim_start_matches('/'));
    let libc = folder.join("libc.so.6");
    fs::create_dir(&folder).expect("a folder");
    fs::rename(root.path().join(LIBC.trim_start_matches('/')), &libc).expect("a libc");
    let serving = serve();
    let victim = in_root_with(root.path(), &["alias"], |command| {
        command.env("LD_LIBRARY_PATH", FOLDER);
    });
    serving.image_when("it is probed", victim.pid(), is_probed);
    fs::remove_file(&libc).expect("a libc");
    let names_it = || serving.get("/v1/health").json()["probes"].to_string().contains(FOLDER);
    assert!(names_it(), "the file is among the probes");
    finish(&serving, victim);
    until("its probes are gone", || (!names_it()).then_some(()));
}

// COUNT-1, HONEST-1: an allocator that is opened late is probed then, and does not serve the program's malloc.
#[test]
fn an_allocator_that_is_opened_late_is_counted_beside_the_one_that_serves() {
    let serving = serve();
    let program = victim::program("opens_late");
    let mut victim = Running::start(
        // Its thread-local data is of the kind that only the initial libraries are sure to find room for.
        Command::new(program).arg(JEMALLOC.path()).env("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=65536"),
    );
    let pid = victim.pid();
    assert_eq!(victim.read(1), b".");
    let is_ours = |image: &Image| image.comm() == "opens_late" && image.0["allocator"]["kind"] == "glibc";
    serving.image_when("it is probed", pid, is_ours);
    victim.write(b"x");
    assert_eq!(victim.read(1), b".");
    let opened = Instant::now();
    let with_late =
        |image: &Image| is_ours(image) && image.0["allocator"]["also_mapped"].to_string().contains("jemalloc");
    let before = serving.image_when("the late one is probed", pid, with_late);
    assert!(opened.elapsed() < Duration::from_secs(2), "probed after {:?}", opened.elapsed());
    victim.write(b"x");
    let ended = victim.end();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    let truth = Truth::parse_all(&ended.stdout).pop().expect("an account");
    let after =
        serving.image_when("it ended", pid, |image| image.comm() == "opens_late" && image.0["ended"].is_string());
    assert_eq!(after.calls("malloc") - before.calls("malloc"), truth.fact("late"), "calls of the late allocator");
    assert_eq!(after.text("/allocator/kind"), "glibc");
}

// COUNT-1: preloaded into a process that starts after the daemon.
#[test]
fn a_preloaded_allocator_of_a_process_that_starts_later_is_counted() {
    let serving = serve();
    let mut victim =
        Running::start(Command::new(portable(&[])).args(["multiply", "wait"]).env("LD_PRELOAD", JEMALLOC.path()));
    assert_eq!(victim.read(1), b".");
    let pid = victim.pid();
    let before = serving.image_when("it is probed", pid, is_probed);
    assert_eq!(before.text("/allocator/kind"), "jemalloc");
    victim.write(b"x");
    let truth = Truth::parse_all(&victim.end().stdout).pop().expect("an account");
    let after = serving.image_when("it ended", pid, |image| image.comm() == "portable" && image.0["ended"].is_string());
    for (name, row) in truth.functions.iter().filter(|(_, row)| row.calls > 0) {
        assert_eq!(after.calls(name) - before.calls(name), row.calls, "{name}");
    }
}

// COUNT-1: the file has no name any more; the probes are in the inode.
#[test]
fn a_deleted_executable_with_its_allocator_inside_is_counted_while_it_runs() {
    let program = portable(&["-static", "-no-pie"]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let copy = directory.path().join("portable");
    copy_executable(&program, &copy);
    let mut victim = Running::start(Command::new(&copy).args(["alias", "wait"]));
    assert_eq!(victim.read(1), b".");
    fs::remove_file(&copy).expect("deleted");
    let pid = victim.pid();
    let (ended, document) = Attached::until_the_end_of(victim);
    let truth = Truth::parse_all(&ended.stdout).pop().expect("an account");
    let image = document.image(pid, "portable");
    assert_functions(&truth, &image);
    assert!(!image.0["from_start"].as_bool().expect("from_start"), "it ran before");
}

// COUNT-1: probes for one process and probes for all of its files' users must not both fire.
#[test]
fn a_chosen_process_that_executes_another_program_is_not_counted_twice() {
    let script = format!("printf .; read line; exec {} alias wait", portable(&[]).display());
    let mut victim = Running::start(Command::new("sh").args(["-c", &script]));
    assert_eq!(victim.read(1), b".");
    let pid = victim.pid();
    let attached = Attached::to(pid);
    victim.write(b"\n");
    assert_eq!(victim.read(1), b".");
    victim.write(b"x");
    let truth = Truth::parse_all(&victim.end().stdout).pop().expect("an account");
    let (_, document) = attached.wait();
    assert_functions(&truth, &document.image(pid, "portable"));
}
