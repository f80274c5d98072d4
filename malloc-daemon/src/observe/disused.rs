//! Which probed files nobody maps any more: a thread of its own reads every process's mappings, and takes links out, which
//! waits for the kernel.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;

use super::files::Files;
use crate::collect::boot_ns;
use crate::host::maps::{Device, Mapping};
use crate::host::privileges::{self, Keep};
use crate::host::process;
use crate::probes::Attached;

/// Pieces of work that wait: the links of so many files, and a look.
const WAITING: usize = 64;
/// Between two looks. A look reads the mappings of every process: 5 ms for a hundred of them. 2 s.
const LOOK_NS: u64 = 2_000_000_000;

/// A mapped file as /proc/PID/maps numbers it.
pub type Mapped = (Device, u64);

/// What is mapped as code.
#[derive(Debug)]
pub struct InUse {
    /// When the look began: what came later is not in it.
    pub since_ns: u64,
    /// The files.
    pub places: HashSet<Mapped>,
}

enum Work {
    Look,
    Detach(Vec<Attached>),
}

/// The thread and its queues.
#[derive(Debug)]
pub struct Disused {
    work: Option<SyncSender<Work>>,
    looks: Receiver<InUse>,
    thread: Option<JoinHandle<()>>,
    asked_ns: u64,
}

impl Disused {
    /// Starts the thread; dropping this waits until all links handed over are gone.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let (work, jobs) = sync_channel::<Work>(WAITING);
        let (results, looks) = channel();
        let thread = std::thread::Builder::new().name("disused".to_owned()).spawn(move || {
            privileges::keep_or_say(Keep::Reading);
            for job in jobs {
                match job {
                    Work::Detach(links) => drop(links),
                    // What cannot be listed may be in use.
                    Work::Look => {
                        if let Some(in_use) = in_use()
                            && results.send(in_use).is_err()
                        {
                            return;
                        }
                    }
                }
            }
        })?;
        Ok(Self { work: Some(work), looks, thread: Some(thread), asked_ns: 0 })
    }

    /// Lets go of files that nobody maps, when there is reason to: images that ended have to be described before.
    pub fn turn(&mut self, files: &mut Files) {
        if let Some(in_use) = self.looks.try_iter().last() {
            self.detach(files.let_go(&in_use));
        }
        let now = boot_ns();
        if files.wants_room() && now.saturating_sub(self.asked_ns) >= LOOK_NS {
            self.asked_ns = now;
            if let Some(work) = &self.work {
                // When too much waits, the next look will do.
                let _ = work.try_send(Work::Look);
            }
        }
    }

    /// Takes links out, off the observer's thread unless too much waits there.
    fn detach(&self, links: Vec<Attached>) {
        match self.work.as_ref().map(|work| work.try_send(Work::Detach(links))) {
            Some(Err(TrySendError::Full(work) | TrySendError::Disconnected(work))) => drop(work),
            Some(Ok(())) | None => {}
        }
    }
}

impl Drop for Disused {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // A panic there left nothing attached: links go with their owner.
            let _ = thread.join();
        }
    }
}

/// `None` when the processes cannot be listed. One that may not be read was never looked at either: no file is known by it.
fn in_use() -> Option<InUse> {
    let since_ns = boot_ns();
    let mut places = HashSet::new();
    for pid in process::pids().ok()? {
        let maps = process::maps(pid).ok().flatten().unwrap_or_default();
        places.extend(maps.iter().filter(|m| Mapping::is_executable_file(m)).map(|m| (m.device, m.inode)));
    }
    Some(InUse { since_ns, places })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::file::{Root, open_in_root};
    use crate::host::process::Pid;
    use crate::observe::FileRefused;

    #[test]
    fn what_this_process_maps_is_in_use() {
        let own = process::maps(Pid(std::process::id())).unwrap().unwrap();
        let libc = own.iter().find(|mapping| mapping.is_executable_file()).unwrap();
        let before = boot_ns();
        let found = in_use().unwrap();
        assert!(found.places.contains(&(libc.device, libc.inode)));
        assert!(found.since_ns >= before);
        assert!(!found.places.contains(&(libc.device, u64::MAX)));
    }

    #[test]
    fn where_room_gets_scarce_what_was_used_longest_ago_goes_and_what_is_mapped_stays() {
        const FILES: u64 = 200;
        let directory = tempfile::tempdir().unwrap();
        let bytes = crate::targets::locate::stripped_miniature();
        let place = |index| (Device { major: 0, minor: 1 }, index);
        let path = |index: u64| directory.path().join(index.to_string());
        let mut files = Files::default();
        let mut keys = Vec::new();
        for index in 0..FILES {
            std::fs::write(path(index), &bytes).unwrap();
            let file = open_in_root(Root::Host, &path(index)).unwrap().unwrap();
            let key = files.admit(file, Root::Host).unwrap();
            files.used(&key, place(index));
            keys.push(key);
        }
        std::fs::remove_file(path(150)).unwrap();
        assert!(files.wants_room());
        let held = |files: &Files| (0..FILES).filter(|index| files.get(&keys[*index as usize]).is_some()).count();
        // What was used after the look began is not judged by it.
        let all = |since_ns| InUse { since_ns, places: (0..50).map(place).collect() };
        assert!(files.let_go(&all(0)).is_empty());
        assert_eq!(held(&files), 200);
        files.let_go(&all(boot_ns()));
        assert_eq!((held(&files), files.let_go), (192, 8));
        let gone: Vec<u64> = (0..FILES).filter(|index| files.get(&keys[*index as usize]).is_none()).collect();
        assert_eq!(gone, [50, 51, 52, 53, 54, 55, 56, 150]);
        assert!(!files.wants_room());
    }

    #[test]
    fn other_content_under_a_probed_inode_is_not_probed_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("libc.so.6");
        let mut bytes = crate::targets::locate::stripped_miniature();
        std::fs::write(&path, &bytes).unwrap();
        let mut files = Files::default();
        let open = || open_in_root(Root::Host, &path).unwrap().unwrap();
        let key = files.admit(open(), Root::Host).unwrap();
        files.used(&key, (Device { major: 0, minor: 1 }, 1));
        bytes.push(0);
        std::fs::write(&path, &bytes).unwrap();
        files.check_overwritten();
        assert!(matches!(files.admit(open(), Root::Host), Err(FileRefused::Unsettled { .. })));
        files.let_go(&InUse { since_ns: boot_ns(), places: HashSet::new() });
        assert!(files.get(&key).is_none());
        // Not at once: whoever writes it may not be done.
        assert!(matches!(files.admit(open(), Root::Host), Err(FileRefused::Unsettled { .. })));
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        assert!(files.admit(open(), Root::Host).is_ok());
    }
}
