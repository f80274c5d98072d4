//! Runs every check and test that the machine can run, and says which it could not.
use std::{
    fmt,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    dist, ebpf, fuzz,
    shell::{self, Privilege},
    tidy, vm,
    workspace::Workspace,
};

/// What to leave out.
pub struct Selection {
    /// Whether to run the tests that need root and a real kernel.
    pub kernel: bool,
    /// Only tests whose name contains this, and no other check.
    pub filter: Option<String>,
}

/// How a step ended.
enum Outcome {
    Passed,
    Failed,
    /// The caller left it out.
    LeftOut(&'static str),
    /// This machine cannot run it.
    NotRun(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed => f.write_str("FAILED"),
            Self::LeftOut(why) => write!(f, "not run: {why}"),
            Self::NotRun(why) => write!(f, "not run: {why}"),
        }
    }
}

/// The steps run so far.
#[derive(Default)]
struct Record {
    steps: Vec<(&'static str, Outcome, Duration)>,
}

impl Record {
    /// Runs a step; its error is printed at once and kept as a failure, so that the next runs too.
    fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) {
        println!("\n### {name}");
        let start = Instant::now();
        let outcome = match step() {
            Ok(()) => Outcome::Passed,
            Err(error) => {
                eprintln!("error: {error:#}");
                Outcome::Failed
            }
        };
        self.steps.push((name, outcome, start.elapsed()));
    }

    fn skip(&mut self, name: &'static str, outcome: Outcome) {
        println!("\n### {name}\n{outcome}");
        self.steps.push((name, outcome, Duration::ZERO));
    }

    /// Prints the table. Fails if a step failed, or, where nobody watches, if one could not run.
    fn conclude(&self, strict: bool) -> Result<()> {
        println!("\n{self}");
        let count = |wanted: fn(&Outcome) -> bool| self.steps.iter().filter(|(_, outcome, _)| wanted(outcome)).count();
        let failed = count(|outcome| matches!(outcome, Outcome::Failed));
        let impossible = count(|outcome| matches!(outcome, Outcome::NotRun(_)));
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.steps.len());
        }
        if strict && impossible > 0 {
            bail!("{impossible} of {} steps could not run, and with CI=true each must", self.steps.len());
        }
        Ok(())
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14} {:>8}  result", "step", "seconds")?;
        for (name, outcome, duration) in &self.steps {
            let seconds = match outcome {
                Outcome::Passed | Outcome::Failed => format!("{:.1}", duration.as_secs_f64()),
                Outcome::LeftOut(_) | Outcome::NotRun(_) => "-".to_owned(),
            };
            write!(f, "\n{name:<14} {seconds:>8}  {outcome}")?;
        }
        Ok(())
    }
}

/// Runs the steps one after the other and ends with a table.
pub fn test(workspace: &Workspace, selection: &Selection) -> Result<()> {
    let mut record = Record::default();
    if selection.filter.is_none() {
        checks(workspace, &mut record);
    } else {
        record.skip("checks", Outcome::LeftOut("a filter was given, which only tests have names for"));
    }
    record.run("cargo test", || {
        shell::run(
            cargo(workspace)
                .args(["test", "--locked", "--workspace", "--features", "malloc-daemon/compilers,malloc-daemon/tls"])
                .args(selection.filter.as_deref()),
        )
    });
    if selection.filter.is_some() {
        record.skip("libc matrix", Outcome::LeftOut("a filter was given"));
    } else if shell::find("apt-get").is_some() {
        let matrix = ["test", "--locked", "--package", "libc-tests", "--features", "archives"];
        record.run("libc matrix", || shell::run(cargo(workspace).args(matrix)));
    } else {
        record.skip("libc matrix", Outcome::NotRun("it fetches Debian's packages with apt-get".to_owned()));
    }
    if selection.filter.is_some() {
        record.skip("fuzz", Outcome::LeftOut("a filter was given"));
    } else {
        record.run("fuzz", || fuzz::fuzz(workspace, &fuzz::Selection::IN_TEST));
    }
    kernel(workspace, selection, &mut record);
    installed(workspace, selection, &mut record);
    record.conclude(shell::is_ci())
}

