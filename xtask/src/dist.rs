//! Makes what is shipped: a static binary, an archive, a .deb and an .rpm with pages, completions, unit and dashboards.
mod check;
mod kubernetes;
pub mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    ebpf,
    shell::{self, Privilege},
    workspace::Workspace,
};

/// What the binary is built for: linked statically, so that one file runs on every distribution.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// The machine in Debian's words and in rpm's.
const DEB_ARCH: &str = "amd64";
const RPM_ARCH: &str = "x86_64";

/// What packages are made with, and the packages that have it.
const TOOLS: &[(&str, &str)] = &[
    ("dpkg-deb", "dpkg"),
    ("rpmbuild", "rpm"),
    ("tar", "tar"),
    ("gzip", "gzip"),
    ("strip", "binutils"),
    // The cryptography of `tls` is partly C.
    ("musl-gcc", "musl-tools"),
];

/// What else they are tried with.
const TRIED_WITH: &[(&str, &str)] = &[("unshare", "util-linux"), ("curl", "curl"), ("python3", "python3-venv")];

/// What was made.
pub struct Packages {
    /// The .deb.
    pub deb: PathBuf,
    /// The .rpm.
    pub rpm: PathBuf,
    /// The archive.
    pub archive: PathBuf,
}

/// Builds everything into `output` (`target/dist` unless told otherwise).
pub fn dist(workspace: &Workspace, output: Option<&Path>) -> Result<Packages> {
    let output = output.map_or_else(|| workspace.target.join("dist"), Path::to_owned);
    if let Some(why) = missing_of(TOOLS).or_else(missing_target) {
        bail!("{why}: run `cargo xtask setup`");
    }
    let version = workspace.version()?;
    // What an earlier tree gave is not to be taken for what this one gives.
    let _ = fs::remove_dir_all(&output);
    let daemon = static_daemon(workspace)?;
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let root = output.join("root");
    tree::stage(workspace, &daemon, &root)?;
    let epoch = last_change(workspace);
    let made = Packages {
        deb: deb(workspace, &root, &output, &version, &epoch)?,
        rpm: rpm(workspace, &root, &output, &version, &epoch)?,
        archive: archive(&root, &output, &version, &epoch)?,
    };
    sums(&output, &[&made.deb, &made.rpm, &made.archive])?;
    for file in [&made.deb, &made.rpm, &made.archive] {
        println!("{}: {} bytes", workspace.relative(file).display(), fs::metadata(file)?.len());
    }
    Ok(made)
}

/// Holds the manifest against Kubernetes' schemas, installs the packages into throwaway copies of this machine's root, runs
/// what they brought, takes them off again.
pub fn check(workspace: &Workspace) -> Result<()> {
    kubernetes::check(workspace)?;
    let made = dist(workspace, None)?;
    check::installs(workspace, &made)
}

/// Why packages cannot be made and tried here, if so.
pub fn missing() -> Option<String> {
    let may = || match shell::privilege() {
        Privilege::None(why) => Some(why.to_owned()),
        Privilege::Root | Privilege::Sudo => None,
    };
    missing_of(TOOLS).or_else(|| missing_of(TRIED_WITH)).or_else(missing_target).or_else(may)
}

/// The first of some tools, each with the package that has it, that is not here.
pub fn missing_of(tools: &[(&str, &str)]) -> Option<String> {
    let (tool, package) = tools.iter().find(|(tool, _)| shell::find(tool).is_none())?;
    Some(format!("{tool} of the package {package} is not here"))
}

fn missing_target() -> Option<String> {
    (!has_target() && ebpf::rustup().is_none())
        .then(|| format!("this compiler has no {TARGET}, and rustup is not here"))
}

fn has_target() -> bool {
    let of = |sysroot: String| Path::new(&sysroot).join("lib/rustlib").join(TARGET).is_dir();
    shell::capture(Command::new("rustc").args(["--print", "sysroot"])).is_some_and(of)
}

/// Brings the compiler's library for [`TARGET`], by rustup where it is missing.
pub fn bring_target() -> Result<()> {
    if has_target() {
        println!("here: {TARGET}");
        return Ok(());
    }
    let mut rustup =
        ebpf::rustup().with_context(|| format!("this compiler has no {TARGET}, and rustup is not here to add it"))?;
    shell::run(rustup.args(["target", "add", TARGET]))
}

