//! The files that processes run code from: opened once, their tables read when needed and dropped when others need room.

use std::collections::HashMap;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object::LittleEndian as LE;
use object::ReadCache;
use object::elf::{EM_X86_64, PF_X, PT_LOAD};
use object::read::ReadRef;
use object::read::elf::ProgramHeader as _;

use super::Limits;
use super::functions::Functions;
use super::lines::{Call, Lines};
use super::unwind::{CallFrames, Placed};
use crate::host::debug_files::debug_file;
use crate::host::file::{FileKey, Root, TargetFile, open_in_root, open_map_file};
use crate::host::maps::Mapping;
use crate::host::process::{Pid, maps};
use crate::targets::elf::{Elf, SECTION_LIMIT};

/// The most loaded segments of one file that are kept; files have four, and one for each kind of special section.
const SEGMENTS: usize = 64;
/// The largest vdso; it takes two to four pages.
const VDSO_BYTES: u64 = 64 << 10;

/// Tables that no stack needed for so long are let go: the next stack in that file pays for reading them again.
const TABLES_IDLE: Duration = Duration::from_secs(30);
/// A file that was not used for so long is closed: one that was deleted would hold its blocks on disk.
const FILES_IDLE: Duration = Duration::from_secs(60);

/// The most addresses whose calls are remembered: programs come the same few ways again and again. 4,096 x about 250 B.
const NAMED: usize = 4096;

/// Which file code comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleId {
    /// A file.
    File(FileKey),
    /// What the kernel maps into every process.
    Vdso,
}

/// All files, the least recently used dropped first.
pub struct Modules {
    limits: Limits,
    modules: HashMap<ModuleId, Module>,
    /// The calls at addresses of files that are open: only new ones need debug data, the dearest of all tables.
    named: HashMap<(ModuleId, u64), Vec<Call>>,
    /// Counts uses.
    turn: u64,
    /// How long reading tables took so far.
    reading: Duration,
}

/// One file.
struct Module {
    content: Content,
    root: Root,
    segments: Vec<Segment>,
    /// Hexadecimal.
    build_id: Option<Arc<str>>,
    tables: Option<Tables>,
    /// Inner `None`: it has no debug data.
    lines: Option<Option<Lines>>,
    last_turn: u64,
    used: Instant,
    /// When its debug data was looked into last.
    lines_used: Instant,
}

enum Content {
    File(TargetFile),
    Memory(Vec<u8>),
}

/// Which bytes of the file are loaded as code at which address in the file's own numbering.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    size: u64,
    vaddr: u64,
}

struct Tables {
    call_frames: CallFrames,
    functions: Functions,
}

