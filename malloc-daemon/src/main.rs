//! The binary: reads the command line, sets up the log, runs a subcommand.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser;
use malloc_daemon::cli::Cli;
use malloc_daemon::log::{Folding, Holding};
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    if level <= LevelFilter::INFO {
        log.with_writer(Mutex::new(Folding::new(Holding(std::io::stderr()), Instant::now))).init();
    } else {
        // Who asked for everything gets everything.
        log.with_writer(|| Holding(std::io::stderr())).init();
    }
    malloc_daemon::command::run(cli)
}
