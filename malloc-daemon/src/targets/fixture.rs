//! Small ELF files for the tests: a libc in miniature, as a linker would lay it out.

use object::elf;

/// Where the file is loaded: the address of its first byte.
pub const BASE: u64 = 0x40_0000;
/// How far apart the functions lie.
pub const SLOT: u64 = 0x40;
/// The file offset of the first function: behind the headers.
const TEXT: u64 = 0x200;
const SEGMENTS: u64 = 3;

/// The address of the function at `index`.
pub fn address(index: usize) -> u64 {
    BASE + TEXT + index as u64 * SLOT
}

/// A direct branch: `opcode` at `at`, leading to `to`.
pub fn branch(opcode: &[u8], at: u64, to: u64) -> Vec<u8> {
    let distance = to.wrapping_sub(at + opcode.len() as u64 + 4) as u32;
    [opcode, &distance.to_le_bytes()].concat()
}

/// What of a symbol the file tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    Exported,
    ExportedOld,
    Internal,
}

pub struct Function {
    pub name: &'static str,
    pub vaddr: u64,
    pub size: u64,
    pub visibility: Visibility,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Symtab {
    Kept,
    Stripped,
}

/// A file to be written.
pub struct File {
    pub machine: u16,
    pub text: Vec<u8>,
    pub functions: Vec<Function>,
    pub objects: Vec<(&'static str, Vec<u8>)>,
    pub build_id: Vec<u8>,
    pub debug_data: Option<Vec<u8>>,
    /// Local functions of a source file other than malloc.c.
    pub strangers: Vec<Function>,
    /// Slots the dynamic linker fills, and the exported function whose address it stores.
    pub slots: Vec<(u64, &'static str)>,
    /// Slots the dynamic linker fills with an address of the file itself.
    pub relative: Vec<(u64, u64)>,
    /// Other sections: name, type, and bytes.
    pub extra: Vec<(&'static str, elf::SectionType, Vec<u8>)>,
}

struct Section {
    name: &'static str,
    kind: u32,
    link: u32,
    offset: u64,
    size: u64,
}

impl File {
    /// The file's bytes.
    pub fn bytes(&self, symtab: Symtab) -> Vec<u8> {
        let mut file = vec![0; TEXT as usize];
        let mut sections = Vec::new();
        let mut add = |file: &mut Vec<u8>, name, kind: elf::SectionType, link, bytes: &[u8]| {
            file.resize(file.len().next_multiple_of(8), 0);
            sections.push(Section { name, kind: kind.0, link, offset: file.len() as u64, size: bytes.len() as u64 });
            file.extend_from_slice(bytes);
            BASE + (file.len() - bytes.len()) as u64
        };
        add(&mut file, ".text", elf::SHT_PROGBITS, 0, &self.text);
        let banner = b"GNU C Library (miniature) stable release version 2.36.\n";
        add(&mut file, ".rodata", elf::SHT_PROGBITS, 0, banner);
        let note =
            [&[4, 0, 0, 0, self.build_id.len() as u8, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0", &self.build_id].concat();
        let note_at = add(&mut file, ".note.gnu.build-id", elf::SHT_NOTE, 0, &note) - BASE;
        let interpreter = add(&mut file, ".interp", elf::SHT_PROGBITS, 0, b"/lib64/ld.so\0") - BASE;
        add(&mut file, ".gnu_debuglink", elf::SHT_PROGBITS, 0, b"mini.debug\0\0\x04\x03\x02\x01");
        let objects: Vec<(&str, u64, u64)> = self
            .objects
            .iter()
            .map(|(name, bytes)| (*name, add(&mut file, ".data", elf::SHT_PROGBITS, 0, bytes), bytes.len() as u64))
            .collect();
        // Sections are counted from 1: seven and the objects' come before the exported names.
        let exported = |function: &&Function| function.visibility != Visibility::Internal;
        let (symbols, names) = table(self.functions.iter().filter(exported), &[], &[], "");
        let versions: Vec<u8> = std::iter::once(0u16)
            .chain(self.functions.iter().filter(exported).map(|function| match function.visibility {
                Visibility::ExportedOld => 0x8002,
                _ => 3,
            }))
            .flat_map(u16::to_le_bytes)
            .collect();
        let next = 6 + objects.len() as u32;
        add(&mut file, ".dynstr", elf::SHT_STRTAB, 0, &names);
        add(&mut file, ".dynsym", elf::SHT_DYNSYM, next, &symbols);
        add(&mut file, ".gnu.version", elf::SHT_GNU_VERSYM, next + 1, &versions);
        if symtab == Symtab::Kept {
            let (symbols, names) = table(self.functions.iter(), &objects, &self.strangers, "malloc.c");
            add(&mut file, ".strtab", elf::SHT_STRTAB, 0, &names);
            add(&mut file, ".symtab", elf::SHT_SYMTAB, next + 3, &symbols);
        }
        let relocations: Vec<u8> = self
            .slots
            .iter()
            .flat_map(|(slot, name)| {
                let index = self.functions.iter().filter(exported).position(|function| function.name == *name);
                let symbol = index.expect("an exported function") as u64 + 1;
                [*slot, symbol << 32 | u64::from(elf::R_X86_64_JUMP_SLOT.0), 0]
            })
            .chain(self.relative.iter().flat_map(|(slot, value)| [*slot, u64::from(elf::R_X86_64_RELATIVE.0), *value]))
            .flat_map(u64::to_le_bytes)
            .collect();
        add(&mut file, ".rela.plt", elf::SHT_RELA, next + 1, &relocations);
        for (name, kind, bytes) in &self.extra {
            add(&mut file, name, *kind, 0, bytes);
        }
        if let Some(data) = &self.debug_data {
            add(&mut file, ".gnu_debugdata", elf::SHT_PROGBITS, 0, data);
        }
        let mut names = vec![0];
        let offsets: Vec<u32> = sections
            .iter()
            .map(|section| {
                let at = names.len() as u32;
                names.extend_from_slice(section.name.as_bytes());
                names.push(0);
                at
            })
            .collect();
        let names_at = file.len() as u64;
        file.extend_from_slice(&names);
        file.resize(file.len().next_multiple_of(8), 0);
        let headers_at = file.len() as u64;
        let mut header = |name: u32, kind: u32, offset: u64, size: u64, link: u32| {
            file.extend([name, kind].iter().flat_map(|word| word.to_le_bytes()));
            file.extend([0, BASE + offset, offset, size].iter().flat_map(|word| word.to_le_bytes()));
            file.extend([link, 0].iter().flat_map(|word| word.to_le_bytes()));
            file.extend([8u64, 0].iter().flat_map(|word| word.to_le_bytes()));
        };
        header(0, 0, 0, 0, 0);
        for (section, name) in sections.iter().zip(&offsets) {
            header(*name, section.kind, section.offset, section.size, section.link);
        }
        header(0, elf::SHT_STRTAB.0, names_at, names.len() as u64, 0);
        let count = sections.len() as u16 + 2;
        let loaded = file.len() as u64;
        let segments = [
            (elf::PT_LOAD.0, 5, 0, loaded),
            (elf::PT_NOTE.0, 4, note_at, note.len() as u64),
            (elf::PT_INTERP.0, 4, interpreter, 13),
        ];
        let front = self.front(headers_at, count, &segments);
        file[..front.len()].copy_from_slice(&front);
        file
    }

    fn front(&self, headers_at: u64, sections: u16, segments: &[(u32, u32, u64, u64)]) -> Vec<u8> {
        let mut front = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        front.extend([3, self.machine].iter().flat_map(|half| half.to_le_bytes()));
        front.extend(1u32.to_le_bytes());
        front.extend([0, 64, headers_at].iter().flat_map(|word| word.to_le_bytes()));
        front.extend(0u32.to_le_bytes());
        let counts = [64, 56, SEGMENTS as u16, 64, sections, sections - 1];
        front.extend(counts.iter().flat_map(|half| half.to_le_bytes()));
        for &(kind, flags, offset, size) in segments {
            front.extend([kind, flags].iter().flat_map(|word| word.to_le_bytes()));
            let words = [offset, BASE + offset, BASE + offset, size, size, 4];
            front.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        front
    }
}

/// A symbol table and its names: functions and objects of the source file `home`, then the strangers to it.
fn table<'a>(
    functions: impl Iterator<Item = &'a Function>,
    objects: &[(&str, u64, u64)],
    strangers: &[Function],
    home: &str,
) -> (Vec<u8>, Vec<u8>) {
    const FILE: u8 = 0x04;
    const LOCAL: u8 = 0x02;
    const GLOBAL: u8 = 0x12;
    let mut symbols = vec![0; 24];
    let mut names = vec![0];
    let mut add = |name: &str, info: u8, section: u16, vaddr: u64, size: u64| {
        symbols.extend((names.len() as u32).to_le_bytes());
        symbols.extend([info, 0]);
        symbols.extend(section.to_le_bytes());
        symbols.extend([vaddr, size].iter().flat_map(|word| word.to_le_bytes()));
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    };
    if !home.is_empty() {
        add(home, FILE, elf::SHN_ABS.0, 0, 0);
    }
    for function in functions {
        let local = function.visibility == Visibility::Internal;
        add(function.name, if local { LOCAL } else { GLOBAL }, 1, function.vaddr, function.size);
    }
    for (name, vaddr, size) in objects {
        add(name, 0x01, 1, *vaddr, *size);
    }
    if !strangers.is_empty() {
        add("other.c", FILE, elf::SHN_ABS.0, 0, 0);
    }
    for function in strangers {
        add(function.name, LOCAL, 1, function.vaddr, function.size);
    }
    (symbols, names)
}

/// A libc in miniature: each function is its branches, in the order glibc 2.36 has them.
pub fn libc() -> File {
    use Visibility::{Exported, Internal};
    const PUSH: &[u8] = &[0x53];
    const CALL: &[u8] = &[0xe8];
    const JMP: &[u8] = &[0xe9];
    const JE: &[u8] = &[0x0f, 0x84];
    /// Name, visibility, first bytes, and the branches that follow: opcode and target.
    type Row = (&'static str, Visibility, &'static [u8], &'static [(&'static [u8], &'static str)]);
    let layout: [Row; 22] = [
        ("munmap_chunk", Internal, &[0x48, 0x83, 0xec, 0x08], &[(JMP, "munmap")]),
        ("new_heap", Internal, PUSH, &[(CALL, "mmap"), (CALL, "munmap")]),
        ("sysmalloc_mmap.constprop.0", Internal, PUSH, &[(CALL, "mmap")]),
        ("systrim.constprop.0", Internal, PUSH, &[(CALL, "__glibc_morecore")]),
        ("_int_free", Internal, PUSH, &[(CALL, "systrim.constprop.0"), (CALL, "munmap")]),
        ("sysmalloc", Internal, PUSH, &[(CALL, "sysmalloc_mmap.constprop.0"), (CALL, "__glibc_morecore")]),
        ("_int_malloc", Internal, &[0x48, 0x85, 0xf6], &[(JE, "_int_malloc"), (CALL, "sysmalloc")]),
        ("__glibc_morecore", Internal, &[], &[]),
        ("malloc", Exported, PUSH, &[(CALL, "_int_malloc")]),
        ("_mid_memalign.constprop.0", Internal, PUSH, &[(CALL, "_int_malloc"), (JMP, "malloc")]),
        ("free", Exported, &[0x48, 0x85, 0xff], &[(JE, "_int_free"), (JMP, "munmap_chunk")]),
        ("__malloc_arena_thread_freeres", Internal, &[], &[(CALL, "free")]),
        ("realloc", Exported, PUSH, &[(CALL, "malloc"), (CALL, "mremap"), (JMP, "free")]),
        ("memalign", Exported, &[], &[(JMP, "_mid_memalign.constprop.0")]),
        ("valloc", Exported, &[0xf3, 0x0f, 0x1e, 0xfa, 0x53], &[]),
        ("pvalloc", Exported, &[0x48, 0x31, 0xff, 0x53], &[]),
        ("calloc", Exported, PUSH, &[(CALL, "_int_malloc")]),
        ("posix_memalign", Exported, PUSH, &[]),
        ("reallocarray", Exported, PUSH, &[(JMP, "realloc")]),
        ("mmap", Exported, &[], &[]),
        ("munmap", Exported, &[], &[]),
        ("mremap", Exported, &[], &[]),
    ];
    let place = |name: &str| address(layout.iter().position(|(known, ..)| *known == name).expect("a known name"));
    let mut text = Vec::new();
    let mut functions = Vec::new();
    for (name, visibility, head, branches) in &layout {
        let vaddr = place(name);
        let mut code = head.to_vec();
        for (opcode, to) in *branches {
            code.extend(branch(opcode, vaddr + code.len() as u64, place(to)));
        }
        code.push(0xc3);
        functions.push(Function { name, vaddr, size: code.len() as u64, visibility: *visibility });
        code.resize(SLOT as usize, 0x90);
        text.extend(code);
    }
    let alias = |name, of, visibility| Function { name, vaddr: place(of), size: 0, visibility };
    functions.push(alias("aligned_alloc", "memalign", Exported));
    functions.push(alias("__libc_malloc", "malloc", Exported));
    functions.push(alias("mmap64", "mmap", Exported));
    functions.push(alias("cfree", "free", Visibility::ExportedOld));
    let mut mp: Vec<u8> = [0x2_0000u64, 0x2_0000, 0x2_0000, 8, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    mp.resize(144, 0);
    mp[64..68].copy_from_slice(&65536u32.to_le_bytes());
    File {
        machine: elf::EM_X86_64.0,
        text,
        functions,
        objects: vec![("mp_", mp), ("main_arena", vec![0; 2200])],
        build_id: vec![0x93, 0xac, 0x61, 0xec],
        debug_data: None,
        strangers: Vec::new(),
        slots: Vec::new(),
        relative: Vec::new(),
        extra: Vec::new(),
    }
}

/// A note of a static probe at `vaddr`; `text` is provider, name and arguments, each with a NUL behind it.
pub fn note(vaddr: u64, text: &str) -> Vec<u8> {
    note_of([vaddr, 0, 0], text)
}

/// A note of a static probe: its address, that of the base section, and its semaphore's.
pub fn note_of(words: [u64; 3], text: &str) -> Vec<u8> {
    const STAPSDT: u32 = 3;
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let body = [&words, text.as_bytes()].concat();
    let mut note: Vec<u8> = [8, body.len() as u32, STAPSDT].iter().flat_map(|word| word.to_le_bytes()).collect();
    note.extend(b"stapsdt\0");
    note.extend(body);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}
