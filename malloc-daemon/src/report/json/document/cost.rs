//! What observing costs: the observed programs, and the daemon itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Text;

/// What the daemon costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Daemon<'a> {
    /// Its version.
    pub version: Text<'a>,
    /// CPU time since its start, milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Ceiling of its kernel maps, bytes.
    pub kernel_bytes: u64,
    /// Duration of the last collection, microseconds.
    pub collect_us: u64,
}

/// What observing a process costs it: hits of its probes times the price of one on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Always true: the price of a hit was measured at start, on functions of the daemon's own.
    pub estimated: bool,
    /// Milliseconds of its CPU time.
    pub ms: f64,
    /// Its CPU time while it was observed, milliseconds; the cost is part of it.
    pub cpu_ms: Option<u64>,
    /// `ms` as a part of `cpu_ms`, 0 to 1.
    pub share: Option<f64>,
    /// How often the probes of each depth were hit.
    pub hits: ByDepth<u64>,
    /// Milliseconds by depth.
    pub ms_by_depth: ByDepth<f64>,
}

/// One value for each depth alone, without those before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByDepth<T> {
    /// Tracepoints of the four system calls.
    pub syscall: T,
    /// The slow path.
    pub sysmalloc: T,
    /// `_int_malloc`
    pub arena: T,
    /// The public functions.
    pub call: T,
}

/// What a hit of a probe costs on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration<'a> {
    /// Why nothing was measured; the rest is `null` then.
    pub not_measured: Option<Text<'a>>,
    /// Nanoseconds of a hit.
    pub hit_ns: Option<HitPrices>,
    /// Nanoseconds of a hit on each kind of instruction that the table has as emulated.
    pub emulated_ns: Option<BTreeMap<Text<'a>, u64>>,
    /// `holds`: each kind is clearly cheaper than stepping; `steps`: some are not; `untold`: stepping is as cheap.
    pub table: Option<Text<'a>>,
}

/// Nanoseconds of one hit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitPrices {
    /// A program that does nothing, on an emulated instruction.
    pub blank: u64,
    /// The same on an instruction that is stepped over.
    pub stepped: u64,
    /// A public function.
    pub call: u64,
    /// `_int_malloc`
    pub arena: u64,
    /// A function of the slow path.
    pub slow: u64,
    /// A branch to a system call.
    pub branch: u64,
    /// Entry and return of one of the four system calls.
    pub syscall: u64,
    /// What the tracepoints add to any other system call of the machine.
    pub other_syscall: u64,
}
