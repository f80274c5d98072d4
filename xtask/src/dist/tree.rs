//! Lays out the files of a package as they lie on the machine that installs it.
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace::Workspace};

/// Files of the repository that are installed as they are: from, to.
const COPIED: &[(&str, &str)] = &[
    ("packaging/config.toml", "etc/malloc-daemon/config.toml"),
    ("packaging/malloc-daemon.service", "usr/lib/systemd/system/malloc-daemon.service"),
    ("packaging/malloc-daemon.socket", "usr/lib/systemd/system/malloc-daemon.socket"),
    ("packaging/socket-only.conf", "usr/share/doc/malloc-daemon/socket-only.conf"),
    ("packaging/malloc-daemon.sysusers", "usr/lib/sysusers.d/malloc-daemon.conf"),
    ("packaging/prometheus-alerts.yml", "usr/share/doc/malloc-daemon/prometheus-alerts.yml"),
    ("packaging/grafana-dashboard.json", "usr/share/doc/malloc-daemon/grafana-dashboard.json"),
    ("packaging/kubernetes.yaml", "usr/share/doc/malloc-daemon/kubernetes.yaml"),
    ("packaging/Containerfile", "usr/share/doc/malloc-daemon/Containerfile"),
    ("README.md", "usr/share/doc/malloc-daemon/README.md"),
    ("docs/api.md", "usr/share/doc/malloc-daemon/api.md"),
    ("docs/contract.md", "usr/share/doc/malloc-daemon/contract.md"),
    ("docs/operating.md", "usr/share/doc/malloc-daemon/operating.md"),
    ("docs/overhead.md", "usr/share/doc/malloc-daemon/overhead.md"),
    ("docs/case-threshold.md", "usr/share/doc/malloc-daemon/case-threshold.md"),
    ("LICENSE-MIT", "usr/share/doc/malloc-daemon/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/malloc-daemon/LICENSE-APACHE"),
    ("packaging/deb/copyright", "usr/share/doc/malloc-daemon/copyright"),
];

/// The same, for what is executed.
const PROGRAMS: &[(&str, &str)] =
    &[("packaging/malloc-daemon-rights", "usr/lib/systemd/system-generators/malloc-daemon-rights")];

/// Where each shell looks for completions.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/malloc-daemon"),
    ("zsh", "usr/share/zsh/vendor-completions/_malloc-daemon"),
    ("fish", "usr/share/fish/vendor_completions.d/malloc-daemon.fish"),
];

const MANUAL: &str = "usr/share/man/man1";

/// Puts everything below `root`. Pages and completions are what `daemon` itself writes.
pub fn stage(workspace: &Workspace, daemon: &Path, root: &Path) -> Result<()> {
    let stripped = root.join("usr/bin/malloc-daemon");
    write(&stripped, &fs::read(daemon).with_context(|| format!("cannot read {}", daemon.display()))?, 0o755)?;
    shell::run(Command::new("strip").args(["--strip-unneeded"]).arg(&stripped))?;
    for (files, mode) in [(COPIED, 0o644), (PROGRAMS, 0o755)] {
        for (from, to) in files {
            let path = workspace.root.join(from);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            write(&root.join(to), &bytes, mode)?;
        }
    }
    for (name, to) in COMPLETIONS {
        let script = Command::new(&stripped).args(["completions", name]).output().context("cannot start the daemon")?;
        if !script.status.success() || script.stdout.is_empty() {
            bail!("`malloc-daemon completions {name}` failed: {}", String::from_utf8_lossy(&script.stderr));
        }
        write(&root.join(to), &script.stdout, 0o644)?;
    }
    let manual = root.join(MANUAL);
    fs::create_dir_all(&manual)?;
    shell::run(Command::new(&stripped).arg("manual").arg(&manual))?;
    let pages: Vec<_> = fs::read_dir(&manual)?.flatten().map(|entry| entry.path()).collect();
    shell::run(Command::new("gzip").args(["--no-name", "--best"]).args(&pages))?;
    modes(root)
}

/// Sets what the umask of whoever builds would decide otherwise.
fn modes(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            modes(&entry.path())?;
        } else if entry.path().extension().is_some_and(|extension| extension == "gz") {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

/// Writes a file with its folders.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Bytes of all files below a folder.
pub fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)?.flatten() {
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// Puts values in the place of names.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_wherever_a_name_stands() {
        assert_eq!(fill("v@V@ and @V@-@W@", &[("@V@", "1"), ("@W@", "2")]), "v1 and 1-2");
    }

    #[test]
    fn what_is_written_has_its_mode_and_is_counted() {
        let folder = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        write(&folder.join("a/b"), b"12345", 0o600).expect("written");
        write(&folder.join("c"), b"123", 0o755).expect("written");
        assert_eq!(size(&folder).expect("counted"), 8);
        let mode = fs::metadata(folder.join("a/b")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_dir_all(folder).expect("removed");
    }
}
