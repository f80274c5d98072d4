//! Makes what a machine boots: Debian's kernel, a small Debian with the package installed, and the tests.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    Plan,
    machine::{FAILED, PASSED},
};
use crate::{shell, workspace::Workspace};

/// The release that the machines run, whatever their kernel: the oldest whose systemd scores the unit as promised.
const SUITE: &str = "bookworm";

/// Beside the essential packages: the service manager, and what the tests ask with.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,procps,curl";

/// Left out of the root, which lies in the machine's memory.
const EXCLUDED: &[&str] = &["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/zoneinfo/*"];

/// Victims that the tests run, compiled here: the machine has no compiler.
const VICTIMS: &[&str] = &[
    "busy",
    "overrun",
    "functions",
    "sizes",
    "threads",
    "longjmp",
    "trace_one",
    "dynamic_threshold",
    "large_blocks",
    "crossings_storm",
];

/// What they are counted by a second time.
const INTERPOSER: (&str, &str) = ("interpose", "interpose.so");

/// How the kernel tests compile them.
const FLAGS: &[&str] = &["-O1", "-g", "-fno-builtin", "-pthread"];

/// What the machine runs after its boot, and the end of it.
const UNIT: &str = "[Unit]
DefaultDependencies=no
Wants=basic.target multi-user.target
After=basic.target

[Service]
Type=oneshot
# A victim that the kernel kills for memory is no end of the tests.
OOMPolicy=continue
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/machine/run
# The emulator ends at it. It does not at a power-off that comes after a suspend.
ExecStopPost=/bin/systemctl --no-block --force reboot
";

/// A kernel.
pub struct Kernel {
    /// Its version.
    pub release: String,
    /// The file.
    pub image: PathBuf,
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("vm")
}

/// Fetches the kernel for cloud machines of a release: small, and with all that is needed built in.
pub fn kernel(workspace: &Workspace, suite: &str) -> Result<Kernel> {
    let (image, name) = (folder(workspace).join(format!("vmlinuz-{suite}")), folder(workspace).join(suite));
    if !image.exists() {
        fs::create_dir_all(folder(workspace))?;
        let unpacked = tempfile::tempdir_in(folder(workspace))?;
        let root = unpacked.path().join("root");
        // Unpacked only, so that nothing of it runs; dependencies lead from the name without a version to the file.
        bootstrap("extract", &["--include=linux-image-cloud-amd64", "--format=directory"], suite, &root)?;
        let found = find(&root, &|name| name.starts_with("vmlinuz-") || name == "vmlinuz");
        let found = found.with_context(|| format!("the packages of {suite} hold no kernel"))?;
        let release = match found.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-")) {
            Some(release) => release.to_owned(),
            // Newer packages: usr/lib/modules/RELEASE/vmlinuz.
            None => found.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned(),
        };
        fs::write(&name, release)?;
        fs::copy(&found, &image)?;
    }
    Ok(Kernel { release: fs::read_to_string(&name).unwrap_or_default(), image })
}

/// The first file below a folder whose name is wanted.
fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let entries: Vec<_> = fs::read_dir(folder).ok()?.flatten().collect();
    let is_file = |entry: &&fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    let here = entries.iter().filter(is_file).find(|entry| entry.file_name().to_str().is_some_and(wanted));
    here.map(fs::DirEntry::path).or_else(|| {
        let folders = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.filter_map(|entry| find(&entry.path(), wanted)).next()
    })
}

fn bootstrap(variant: &str, options: &[&str], suite: &str, target: &Path) -> Result<()> {
    let mut mmdebstrap = shell::as_root("mmdebstrap", "make a root of Debian's packages")?;
    mmdebstrap.args(["--quiet", &format!("--variant={variant}")]).args(options);
    // Mirrors lag, and a suite that moves soon counts as expired; what it signs is checked all the same.
    mmdebstrap.arg("--aptopt=Acquire::Check-Valid-Until \"false\"").arg(suite).arg(target);
    if let Some(mirror) = mirror() {
        mmdebstrap.arg(mirror);
    }
    // Beside the result: `/tmp` may be small. Not below `/dev`, which the new root has too while it is made.
    if let Some(folder) = target.parent() {
        mmdebstrap.env("TMPDIR", folder);
    }
    shell::run(&mut mmdebstrap)
}

/// The Debian mirror that this machine's apt is set up with.
fn mirror() -> Option<String> {
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let text: String = sources.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let is_mirror = |word: &&str| word.contains("://") && word.trim_end_matches('/').ends_with("/debian");
    lines.flat_map(str::split_whitespace).find(is_mirror).map(str::to_owned)
}

