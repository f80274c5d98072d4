//! Builds the fuzzer, which needs no nightly compiler, and runs it on one reader of hostile bytes or on all.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace::Workspace};

/// What to run.
pub struct Selection {
    /// One target; all of them if none is named.
    pub target: Option<String>,
    /// How long each runs.
    pub seconds: u64,
    /// Whether to keep in the repository what widened the coverage.
    pub keep: bool,
}

impl Selection {
    /// What `cargo xtask test` runs: some 70 s in all.
    pub const IN_TEST: Self = Self { target: None, seconds: 4, keep: false };
}

/// libFuzzer's instrumentation, as stable options of the compiler: counters of edges and traces of comparisons guide the
/// search. What would need nightly, AddressSanitizer, looks for mistakes that safe code cannot make.
const INSTRUMENTATION: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// One input may take this long, in seconds, on a machine that is busy with other things.
const TIMEOUT_SECONDS: u64 = 20;
/// The memory one input may make the process take, in MiB: the readers' own bounds stay below.
const MEMORY_MIB: u64 = 1024;
/// The longest input that is tried.
const INPUT_BYTES: u64 = 64 << 10;

/// What is kept of one target's corpus: the smallest inputs. 16 targets x 16 KiB = 256 KiB in the repository.
const KEPT_BYTES: usize = 16 << 10;
const KEPT_INPUTS: usize = 64;

/// Inputs of the repository: made by the fixtures, once found to do harm, found to widen the coverage.
const COMMITTED: [&str; 3] = ["seeds", "regressions", "corpus"];

/// Runs the chosen targets. Fails when an input does harm, and says where it is.
pub fn fuzz(workspace: &Workspace, selection: &Selection) -> Result<()> {
    let targets = targets(workspace)?;
    let wanted = |name: &&String| selection.target.as_ref().is_none_or(|target| target == *name);
    let chosen: Vec<_> = targets.iter().filter(wanted).collect();
    if chosen.is_empty() {
        bail!("there is no such target; there are {}", targets.join(", "));
    }
    let program = build(workspace)?;
    let mut failed = Vec::new();
    for name in chosen {
        let place = Place { workspace, program: &program, name };
        let ran = place.run(selection.seconds);
        if let Err(error) = ran.and_then(|()| if selection.keep { place.keep() } else { Ok(()) }) {
            eprintln!("error: {error:#}");
            failed.push(name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("the fuzzer found something in {}", failed.join(", "));
    }
    Ok(())
}

/// The targets, by the folders of their seeds.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("fuzz/seeds");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    let host = shell::host()?;
    let output = workspace.target.join("fuzz");
    let mut cargo = shell::cargo();
    cargo
        .current_dir(workspace.root.join("fuzz"))
        // With a target named, build scripts and macros are left without instrumentation.
        .args(["build", "--locked", "--target", &host, "--target-dir"])
        .arg(&output)
        .env("RUSTFLAGS", INSTRUMENTATION.join(" "))
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    shell::run(&mut cargo)?;
    Ok(output.join(host).join("debug/malloc-daemon-fuzz"))
}

/// One target, and where its files are.
struct Place<'a> {
    workspace: &'a Workspace,
    program: &'a Path,
    name: &'a str,
}

