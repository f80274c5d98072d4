//! Reads the static probes a file was built with: the notes of SystemTap's `sys/sdt.h`.

use object::LittleEndian as LE;
use object::elf::{self, FileHeader64};
use object::read::ReadRef;
use object::read::elf::NoteIterator;

use super::elf::{Elf, ElfError};

/// The most of the notes that is read; libc's have 8 KiB, those of the largest programs with probes 100 KiB.
const NOTES_LIMIT: u64 = 4 << 20;
/// The most probes that are kept.
const PROBE_LIMIT: usize = 4096;
/// The longest name and the longest argument list that are kept.
const NAME_LIMIT: usize = 256;
const ARGUMENTS_LIMIT: usize = 4096;
/// The most arguments a probe can have.
const ARGUMENT_LIMIT: usize = 12;
/// What `sys/sdt.h` aligns its notes to, on every machine.
const NOTE_ALIGN: u64 = 4;
/// The note's type.
const STAPSDT: u32 = 3;

/// One place of one static probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsdtProbe {
    /// Whose it is: `libc`.
    pub provider: String,
    /// Its name; several places may share it.
    pub name: String,
    /// The instruction's address in the file's own numbering.
    pub vaddr: u64,
    /// Where in the file the instruction lies.
    pub file_offset: u64,
    /// The address of the counter that switches it on; `None`: it is always on.
    pub semaphore: Option<u64>,
    /// Its arguments; where one cannot be read, its text.
    pub arguments: Vec<Result<Argument, String>>,
}

/// Where an argument is when the probe is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// How many bytes it has: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Whether it is signed.
    pub signed: bool,
    /// Where it is.
    pub place: Place,
}

/// Where a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is always this.
    Constant(i64),
    /// In a register, by its assembler name: `rax`, `x0`.
    Register(String),
    /// In memory: `base + index * scale + displacement`.
    Memory {
        /// The register it is relative to.
        base: String,
        /// A register that counts elements, and their size in bytes.
        index: Option<(String, u8)>,
        /// Bytes from there.
        displacement: i64,
    },
}

/// The static probes of `file`, in the order of its notes; notes that cannot be read are left out.
///
/// # Errors
/// When the file is no ELF file of a supported kind, or its notes are larger than any honest file's.
pub fn probes<'data, R: ReadRef<'data>>(file: R) -> Result<Vec<UsdtProbe>, ElfError> {
    read(&Elf::parse(file)?)
}

/// [`probes`] of a file that is open already.
///
/// # Errors
/// When its notes are larger than any honest file's, or lie outside the file.
pub fn read<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Result<Vec<UsdtProbe>, ElfError> {
    let Some(section) = elf.section(b".note.stapsdt") else { return Ok(Vec::new()) };
    let bytes = elf.bytes_within(section, NOTES_LIMIT)?;
    // A file relinked after the notes were written has moved as its base section has.
    let base = elf.section(b".stapsdt.base").map(|section| section.sh_addr.get(LE));
    let mut probes = Vec::new();
    let Ok(mut notes) = NoteIterator::<FileHeader64<LE>>::new(LE, NOTE_ALIGN, bytes) else {
        return Ok(probes);
    };
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"stapsdt"
            && note.n_type(LE) == elf::NoteType(STAPSDT)
            && probes.len() < PROBE_LIMIT
            && let Some(probe) = probe(elf, base, note.desc())
        {
            probes.push(probe);
        }
    }
    Ok(probes)
}

fn probe<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, base: Option<u64>, note: &[u8]) -> Option<UsdtProbe> {
    let (words, text) = note.split_first_chunk::<24>()?;
    let word = |at: usize| words.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let moved = base.map_or(0, |base| base.wrapping_sub(word(8).unwrap_or(base)));
    let vaddr = word(0)?.wrapping_add(moved);
    let semaphore = word(16).filter(|semaphore| *semaphore != 0).map(|semaphore| semaphore.wrapping_add(moved));
    let mut parts = text.split(|&byte| byte == 0);
    let mut part = |limit: usize| {
        let text = parts.next().filter(|part| part.len() <= limit)?;
        std::str::from_utf8(text).ok()
    };
    let (provider, name, arguments) = (part(NAME_LIMIT)?, part(NAME_LIMIT)?, part(ARGUMENTS_LIMIT)?);
    if provider.is_empty() || name.is_empty() {
        return None;
    }
    Some(UsdtProbe {
        provider: provider.to_owned(),
        name: name.to_owned(),
        vaddr,
        file_offset: elf.file_offset(vaddr)?,
        semaphore,
        arguments: split(arguments).take(ARGUMENT_LIMIT).map(argument).collect(),
    })
}

