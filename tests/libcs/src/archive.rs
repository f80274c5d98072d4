//! Fetches packages by a private apt state that knows the machine's own mirror and keys, and touches nothing else.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The keys Debian signs its archives with, which its systems have installed.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The releases that are looked at, oldest first.
pub const SUITES: [&str; 5] = ["bullseye", "bookworm", "trixie", "sid", "experimental"];

/// A machine whose libc is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Debian's name of it.
    pub name: &'static str,
    /// The folder of its libraries.
    pub triplet: &'static str,
}

/// The machines that are looked at.
pub const ARCHES: [Arch; 2] =
    [Arch { name: "amd64", triplet: "x86_64-linux-gnu" }, Arch { name: "arm64", triplet: "aarch64-linux-gnu" }];

/// One libc and its debug file.
pub struct Build {
    /// The bytes of `libc.so.6`.
    pub libc: Vec<u8>,
    /// The bytes of the debug file of its build id.
    pub debug: Vec<u8>,
    /// The packages' version.
    pub version: String,
}

/// A libc that programs of this machine can be run with.
pub struct Installed {
    /// Its dynamic loader.
    pub loader: PathBuf,
    /// Where it, `libc.so.6` and `libpthread.so.0` lie: the loader's `--library-path`.
    pub directory: PathBuf,
    /// The packages' version.
    pub version: String,
}

/// Fetches and unpacks the libc of `suite` for x86-64, debug file and all.
///
/// # Errors
/// A sentence that says what could not be fetched or unpacked.
pub fn installed(suite: &str) -> Result<Installed, String> {
    let [arch, _] = ARCHES;
    let unpacked = unpacked(suite, arch)?;
    let directory = libraries(&unpacked, arch)?.canonicalize().map_err(|error| error.to_string())?;
    let loader = directory.join("ld-linux-x86-64.so.2");
    let version = fs::read_to_string(unpacked.join("version")).unwrap_or_default();
    if loader.exists() { Ok(Installed { loader, directory, version }) } else { Err("there is no loader".to_owned()) }
}

/// `target/libcs`
#[must_use]
pub fn workplace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/libcs")
}

/// Fetches and unpacks what `suite` has for `arch`; what was fetched before is taken as it is.
///
/// # Errors
/// A sentence that says what could not be fetched or unpacked.
pub fn build(suite: &str, arch: Arch) -> Result<Build, String> {
    let unpacked = unpacked(suite, arch)?;
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let libc = read(&libraries(&unpacked, arch)?.join("libc.so.6"))?;
    let id = malloc_daemon::targets::elf::build_id(&*libc).ok_or("libc.so.6 has no build id")?.to_string();
    let (front, rest) = id.split_at_checked(2).ok_or("the build id is too short")?;
    let debug = read(&unpacked.join(format!("usr/lib/debug/.build-id/{front}/{rest}.debug")))?;
    let version = fs::read_to_string(unpacked.join("version")).unwrap_or_default();
    Ok(Build { libc, debug, version })
}

/// Fetches and unpacks the libc of `suite` for `arch`; where its `libc.so.6` lies, and the packages' version.
///
/// # Errors
/// A sentence that says what could not be fetched or unpacked.
pub fn build_at(suite: &str, arch: Arch) -> Result<(PathBuf, String), String> {
    let unpacked = unpacked(suite, arch)?;
    let version = fs::read_to_string(unpacked.join("version")).unwrap_or_default();
    Ok((libraries(&unpacked, arch)?.join("libc.so.6"), version))
}

/// Fetches and unpacks a program of `suite` for x86-64; the folder that stands for its root.
///
/// # Errors
/// A sentence that says what could not be fetched or unpacked.
pub fn package(suite: &str, name: &str) -> Result<PathBuf, String> {
    unpacked_as(&format!("{suite}-{name}"), suite, ARCHES[0], &[name])
}

/// Fetches and unpacks a package of `suite` for `arch`; the folder that stands for its root, and the package's version.
///
/// # Errors
/// A sentence that says what could not be fetched or unpacked.
pub fn versioned_package(suite: &str, arch: Arch, name: &str) -> Result<(PathBuf, String), String> {
    let unpacked = unpacked_as(&format!("{suite}-{}-{name}", arch.name), suite, arch, &[name])?;
    let version = fs::read_to_string(unpacked.join("version")).unwrap_or_default();
    Ok((unpacked, version))
}

