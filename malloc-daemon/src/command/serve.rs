//! stub
use crate::cli::Serve;
pub fn run(_: &Serve) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not yet")
}
