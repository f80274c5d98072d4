//! The files that carry probes: found once each, attached as deep as asked, let go when overwritten.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use malloc_common::depth::Depth;
use malloc_common::site::Role;
use malloc_common::tracker::MpPlace;

use super::cache::Cache;
use super::census::Serving;
use super::described::described;
use super::disused::{InUse, Mapped};
use super::programs::spared;
use super::shapes::Shapes;
use super::windows::Windows;
use crate::aggregate::model::{Allocator, Probe, Verdict};
use crate::arenas::{Links, Place};
use crate::collect::boot_ns;
use crate::host::file::{FileKey, Root, TargetFile};
use crate::host::maps::Device;
use crate::probes::{Attached, Object, Scope};
use crate::targets::{ElfError, Located};

/// Files that carry probes at one time. A host has one libc, and one for each distinct container image.
pub const PROBED_FILES: usize = 256;
/// How many of them are kept free: above, files that nobody maps are let go.
const ROOM: usize = 64;
/// Places remembered of one file; one with more is taken to be in use. 1,024 x 24 bytes = 24 KiB.
const PLACES: usize = 1024;

/// Why a file carries no probes.
#[derive(Debug, thiserror::Error)]
pub enum FileRefused {
    /// Its content is not understood.
    #[error("{path}: {error}")]
    Content {
        /// The file.
        path: String,
        /// What is wrong with it.
        error: ElfError,
    },
    /// [`PROBED_FILES`] are reached.
    #[error("{path}: {PROBED_FILES} files that are in use carry probes already; it is left alone")]
    TooMany {
        /// The file.
        path: String,
    },
    /// It was overwritten while it carried probes, and may still be.
    #[error("{path}: it was overwritten in place a moment ago; it is looked at again")]
    Unsettled {
        /// The file.
        path: String,
    },
}

/// Probes of one scope on one file.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) scope: Scope,
    pub(super) depth: Depth,
    pub(super) since_ns: u64,
    pub(super) sites: usize,
    pub(super) links: Option<Attached>,
    /// Links of its deep probes are held by [`Windows`].
    pub(super) budgeted: bool,
    pub(super) broken: Option<Unattached>,
}

/// Why probes are not in place.
#[derive(Clone, Debug)]
pub(super) enum Unattached {
    /// The kernel refused them.
    Refused(String),
    /// The process they were for ended first.
    Ended,
}

impl Unattached {
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Refused(why) => why,
            Self::Ended => "it ended before probes were in place",
        }
    }
}

/// A file with an allocator in it.
#[derive(Debug)]
pub struct ProbedFile {
    pub(super) file: TargetFile,
    /// What was found in it.
    pub located: Located,
    /// Roles whose probes are not attached.
    pub(super) spared: Vec<Role>,
    /// How it is described to users.
    described: Arc<Allocator>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) overwritten: bool,
    /// As what it was seen mapped: under each overlay mount by another device. Empty: it was probed by its path.
    places: HashSet<Mapped>,
    /// When it was last seen mapped.
    used_ns: u64,
}

/// A file as /proc/PID/maps shows it. A file that carries probes is held open, so its inode stays its own; the number of
/// another may be used again, most likely under another path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MappedFile {
    /// Device.
    pub device: Device,
    /// Inode.
    pub inode: u64,
    /// Path.
    pub path: Vec<u8>,
}

/// What a mapped file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It defines no `malloc`.
    Nothing,
    /// It defines `malloc`, and is not known to be an allocator: it is not probed.
    Stranger,
    /// It is an allocator's.
    Allocator(FileKey),
}

