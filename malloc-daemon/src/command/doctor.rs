//! stub
use crate::cli::Doctor;
pub fn run(_: &Doctor) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not yet")
}
