//! The binary: reads the command line, sets up the log, runs a subcommand.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use malloc_daemon::cli::Cli;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .init();
    malloc_daemon::command::run(cli)
}
