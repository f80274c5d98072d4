//! Where the fields of the kernel's structures lie, from its BTF: pure over bytes. `aya-obj` parses BTF too but keeps
//! types and members to itself.

use std::cell::Cell;

/// `0xeB9F`, little-endian.
const MAGIC: [u8; 2] = [0x9f, 0xeb];
/// `struct btf_header` up to `str_len`; newer kernels append to it.
const HEADER_BYTES: usize = 24;
/// `struct btf_type` without what follows it.
const TYPE_BYTES: usize = 12;
/// `struct btf_member`.
const MEMBER_BYTES: usize = 12;
/// How many anonymous structures inside each other, and qualifiers before one, are followed; the kernel nests 3.
const NESTING: usize = 8;
/// How many members are looked at for one field: structures that hold themselves would give some 200^8 to look at. The
/// kernel's `task_struct` has 300 with all that is in it.
const MEMBERS: u32 = 1 << 16;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Byte offsets that the kernel programs read at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskOffsets {
    /// `task_struct.group_leader`, a pointer
    pub task_group_leader: u32,
    /// `task_struct.start_boottime` (`real_start_time` before 5.5), u64 nanoseconds
    pub task_start_boottime: u32,
    /// `task_struct.mm`, a pointer
    pub task_mm: u32,
    /// `task_struct.signal`, a pointer
    pub task_signal: u32,
    /// `task_struct.tgid`, i32
    pub task_tgid: u32,
    /// `task_struct.comm`, 16 bytes
    pub task_comm: u32,
    /// `mm_struct.brk`, u64: the end of the heap
    pub mm_brk: u32,
    /// `signal_struct.live`, i32: threads that have not exited
    pub signal_live: u32,
    /// `signal_struct.oom_mm`, a pointer, null until the kernel kills the process for memory; `None`: not in this kernel
    pub signal_oom_mm: Option<u32>,
}

/// Why BTF gives no offsets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The bytes do not begin as BTF of this byte order does.
    #[error("not little-endian BTF of version 1")]
    NotBtf,
    /// A length leads outside the bytes.
    #[error("BTF is cut short")]
    Truncated,
    /// A type of a kind this daemon does not know, whose length is unknown therefore.
    #[error("BTF holds a type of unknown kind {0}")]
    UnknownKind(u32),
    /// The kernel was built without that structure or field.
    #[error("BTF does not describe {structure}.{field}")]
    Missing {
        /// The structure.
        structure: &'static str,
        /// The field, with its older name if it had one.
        field: &'static str,
    },
}

/// Finds the offsets in the content of /sys/kernel/btf/vmlinux.
///
/// # Errors
/// [`BtfError`].
pub fn task_offsets(btf: &[u8]) -> Result<TaskOffsets, BtfError> {
    let btf = Btf::parse(btf, [b"task_struct", b"mm_struct", b"signal_struct"])?;
    let [task, mm, signal] = &btf.wanted;
    let task = |field| btf.offset(task, "task_struct", field);
    Ok(TaskOffsets {
        task_group_leader: task("group_leader")?,
        task_start_boottime: task("start_boottime").or_else(|_| task("real_start_time"))?,
        task_mm: task("mm")?,
        task_signal: task("signal")?,
        task_tgid: task("tgid")?,
        task_comm: task("comm")?,
        mm_brk: btf.offset(mm, "mm_struct", "brk")?,
        signal_live: btf.offset(signal, "signal_struct", "live")?,
        signal_oom_mm: btf.offset(signal, "signal_struct", "oom_mm").ok(),
    })
}

/// BTF with the position of each type, and those of `N` structures looked for by name.
struct Btf<'a, const N: usize> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where type `id` begins in `types`, at `id - 1`: type 0 is void and not stored.
    positions: Vec<u32>,
    /// For each name the structures called so: several when parts of the kernel disagree.
    wanted: [Vec<u32>; N],
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// How many members, values or parameters follow.
    count: u32,
    /// Member offsets carry the width of bit fields in their upper byte.
    has_bit_fields: bool,
    /// The type it refers to, or its size.
    target: u32,
    /// Where the members begin.
    members_at: usize,
}

impl Type {
    fn is_composite(self) -> bool {
        matches!(self.kind, KIND_STRUCT | KIND_UNION)
    }

    /// The bytes that follow the type itself.
    fn tail_bytes(self) -> Result<usize, BtfError> {
        let count = self.count as usize;
        Ok(match self.kind {
            // int, variable, declaration tag
            1 | 14 | 17 => 4,
            // array
            3 => 12,
            // structure, union, section, 64-bit enumeration
            KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12,
            // enumeration, function prototype
            6 | 13 => count * 8,
            // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            kind => return Err(BtfError::UnknownKind(kind)),
        })
    }
}

