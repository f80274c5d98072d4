//! Builds the eBPF object, and proves that the committed one is what the sources give.
pub mod budgets;
pub mod compiler;
pub mod object;

use std::{ffi::OsString, fs, path::Path, process::Command, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace::Workspace};
use compiler::{BPF_LINKER_VERSION, Compiler, PINNED_RUSTC};
use object::Shape;

/// What the kernel crate is built for. A big-endian machine would need its own object.
const TARGET: &str = "bpfel-unknown-none";

/// The machine whose registers the programs read arguments from (`struct pt_regs`). Another
/// machine needs another object, built with another value here.
const MACHINE: &str = "x86_64";

/// Variables that would change what the compiler gives.
const FOREIGN_SETTINGS: [&str; 7] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
];

/// Builds the object and writes it to `output`, or else over the committed one.
pub fn write(workspace: &Workspace, output: Option<&Path>) -> Result<()> {
    let compiler = Compiler::choose()?;
    if output.is_none() && !compiler.is_pinned() {
        bail!(
            "the committed object is built by rustc {PINNED_RUSTC}, but only {} has rust-src: run `cargo xtask setup`, \
             or give `--output FILE`",
            compiler.release
        );
    }
    let built = build(workspace, &compiler)?;
    let committed = workspace.committed_object();
    let output = output.unwrap_or(&committed);
    if let Some(folder) = output.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(output, &built).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}: {} bytes\n{}", workspace.relative(output).display(), built.len(), Shape::of(&built)?);
    Ok(())
}

/// Builds the object and compares it with the committed one: every byte if the compiler is the
/// pinned one, else what must not depend on the compiler.
pub fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.committed_object();
    let shown = workspace.relative(&path).display();
    let committed =
        fs::read(&path).with_context(|| format!("cannot read {shown}: build it with `cargo xtask ebpf`"))?;
    budgets::check(workspace, &Shape::of(&committed)?)?;
    let compiler = Compiler::choose()?;
    let built = build(workspace, &compiler)?;
    if committed == built {
        println!("{shown} is what the sources give: {} bytes, the same from rustc {}", built.len(), compiler.release);
        return Ok(());
    }
    let differences = Shape::of(&committed)?.differences(&Shape::of(&built)?);
    if compiler.is_pinned() {
        let list = if differences.is_empty() {
            "  names, counts and BTF agree, the instructions or the debug information do not".to_owned()
        } else {
            differences.join("\n")
        };
        bail!(
            "{shown} is not what the sources give (committed {} bytes, built {} bytes):\n{list}\n\
             If the sources changed, run `cargo xtask ebpf` and commit the object. If they did not, compare the tools: \
             rustc {PINNED_RUSTC}, bpf-linker {BPF_LINKER_VERSION} on LLVM 22.1.",
            committed.len(),
            built.len()
        );
    }
    if !differences.is_empty() {
        bail!(
            "{shown} is not what the sources give, seen with rustc {}:\n{}",
            compiler.release,
            differences.join("\n")
        );
    }
    println!(
        "{shown}: bytes NOT compared, because rustc {} is here and not {PINNED_RUSTC}. \
         Program names, map names, BTF and rough instruction counts agree.",
        compiler.release
    );
    Ok(())
}

/// The object without DWARF, as bytes that do not depend on where the checkout is.
fn build(workspace: &Workspace, compiler: &Compiler) -> Result<Vec<u8>> {
    compiler::require_bpf_linker()?;
    let target = workspace.target.join("bpf");
    let mut command = compiler.cargo();
    for setting in FOREIGN_SETTINGS {
        command.env_remove(setting);
    }
    command
        .current_dir(&workspace.root)
        .args(["build", "--release", "--locked", "--package", "malloc-ebpf", "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&target)
        // `build-std` is unstable; this lets the stable compiler take it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace, compiler)?)
        .env("PATH", std::env::join_paths(shell::search_path())?);
    let start = Instant::now();
    shell::run(&mut command).context("cannot build the eBPF object")?;
    let linked = target.join(TARGET).join("release/malloc-ebpf");
    let linked_bytes = fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let stripped = object::strip(&linked_bytes).with_context(|| format!("cannot strip {}", linked.display()))?;
    println!(
        "    eBPF object built by rustc {} in {:.1} s, {} bytes, {} without DWARF",
        compiler.release,
        start.elapsed().as_secs_f64(),
        linked_bytes.len(),
        stripped.len()
    );
    Ok(stripped)
}

/// Compiler flags, in cargo's encoding that keeps spaces in paths.
fn flags(workspace: &Workspace, compiler: &Compiler) -> Result<OsString> {
    let mut flags: Vec<OsString> = vec![
        "-Clinker=bpf-linker".into(),
        // aya-ebpf's build scripts choose their bindings by it.
        format!("--cfg=bpf_target_arch=\"{MACHINE}\"").into(),
        // BTF is made from debug information.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // 32-bit registers and jumps: Linux 5.1 and later.
        "-Ctarget-cpu=v3".into(),
        "-Cpanic=abort".into(),
    ];
    // BTF line information names source files: without these, by the paths of this machine.
    flags.push(remap(&workspace.root, "/malloc-daemon"));
    flags.push(remap(&compiler.library, "/rust-src"));
    for root in workspace.dependency_roots()? {
        flags.push(remap(&root, "/registry"));
    }
    Ok(flags.join(OsString::from("\u{1f}").as_os_str()))
}

fn remap(from: &Path, to: &str) -> OsString {
    let mut flag = OsString::from("--remap-path-prefix=");
    flag.push(from);
    flag.push("=");
    flag.push(to);
    flag
}

/// Why the object cannot be built here, if it cannot.
pub fn missing() -> Option<String> {
    let linker = compiler::require_bpf_linker().err();
    linker.or_else(|| Compiler::choose().err()).map(|error| format!("{error:#}"))
}

/// `rustup`, if it is there.
pub fn rustup() -> Option<Command> {
    shell::find("rustup").map(Command::new)
}
