//! Holds the Kubernetes manifest against Kubernetes' own schemas, in which an unknown or misspelt field is an error.
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace::Workspace};

/// From PyPI: the schemas of the releases, and what reads them.
const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// The oldest and the newest release whose schemas it has.
const RELEASES: [&str; 2] = ["1.25", "1.37"];

/// Checks `packaging/kubernetes.yaml`.
pub fn check(workspace: &Workspace) -> Result<()> {
    let place = workspace.target.join("kubernetes");
    let validate = place.join("bin/kubernetes-validate");
    if !validate.is_file() {
        let _ = fs::remove_dir_all(&place);
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
        shell::run(Command::new(place.join("bin/pip")).args(["install", "--quiet", VALIDATOR]))?;
    }
    let manifest = workspace.packaging("kubernetes.yaml")?;
    let misspelt = manifest.replace("hostPID:", "hostPid:");
    for release in RELEASES {
        if refusal(&validate, release, &misspelt, &place)?.is_none() {
            bail!("the schemas of Kubernetes {release} accept a misspelt field: they judge nothing");
        }
        if let Some(why) = refusal(&validate, release, &manifest, &place)? {
            bail!("packaging/kubernetes.yaml is none of Kubernetes {release}'s: {why}");
        }
        println!("packaging/kubernetes.yaml holds against the schemas of Kubernetes {release}");
    }
    Ok(())
}

/// Why a manifest is none of this release, if so.
fn refusal(validate: &Path, release: &str, manifest: &str, place: &Path) -> Result<Option<String>> {
    let file = place.join("manifest.yaml");
    fs::write(&file, manifest)?;
    let mut command = Command::new(validate);
    command.args(["--strict", "--quiet", "--kubernetes-version", release]).arg(&file).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {}", validate.display()))?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    Ok((!output.status.success()).then_some(said))
}