/// The checks of the tree, the quick ones first.
fn checks(workspace: &Workspace, record: &mut Record) {
    record.run("fmt", || shell::run(cargo(workspace).args(["fmt", "--all", "--check"])));
    record.run("tidy", || tidy::tidy(workspace));
    record.run("clippy", || {
        // What is compiled only with a feature is to be clean as well.
        let features = ["--features", "kernel-tests/own-machine,libc-tests/archives,malloc-daemon/compilers"];
        let mut clippy = cargo(workspace);
        clippy.args(["clippy", "--locked", "--workspace", "--all-targets"]).args(features);
        shell::run(clippy.args(["--", "-D", "warnings"]))
    });
    if shell::find("cargo-deny").is_some() {
        // Not `advisories`: their database is fetched from another host than the registry's, and
        // a new advisory would fail an unchanged tree.
        let check = ["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
        record.run("deny", || shell::run(cargo(workspace).args(check)));
    } else {
        record.skip("deny", Outcome::NotRun("cargo-deny is not installed: run `cargo xtask setup`".to_owned()));
    }
    match ebpf::missing() {
        None => record.run("ebpf --check", || ebpf::check(workspace)),
        Some(why) => record.skip("ebpf --check", Outcome::NotRun(why)),
    }
}

fn kernel(workspace: &Workspace, selection: &Selection, record: &mut Record) {
    const NAME: &str = "kernel tests";
    if !selection.kernel {
        return record.skip(NAME, Outcome::LeftOut("--no-kernel"));
    }
    let runner = match shell::privilege() {
        Privilege::Root => None,
        Privilege::Sudo => Some("sudo -E"),
        Privilege::None(why) => return record.skip(NAME, Outcome::NotRun(why.to_owned())),
    };
    record.run(NAME, || {
        shell::run(cargo(workspace).args(["build", "--locked", "--release", "--package", "malloc-daemon"]))?;
        let mut tests = cargo(workspace);
        tests
            .args([
                "test",
                "--locked",
                "--package",
                "kernel-tests",
                "--features",
                "real-kernel",
                "--no-fail-fast",
                "--",
            ])
            // More at once would disturb each other's figures on a small machine.
            .arg("--test-threads=2")
            .args(selection.filter.as_deref())
            .env("MALLOC_DAEMON_BIN", workspace.daemon_binary());
        if let Some(runner) = runner {
            println!("using sudo: run the kernel tests, which attach probes to this machine's kernel");
            // Cargo builds as this user and starts only the test programs through the runner.
            tests.env(runner_variable()?, runner);
        }
        shell::run(&mut tests)
    });
}

/// What is shipped: packed, installed, and run where it is the machine's own.
fn installed(workspace: &Workspace, selection: &Selection, record: &mut Record) {
    type Step = fn(&Workspace) -> Result<()>;
    let steps: [(_, _, Step); 2] =
        [("packages", dist::missing(), dist::check), ("machines", vm::missing(), vm::in_test)];
    for (name, missing, step) in steps {
        match missing {
            _ if !selection.kernel => record.skip(name, Outcome::LeftOut("--no-kernel")),
            _ if selection.filter.is_some() => record.skip(name, Outcome::LeftOut("a filter was given")),
            Some(why) => record.skip(name, Outcome::NotRun(format!("{why}: run `cargo xtask setup`"))),
            None => record.run(name, || step(workspace)),
        }
    }
}

/// The variable that names the program through which cargo starts what it built.
fn runner_variable() -> Result<String> {
    let host = shell::host()?;
    Ok(format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_")))
}

fn cargo(workspace: &Workspace) -> Command {
    let mut command = shell::cargo();
    command.current_dir(&workspace.root);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(outcomes: Vec<Outcome>) -> Record {
        Record { steps: outcomes.into_iter().map(|outcome| ("step", outcome, Duration::from_millis(1500))).collect() }
    }

    #[test]
    fn a_step_that_could_not_run_fails_only_where_nobody_watches() {
        let steps = || record(vec![Outcome::Passed, Outcome::NotRun("no linker".to_owned())]);
        assert!(steps().conclude(false).is_ok());
        assert!(steps().conclude(true).is_err());
    }

    #[test]
    fn a_step_that_was_left_out_on_request_fails_nowhere() {
        assert!(record(vec![Outcome::LeftOut("--no-kernel")]).conclude(true).is_ok());
    }

    #[test]
    fn a_failed_step_fails_the_whole_and_the_next_still_runs() {
        let mut steps = Record::default();
        steps.run("first", || bail!("broken"));
        let mut second = false;
        steps.run("second", || {
            second = true;
            Ok(())
        });
        assert!(second);
        assert!(steps.conclude(false).is_err());
    }

    #[test]
    fn the_table_shows_no_seconds_for_what_did_not_run() {
        let table = record(vec![Outcome::Passed, Outcome::NotRun("no linker".to_owned())]).to_string();
        let lines: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, ["step seconds result", "step 1.5 passed", "step - not run: no linker"]);
    }
}
