//! Brings what building and testing needs.
use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    dist,
    ebpf::{
        self,
        compiler::{self, BPF_LINKER_VERSION, Compiler, PINNED_RUSTC},
    },
    shell,
};

/// Debian's and Ubuntu's packages that bpf-linker is built with.
const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "g++"];

/// Packages that the tests need: a C compiler for victim programs, the libc's symbols to judge
/// inferred sites by, a real program that allocates, a service manager, an interpreter for the dashboard's scripts.
const TEST_PACKAGES: &[&str] =
    &["gcc", "g++", "libc6-dev", "libc6-dbg", "sqlite3", "python3", "python3-dev", "systemd", "nodejs"];

/// Packages that packages are made and tried with.
const DIST_PACKAGES: &[&str] = &["rpm", "dpkg", "curl", "musl-tools", "python3-venv"];

/// Packages that the dashboard is looked at with.
const BROWSER_PACKAGES: &[&str] = &["chromium", "chromium-driver"];

/// Packages that virtual machines are made and run with.
const VM_PACKAGES: &[&str] = &["qemu-system-x86", "mmdebstrap", "cpio", "debian-archive-keyring"];

/// Debian's own newer compiler with its sources, for machines without rustup.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// Where distributions put LLVM 22.
const LLVM_PREFIXES: &[&str] = &["/usr/lib/llvm-22", "/usr/lib64/llvm22", "/usr/lib/llvm22"];

/// Brings each thing that is not there, and ends with a sentence for each it could not.
pub fn setup(minimal: bool) -> Result<()> {
    let mut missing = Vec::new();
    let mut bring = |what: &str, step: &mut dyn FnMut() -> Result<()>| {
        println!("\n### {what}");
        match step() {
            Ok(()) => {}
            Err(error) => missing.push(format!("{what}: {error:#}.")),
        }
    };
    bring("packages for the tests", &mut || packages(TEST_PACKAGES));
    if !minimal {
        bring("packages that packages are made with", &mut || packages(DIST_PACKAGES));
        bring("a browser", &mut || packages(BROWSER_PACKAGES));
        bring("packages that virtual machines are made with", &mut || packages(VM_PACKAGES));
    }
    bring("compiler with the sources of core", &mut compiler);
    if !minimal {
        bring("the target that packages are built for", &mut dist::bring_target);
    }
    bring("rustfmt and clippy", &mut formatter_and_linter);
    bring("bpf-linker", &mut bpf_linker);
    if !minimal {
        bring("cargo-deny", &mut cargo_deny);
    }
    println!();
    if missing.is_empty() {
        println!("setup: everything is here");
        return Ok(());
    }
    for sentence in &missing {
        println!("missing: {sentence}");
    }
    bail!("setup could not bring {} of what `cargo xtask test` needs", missing.len())
}

/// Installs what is missing of some packages.
pub fn packages(names: &[&str]) -> Result<()> {
    let missing: Vec<_> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        println!("here: {}", names.join(", "));
        return Ok(());
    }
    if shell::find("apt-get").is_none() {
        bail!("install what your distribution calls {}: there is no apt-get here", missing.join(", "));
    }
    let why = format!("install {}", missing.join(", "));
    let install = || {
        let mut command = apt_get(&why)?;
        shell::run(command.args(["install", "--yes", "--no-install-recommends"]).args(&missing))
    };
    install().or_else(|error| {
        // The lists may be absent or too old to name files that still exist.
        println!("{error:#}; trying again with fresh package lists");
        shell::run(apt_get("fetch package lists")?.arg("update"))?;
        install()
    })
}

fn apt_get(why: &str) -> Result<Command> {
    let mut command = shell::as_root("apt-get", why)?;
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    shell::capture(&mut query).is_some_and(|status| status == "installed")
}

/// The pinned compiler with rust-src through rustup; else any compiler with sources; else Debian's.
fn compiler() -> Result<()> {
    if let Some(here) = Compiler::choose().ok().filter(Compiler::is_pinned) {
        println!("here: rustc {} with the sources in {}", here.release, here.library.display());
        return Ok(());
    }
    let by_rustup = match ebpf::rustup() {
        None => Err(anyhow::anyhow!("rustup is not installed")),
        Some(mut rustup) if compiler::active_is_pinned() => shell::run(rustup.args(["component", "add", "rust-src"])),
        Some(mut rustup) => shell::run(rustup.args([
            "toolchain",
            "install",
            PINNED_RUSTC,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ])),
    };
    let Err(error) = by_rustup else { return Ok(()) };
    println!("{error:#}; looking for another compiler");
    if Compiler::choose().is_err() {
        packages(COMPILER_PACKAGES).with_context(|| format!("rustc {PINNED_RUSTC} with rust-src: {error:#}"))?;
    }
    let other = Compiler::choose()?;
    println!(
        "rustc {} with the sources in {} builds the object, but only {PINNED_RUSTC} gives the committed bytes",
        other.release,
        other.library.display()
    );
    Ok(())
}

/// A toolchain of rustup's minimal profile has neither.
fn formatter_and_linter() -> Result<()> {
    let works = |tool: &str| shell::capture(shell::cargo().args([tool, "--version"])).is_some();
    if works("fmt") && works("clippy") {
        println!("here: cargo fmt, cargo clippy");
        return Ok(());
    }
    let mut rustup =
        ebpf::rustup().context("install rustfmt and clippy for this compiler: rustup is not here to do it")?;
    shell::run(rustup.args(["component", "add", "rustfmt", "clippy"]))
}

fn bpf_linker() -> Result<()> {
    if compiler::require_bpf_linker().is_ok() {
        println!("here: bpf-linker {BPF_LINKER_VERSION}");
        return Ok(());
    }
    packages(LINKER_PACKAGES)?;
    let mut install = shell::cargo();
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", llvm_prefix()?);
    shell::run(&mut install)?;
    compiler::require_bpf_linker()
}

fn llvm_prefix() -> Result<PathBuf> {
    if let Some(prefix) = std::env::var_os("LLVM_PREFIX") {
        return Ok(prefix.into());
    }
    let known = LLVM_PREFIXES.iter().map(Path::new).find(|prefix| prefix.join("include/llvm").is_dir());
    known
        .map(Path::to_owned)
        .context("LLVM 22 is in none of its usual places: set LLVM_PREFIX to where its `include` folder is")
}

fn cargo_deny() -> Result<()> {
    if shell::find("cargo-deny").is_some() {
        println!("here: cargo-deny");
        return Ok(());
    }
    println!("building it takes two minutes or more");
    shell::run(shell::cargo().args(["install", "cargo-deny", "--locked"]))
}