impl Modules {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, modules: HashMap::new(), named: HashMap::new(), turn: 0, reading: Duration::ZERO }
    }

    /// Whether the file is still open here.
    pub fn has(&self, id: ModuleId) -> bool {
        self.modules.contains_key(&id)
    }

    /// The path of a file that is open here.
    pub fn path(&self, id: ModuleId) -> Option<&Path> {
        match &self.modules.get(&id)?.content {
            Content::File(file) => Some(&file.path),
            Content::Memory(_) => None,
        }
    }

    /// Takes in the file of a mapping; `None` when it is no ELF file.
    pub fn take(&mut self, pid: Pid, file: TargetFile) -> Option<ModuleId> {
        let id = ModuleId::File(file.key);
        if !self.has(id) {
            let cache = ReadCache::new(file.reader());
            let elf = Elf::parse(&cache).ok()?;
            let (segments, build_id) = (segments(&elf)?, hexadecimal(&elf));
            self.insert(id, Content::File(file), Root::Process(pid), segments, build_id);
        }
        self.touch(id);
        Some(id)
    }

    /// The vdso, read from this process: the kernel maps the same into all of one architecture.
    pub fn open_vdso(&mut self) -> Option<ModuleId> {
        if !self.has(ModuleId::Vdso) {
            let own = maps(Pid(std::process::id())).ok()??;
            let vdso = own.iter().find(|mapping| mapping.inode == 0 && mapping.path == b"[vdso]")?;
            let size = vdso.end.checked_sub(vdso.start).filter(|&size| size <= VDSO_BYTES)?;
            let mut bytes = vec![0; usize::try_from(size).ok()?];
            std::fs::File::open("/proc/self/mem").ok()?.read_exact_at(&mut bytes, vdso.start).ok()?;
            let elf = Elf::parse(bytes.as_slice()).ok()?;
            let (segments, build_id) = (segments(&elf)?, hexadecimal(&elf));
            self.insert(ModuleId::Vdso, Content::Memory(bytes), Root::Host, segments, build_id);
        }
        self.touch(ModuleId::Vdso);
        Some(ModuleId::Vdso)
    }

    /// The build id of a file that is open here, hexadecimal.
    pub fn build_id(&self, id: ModuleId) -> Option<Arc<str>> {
        self.modules.get(&id)?.build_id.clone()
    }

    /// The address in the file's own numbering of the byte at `offset`; `None` when it is not loaded as code.
    pub fn vaddr(&self, id: ModuleId, offset: u64) -> Option<u64> {
        self.modules.get(&id)?.segments.iter().find_map(|segment| {
            let distance = offset.checked_sub(segment.offset).filter(|&distance| distance < segment.size)?;
            segment.vaddr.checked_add(distance)
        })
    }

    /// The file's rules for stepping to callers.
    pub fn call_frames(&mut self, id: ModuleId) -> Option<&CallFrames> {
        self.touch(id);
        let module = self.modules.get_mut(&id)?;
        if module.tables.is_none() {
            let start = Instant::now();
            module.tables();
            self.reading += start.elapsed();
        }
        Some(&module.tables().call_frames)
    }

    /// How long reading tables took since these modules are known: what the first stack in a file pays for all.
    pub fn reading(&self) -> Duration {
        self.reading
    }

    /// The calls at an address in the file's own numbering, the innermost first and at most `count`.
    pub fn calls_at(&mut self, id: ModuleId, vaddr: u64, count: usize) -> Vec<Call> {
        self.touch(id);
        let Limits { debug_bytes, frames, .. } = self.limits;
        let Some(module) = self.modules.get_mut(&id) else { return Vec::new() };
        if let Some(known) = self.named.get(&(id, vaddr)) {
            return known.iter().take(count).cloned().collect();
        }
        // Debug data is gone through at its first look-up.
        let reads = (module.lines.is_none() || module.tables.is_none()).then(Instant::now);
        let mut calls = module.lines(debug_bytes).map(|lines| lines.calls_at(vaddr, frames)).unwrap_or_default();
        // Of the function itself, the last, debug data may know only the line, or one of libc's inner names
        // (`__GI___libc_malloc`) where the symbols have the one that people use.
        let is_poor = |name: &Option<String>| name.as_ref().is_none_or(|name| name.starts_with("__"));
        if calls.last().is_none_or(|call| is_poor(&call.function))
            && let Some(name) = module.tables().functions.name_at(vaddr)
        {
            let name = Some(super::demangle::demangled(name));
            match calls.last_mut() {
                Some(call) => call.function = name,
                None => calls.push(Call { function: name, ..Call::default() }),
            }
        }
        self.reading += reads.map_or(Duration::ZERO, |start| start.elapsed());
        if self.named.len() >= NAMED {
            self.named.clear();
        }
        self.named.insert((id, vaddr), calls.clone());
        calls.truncate(count);
        calls
    }

    /// Drops tables until the rest fits.
    pub fn trim(&mut self) {
        let mut total: u64 = self.modules.values().map(Module::bytes).sum();
        if total <= self.limits.table_bytes {
            return;
        }
        let mut by_age: Vec<_> = self.modules.values_mut().filter(|module| module.bytes() > 0).collect();
        by_age.sort_by_key(|module| module.last_turn);
        for module in by_age {
            if total <= self.limits.table_bytes {
                break;
            }
            total = total.saturating_sub(module.bytes());
            (module.tables, module.lines) = (None, None);
        }
    }

    /// Drops the tables and closes the files that were not used for long; whether memory was given back.
    pub fn let_go(&mut self, now: Instant) -> bool {
        let rests = |used: Instant, time: Duration| now.saturating_duration_since(used) >= time;
        let mut has_dropped = false;
        for module in self.modules.values_mut() {
            if rests(module.used, TABLES_IDLE) {
                has_dropped |= module.tables.take().is_some();
            }
            if rests(module.lines_used, TABLES_IDLE) {
                has_dropped |= module.lines.take().is_some();
            }
        }
        self.modules.retain(|_, module| !rests(module.used, FILES_IDLE));
        self.forget_closed();
        has_dropped
    }

    /// The files open and the bytes their tables take.
    pub fn usage(&self) -> (usize, u64) {
        (self.modules.len(), self.modules.values().map(Module::bytes).sum())
    }

    fn insert(
        &mut self,
        id: ModuleId,
        content: Content,
        root: Root,
        segments: Vec<Segment>,
        build_id: Option<Arc<str>>,
    ) {
        while self.modules.len() >= self.limits.modules.max(1) {
            let oldest = self.modules.iter().min_by_key(|(_, module)| module.last_turn).map(|(&id, _)| id);
            oldest.and_then(|id| self.modules.remove(&id));
            self.forget_closed();
        }
        let now = Instant::now();
        let module = Module {
            content,
            root,
            segments,
            build_id,
            tables: None,
            lines: None,
            last_turn: self.turn,
            used: now,
            lines_used: now,
        };
        self.modules.insert(id, module);
    }

    /// What was said of a file that is closed would stand although a debug file has come.
    fn forget_closed(&mut self) {
        let Self { modules, named, .. } = self;
        named.retain(|(id, _), _| modules.contains_key(id));
    }

    fn touch(&mut self, id: ModuleId) {
        self.turn += 1;
        if let Some(module) = self.modules.get_mut(&id) {
            (module.last_turn, module.used) = (self.turn, Instant::now());
        }
    }
}

