//! Runs programs: says what runs and how long it took, finds tools, asks for root.
use std::{
    env,
    ffi::OsStr,
    io::IsTerminal,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// The cargo that runs this command.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs `command`, naming it before and its duration after.
pub fn run(command: &mut Command) -> Result<()> {
    let line = spell(command);
    println!("==> {line}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("`{line}` failed after {seconds:.1} s with {status}");
    }
    println!("    {seconds:.1} s");
    Ok(())
}

/// What `command` prints, trimmed; `None` if it cannot be started or fails.
pub fn capture(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The machine this compiler builds for when nobody asks for another.
pub fn host() -> Result<String> {
    let version = capture(Command::new("rustc").arg("-vV")).unwrap_or_default();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// The folder list to look for programs in: `PATH`, then cargo's own, where `cargo install` puts
/// bpf-linker and which not every login has on its `PATH`.
pub fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = env::split_paths(&path).collect();
    folders.extend(cargo_home().map(|home| home.join("bin")));
    folders
}

/// Where `program` is, if anywhere.
pub fn find(program: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How to become root: nothing to do, a `sudo` that will work, or the sentence why not.
pub enum Privilege {
    /// This process is root.
    Root,
    /// `sudo` is there, and either needs no password or has a terminal to ask at.
    Sudo,
    /// There is no way.
    None(&'static str),
}

/// Finds out how commands that need root can run here.
pub fn privilege() -> Privilege {
    if is_root() {
        Privilege::Root
    } else if find("sudo").is_none() {
        Privilege::None("it needs root: run as root, or install sudo")
    } else if !std::io::stdin().is_terminal() && capture(Command::new("sudo").args(["-n", "true"])).is_none() {
        Privilege::None("it needs root, and sudo would ask for a password with no terminal to ask at")
    } else {
        Privilege::Sudo
    }
}

/// A command that runs `program` as root, after saying so when that takes sudo.
pub fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    match privilege() {
        Privilege::Root => Ok(Command::new(program)),
        Privilege::Sudo => {
            println!("using sudo: {why}");
            let mut command = Command::new("sudo");
            command.arg("-E").arg(program);
            Ok(command)
        }
        Privilege::None(reason) => bail!("cannot {why}: {reason}"),
    }
}

/// Whether this runs where nobody watches: a check that did not run then counts as failed.
pub fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// Cargo's home folder.
fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
}

/// The command as one would type it.
fn spell(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| {
        let argument = argument.to_string_lossy();
        if argument.contains(' ') { format!("'{argument}'") } else { argument.into_owned() }
    });
    [name].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}
