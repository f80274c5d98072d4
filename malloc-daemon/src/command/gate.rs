//! The hidden subcommand: waits until the probes are in place, then becomes the recorded command.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::cli::Gate;

/// Exit status of a command that is there and cannot be run, as shells have it.
const CANNOT_RUN: u8 = 126;
/// Exit status of a command that is not there, as shells have it.
const NOT_FOUND: u8 = 127;

/// Says that it waits, then waits for one byte; the end without one means that the recorder is gone.
pub fn run(args: &Gate) -> anyhow::Result<ExitCode> {
    let Some((program, arguments)) = args.command.split_first() else { return Ok(ExitCode::from(CANNOT_RUN)) };
    let mut command = Command::new(program);
    command.args(arguments);
    // By name and not by an inherited descriptor: this one closes itself when the command takes over.
    let mut gate = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&args.name)?)?;
    gate.write_all(&[1])?;
    if gate.read(&mut [0])? == 0 {
        return Ok(ExitCode::from(CANNOT_RUN));
    }
    drop(gate);
    let error = command.exec();
    eprintln!("malloc-daemon: cannot run {}: {error}", program.display());
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    Ok(ExitCode::from(if missing { NOT_FOUND } else { CANNOT_RUN }))
}
