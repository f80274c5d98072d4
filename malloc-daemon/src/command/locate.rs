//! stub
use crate::cli::Locate;
pub fn run(_: &Locate) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not yet")
}