/// The arguments, which blanks separate; aarch64 writes blanks within brackets too.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.trim_matches(' ');
    std::iter::from_fn(move || {
        let mut depth = 0usize;
        let end = rest.find(|c| {
            match c {
                '[' | '(' => depth += 1,
                ']' | ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ' ' && depth == 0
        });
        let (one, left) = rest.split_at(end.unwrap_or(rest.len()));
        rest = left.trim_start_matches(' ');
        (!one.is_empty()).then_some(one)
    })
}

/// `SIZE@PLACE`: a negative size is a signed value's.
fn argument(text: &str) -> Result<Argument, String> {
    let parsed = text.split_once('@').and_then(|(size, place)| {
        let size: i8 = size.parse().ok()?;
        let bytes = size.unsigned_abs();
        let place = place_of(place)?;
        matches!(bytes, 1 | 2 | 4 | 8).then_some(Argument { bytes, signed: size < 0, place })
    });
    parsed.ok_or_else(|| text.to_owned())
}

fn place_of(text: &str) -> Option<Place> {
    if let Some(constant) = text.strip_prefix('$') {
        return number(constant).map(Place::Constant);
    }
    if let Some(name) = text.strip_prefix('%') {
        return register(name).map(Place::Register);
    }
    if let Some(inner) = text.strip_prefix('[') {
        return memory_aarch64(inner.strip_suffix(']')?);
    }
    if let Some(inner) = text.strip_suffix(')') {
        return memory_x86(inner);
    }
    number(text).map(Place::Constant).or_else(|| register(text).map(Place::Register))
}

/// `DISPLACEMENT(%BASE,%INDEX,SCALE` without its last bracket. What is relative to a symbol or to the instruction is not
/// read.
fn memory_x86(text: &str) -> Option<Place> {
    let (displacement, registers) = text.split_once('(')?;
    let displacement = if displacement.is_empty() { 0 } else { number(displacement)? };
    let mut parts = registers.split(',');
    let name = |part: &str| register(part.strip_prefix('%')?);
    let base = name(parts.next()?).filter(|base| base != "rip")?;
    let index = match (parts.next(), parts.next()) {
        (None, _) => None,
        (Some(index), None) => Some((name(index)?, 1)),
        (Some(index), Some(scale)) => {
            Some((name(index)?, scale.parse().ok().filter(|scale| matches!(scale, 1 | 2 | 4 | 8))?))
        }
    };
    parts.next().is_none().then_some(Place::Memory { base, index, displacement })
}

/// `BASE`, `BASE, DISPLACEMENT` or `BASE, INDEX[, lsl N]` without its brackets.
fn memory_aarch64(text: &str) -> Option<Place> {
    let mut parts = text.split(',').map(str::trim);
    let base = register(parts.next()?)?;
    let (second, third) = (parts.next(), parts.next());
    if parts.next().is_some() {
        return None;
    }
    let (index, displacement) = match second {
        None => (None, 0),
        Some(text) => match number(text.strip_prefix('#').unwrap_or(text)) {
            Some(displacement) => (None, displacement),
            None => {
                let shift =
                    third.map_or(Some(0), |third| third.strip_prefix("lsl ")?.trim_start_matches('#').parse().ok());
                (Some((register(text)?, 1u8.checked_shl(shift?).filter(|scale| *scale <= 8 && *scale > 0)?)), 0)
            }
        },
    };
    (index.is_some() || third.is_none()).then_some(Place::Memory { base, index, displacement })
}

fn number(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (digits, radix) = match digits.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (digits, 10),
    };
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    // Unsigned constants above the signed range keep their bits.
    let value = u64::from_str_radix(digits, radix).ok()?.cast_signed();
    Some(if negative { value.wrapping_neg() } else { value })
}

