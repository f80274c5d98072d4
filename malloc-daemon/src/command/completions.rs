//! `completions`: the script with which a shell completes this program's words.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use super::write_output;
use crate::cli::{Cli, Completions};

/// Writes the script to standard output.
pub fn run(args: &Completions) -> anyhow::Result<ExitCode> {
    write_output(Path::new("-"), &script(args.shell))?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_learns_every_command_that_is_shown() {
        for shell in clap_complete::Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).expect("text");
            for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
                assert!(script.contains(command.get_name()), "{shell} does not know {}", command.get_name());
            }
        }
    }
}
