//! What to observe and how, and why observing may not start.

use malloc_common::depth::Depth;

use crate::aggregate::Keep;
use crate::collect::CollectError;
use crate::host::HostError;
use crate::probes::{AttachError, Capacities, LoadError};

/// Which processes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every process of the machine.
    Everything,
    /// Those chosen with [`Observer::choose`], and their children.
    Chosen,
}

/// Whether programs carry probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probing {
    /// As deep as asked for.
    #[default]
    On,
    /// Not at all: system calls alone are counted.
    Off,
}

/// What to observe and how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How deep files are probed for all their users.
    pub depth: Depth,
    /// They may be probed deeper later.
    pub deepens: bool,
    /// Which processes are counted.
    pub selection: Selection,
    /// Chains are sent as events.
    pub tracing: bool,
    /// Page faults of mapped chunks are counted: costs something at every page fault of the machine.
    pub faults: bool,
    /// Functions that are called often are probed also where the kernel has to step over the probed instruction.
    pub stepped: bool,
    /// Sizes of the kernel maps.
    pub capacities: Capacities,
    /// How long ended processes stay.
    pub keep: Keep,
    /// The part of a process's CPU time that its deep probes may take; `None`: whatever they take.
    pub budget: Option<f64>,
}

/// Why nothing can be observed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel lacks what every depth needs.
    #[error("{0}")]
    Kernel(String),
    /// Facts of the machine cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The object cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The maps cannot be read.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A probe that every depth needs is refused.
    #[error(transparent)]
    Attach(#[from] AttachError),
}
