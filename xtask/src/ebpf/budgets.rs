//! How many instructions each kernel program may have, and how many the verifier may walk through.
use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use super::object::Shape;
use crate::{
    shell::{self, Privilege},
    workspace::Workspace,
};

/// Room above what was measured, in percent: a change of a few lines passes, a loop that the verifier unrolls does not.
const HEADROOM_PERCENT: u64 = 10;

/// What one program may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Budget {
    /// Instructions of the program.
    length: u64,
    /// Instructions the verifier walks through, on all paths together.
    verified: u64,
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.root.join("malloc-ebpf/budgets.txt")
}

/// Fails when a program of the object is longer than its budget, or has none.
pub fn check(workspace: &Workspace, shape: &Shape) -> Result<()> {
    let file = path(workspace);
    let shown = workspace.relative(&file).display();
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {shown}"))?;
    let over = over(&parse(&text).with_context(|| format!("{shown} is not understood"))?, shape);
    if !over.is_empty() {
        bail!("{}\nIf that is meant, run `cargo xtask ebpf --budgets` as root and commit {shown}.", over.join("\n"));
    }
    println!("every program is within its budget ({shown})");
    Ok(())
}

/// Measures the committed object on this kernel and writes new budgets.
pub fn rewrite(workspace: &Workspace) -> Result<()> {
    if let Privilege::None(why) = shell::privilege() {
        bail!("the kernel must load the programs to measure them: {why}");
    }
    let committed = fs::read(workspace.committed_object()).context("cannot read the committed object")?;
    let shape = Shape::of(&committed)?;
    shell::run(shell::cargo().current_dir(&workspace.root).args(["build", "--locked", "--package", "malloc-daemon"]))?;
    let daemon = workspace.target.join("debug/malloc-daemon");
    let text =
        shell::capture(shell::as_root(daemon.display().to_string(), "load the kernel programs")?.arg("programs"))
            .with_context(|| format!("{} programs failed", daemon.display()))?;
    let kernel = shell::capture(Command::new("uname").arg("-r")).context("uname does not run")?;
    // What a distribution appends says nothing about the verifier.
    let kernel = kernel.split('-').next().unwrap_or_default();
    let budgets = measured(&shape, &text)?;
    let file = path(workspace);
    fs::write(&file, render(&budgets, kernel)).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{} programs in {}", budgets.len(), workspace.relative(&file).display());
    Ok(())
}

fn measured(shape: &Shape, programs: &str) -> Result<BTreeMap<String, Budget>> {
    let verified: BTreeMap<_, _> = programs.lines().filter_map(|line| line.split_once(' ')).collect();
    let room = |count: u64| (count + count * HEADROOM_PERCENT / 100).next_multiple_of(10);
    let budget = |(name, length): (&String, &u64)| {
        let count = verified.get(name.as_str()).with_context(|| format!("the daemon loads no program {name}"))?;
        let count: u64 = count.parse().context("this kernel does not tell verified_insns: 5.16 and later do")?;
        Ok((name.clone(), Budget { length: room(*length), verified: room(count) }))
    };
    shape.programs.iter().map(budget).collect()
}

fn render(budgets: &BTreeMap<String, Budget>, kernel: &str) -> String {
    let mut text = format!(
        "# Most instructions of each kernel program, and most that the verifier may walk through on all paths.\n\
         # Measured on Linux {kernel} with {HEADROOM_PERCENT} % of room; written by `cargo xtask ebpf --budgets`.\n"
    );
    for (name, budget) in budgets {
        let _ = writeln!(text, "{name} {} {}", budget.length, budget.verified);
    }
    text
}

fn parse(text: &str) -> Option<BTreeMap<String, Budget>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?.to_owned();
            Some((name, Budget { length: words.next()?.parse().ok()?, verified: words.next()?.parse().ok()? }))
        })
        .collect()
}

fn over(budgets: &BTreeMap<String, Budget>, shape: &Shape) -> Vec<String> {
    let judge = |(name, length): (&String, &u64)| match budgets.get(name) {
        None => Some(format!("program {name} has no budget")),
        Some(budget) if *length > budget.length => {
            Some(format!("program {name} has {length} instructions, {} are its budget", budget.length))
        }
        Some(_) => None,
    };
    let unknown = budgets.keys().filter(|name| !shape.programs.contains_key(*name));
    shape.programs.iter().filter_map(judge).chain(unknown.map(|name| format!("no program is called {name}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(programs: &[(&str, u64)]) -> Shape {
        Shape {
            programs: programs.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
            maps: std::collections::BTreeSet::new(),
            btf: true,
        }
    }

    #[test]
    fn what_was_measured_passes_and_a_fifth_more_does_not() {
        let budgets = measured(&shape(&[("call", 950)]), "blank 2\ncall 3000").expect("both figures");
        assert_eq!(budgets["call"], Budget { length: 1050, verified: 3300 });
        assert!(over(&budgets, &shape(&[("call", 950)])).is_empty());
        assert_eq!(
            over(&budgets, &shape(&[("call", 1140)])),
            ["program call has 1140 instructions, 1050 are its budget"]
        );
    }

    #[test]
    fn a_program_without_a_budget_and_a_budget_without_a_program_are_told() {
        let budgets = parse("# room\ncall 10 20\n").expect("a budget");
        assert_eq!(over(&budgets, &shape(&[("free", 1)])), ["program free has no budget", "no program is called call"]);
    }

    #[test]
    fn what_is_written_reads_back() {
        let budgets = measured(&shape(&[("call", 1), ("slow", 2)]), "call 5\nslow 6").expect("both figures");
        assert_eq!(parse(&render(&budgets, "6.18")), Some(budgets));
        assert_eq!(parse("call ten 20"), None);
    }
}
