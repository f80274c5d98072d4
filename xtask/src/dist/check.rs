//! Installs the packages into throwaway copies of this machine's root, and takes them off again.
use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::Packages;
use crate::{shell, workspace::Workspace};

/// Runs in a mount namespace of its own; its arguments are the kind and the file of a package, and the version.
const SCRIPT: &str = "xtask/src/dist/installs.sh";

/// Installs each package, runs what it brought, takes it off.
pub fn installs(workspace: &Workspace, made: &Packages) -> Result<()> {
    if let Some(why) = super::missing() {
        bail!("cannot install packages: {why}");
    }
    let version = workspace.version()?;
    for (kind, file) in [("deb", &made.deb), ("rpm", &made.rpm)] {
        install(workspace, kind, file, &version).with_context(|| format!("the .{kind} does not install well"))?;
    }
    let listed = shell::capture(Command::new("tar").arg("--list").arg("--file").arg(&made.archive));
    if !listed.is_some_and(|names| names.lines().any(|name| name == "./usr/bin/malloc-daemon")) {
        bail!("{} holds no daemon", made.archive.display());
    }
    Ok(())
}

fn install(workspace: &Workspace, kind: &str, file: &Path, version: &str) -> Result<()> {
    let mut script = shell::as_root("unshare", "install a package into a throwaway copy of the root")?;
    script.args(["--mount", "--propagation", "private", "bash"]).arg(workspace.root.join(SCRIPT));
    shell::run(script.arg(kind).arg(file).arg(version))
}