/// All files that carry probes.
#[derive(Debug, Default)]
pub struct Files {
    pub(super) probed: BTreeMap<FileKey, ProbedFile>,
    /// Dear probes are attached, too: see [`Located::leave_stepped`].
    stepped: bool,
    /// Every step is traced.
    tracing: bool,
    /// Mapped files that were looked at.
    by_inode: HashMap<MappedFile, Known>,
    /// How loaders map the code of allocators.
    pub shapes: Shapes,
    /// Files refused for want of room.
    pub refused: u64,
    /// Files let go because nobody mapped them any more.
    pub let_go: u64,
    /// Files that were overwritten and let go: they are probed again when they have been left alone for a while.
    unsettled: HashSet<(u64, u64)>,
    /// What was found in files before.
    pub cache: Cache,
    /// Keeps the probes of single processes within their budget, where there is one.
    pub windows: Option<Windows>,
    /// Why nothing is attached, while everything is switched off.
    pub off: Option<String>,
    /// When everything was switched off last, nanoseconds since boot: what lived then has a gap in its counts.
    pub interrupted_ns: u64,
}

/// Mapped inodes remembered at most; past that the memory starts anew. 65,536 x 160 bytes = 10 MiB.
const INODES: usize = 65_536;

impl Files {
    /// No file yet; `stepped`: dear probes are attached, too; `windows` keeps the probes of single processes within their
    /// budget.
    pub fn new(stepped: bool, tracing: bool, windows: Option<Windows>) -> Self {
        Self { stepped, tracing, windows, ..Self::default() }
    }

    /// What a mapped inode is known to be.
    pub fn known(&self, file: &MappedFile) -> Option<Known> {
        self.by_inode.get(file).copied()
    }

    /// Notes that a file is in use.
    pub fn used(&mut self, key: &FileKey, place: Mapped) {
        if let Some(probed) = self.probed.get_mut(key) {
            probed.used_ns = boot_ns();
            if probed.places.len() < PLACES {
                probed.places.insert(place);
            }
        }
    }

    /// Whether some file should be let go if nobody maps it.
    pub fn wants_room(&self) -> bool {
        self.probed.len() > PROBED_FILES - ROOM || self.probed.values().any(ProbedFile::is_past)
    }

    /// Lets go of files that nobody maps: those that were overwritten or deleted, and, where room gets scarce, those that
    /// were used longest ago. The others keep their probes for the next program that maps them. Their links are the
    /// caller's to drop.
    pub fn let_go(&mut self, in_use: &InUse) -> Vec<Attached> {
        let idle = |probed: &ProbedFile| {
            probed.used_ns < in_use.since_ns
                && (1..PLACES).contains(&probed.places.len())
                && probed.places.is_disjoint(&in_use.places)
        };
        let mut idle: Vec<_> =
            self.probed.iter().filter(|(_, p)| idle(p)).map(|(key, p)| (!p.is_past(), p.used_ns, *key)).collect();
        idle.sort_unstable();
        let mut links = Vec::new();
        for (is_present, _, key) in idle {
            if is_present && self.probed.len() <= PROBED_FILES - ROOM {
                break;
            }
            let Some(probed) = self.probed.remove(&key) else { continue };
            if probed.overwritten && self.unsettled.len() < PROBED_FILES {
                self.unsettled.insert((key.dev, key.ino));
            }
            self.by_inode.retain(|_, known| *known != Known::Allocator(key));
            self.let_go += 1;
            links.extend(probed.attachments.into_iter().filter_map(|attachment| attachment.links));
        }
        links
    }

    /// Remembers what a mapped inode is.
    pub fn remember(&mut self, file: MappedFile, known: Known) {
        if self.by_inode.len() >= INODES {
            self.by_inode.clear();
        }
        self.by_inode.insert(file, known);
    }

    /// The file of that key.
    pub fn get(&self, key: &FileKey) -> Option<&ProbedFile> {
        self.probed.get(key)
    }

    /// Where the variables of the allocator that serves a process lie in it.
    pub fn place(&self, serving: &Serving) -> Option<Place> {
        self.get(&serving.key)?.place(serving.mapped_at, serving.mapped_offset)
    }

    /// Where `mp_` lies in a process, for the kernel side.
    pub fn mp_place(&self, serving: &Serving) -> Option<MpPlace> {
        let Place { mp, mp_layout, .. } = self.place(serving)?;
        let raises_told = self.get(&serving.key)?.located.hooks.iter().any(|hook| hook.role == Role::Raise);
        Some(MpPlace { layout: mp_layout, address: mp, raises_told })
    }