impl Place<'_> {
    /// A folder below `target/fuzz`, which outlasts a run.
    fn own(&self, kind: &str) -> Result<PathBuf> {
        let folder = self.workspace.target.join("fuzz").join(kind).join(self.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    fn committed(&self, kind: &str) -> PathBuf {
        self.workspace.root.join("fuzz").join(kind).join(self.name)
    }

    fn fuzzer(&self) -> Command {
        let mut fuzzer = Command::new(self.program);
        fuzzer.env("FUZZ_TARGET", self.name).args([
            format!("-timeout={TIMEOUT_SECONDS}"),
            format!("-rss_limit_mb={MEMORY_MIB}"),
            format!("-max_len={INPUT_BYTES}"),
        ]);
        fuzzer
    }

    fn run(&self, seconds: u64) -> Result<()> {
        let (corpus, findings) = (self.own("corpus")?, self.own("findings")?);
        let mut fuzzer = self.fuzzer();
        fuzzer.args([
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/", findings.display()),
            "-print_final_stats=1".to_owned(),
        ]);
        // New inputs go into the first folder.
        fuzzer.arg(&corpus).args(COMMITTED.map(|kind| self.committed(kind)).iter().filter(|folder| folder.is_dir()));
        let output = fuzzer.output().with_context(|| format!("cannot start {}", self.program.display()))?;
        let told = String::from_utf8_lossy(&output.stderr);
        let name = self.name;
        if output.status.success() {
            println!(
                "{name:<12} {:>10} inputs, {:>6} edges, {:>6} MiB at most",
                stat(&told, "stat::number_of_executed_units:"),
                edges(&told),
                stat(&told, "stat::peak_rss_mb:")
            );
            return Ok(());
        }
        let last: Vec<_> = told.lines().rev().take(40).collect();
        last.iter().rev().for_each(|line| eprintln!("{line}"));
        bail!(
            "{name}: {}; its input is {}. Run it again with FUZZ_TARGET={name} {} FILE, and keep it in {}",
            output.status,
            artifact(&told).unwrap_or_else(|| format!("in {}", findings.display())),
            self.program.display(),
            self.committed("regressions").display()
        )
    }

    /// Keeps in the repository the smallest inputs that cover what the seeds do not.
    fn keep(&self) -> Result<()> {
        let (found, merged, kept) = (self.own("corpus")?, self.own("merged")?, self.committed("corpus"));
        fs::remove_dir_all(&merged).and_then(|()| fs::create_dir_all(&merged)).context("cannot empty a folder")?;
        let mut known = BTreeSet::new();
        for folder in ["seeds", "regressions"].map(|kind| self.committed(kind)).iter().filter(|folder| folder.is_dir())
        {
            for file in files(folder)? {
                let name = file.file_name().unwrap_or_default().to_owned();
                fs::copy(&file, merged.join(&name)).with_context(|| format!("cannot copy {}", file.display()))?;
                known.insert(name);
            }
        }
        let mut fuzzer = self.fuzzer();
        fuzzer.arg("-merge=1").arg(&merged).arg(&found).args(kept.is_dir().then_some(&kept));
        let output = fuzzer.output().with_context(|| format!("cannot start {}", self.program.display()))?;
        if !output.status.success() {
            bail!("{}: the corpus could not be merged: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        let mut new = Vec::new();
        for file in
            files(&merged)?.into_iter().filter(|file| file.file_name().is_some_and(|name| !known.contains(name)))
        {
            new.push((fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?, file));
        }
        new.sort_by_key(|(bytes, _)| bytes.len());
        let _ = fs::remove_dir_all(&kept);
        let mut left = KEPT_BYTES;
        for (bytes, file) in new.iter().take(KEPT_INPUTS) {
            let Some(rest) = left.checked_sub(bytes.len()) else { break };
            left = rest;
            fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
            let to = kept.join(file.file_name().unwrap_or_default());
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(())
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// A figure of libFuzzer's report.
fn stat(told: &str, key: &str) -> String {
    told.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("?").trim().to_owned()
}

/// How many edges were covered in the end.
fn edges(told: &str) -> String {
    let last = told.lines().rev().find_map(|line| line.split_once("cov: "));
    last.and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or("?").to_owned()
}

/// Where libFuzzer wrote the input that did harm.
fn artifact(told: &str) -> Option<String> {
    let written = told.lines().rev().find_map(|line| line.split_once("Test unit written to "))?;
    Some(written.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_that_did_harm_is_named() {
        let told = "==1== ERROR: libFuzzer: deadly signal\n\
                    artifact_prefix='/a/'; Test unit written to /a/crash-12\nBase64: AA==\n";
        assert_eq!(artifact(told).as_deref(), Some("/a/crash-12"));
        assert_eq!(artifact("#2 INITED cov: 3"), None);
    }

    #[test]
    fn the_figures_are_those_of_the_last_line() {
        let told = "#2\tINITED cov: 568 ft: 568\n#9\tDONE   cov: 600 ft: 700 corp: 1/1b\nstat::peak_rss_mb:   38\n";
        assert_eq!((edges(told).as_str(), stat(told, "stat::peak_rss_mb:").as_str()), ("600", "38"));
        assert_eq!((edges("").as_str(), stat("", "stat::peak_rss_mb:").as_str()), ("?", "?"));
    }
}