impl Module {
    fn tables(&mut self) -> &Tables {
        let (content, root) = (&self.content, self.root);
        self.tables.get_or_insert_with(|| match content {
            Content::File(file) => tables(&ReadCache::new(file.reader()), root),
            Content::Memory(bytes) => tables(bytes.as_slice(), root),
        })
    }

    fn lines(&mut self, limit: u64) -> Option<&Lines> {
        let (content, root) = (&self.content, self.root);
        self.lines_used = Instant::now();
        let lines = self.lines.get_or_insert_with(|| match content {
            Content::File(file) => lines(&ReadCache::new(file.reader()), root, limit),
            Content::Memory(_) => None,
        });
        lines.as_ref()
    }

    fn bytes(&self) -> u64 {
        let tables = self
            .tables
            .as_ref()
            .map_or(0, |tables| tables.call_frames.bytes().saturating_add(tables.functions.bytes()));
        let lines = self.lines.as_ref().and_then(Option::as_ref).map_or(0, Lines::bytes);
        tables.saturating_add(lines)
    }
}

/// Opens the file of a mapping; `None` when it is not to be had.
pub fn file_of(pid: Pid, mapping: &Mapping) -> Option<TargetFile> {
    let path = mapping.path();
    match open_map_file(pid, mapping.start..mapping.end, &path) {
        Ok(file) => file,
        // Without the capability for it the path has to do, if it still leads to the same file.
        Err(_) => open_in_root(Root::Process(pid), &path).ok()?.filter(|file| file.key.ino == mapping.inode),
    }
}

fn hexadecimal<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<Arc<str>> {
    Some(Arc::from(elf.build_id()?.to_string()))
}

fn segments<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<Vec<Segment>> {
    let loaded =
        elf.segments().iter().filter(|segment| segment.p_type(LE) == PT_LOAD && segment.p_flags(LE).contains(PF_X));
    let segment = |header: &object::elf::ProgramHeader64<_>| Segment {
        offset: header.p_offset(LE),
        size: header.p_filesz(LE),
        vaddr: header.p_vaddr(LE),
    };
    let segments: Vec<_> = loaded.take(SEGMENTS).map(segment).collect();
    (elf.machine() == EM_X86_64.0).then_some(segments)
}

fn tables<'data, R: ReadRef<'data>>(data: R, root: Root) -> Tables {
    let Ok(elf) = Elf::parse(data) else {
        return Tables { call_frames: CallFrames::default(), functions: Functions::default() };
    };
    let debug = elf.section(b".symtab").is_none().then(|| debug_file_of(&elf, root)).flatten();
    let functions = match &debug {
        Some(debug) => {
            let debug = ReadCache::new(debug.reader());
            Functions::read(&elf, Elf::parse(&debug).ok().as_ref())
        }
        None => Functions::read(&elf, None::<&Elf<'_, R>>),
    };
    Tables { call_frames: call_frames(&elf), functions }
}

fn call_frames<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> CallFrames {
    let address = |name: &[u8]| elf.section(name).map_or(0, |section| section.sh_addr.get(LE));
    let placed = |name: &[u8]| {
        let section = elf.section(name)?;
        let bytes = elf.bytes_within(section, SECTION_LIMIT).ok()?;
        Some(Placed { address: section.sh_addr.get(LE), bytes: bytes.to_vec() })
    };
    match placed(b".eh_frame") {
        Some(entries) => CallFrames::new(entries, placed(b".eh_frame_hdr"), address(b".text"), address(b".got")),
        None => CallFrames::default(),
    }
}

fn lines<'data, R: ReadRef<'data>>(data: R, root: Root, limit: u64) -> Option<Lines> {
    let elf = Elf::parse(data).ok()?;
    if elf.section(b".debug_info").is_some() {
        return Lines::load(&elf, data, limit);
    }
    let debug = debug_file_of(&elf, root)?;
    let debug = ReadCache::new(debug.reader());
    Lines::load(&Elf::parse(&debug).ok()?, &debug, limit)
}

/// The separate debug file, if it really is this file's.
fn debug_file_of<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, root: Root) -> Option<TargetFile> {
    let wanted = elf.build_id()?;
    let file = debug_file(&wanted.to_string(), root).ok()??;
    let found = crate::targets::elf::build_id(&ReadCache::new(file.reader()))?;
    (found == wanted).then_some(file)
}