impl<'a, const N: usize> Btf<'a, N> {
    fn parse(bytes: &'a [u8], names: [&[u8]; N]) -> Result<Self, BtfError> {
        if bytes.get(..2) != Some(&MAGIC) || bytes.get(2) != Some(&1) {
            return Err(BtfError::NotBtf);
        }
        let header = u32_at(bytes, 4)? as usize;
        if header < HEADER_BYTES {
            return Err(BtfError::NotBtf);
        }
        let section = |at: usize| {
            let start = header.checked_add(u32_at(bytes, at)? as usize).ok_or(BtfError::Truncated)?;
            let end = start.checked_add(u32_at(bytes, at + 4)? as usize).ok_or(BtfError::Truncated)?;
            bytes.get(start..end).ok_or(BtfError::Truncated)
        };
        let mut btf =
            Btf { types: section(8)?, strings: section(16)?, positions: Vec::new(), wanted: [const { Vec::new() }; N] };
        let mut position = 0;
        while position < btf.types.len() {
            let found = btf.type_at(position)?;
            let Ok(start) = u32::try_from(position) else { return Err(BtfError::Truncated) };
            btf.positions.push(start);
            if found.kind == KIND_STRUCT {
                let which = names.iter().position(|name| btf.string_is(found.name, name));
                if let Some(structures) = which.and_then(|which| btf.wanted.get_mut(which)) {
                    structures.push(start);
                }
            }
            position = found.members_at.checked_add(found.tail_bytes()?).ok_or(BtfError::Truncated)?;
        }
        Ok(btf)
    }

    /// The byte offset of `field` in the first of `structures` that has it.
    fn offset(&self, structures: &[u32], structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
        let left = Cell::new(MEMBERS);
        let find = |&at: &u32| self.bit_offset(at as usize, field.as_bytes(), NESTING, &left);
        let mut found = structures.iter().filter_map(find);
        // None of the fields is a bit field; one that became so is as good as missing.
        let bits = found.next().filter(|bits| bits % 8 == 0);
        bits.map(|bits| bits / 8).ok_or(BtfError::Missing { structure, field })
    }

    /// The offset in bits of a member, also one inside anonymous structures and unions.
    fn bit_offset(&self, position: usize, field: &[u8], nesting: usize, left: &Cell<u32>) -> Option<u32> {
        let composite = self.type_at(position).ok()?;
        (0..composite.count as usize).take_while(|_| left.get() > 0).find_map(|index| {
            left.set(left.get().checked_sub(1)?);
            let at = composite.members_at.checked_add(index.checked_mul(MEMBER_BYTES)?)?;
            let name = u32_at(self.types, at).ok()?;
            let (bits, width) = match u32_at(self.types, at.checked_add(8)?).ok()? {
                offset if composite.has_bit_fields => (offset & 0x00ff_ffff, offset >> 24),
                offset => (offset, 0),
            };
            if self.string_is(name, field) {
                return (width == 0).then_some(bits);
            }
            if !self.string_is(name, b"") {
                return None;
            }
            let inner = self.composite(u32_at(self.types, at.checked_add(4)?).ok()?)?;
            bits.checked_add(self.bit_offset(inner, field, nesting.checked_sub(1)?, left)?)
        })
    }

    /// The position of the structure or union that a type id stands for, behind qualifiers.
    fn composite(&self, mut id: u32) -> Option<usize> {
        for _ in 0..NESTING {
            let position = *self.positions.get(id.checked_sub(1)? as usize)? as usize;
            let found = self.type_at(position).ok()?;
            match found.kind {
                _ if found.is_composite() => return Some(position),
                // typedef, volatile, const, restrict, type tag
                8..=11 | 18 => id = found.target,
                _ => return None,
            }
        }
        None
    }

    fn type_at(&self, position: usize) -> Result<Type, BtfError> {
        let word = |index: usize| u32_at(self.types, position.checked_add(index * 4).ok_or(BtfError::Truncated)?);
        let description = word(1)?;
        Ok(Type {
            name: word(0)?,
            // 5 bits of kind and 16 of count in use so far; the bits beside them are zero until they are needed.
            kind: description >> 24 & 0x7f,
            count: description & 0x00ff_ffff,
            has_bit_fields: description >> 31 == 1,
            target: word(2)?,
            members_at: position.checked_add(TYPE_BYTES).ok_or(BtfError::Truncated)?,
        })
    }

