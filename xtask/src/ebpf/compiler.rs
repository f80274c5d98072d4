//! Chooses the compiler for the eBPF object among those the machine has.
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// The compiler whose output the committed object is, byte for byte.
pub const PINNED_RUSTC: &str = "1.95.0";

/// The linker that turns LLVM bitcode into the object.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// The newest LLVM whose bitcode that linker reads.
const LLVM_MAJOR: u32 = 22;

/// Where Debian's `rustc-web` and `cargo-web` put their programs.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A compiler with the sources of `core`, which no prebuilt target for BPF exists of.
#[derive(Debug)]
pub struct Compiler {
    /// For example `1.95.0`.
    pub release: String,
    /// The folder that holds the sources of `core`: `library` lies in it.
    pub library: PathBuf,
    origin: Origin,
}

/// How to call it.
#[derive(Debug, Clone)]
enum Origin {
    /// Whatever `cargo` this command runs under.
    Active,
    /// A rustup toolchain by name.
    Rustup(&'static str),
    /// Debian's packages `rustc-web`, `cargo-web`, `rust-web-src`.
    Debian,
}

impl Compiler {
    /// The pinned compiler if it is here with its sources, else another that can build the object.
    pub fn choose() -> Result<Self> {
        let mut found = Vec::new();
        for origin in [Origin::Active, Origin::Rustup(PINNED_RUSTC), Origin::Debian] {
            match Self::examine(origin) {
                Some(compiler) if compiler.is_pinned() => return Ok(compiler),
                other => found.extend(other),
            }
        }
        found.into_iter().next().with_context(|| {
            format!("no compiler here has the sources of core (rust-src): run `cargo xtask setup`, or install rustc {PINNED_RUSTC} with rust-src")
        })
    }

    /// Whether its output is the committed object's, byte for byte.
    pub fn is_pinned(&self) -> bool {
        self.release == PINNED_RUSTC
    }

    /// The cargo that builds with this compiler.
    pub fn cargo(&self) -> Command {
        match self.origin {
            Origin::Active => shell::cargo(),
            Origin::Rustup(toolchain) => {
                let mut command = Command::new("rustup");
                command.args(["run", toolchain, "cargo"]);
                command
            }
            Origin::Debian => {
                let mut command = Command::new(DEBIAN_CARGO);
                command.env("RUSTC", DEBIAN_RUSTC);
                command
            }
        }
    }

    /// The compiler of that origin, if it is here, has its sources, and an LLVM that bpf-linker reads.
    fn examine(origin: Origin) -> Option<Self> {
        let version = shell::capture(rustc(&origin)?.arg("-vV"))?;
        let sysroot = shell::capture(rustc(&origin)?.args(["--print", "sysroot"]))?;
        let library = Path::new(&sysroot).join("lib/rustlib/src/rust");
        let llvm = field(&version, "LLVM version: ")?.split('.').next()?.parse::<u32>().ok()?;
        let usable = llvm <= LLVM_MAJOR && library.join("library/core/Cargo.toml").is_file();
        usable.then(|| Some(Self { release: field(&version, "release: ")?.to_owned(), library, origin }))?
    }
}

/// Whether the toolchain that runs this command is the pinned one, with or without sources.
pub fn active_is_pinned() -> bool {
    let version = rustc(&Origin::Active).and_then(|mut command| shell::capture(command.arg("-vV")));
    version.is_some_and(|text| field(&text, "release: ") == Some(PINNED_RUSTC))
}

/// Fails with the remedy unless the right bpf-linker is here.
pub fn require_bpf_linker() -> Result<()> {
    let Some(program) = shell::find("bpf-linker") else {
        bail!("bpf-linker is not installed: run `cargo xtask setup`");
    };
    let wanted = format!("bpf-linker {BPF_LINKER_VERSION}");
    match shell::capture(Command::new(&program).arg("--version")) {
        Some(version) if version == wanted => Ok(()),
        Some(version) => bail!("{} is {version}, not {wanted}: run `cargo xtask setup`", program.display()),
        None => bail!("{} does not run (is libLLVM {LLVM_MAJOR} there?): run `cargo xtask setup`", program.display()),
    }
}

fn rustc(origin: &Origin) -> Option<Command> {
    match origin {
        Origin::Active => Some(Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))),
        Origin::Rustup(toolchain) => {
            // `rustup run` would download a toolchain that is not there.
            let installed = shell::capture(super::rustup()?.args(["toolchain", "list"]))?;
            let here =
                installed.lines().any(|line| line.strip_prefix(toolchain).is_some_and(|rest| rest.starts_with('-')));
            here.then(|| {
                let mut command = Command::new("rustup");
                command.args(["run", toolchain, "rustc"]);
                command
            })
        }
        Origin::Debian => Path::new(DEBIAN_RUSTC).is_file().then(|| Command::new(DEBIAN_RUSTC)),
    }
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}
