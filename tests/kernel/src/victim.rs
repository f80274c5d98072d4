//! Compiles the victim programs, each once for its content, and runs them without the daemon.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Ended, run};
use crate::truth::{Row, Truth};

/// The compiler must keep every call: no builtin knowledge of malloc.
const FLAGS: [&str; 7] = ["-O1", "-g", "-fno-builtin", "-Wall", "-Wextra", "-Werror", "-pthread"];

/// The root of the workspace, or what stands for it on a machine that has not built the tests.
#[must_use]
pub fn workspace() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("MALLOC_DAEMON_TREE").map_or_else(built, PathBuf::from)
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The victim of this name, linked as programs usually are.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    compiled(name, name, &[])
}

/// The victim of this name without a dynamic libc, or the linker's reason why this machine cannot make one.
///
/// # Errors
/// What the compiler says when it has no static libc.
pub fn static_program(name: &str) -> Result<PathBuf, String> {
    try_compile(name, name, &["-static"])
}

/// The victim of this name for 32-bit x86, or why this machine cannot make one.
///
/// # Errors
/// What the compiler says when it has no 32-bit libc.
pub fn program_32_bit(name: &str) -> Result<PathBuf, String> {
    try_compile(name, name, &["-m32"])
}

/// The preloaded library that counts every outermost call a second time.
#[must_use]
pub fn interposer() -> PathBuf {
    compiled("interpose", "interpose.so", &["-shared", "-fPIC"])
}

/// Runs a victim alone; its accounts, in the order it printed them.
///
/// # Panics
/// If it does not exit with 0.
#[must_use]
pub fn run_alone(name: &str, arguments: &[&str]) -> Vec<Truth> {
    let ended = run(Command::new(program(name)).args(arguments));
    accounts(name, &ended)
}

/// The calls that the libc makes on its own in a run of this victim, function by function: what the
/// interposer sees beyond what the victim knows of (thread creation allocates, for one).
///
/// The victim must make the same calls in every run.
///
/// # Panics
/// If the interposer saw fewer calls than the victim made: one of the two oracles is wrong.
#[must_use]
pub fn calls_of_the_libc(name: &str, arguments: &[&str]) -> BTreeMap<String, Row> {
    beyond(&program(name), arguments, &interposer().display().to_string())
}

/// The calls that libraries make on their own in a run of this program on the C library's allocator.
///
/// # Panics
/// If the interposer saw fewer calls than the victim made.
#[must_use]
pub fn calls_of_the_interposed(program: &Path, arguments: &[&str]) -> BTreeMap<String, Row> {
    beyond(program, arguments, &interposer().display().to_string())
}

fn beyond(program: &Path, arguments: &[&str], preload: &str) -> BTreeMap<String, Row> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let report = directory.path().join("interposed");
    let ended = run(Command::new(program).args(arguments).env("LD_PRELOAD", preload).env("INTERPOSE_FILE", &report));
    let name = program.display();
    let truth = accounts(&name.to_string(), &ended).pop().expect("an account");
    let text = std::fs::read_to_string(&report).expect("the interposer's account");
    let seen = text.lines().map(Truth::parse).find(|seen| seen.pid == truth.pid).expect("an account of this process");
    seen.functions
        .iter()
        .map(|(function, seen)| {
            let known = &truth.functions[function];
            let beyond = seen.minus(known).unwrap_or_else(|| {
                panic!("{name} {arguments:?}: {function} by the victim {known:?}, by the interposer {seen:?}")
            });
            (function.clone(), beyond)
        })
        .collect()
}

/// The victim of this name, with more flags for the compiler, under a name of its own.
///
/// # Errors
/// What the compiler says.
pub fn program_with(name: &str, output: &str, compiler: &Path, flags: &[&str]) -> Result<PathBuf, String> {
    compile_with(compiler, name, output, flags)
}

/// The calls that libraries make on their own before and after `main` when these are preloaded and the victim runs with
/// these arguments: what the interposer in front of them sees beyond what the victim knows of.
///
/// # Panics
/// If the interposer saw fewer calls than the victim made.
#[must_use]
pub fn calls_of_the_preloaded(program: &Path, arguments: &[&str], preloaded: &Path) -> BTreeMap<String, Row> {
    let mut flags = vec!["-shared", "-fPIC", "-DT_FOREIGN", "-DT_NEXT"];
    flags.extend(arguments.contains(&"alias").then_some("-DT_ALIAS"));
    let interposer = compiled("interpose", "interpose-next.so", &flags);
    let preload = format!("{} {}", interposer.display(), preloaded.display());
    beyond(program, arguments, &preload)
}