fn register(name: &str) -> Option<String> {
    /// `r15d` and `xmm15` are among the longest.
    const LONGEST: usize = 6;
    let plain = name.len() >= 2
        && name.len() <= LONGEST
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    plain.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::fixture::{self, BASE, File, Symtab, address, libc};
    use proptest::prelude::*;

    fn places(text: &str) -> Vec<Result<Argument, String>> {
        split(text).map(argument).collect()
    }

    fn good(bytes: u8, signed: bool, place: Place) -> Result<Argument, String> {
        Ok(Argument { bytes, signed, place })
    }

    fn memory(base: &str, index: Option<(&str, u8)>, displacement: i64) -> Place {
        let index = index.map(|(name, scale)| (name.to_owned(), scale));
        Place::Memory { base: base.to_owned(), index, displacement }
    }

    #[test]
    fn registers_constants_and_memory_are_told_apart() {
        assert_eq!(
            places("8@%rax -4@$5 8@-96(%rbp) 8@x0 4@(%rdi) 8@8(%rax,%rbx,4)"),
            [
                good(8, false, Place::Register("rax".into())),
                good(4, true, Place::Constant(5)),
                good(8, false, memory("rbp", None, -96)),
                good(8, false, Place::Register("x0".into())),
                good(4, false, memory("rdi", None, 0)),
                good(8, false, memory("rax", Some(("rbx", 4)), 8)),
            ]
        );
    }

    #[test]
    fn aarch64_writes_memory_in_brackets_with_blanks() {
        assert_eq!(
            places("8@[sp, 16] 4@[x0] -8@[x1, x2, lsl 3] 4@-22"),
            [
                good(8, false, memory("sp", None, 16)),
                good(4, false, memory("x0", None, 0)),
                good(8, true, memory("x1", Some(("x2", 8)), 0)),
                good(4, false, Place::Constant(-22)),
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_kept_as_its_text() {
        for text in ["8@16+mp_(%rip)", "8@8(%rip)", "3@%rax", "@%rax", "8@", "8@mp_+4", "8@[x0", "99@%rax", "8@%"] {
            assert_eq!(places(text), [Err(text.to_owned())]);
        }
        assert_eq!(places(""), []);
    }

    fn note(words: [u64; 3], text: &str) -> Vec<u8> {
        fixture::note_of(words, text)
    }

    fn with_notes(notes: Vec<u8>) -> Vec<u8> {
        let extra = vec![(".note.stapsdt", elf::SHT_NOTE, notes), (".stapsdt.base", elf::SHT_PROGBITS, vec![0])];
        File { extra, ..libc() }.bytes(Symtab::Stripped)
    }

    #[test]
    fn a_note_gives_a_probe_that_has_moved_with_its_base() {
        let file = with_notes(Vec::new());
        let base = Elf::parse(&*file).unwrap().section(b".stapsdt.base").expect("the base").sh_addr.get(LE);
        // The base lies behind the notes: as many bytes later as they have.
        let text = "libc\0memory_sbrk_more\08@%rax 8@16+mp_(%rip)\0";
        let size = (note([0; 3], text).len() * 2) as u64;
        let base = base + size;
        let moved = 0x1000;
        let notes = [
            note([address(3), base, 0], text),
            note([address(4) - moved, base - moved, address(0) - moved], "libc\0memory_sbrk_more\0\0"),
        ];
        let mut notes = notes.concat();
        notes.resize(size as usize, 0);
        let found = probes(&*with_notes(notes)).expect("an ELF file");
        let places: Vec<_> = found.iter().map(|probe| (probe.vaddr, probe.semaphore)).collect();
        assert_eq!(places, [(address(3), None), (address(4), Some(address(0)))]);
        assert!(found.iter().all(|probe| probe.provider == "libc" && probe.name == "memory_sbrk_more"));
        assert_eq!(
            found[0].arguments,
            [good(8, false, Place::Register("rax".into())), Err("8@16+mp_(%rip)".to_owned())]
        );
        assert_eq!(found[1].arguments, []);
        assert_eq!(found[0].file_offset, address(3) - BASE);
    }

    #[test]
    fn a_note_that_ends_too_early_is_left_out() {
        let whole = note([address(3), 0, 0], "libc\0memory_sbrk_more\0\0");
        for text in ["libc", "\0\0\0", "libc\0memory_sbrk_more"] {
            let found = probes(&*with_notes([note([address(3), 0, 0], text), whole.clone()].concat())).expect("a file");
            assert!(found.len() <= 1, "{found:?}");
        }
        for length in 0..whole.len() {
            let _ = probes(&*with_notes(whole[..length].to_vec()));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[-0-9a-z@%$()\\[\\], +#]{0,60}") {
            for parsed in split(&text).map(argument) {
                if let Err(kept) = parsed {
                    prop_assert!(text.contains(&kept));
                }
            }
        }
    }
}
