//! The subcommands, one file each, and what they share.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use malloc_common::depth::Depth;

use crate::cli::{Cli, Command};
use crate::host::debug_files;
use crate::report::text::Style;

mod check_config;
mod client;
mod completions;
mod doctor;
mod gate;
mod locate;
mod manual;
mod programs;
mod record;
mod report;
mod serve;
mod subject;
mod top;
mod trace;

pub use client::Url;

/// Name of the hidden subcommand that becomes the recorded command.
pub const GATE: &str = "gate";

/// Exit status: ran, but what it reports is incomplete.
pub const INCOMPLETE: u8 = 1;
/// Exit status: could not run.
pub const COULD_NOT_RUN: u8 = 2;

/// Exit status: the configuration is wrong (`EX_CONFIG`); a service manager need not try again.
pub const BAD_CONFIGURATION: u8 = 78;

/// Runs a subcommand; an error becomes one sentence on standard error.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let result = with_debug_directories(&cli.debug_dir).and_then(|()| match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Locate(args) => locate::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Manual(args) => manual::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Gate(args) => gate::run(&args),
        Command::Programs => programs::run(),
    });
    result.unwrap_or_else(|error| {
        eprintln!("malloc-daemon: {error:#}");
        let is_configuration = error.downcast_ref::<crate::config::ConfigError>().is_some();
        ExitCode::from(if is_configuration { BAD_CONFIGURATION } else { COULD_NOT_RUN })
    })
}

fn with_debug_directories(named: &[PathBuf]) -> anyhow::Result<()> {
    use anyhow::{Context, ensure};
    let absolute = named.iter().map(|path| {
        let path = std::path::absolute(path).with_context(|| format!("--debug-dir {}", path.display()))?;
        ensure!(path.is_dir(), "--debug-dir {}: there is no such directory", path.display());
        Ok(path)
    });
    debug_files::look_first_in(absolute.collect::<anyhow::Result<_>>()?);
    Ok(())
}

/// How text is written to a terminal or a file.
fn style(terminal: bool) -> Style {
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let from_terminal = || {
        rustix::termios::tcgetwinsize(std::io::stderr()).ok().map(|size| usize::from(size.ws_col)).filter(|w| *w > 0)
    };
    let width = columns.or_else(|| terminal.then(from_terminal).flatten()).unwrap_or(100);
    Style { color, width: width.clamp(60, 200) }
}

fn stderr_style() -> Style {
    style(std::io::stderr().is_terminal())
}

fn stdout_style() -> Style {
    style(std::io::stdout().is_terminal())
}

/// Writes a whole document to a file or to standard output (`-`).
fn write_output(output: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use anyhow::Context;
    use std::io::Write;
    if output == Path::new("-") {
        let mut out = std::io::stdout().lock();
        return out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output");
    }
    std::fs::write(output, bytes).with_context(|| format!("cannot write {}", output.display()))
}

/// Ended images that a recording keeps: the whole of a build with ten thousand processes.
const RECORDED_IMAGES: usize = 16_384;

fn recording(
    depth: Depth,
    selection: crate::observe::Selection,
    tracing: bool,
    stepped: bool,
) -> crate::observe::Options {
    crate::observe::Options {
        // Asked for by hand, for a while: nothing is left out.
        budget: None,
        depth,
        deepens: false,
        selection,
        tracing,
        // A trace prints none.
        faults: !tracing,
        stepped,
        capacities: crate::probes::Capacities::default(),
        keep: crate::aggregate::Keep {
            ended_ns: u64::MAX,
            ended_images: RECORDED_IMAGES,
            killed_ns: u64::MAX,
            killed_images: RECORDED_IMAGES,
            // A report is of the moment it is made in.
            unchanged_ns: 0,
        },
    }
}
