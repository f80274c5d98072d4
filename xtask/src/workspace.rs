//! Where the tree, its build output and its dependencies' sources are.
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// The checkout that the command works on.
pub struct Workspace {
    /// Absolute path of the folder that holds the root `Cargo.toml`.
    pub root: PathBuf,
    /// Absolute path of cargo's target folder.
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo, without resolving dependencies.
    pub fn find() -> Result<Self> {
        // `cargo run` sets it to the xtask folder of the checkout it runs in; the compiled-in
        // value would be that of the checkout that built the binary.
        let xtask =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let metadata = metadata(&xtask, &["--no-deps"])?;
        Ok(Self { root: path_in(&metadata, "workspace_root")?, target: path_in(&metadata, "target_directory")? })
    }

    /// The folders that hold the sources of the packages from outside the tree.
    pub fn dependency_roots(&self) -> Result<BTreeSet<PathBuf>> {
        let metadata = metadata(&self.root, &[])?;
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
        let outside = packages
            .iter()
            .filter(|package| !package["source"].is_null())
            .filter_map(|package| Some(Path::new(package["manifest_path"].as_str()?).parent()?.parent()?.to_owned()));
        Ok(outside.collect())
    }

    /// The version of the daemon.
    pub fn version(&self) -> Result<String> {
        let metadata = metadata(&self.root, &["--no-deps"])?;
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
        let daemon = packages.iter().find(|package| package["name"] == "malloc-daemon");
        let version = daemon.and_then(|daemon| daemon["version"].as_str());
        Ok(version.context("cargo metadata knows no malloc-daemon")?.to_owned())
    }

    /// The text of a file below `packaging/`.
    pub fn packaging(&self, name: &str) -> Result<String> {
        let path = self.root.join("packaging").join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The daemon that `cargo build --release` makes.
    pub fn daemon_binary(&self) -> PathBuf {
        self.target.join("release/malloc-daemon")
    }

    /// The object that the daemon embeds, kept in the repository.
    pub fn committed_object(&self) -> PathBuf {
        self.root.join("malloc-daemon/src/probes/malloc.bpf.o")
    }

    /// `path` as people write it: relative to the root where it lies below it.
    pub fn relative<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

fn metadata(folder: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = shell::cargo();
    command.current_dir(folder).args(["metadata", "--format-version", "1", "--locked"]).args(arguments);
    let output = command.output().context("cannot start `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    serde_json::from_slice(&output.stdout).context("cannot read what `cargo metadata` printed")
}

fn path_in(metadata: &Value, key: &str) -> Result<PathBuf> {
    metadata[key].as_str().map(PathBuf::from).with_context(|| format!("`cargo metadata` printed no {key}"))
}