fn unpacked(suite: &str, arch: Arch) -> Result<PathBuf, String> {
    unpacked_as(&format!("{suite}-{}", arch.name), suite, arch, &["libc6", "libc6-dbg"])
}

pub(crate) fn unpacked_as(folder: &str, suite: &str, arch: Arch, names: &[&str]) -> Result<PathBuf, String> {
    let unpacked = workplace().join(folder);
    let complete = unpacked.join("complete");
    if !complete.exists() {
        // Tests run at the same time: one fetches, the others wait and find it there.
        let failed = |error: std::io::Error| format!("{}: {error}", workplace().display());
        fs::create_dir_all(workplace()).map_err(failed)?;
        let lock = fs::File::create(workplace().join("lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        if !complete.exists() {
            let _ = fs::remove_dir_all(&unpacked);
            fetch(suite, arch, names, &unpacked)?;
            fs::write(&complete, "").map_err(failed)?;
        }
    }
    Ok(unpacked)
}

fn libraries(unpacked: &Path, arch: Arch) -> Result<PathBuf, String> {
    let places = ["lib", "usr/lib"].map(|root| unpacked.join(root).join(arch.triplet));
    let found = places.into_iter().find(|path| path.join("libc.so.6").exists());
    found.ok_or_else(|| "the package has no libc.so.6".to_owned())
}

fn fetch(suite: &str, arch: Arch, names: &[&str], unpacked: &Path) -> Result<(), String> {
    let state = workplace().join("apt").join(suite);
    // What another package left there would be unpacked too.
    let downloads = state.join("downloads").join(arch.name).join(names.join("-"));
    let folders =
        ["etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "state/lists/partial", "cache/archives/partial"];
    for folder in folders.map(|folder| state.join(folder)).iter().chain([&downloads, &unpacked.to_owned()]) {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let write = |path: &Path, text: &str| fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()));
    write(&state.join("state/status"), "")?;
    write(&state.join("etc/sources.list"), &format!("deb [signed-by={KEYS}] {} {suite} main\n", mirror()?))?;
    let options = apt_options(&state);
    let updated = state.join("updated");
    let update = || run(Command::new("apt-get").args(&options).arg("update")).and_then(|_| write(&updated, ""));
    if !updated.exists() {
        update()?;
    }
    let packages: Vec<_> = names.iter().map(|package| format!("{package}:{}", arch.name)).collect();
    let download =
        || run(Command::new("apt-get").args(&options).arg("download").args(&packages).current_dir(&downloads));
    // The archive may have moved on since its lists were fetched.
    download().or_else(|_| update().and_then(|()| download()))?;
    let entries = fs::read_dir(&downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
    for entry in entries.flatten() {
        let package = entry.path();
        if package.extension() == Some(OsStr::new("deb")) {
            run(Command::new("dpkg-deb").arg("--extract").args([&package, unpacked]))?;
            let version = run(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Version"))?;
            write(&unpacked.join("version"), version.trim())?;
        }
    }
    Ok(())
}

/// The first Debian mirror that the machine's own apt is set up with.
fn mirror() -> Result<String, String> {
    let folder = Path::new("/etc/apt/sources.list.d");
    let mut files = vec![folder.join("debian.sources"), PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()));
    let lines = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let words: Vec<String> = lines
        .flat_map(|text| {
            let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
            lines.flat_map(str::split_whitespace).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let is_mirror = |word: &&String| word.contains("://") && word.trim_end_matches('/').ends_with("/debian");
    words.iter().find(is_mirror).cloned().ok_or_else(|| "apt is set up with no Debian mirror".to_owned())
}

fn apt_options(state: &Path) -> Vec<String> {
    let state = state.display();
    let mut options = Vec::new();
    for option in [
        format!("Dir::Etc={state}/etc"),
        format!("Dir::Etc::sourcelist={state}/etc/sources.list"),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State={state}/state"),
        format!("Dir::State::status={state}/state/status"),
        format!("Dir::Cache={state}/cache"),
        "APT::Architecture=amd64".to_owned(),
        "APT::Architectures::=amd64".to_owned(),
        "APT::Architectures::=arm64".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::Retries=3".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ] {
        options.extend(["-o".to_owned(), option]);
    }
    options
}

/// Runs a command to its end; its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let last = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Err(format!("{:?} failed: {last}", command.get_program()))
}
