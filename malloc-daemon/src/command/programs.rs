//! The hidden subcommand: loads the kernel programs and says how long each is and how far the verifier walked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use malloc_common::allowance::Allowance;

use super::write_output;
use crate::host::{fdinfo, kernel};
use crate::probes::{Capacities, Object, Offsets, Options};

/// One line for each program: its name and the instructions that the verifier walked through (`-`: not told). Constants
/// decide which branches it sees, so the programs are loaded both ways and the longer way counts.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut verified: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let multi = kernel::kernel()?.version.is_none_or(|v| (v.major, v.minor) >= (6, 10));
    for (admit_all, tracing) in [(true, false), (false, true)] {
        let object = Object::load(&Options {
            admit_all,
            tracing,
            chunks: true,
            faults: true,
            offsets: Offsets::default(),
            capacities: Capacities::SMALL,
            multi_uprobes: multi,
            stacks: if admit_all { Allowance::new(1, 1) } else { Allowance::NO_LIMIT },
            trial: false,
        })?;
        for (name, fd) in object.program_fds() {
            let figure = fdinfo::figure(fd, fdinfo::VERIFIED_INSTRUCTIONS);
            let held = verified.entry(name).or_default();
            *held = figure.max(*held);
        }
    }
    let mut text = String::new();
    for (name, verified) in verified {
        let verified = verified.map_or_else(|| "-".to_owned(), |count| count.to_string());
        writeln!(text, "{name} {verified}")?;
    }
    write_output(Path::new("-"), text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
