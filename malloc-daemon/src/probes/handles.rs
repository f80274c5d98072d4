//! Handles on parts of the loaded object that others hold: the chosen processes, the programs' own log.

use aya::maps::{HashMap, MapData};

use super::object::{LoadError, Object};

/// The processes chosen for recording.
pub struct Targets(HashMap<MapData, u32, u32>);

impl Targets {
    /// Takes the map out of the object.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub fn new(object: &mut Object) -> Result<Self, LoadError> {
        Ok(Self(object.take_map("TARGETS")?))
    }

    /// Counts a process and the children it has from now on.
    ///
    /// # Errors
    ///
    /// [`LoadError::Map`] when there is no room.
    pub fn choose(&mut self, pid: u32) -> Result<(), LoadError> {
        self.0.insert(pid, 1, 0).map_err(|error| LoadError::Map("TARGETS".to_owned(), Box::new(error)))
    }
}

/// What the kernel programs have to say; they say it rarely.
pub struct KernelLog(aya_log::EbpfLogger<&'static dyn log::Log>);

impl KernelLog {
    /// Connects to the object's log; `None` when the object has none.
    #[must_use]
    pub fn new(object: &mut Object) -> Option<Self> {
        aya_log::EbpfLogger::init(&mut object.ebpf).ok().map(Self)
    }

    /// Passes what waits on to this process's log.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}
