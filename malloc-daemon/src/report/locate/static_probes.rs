//! The static probes of the allocator, as `locate` shows them.

use serde::Serialize;

use crate::targets::usdt::{Argument, Place, UsdtProbe};

/// One place of one static probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaticProbe {
    /// `memory_sbrk_more`; several places may share a name.
    pub name: String,
    /// The instruction's address in the file's own numbering.
    pub address: u64,
    /// Where in the file the instruction lies.
    pub file_offset: u64,
    /// Address of the counter that switches it on; `null`: it is always on.
    pub semaphore: Option<u64>,
    /// What it tells, in order.
    pub arguments: Vec<StaticArgument>,
}

/// One argument: where it is, or what the note says where that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaticArgument {
    /// Its size; `null`: not readable.
    pub bytes: Option<u8>,
    /// `null`: not readable.
    pub signed: Option<bool>,
    /// A register (`rax`), memory (`[rsp+16]`) or a number; `null`: not readable.
    pub place: Option<String>,
    /// The note's text of an argument that is not readable; `null`: it is.
    pub unreadable: Option<String>,
}

pub(super) fn static_probe(probe: &UsdtProbe) -> StaticProbe {
    StaticProbe {
        name: probe.name.clone(),
        address: probe.vaddr,
        file_offset: probe.file_offset,
        semaphore: probe.semaphore,
        arguments: probe.arguments.iter().map(argument).collect(),
    }
}

fn argument(argument: &Result<Argument, String>) -> StaticArgument {
    match argument {
        Ok(Argument { bytes, signed, place: at }) => {
            StaticArgument { bytes: Some(*bytes), signed: Some(*signed), place: Some(place(at)), unreadable: None }
        }
        Err(text) => StaticArgument { bytes: None, signed: None, place: None, unreadable: Some(text.clone()) },
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Constant(value) => value.to_string(),
        Place::Register(name) => name.clone(),
        Place::Memory { base, index, displacement } => {
            let index = index.as_ref().map(|(register, scale)| format!("+{register}*{scale}")).unwrap_or_default();
            let displacement = if *displacement == 0 { String::new() } else { format!("{displacement:+}") };
            format!("[{base}{index}{displacement}]")
        }
    }
}