/// A victim that is a package of its own, built on demand.
///
/// # Panics
/// If cargo cannot build it.
#[must_use]
pub fn cargo_program(name: &str) -> PathBuf {
    let manifest = workspace().join("tests/programs").join(name).join("Cargo.toml");
    let directory = target_directory().join(name);
    // An allocator takes longer to build than any step of a test: not under its patience.
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&directory)
        .status();
    assert!(status.is_ok_and(|status| status.success()), "cargo build of {name}");
    directory.join("debug").join(name)
}

/// The victim `name.cc`, optimized.
///
/// # Panics
/// If the compiler refuses it.
#[must_use]
pub fn cpp_program(name: &str) -> PathBuf {
    compile_source(Path::new("c++"), &format!("{name}.cc"), name, &["-O2"]).unwrap_or_else(|error| panic!("{error}"))
}

/// The victim `name.rs`, optimized.
///
/// # Panics
/// If the compiler refuses it.
#[must_use]
pub fn rust_program(name: &str) -> PathBuf {
    let source = workspace().join("tests/programs").join(format!("{name}.rs"));
    cached(Path::new("rustc"), &[&source], name, &[], |output| {
        let mut command = Command::new("rustc");
        command.args(["--edition", "2024", "-O", "-g", "-o"]).arg(output).arg(&source);
        command
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

/// The directory of the Python module `name.c`, for the interpreter at that path.
///
/// # Panics
/// If the interpreter's headers are not there or the compiler refuses it.
#[must_use]
pub fn python_module(interpreter: &Path, name: &str, output: &str) -> PathBuf {
    let script = "import sysconfig; print(sysconfig.get_path('include'), sysconfig.get_config_var('EXT_SUFFIX'))";
    let told = run(Command::new(interpreter).args(["-c", script])).stdout;
    let (include, suffix) = told.trim().split_once(' ').expect("a directory of headers and a suffix");
    let include = format!("-I{include}");
    let output = format!("{output}{suffix}");
    let path = compiled(name, &output, &["-shared", "-fPIC", &include]);
    path.parent().expect("a directory").to_owned()
}

fn accounts(name: &str, ended: &Ended) -> Vec<Truth> {
    assert!(ended.status.success(), "{name}: {:?}: {}", ended.status, ended.stderr);
    Truth::parse_all(&ended.stdout)
}

fn compiled(name: &str, output: &str, flags: &[&str]) -> PathBuf {
    try_compile(name, output, flags).unwrap_or_else(|error| panic!("{error}"))
}

fn try_compile(name: &str, output: &str, flags: &[&str]) -> Result<PathBuf, String> {
    compile_with(Path::new("cc"), name, output, flags)
}

fn compile_with(compiler: &Path, name: &str, output: &str, flags: &[&str]) -> Result<PathBuf, String> {
    compile_source(compiler, &format!("{name}.c"), output, flags)
}

fn compile_source(compiler: &Path, name: &str, output: &str, flags: &[&str]) -> Result<PathBuf, String> {
    // A machine without a compiler brings them.
    if let Some(brought) = std::env::var_os("MALLOC_DAEMON_VICTIMS") {
        let path = PathBuf::from(brought).join(output);
        return if path.exists() { Ok(path) } else { Err(format!("{} is missing", path.display())) };
    }
    let sources = workspace().join("tests/programs");
    let source = sources.join(name);
    // Libraries come after what needs them.
    let (libraries, first): (Vec<&str>, Vec<&str>) = flags.iter().copied().partition(|flag| flag.starts_with("-l"));
    cached(compiler, &[&source, &sources.join("truth.h"), &sources.join("start.c")], output, flags, |made| {
        let mut command = Command::new(compiler);
        command.args(FLAGS).args(&first).arg(&source).arg("-o").arg(made).args(&libraries);
        command
    })
}

/// What the command makes of these sources, made once for their content.
fn cached(
    compiler: &Path,
    sources: &[&Path],
    output: &str,
    flags: &[&str],
    command: impl FnOnce(&Path) -> Command,
) -> Result<PathBuf, String> {
    let mut hasher = DefaultHasher::new();
    for path in sources {
        std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).hash(&mut hasher);
    }
    (compiler, FLAGS, flags).hash(&mut hasher);
    let directory = target_directory().join("victims").join(format!("{:016x}", hasher.finish()));
    std::fs::create_dir_all(&directory).expect("a directory for the victims");
    let directory = directory.canonicalize().expect("a directory that exists");
    let path = directory.join(output);
    if path.exists() {
        return Ok(path);
    }
    // Tests run at the same time: each compiles to a name of its own, and the last to rename wins.
    let unfinished = tempfile::Builder::new().prefix(output).tempdir_in(&directory).expect("a temporary directory");
    let made = unfinished.path().join(output);
    let ended = run(&mut command(&made));
    if !ended.status.success() {
        return Err(format!("{} of {output} {flags:?}: {}", compiler.display(), ended.stderr));
    }
    std::fs::rename(&made, &path).expect("a rename within a directory");
    Ok(path)
}