    fn string_is(&self, offset: u32, text: &[u8]) -> bool {
        let rest = self.strings.get(offset as usize..).and_then(|string| string.strip_prefix(text));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(BtfError::Truncated)?;
    Ok(u32::from_le_bytes(*word))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes BTF, type by type; ids count from 1.
    #[derive(Default)]
    struct Writer {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Writer {
        fn string(&mut self, text: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if text.is_empty() {
                return 0;
            }
            let offset = self.strings.len() as u32;
            self.strings.extend(text.as_bytes());
            self.strings.push(0);
            offset
        }

        fn words(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }

        /// Members are (name, type, offset word).
        fn composite(&mut self, name: &str, kind: u32, bit_fields: bool, members: &[(&str, u32, u32)]) {
            let name = self.string(name);
            self.words(&[name, u32::from(bit_fields) << 31 | kind << 24 | members.len() as u32, 64]);
            for &(name, target, offset) in members {
                let name = self.string(name);
                self.words(&[name, target, offset]);
            }
        }

        fn finish(self) -> Vec<u8> {
            // A header longer than the one known, as newer kernels may write.
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            bytes.extend([32, 0, types, types, strings, 0, 0].iter().flat_map(|word: &u32| word.to_le_bytes()));
            bytes.extend(self.types);
            bytes.extend(self.strings);
            bytes
        }
    }

    /// A structure whose members all are that structure again.
    fn holding_itself() -> Vec<u8> {
        let mut btf = Writer::default();
        btf.composite("", KIND_STRUCT, false, &[("", 1, 0); 200]); // 1
        btf.composite("task_struct", KIND_STRUCT, false, &[("", 1, 0)]);
        btf.finish()
    }

    #[test]
    fn the_search_in_a_structure_that_holds_itself_ends() {
        assert!(matches!(task_offsets(&holding_itself()), Err(BtfError::Missing { structure: "task_struct", .. })));
    }

    /// The structures that are looked for, as a kernel lays them out.
    pub fn kernel(start: &str) -> Vec<u8> {
        kernel_with(start, "oom_mm")
    }

    fn kernel_with(start: &str, oom_mm: &str) -> Vec<u8> {
        let mut btf = Writer::default();
        let int = btf.string("int");
        btf.words(&[int, 1 << 24, 4, 0x0100_0020]); // 1
        btf.words(&[0, 2 << 24, 1]); // 2: pointer
        btf.words(&[0, 3 << 24, 0, 1, 1, 4]); // 3: array
        btf.words(&[0, 6 << 24 | 2, 4, 0, 0, 0, 1]); // 4: enumeration
        btf.words(&[0, 19 << 24 | 1, 8, 0, 0, 0]); // 5: 64-bit enumeration
        btf.composite("", KIND_UNION, false, &[("unrelated", 1, 0), ("brk", 1, 0)]); // 6
        btf.composite("", KIND_STRUCT, false, &[("first", 1, 0), ("", 6, 320)]); // 7
        btf.words(&[0, 10 << 24, 7]); // 8: const
        btf.composite("mm_struct", KIND_STRUCT, false, &[("", 8, 64)]);
        let signal = [("sigcnt", 1, 0), ("live", 1, 32), (oom_mm, 2, 640)];
        btf.composite("signal_struct", KIND_STRUCT, false, &signal);
        btf.composite(
            "task_struct",
            KIND_STRUCT,
            true,
            &[
                ("flags", 1, 3 << 24 | 5),
                ("mm", 2, 64),
                ("tgid", 1, 128),
                ("group_leader", 2, 192),
                (start, 1, 0x8_0000),
                ("signal", 2, 256),
                ("comm", 3, 768),
            ],
        );
        btf.finish()
    }

    #[test]
    fn offsets_are_found_in_plain_bit_field_and_anonymous_structures() {
        let offsets = task_offsets(&kernel("start_boottime")).unwrap();
        let expected = TaskOffsets {
            task_group_leader: 24,
            task_start_boottime: 0x1_0000,
            task_mm: 8,
            task_signal: 32,
            task_tgid: 16,
            task_comm: 96,
            mm_brk: 48,
            signal_live: 4,
            signal_oom_mm: Some(80),
        };
        assert_eq!(offsets, expected);
    }

    #[test]
    fn the_older_name_of_the_start_time_is_known() {
        assert_eq!(task_offsets(&kernel("real_start_time")).unwrap().task_start_boottime, 0x1_0000);
    }

    #[test]
    fn a_kernel_that_does_not_mark_its_victims_has_all_the_rest() {
        let whole = task_offsets(&kernel("start_boottime")).unwrap();
        let offsets = task_offsets(&kernel_with("start_boottime", "other")).unwrap();
        assert_eq!(offsets, TaskOffsets { signal_oom_mm: None, ..whole });
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = task_offsets(&kernel("start_time")).unwrap_err();
        assert_eq!(error, BtfError::Missing { structure: "task_struct", field: "real_start_time" });
    }

    #[test]
    fn btf_cut_at_any_byte_is_an_error() {
        let whole = kernel("start_boottime");
        for length in 0..whole.len() {
            assert!(task_offsets(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn an_anonymous_structure_that_contains_itself_ends() {
        let mut btf = Writer::default();
        btf.composite("", KIND_STRUCT, false, &[("", 1, 0), ("", 1, 0)]);
        btf.composite("task_struct", KIND_STRUCT, false, &[("", 1, 0)]);
        assert!(matches!(task_offsets(&btf.finish()), Err(BtfError::Missing { .. })));
    }

    proptest! {
        #[test]
        fn no_change_of_bytes_makes_the_parser_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        ) {
            let mut bytes = kernel("start_boottime");
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _ = task_offsets(&bytes);
        }
    }
}
