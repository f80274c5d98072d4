//! `check-config`: whether a configuration file is good.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::CheckConfig;
use crate::config::{Config, DEFAULT_FILE};

/// Reads the file and what it refers to.
pub fn run(args: &CheckConfig) -> anyhow::Result<ExitCode> {
    let file = args.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    Config::load(file)?.references()?;
    println!("{} is good", file.display());
    Ok(ExitCode::SUCCESS)
}
