//! stub
use crate::cli::Trace;
pub fn run(_: &Trace) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not yet")
}
