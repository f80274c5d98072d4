//! Checks the rules of the tree that the compiler does not know.
mod documents;
mod names;
mod source;
mod table;
mod text;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace::Workspace};
use source::Source;

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    /// Relative to the root, with `/` between its parts.
    pub path: String,
    /// Counted from 1.
    pub line: usize,
    /// Short name of the rule.
    pub rule: &'static str,
    /// What to do.
    pub remedy: String,
}

impl Violation {
    fn new(path: &str, line: usize, rule: &'static str, remedy: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, remedy: remedy.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.remedy)
    }
}

/// A file of the tree, with its path relative to the root.
struct File {
    path: String,
    text: String,
}

/// Checks every rule, prints what is broken, fails if anything is.
pub fn tidy(workspace: &Workspace) -> Result<()> {
    let root = &workspace.root;
    let paths = list(root)?;
    let mut violations = Vec::new();
    let mut tests = Vec::new();

    for path in paths.iter().filter(|path| path.ends_with(".rs")) {
        let text = read(root, path)?;
        violations.extend(text::opens_with_purpose(path, &text));
        violations.extend(text::length(path, &text, table::LONG_FILES));
        match Source::parse(&text) {
            Ok(source) => {
                violations.extend(source::pure(path, &source));
                violations.extend(source::confined(path, &source));
                violations.extend(source::printing(path, &source));
                violations.extend(source::unsafety(path, &text, &source));
                // The tests of these rules speak of guarantees and prove none.
                if !path.starts_with("xtask/") {
                    tests.push(File { text: source.test_text(path, &text), path: path.clone() });
                }
            }
            Err(line) => violations.push(Violation::new(path, line, "syntax", "make it Rust: it has no tokens")),
        }
    }
    violations.extend(text::stale_entries(&paths, table::LONG_FILES));
    for path in paths.iter().filter(|path| table::is_test(path) && !path.ends_with(".rs")) {
        // What is not text cites nothing.
        if let Ok(text) = fs::read_to_string(root.join(path)) {
            tests.push(File { path: path.clone(), text });
        }
    }

    violations.extend(match fs::read_to_string(root.join(table::ARCHITECTURE)) {
        Ok(text) => {
            let mut found = documents::named_paths_exist(&text, |path| root.join(path).exists());
            found.extend(documents::folders_are_named(&text, &table::source_folders(&paths)));
            found
        }
        Err(_) => vec![Violation::new(table::ARCHITECTURE, 1, "architecture", "write it: it is not there")],
    });
    violations.extend(match fs::read_to_string(root.join(table::CONTRACT)) {
        Ok(text) => documents::guarantees_are_cited(&text, &tests),
        Err(_) => vec![Violation::new(table::CONTRACT, 1, "contract", "write it: it is not there")],
    });
    violations.extend(names::check(workspace)?);

    violations.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    // One `use` line may name a confined crate twice.
    violations.dedup();
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => {
            println!("tidy: {} files, 7 rules, nothing broken", paths.len());
            Ok(())
        }
        count => bail!("tidy: rules broken in {count} places"),
    }
}

/// The files of the tree: what git knows or would take, or all but build output where git does not
/// know the tree (an unpacked archive).
fn list(root: &Path) -> Result<Vec<String>> {
    let mut git = std::process::Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let mut paths = match shell::capture(&mut git) {
        Some(listing) => {
            let known = listing.split('\0').filter(|path| !path.is_empty());
            // A file deleted but not yet staged is still listed.
            known.filter(|path| root.join(path).is_file()).map(str::to_owned).collect()
        }
        None => walk(root)?,
    };
    paths.sort_unstable();
    Ok(paths)
}

fn walk(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(root)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let (kind, path, name) = (entry.file_type()?, entry.path(), entry.file_name());
            if kind.is_dir() && name != "target" && name != ".git" {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path.strip_prefix(root)?.to_string_lossy().into_owned());
            }
        }
    }
    Ok(files)
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}