    /// A number that is another one after anything that processes are described by has changed.
    pub fn state(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.off, self.interrupted_ns, self.probed.len()).hash(&mut hasher);
        for probed in self.probed.values() {
            (probed.overwritten, probed.attachments.len()).hash(&mut hasher);
            for attachment in &probed.attachments {
                let Attachment { scope, depth, since_ns, broken, .. } = attachment;
                (scope, depth, since_ns, broken.is_some()).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// The only file, if there is exactly one.
    pub fn only(&self) -> Option<FileKey> {
        self.probed.keys().next().filter(|_| self.probed.len() == 1).copied()
    }

    /// Takes a file in; a file whose content is there already under another device (an overlay mount shows one inode
    /// under a device of its own) is the same one, since a probe in either fires in both. Two file systems may hold
    /// copies under the same number: only an overlay shows files that are not its own.
    pub fn admit(&mut self, file: TargetFile, root: Root) -> Result<FileKey, FileRefused> {
        let key = file.key;
        if self.probed.contains_key(&key) {
            return Ok(key);
        }
        let path = file.path.display().to_string();
        if self.probed.len() >= PROBED_FILES {
            self.refused += 1;
            return Err(FileRefused::TooMany { path });
        }
        // The same inode with other content: probes in it would go into the old pages of those who map it still.
        if self.probed.keys().any(|held| (held.dev, held.ino) == (key.dev, key.ino)) {
            return Err(FileRefused::Unsettled { path });
        }
        if self.unsettled.contains(&(key.dev, key.ino)) {
            if !file.is_settled() {
                return Err(FileRefused::Unsettled { path });
            }
            self.unsettled.remove(&(key.dev, key.ino));
        }
        let mut located = self.cache.locate(&file, root).map_err(|error| FileRefused::Content { path, error })?;
        if !self.stepped {
            located.leave_stepped();
        }
        let is_overlay = file.is_on_overlay();
        let same = self.probed.iter().find(|(other, held)| {
            (other.ino, other.size, other.mtime_ns) == (key.ino, key.size, key.mtime_ns)
                && held.located == located
                && (is_overlay || held.file.is_on_overlay())
        });
        if let Some((other, _)) = same {
            return Ok(*other);
        }
        self.shapes.learn_file(&file);
        let (attachments, places) = (Vec::new(), HashSet::new());
        let described = Arc::new(described(&file, &located));
        // A trace shows every step.
        let spared = if self.tracing { Vec::new() } else { spared(&located.hooks) };
        let probed = ProbedFile {
            file,
            described,
            located,
            spared,
            attachments,
            overwritten: false,
            places,
            used_ns: boot_ns(),
        };
        self.probed.insert(key, probed);
        Ok(key)
    }

    /// Attaches a file's probes up to `depth`, those that are not attached yet. A probe that counts for all processes
    /// takes the place of those that count for one: both would fire, and one call would count twice.
    pub fn attach(&mut self, object: &mut Object, key: &FileKey, scope: Scope, depth: Depth) {
        let Some(probed) = self.probed.get_mut(key).filter(|probed| !probed.overwritten) else { return };
        let shared = probed.attached(Scope::AllProcesses);
        let covered = shared.max(probed.attached(scope));
        if depth <= covered {
            return;
        }
        let mut deeper = Vec::new();
        if scope == Scope::AllProcesses {
            deeper = probed.attachments.iter().filter(|a| a.scope != scope).map(|a| (a.scope, a.depth)).collect();
            probed.give_way(self.windows.as_ref());
        }
        let switches = (self.windows.as_ref(), self.off.is_some());
        probed.attach(object, scope, (covered, depth), switches);
        for (scope, deeper) in deeper.into_iter().filter(|(_, deeper)| *deeper > depth) {
            probed.attach(object, scope, (depth, deeper), switches);
        }
    }

    /// Detaches at once from files that were overwritten in place: the kernel would put an old instruction into the
    /// new content, and processes that start on it would crash (kernel 6.18).
    pub fn check_overwritten(&mut self) {
        for probed in self.probed.values_mut().filter(|probed| !probed.overwritten) {
            if probed.file.has_changed().unwrap_or(false) {
                probed.give_way(self.windows.as_ref());
                probed.attachments.clear();
                probed.overwritten = true;
            }
        }
    }

    /// Every probe and what became of it.
    pub fn verdicts(&self) -> Vec<Probe> {
        let mut all = Vec::new();
        for probed in self.probed.values() {
            let path = probed.file.path.display();
            for a in &probed.attachments {
                let whom = match a.scope {
                    Scope::AllProcesses => String::new(),
                    Scope::Process(pid) => format!(" of process {pid}"),
                };
                let verdict = match (&a.broken, &self.off) {
                    // Nothing is amiss; the process's own row says what it is short of.
                    (Some(Unattached::Ended), _) => continue,
                    (Some(Unattached::Refused(why)), _) => Verdict::Broken(why.clone()),
                    (None, Some(why)) => Verdict::Unsupported(why.clone()),
                    (None, None) => Verdict::Attached,
                };
                all.push(Probe { name: format!("{path}{whom} ({} sites)", a.sites), depth: a.depth, verdict });
            }
            for missing in &probed.located.missing {
                let verdict = Verdict::Unsupported(missing.why.clone());
                all.push(Probe { name: format!("{} in {path}", missing.what), depth: missing.depth, verdict });
            }
            if probed.overwritten {
                let why = "the file was overwritten in place while in use; it is probed again when no process maps it"
                    .to_owned();
                all.push(Probe { name: path.to_string(), depth: Depth::Sysmalloc, verdict: Verdict::Broken(why) });
            }
        }
        if self.refused > 0 {
            let why = format!("{PROBED_FILES} files that are in use carry probes; looks refused: {}", self.refused);
            let name = "further files with an allocator".to_owned();
            all.push(Probe { name, depth: Depth::Sysmalloc, verdict: Verdict::Broken(why) });
        }
        all
    }

    /// Every file.
    pub fn all(&self) -> impl Iterator<Item = (&FileKey, &ProbedFile)> {
        self.probed.iter()
    }

    /// How many sites are attached.
    pub fn sites(&self) -> usize {
        self.probed.values().flat_map(|p| &p.attachments).filter(|a| a.links.is_some() || a.budgeted).count()
    }
}

impl ProbedFile {
    /// The file itself.
    pub fn file(&self) -> &TargetFile {
        &self.file
    }

    /// How deep the probes of a scope go.
    pub(super) fn attached(&self, scope: Scope) -> Depth {
        let depths = self.attachments.iter().filter(|a| a.scope == scope).map(|a| a.depth);
        depths.max().unwrap_or(Depth::Syscall)
    }

    /// Whether no program that starts now will find it as it was.
    fn is_past(&self) -> bool {
        self.overwritten || self.file.is_deleted()
    }

    /// Whether its probes had to go.
    pub fn was_overwritten(&self) -> bool {
        self.overwritten
    }

    /// How the allocator is described to users.
    pub fn allocator(&self) -> Arc<Allocator> {
        Arc::clone(&self.described)
    }

    /// The file and its kind, for a list of such files.
    pub fn summary(&self) -> String {
        let kind = &self.located.kind;
        let version = kind.version().map(|version| format!(" {version}")).unwrap_or_default();
        format!("{} ({}{version})", self.file.path.display(), kind.name())
    }

    /// Where the allocator's variables lie in a process that maps the file's code `offset` at `address`.
    fn place(&self, address: u64, offset: u64) -> Option<Place> {
        let (located, hook) = (&self.located, self.located.hooks.first()?);
        let mp = located.mp?;
        let bias = address.wrapping_sub(offset).wrapping_add(hook.file_offset).wrapping_sub(hook.vaddr);
        Some(Place {
            mp: mp.vaddr.wrapping_add(bias),
            mp_layout: mp.layout,
            main_arena: located.main_arena.map(|main| main.wrapping_add(bias)),
            arena_layout: located.arena_layout,
            links: located.version().and_then(Links::of_version),
            code: address,
        })
    }
}