/// An archive of a root with the package installed and enabled.
pub fn root(workspace: &Workspace, deb: &Path) -> Result<PathBuf> {
    let folder = folder(workspace);
    fs::create_dir_all(&folder)?;
    let (plain, archive) = (folder.join(format!("{SUITE}.tar")), folder.join("root.cpio"));
    if !plain.exists() {
        let excluded = EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}"));
        let kept = "--dpkgopt=path-include=/usr/share/doc/malloc-daemon/*".to_owned();
        let include = format!("--include={PACKAGES}");
        let options: Vec<_> = excluded.chain([kept, include]).collect();
        let made = folder.join("unfinished.tar");
        bootstrap("essential", &options.iter().map(String::as_str).collect::<Vec<_>>(), SUITE, &made)?;
        fs::rename(&made, &plain)?;
    }
    let unpacked = tempfile::tempdir_in(&folder)?;
    let root = unpacked.path();
    let as_root = |program| shell::as_root(program, "install the package into a root of its own");
    shell::run(as_root("tar")?.arg("--extract").arg("--file").arg(&plain).arg("--directory").arg(root))?;
    fs::copy(deb, root.join("tmp/package.deb"))?;
    shell::run(as_root("chroot")?.arg(root).args(["dpkg", "--install", "/tmp/package.deb"]))?;
    fs::remove_file(root.join("tmp/package.deb"))?;
    shell::run(as_root("chroot")?.arg(root).args(["systemctl", "enable", "malloc-daemon.service"]))?;
    fs::write(root.join("etc/systemd/system/machine.service"), UNIT)?;
    pack(root, &archive)?;
    Ok(archive)
}

/// The root with the tests of one machine, and the package once more.
pub fn initrd(workspace: &Workspace, root: &Path, deb: &Path, plan: &Plan) -> Result<PathBuf> {
    let payload = tempfile::tempdir_in(folder(workspace))?;
    let inside = payload.path().join("machine");
    fs::create_dir_all(inside.join("victims"))?;
    compile_victims(workspace, &inside.join("victims"))?;
    fs::copy(deb, inside.join("package.deb"))?;
    let mut script =
        "#!/bin/sh\ncd /machine\nexport MALLOC_DAEMON_MACHINE=own MALLOC_DAEMON_BIN=/usr/bin/malloc-daemon\n\
         export MALLOC_DAEMON_VICTIMS=/machine/victims MALLOC_DAEMON_TREE=/machine\n\
         export MALLOC_DAEMON_PATIENCE=600 RUST_BACKTRACE=0\nfailed=\n"
            .to_owned();
    let programs = test_programs(workspace, plan)?;
    for ((name, tests), program) in plan.tests.iter().zip(&programs) {
        shell::run(Command::new("strip").arg("-o").arg(inside.join(name)).arg(program))?;
        // Named tests run in this order, each in a process of its own.
        let runs =
            if tests.is_empty() { vec![String::new()] } else { tests.iter().map(|t| format!("--exact {t}")).collect() };
        for run in runs {
            script += &format!("read up rest < /proc/uptime; echo \"at $up s: {name} {run}\"\n");
            script += &format!("./{name} --test-threads=1 --color=never {run} || failed=yes\n");
        }
    }
    script += &format!("[ -z \"$failed\" ] && echo '{PASSED}' || echo '{FAILED}'\n");
    crate::dist::tree::write(&inside.join("run"), script.as_bytes(), 0o755)?;
    // Not where the tests were built: a machine that boots may empty that, as it does `/tmp`.
    shell::run(Command::new("cp").arg("-r").arg(workspace.root.join("packaging")).arg(&inside))?;
    let more = folder(workspace).join("tests.cpio");
    pack(payload.path(), &more)?;
    // The kernel unpacks one archive after the other.
    let whole = folder(workspace).join("initrd.cpio");
    fs::copy(root, &whole)?;
    let mut file = fs::OpenOptions::new().append(true).open(&whole)?;
    std::io::copy(&mut fs::File::open(&more)?, &mut file)?;
    Ok(whole)
}

fn compile_victims(workspace: &Workspace, folder: &Path) -> Result<()> {
    let programs = VICTIMS.iter().map(|name| (*name, *name, &[][..]));
    for (name, output, more) in programs.chain([(INTERPOSER.0, INTERPOSER.1, &["-shared", "-fPIC"][..])]) {
        let source = workspace.root.join("tests/programs").join(format!("{name}.c"));
        let mut compiler = Command::new("cc");
        compiler.args(FLAGS).args(more).arg("-o").arg(folder.join(output)).arg(source);
        if !compiler.status().context("cannot start cc")?.success() {
            bail!("{name}.c does not compile");
        }
    }
    Ok(())
}

/// Builds the test programs of a plan; in its order.
fn test_programs(workspace: &Workspace, plan: &Plan) -> Result<Vec<PathBuf>> {
    let mut build = shell::cargo();
    build.current_dir(&workspace.root).args(["test", "--locked", "--no-run", "--package", "kernel-tests"]);
    build.args(["--features", "real-kernel,own-machine", "--message-format=json-render-diagnostics"]);
    for (name, _) in plan.tests {
        build.args(["--test", name]);
    }
    build.stderr(std::process::Stdio::inherit());
    let output = build.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    let messages: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let program = |name: &str| {
        let mut of_name = messages.iter().filter(|message| message["target"]["name"] == name);
        of_name.find_map(|message| message["executable"].as_str()).map(PathBuf::from)
    };
    let found = plan.tests.iter().map(|(name, _)| program(name).with_context(|| format!("cargo names no {name}")));
    found.collect()
}

/// Packs a folder as the kernel unpacks it, owned by who owns it in there.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut cpio = shell::as_root("sh", "pack a root with its owners")?;
    cpio.args(["-c", "cd \"$1\" && find . | cpio --quiet --create --format=newc > \"$2\"", "sh"]);
    shell::run(cpio.arg(folder).arg(archive))
}
