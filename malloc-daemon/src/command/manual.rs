//! `manual`: the manual pages, one for the program and one for each of its commands.

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::{Cli, Manual};

/// Writes `malloc-daemon.1`, `malloc-daemon-serve.1` and so on.
pub fn run(args: &Manual) -> anyhow::Result<ExitCode> {
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .with_context(|| format!("cannot write manual pages to {}", args.folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let folder = tempfile::tempdir().expect("a folder");
        run(&Manual { folder: folder.path().to_owned() }).expect("pages");
        let page = |name: &str| std::fs::read_to_string(folder.path().join(format!("{name}.1"))).ok();
        for command in Cli::command().get_subcommands() {
            let text = page(&format!("malloc-daemon-{}", command.get_name()));
            assert_eq!(text.is_some(), !command.is_hide_set(), "{}", command.get_name());
        }
        assert!(page("malloc-daemon").is_some_and(|text| text.contains(".SH SYNOPSIS")));
    }
}