/// Builds the daemon for [`TARGET`].
fn static_daemon(workspace: &Workspace) -> Result<PathBuf> {
    bring_target()?;
    let build = ["build", "--locked", "--release", "--package", "malloc-daemon", "--features", "tls"];
    shell::run(shell::cargo().current_dir(&workspace.root).args(build).args(["--target", TARGET]))?;
    Ok(workspace.target.join(TARGET).join("release/malloc-daemon"))
}

/// What the .deb of a version is called.
pub fn deb_name(version: &str) -> String {
    format!("malloc-daemon_{version}_{DEB_ARCH}.deb")
}

/// When the tree was last changed, seconds since 1970: packages carry this time, so that the same tree gives the same
/// bytes.
fn last_change(workspace: &Workspace) -> String {
    let mut git = Command::new("git");
    git.current_dir(&workspace.root).args(["log", "-1", "--format=%ct"]);
    shell::capture(&mut git).unwrap_or_else(|| "0".to_owned())
}

fn deb(workspace: &Workspace, root: &Path, output: &Path, version: &str, epoch: &str) -> Result<PathBuf> {
    let control = root.join("DEBIAN");
    fs::create_dir_all(&control)?;
    let kilobytes = tree::size(root)? / 1024;
    let template = workspace.packaging("deb/control")?;
    let filled = [("@VERSION@", version), ("@ARCH@", DEB_ARCH), ("@KILOBYTES@", &kilobytes.to_string())];
    fs::write(control.join("control"), tree::fill(&template, &filled))?;
    fs::write(control.join("conffiles"), "/etc/malloc-daemon/config.toml\n")?;
    for script in ["postinst", "prerm", "postrm"] {
        tree::write(&control.join(script), workspace.packaging(&format!("deb/{script}"))?.as_bytes(), 0o755)?;
    }
    let file = output.join(deb_name(version));
    let built = Command::new("dpkg-deb")
        .args(["--build", "--root-owner-group", "-Zxz"])
        .args([root, &file])
        .env("SOURCE_DATE_EPOCH", epoch)
        .status();
    // The control files are the .deb's alone.
    fs::remove_dir_all(&control)?;
    if !built.context("cannot start dpkg-deb")?.success() {
        bail!("dpkg-deb could not build {}", file.display());
    }
    Ok(file)
}

fn rpm(workspace: &Workspace, root: &Path, output: &Path, version: &str, epoch: &str) -> Result<PathBuf> {
    let top = output.join("rpmbuild");
    let spec = top.join("malloc-daemon.spec");
    fs::create_dir_all(&top)?;
    let staged = root.display().to_string();
    fs::write(
        &spec,
        tree::fill(&workspace.packaging("malloc-daemon.spec")?, &[("@VERSION@", version), ("@ROOT@", &staged)]),
    )?;
    let define = |name: &str, value: &str| format!("--define={name} {value}");
    let mut build = Command::new("rpmbuild");
    build
        .args(["-bb", "--quiet", "--target", RPM_ARCH])
        .arg(define("_topdir", &top.display().to_string()))
        .arg(define("use_source_date_epoch_as_buildtime", "1"))
        .arg(define("clamp_mtime_to_source_date_epoch", "1"))
        .arg(define("_buildhost", "localhost"))
        .arg(&spec)
        .env("SOURCE_DATE_EPOCH", epoch);
    shell::run(&mut build)?;
    let name = format!("malloc-daemon-{version}-1.{RPM_ARCH}.rpm");
    let file = output.join(&name);
    fs::rename(top.join("RPMS").join(RPM_ARCH).join(&name), &file)
        .with_context(|| format!("rpmbuild made no {name}"))?;
    fs::remove_dir_all(&top)?;
    Ok(file)
}

fn archive(root: &Path, output: &Path, version: &str, epoch: &str) -> Result<PathBuf> {
    let file = output.join(format!("malloc-daemon-{version}-{TARGET}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=root:0", "--group=root:0", "--numeric-owner"])
        .arg(format!("--mtime=@{epoch}"))
        .arg("--use-compress-program=gzip --no-name --best")
        .arg("--file")
        .arg(&file)
        .arg("--directory")
        .arg(root)
        .arg(".");
    shell::run(&mut tar)?;
    Ok(file)
}

fn sums(output: &Path, files: &[&PathBuf]) -> Result<()> {
    let names = files.iter().filter_map(|file| file.file_name());
    let mut sum = Command::new("sha256sum");
    let text = shell::capture(sum.current_dir(output).args(names)).context("sha256sum failed")?;
    fs::write(output.join("SHA256SUMS"), text + "\n")?;
    Ok(())
}
