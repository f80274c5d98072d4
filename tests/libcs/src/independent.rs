//! Reads files another way than the daemon does: exports and segments as binutils print them, branches by plain bits.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// One executable segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Its address.
    pub vaddr: u64,
    /// Where in the file it lies.
    pub offset: u64,
    /// Bytes of it in the file.
    pub size: u64,
}

/// A file as binutils show it.
#[derive(Debug)]
pub struct File {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether it is aarch64's.
    pub aarch64: bool,
    /// Exported functions: the names at each address.
    pub exports: BTreeMap<u64, Vec<String>>,
    /// Executable segments.
    pub segments: Vec<Segment>,
    /// Sections of code: address and size.
    pub code: Vec<(u64, u64)>,
    /// Slots of the linkage table, and the name of what the dynamic linker stores there.
    pub slots: BTreeMap<u64, String>,
    /// The instructions of x86-64, by address: mnemonic and operands. Empty for other machines.
    pub listing: BTreeMap<u64, String>,
}

/// A direct branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Where it lies.
    pub from: u64,
    /// Where it leads.
    pub to: u64,
    /// It may go on to the next instruction instead.
    pub conditional: bool,
    /// It comes back.
    pub call: bool,
}

impl File {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// A sentence, when binutils cannot read it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let aarch64 = bytes.get(18..20) == Some(&[183, 0]);
        let mut exports: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for line in tool("readelf", &["--dyn-syms", "--wide"], path)?.lines() {
            // Num: Value Size Type Bind Vis Ndx Name
            let words: Vec<_> = line.split_whitespace().collect();
            let [_, value, _, "FUNC", "GLOBAL" | "WEAK", _, section, name, ..] = words[..] else { continue };
            if section.parse::<u32>().is_ok() {
                let name = name.split('@').next().unwrap_or(name);
                exports.entry(hexadecimal(value)).or_default().push(name.to_owned());
            }
        }
        let segments = tool("readelf", &["--segments", "--wide"], path)?;
        let segments = segments.lines().filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["LOAD", offset, vaddr, _, size, _, .., "E", _] => {
                    Some(Segment { vaddr: hexadecimal(vaddr), offset: hexadecimal(offset), size: hexadecimal(size) })
                }
                _ => None,
            }
        });
        let sections = tool("readelf", &["--sections", "--wide"], path)?;
        let code: Vec<_> = sections
            .lines()
            .filter_map(|line| {
                let words: Vec<_> = line.split_whitespace().skip_while(|word| *word != "PROGBITS").collect();
                match words[..] {
                    ["PROGBITS", vaddr, _, size, _, "AX", ..] => Some((hexadecimal(vaddr), hexadecimal(size))),
                    _ => None,
                }
            })
            .collect();
        let relocations = tool("readelf", &["--relocs", "--wide"], path)?;
        let slots = relocations.lines().filter_map(|line| {
            // Offset Info Type Value Name + Addend
            let words: Vec<_> = line.split_whitespace().collect();
            let [slot, _, kind, _, name, ..] = words[..] else { return None };
            let linked = kind.contains("JUMP_SLO") || kind.contains("GLOB_DAT");
            linked.then(|| (hexadecimal(slot), name.split('@').next().unwrap_or(name).to_owned()))
        });
        let mut listing = BTreeMap::new();
        if !aarch64 {
            let options = ["--disassemble", "--no-show-raw-insn", "--disassembler-options=intel"];
            for line in tool("objdump", &options, path)?.lines() {
                if let Some((address, text)) = line.split_once(":\t") {
                    listing.insert(hexadecimal(address.trim()), text.trim().to_owned());
                }
            }
        }
        let (segments, slots) = (segments.collect(), slots.collect());
        if code.is_empty() {
            return Err(format!("{}: no section of code", path.display()));
        }
        Ok(Self { bytes, aarch64, exports, segments, code, slots, listing })
    }

    /// The bytes at an address of code.
    #[must_use]
    pub fn code(&self, vaddr: u64, length: usize) -> &[u8] {
        let offset = self.offset(vaddr).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| self.bytes.get(offset..offset + length)).unwrap_or_default()
    }

    /// Where in the file an address of code lies.
    #[must_use]
    pub fn offset(&self, vaddr: u64) -> Option<u64> {
        let holds = |segment: &&Segment| vaddr.checked_sub(segment.vaddr).is_some_and(|delta| delta < segment.size);
        self.segments.iter().find(holds).map(|segment| segment.offset + (vaddr - segment.vaddr))
    }

    /// The word of aarch64 at an address.
    #[must_use]
    pub fn word(&self, vaddr: u64) -> u32 {
        self.code(vaddr, 4).first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
    }

    /// The direct branch at an address, if there is one.
    #[must_use]
    pub fn branch(&self, from: u64) -> Option<Branch> {
        if self.aarch64 {
            return aarch64_branch(self.word(from), from);
        }
        let text = self.listing.get(&from)?;
        let text = text.trim_start_matches("bnd ").trim_start_matches("notrack ");
        let (mnemonic, operand) = text.split_once(char::is_whitespace)?;
        let target = operand.split_whitespace().next()?;
        let plain = target.chars().all(|digit| digit.is_ascii_hexdigit());
        (plain && (mnemonic.starts_with('j') || mnemonic == "call")).then(|| Branch {
            from,
            to: hexadecimal(target),
            conditional: !matches!(mnemonic, "jmp" | "call"),
            call: mnemonic == "call",
        })
    }

    /// The exported function that a branch to `to` reaches: it, or what the linkage table there leads to.
    #[must_use]
    pub fn destination(&self, to: u64) -> u64 {
        let named = self.slot(to).and_then(|slot| self.slots.get(&slot));
        let export = |name: &String| self.exports.iter().find(|(_, names)| names.contains(name)).map(|(at, _)| *at);
        named.and_then(export).unwrap_or(to)
    }

    /// The slot that a stub of the linkage table at `at` jumps by.
    fn slot(&self, at: u64) -> Option<u64> {
        if self.aarch64 {
            // A landing pad perhaps; `adrp x16, page`; `ldr x17, [x16, #bytes]`.
            let at = if self.word(at) == 0xd503_245f { at + 4 } else { at };
            let (adrp, ldr) = (self.word(at), self.word(at + 4));
            if adrp & 0x9f00_001f != 0x9000_0010 || ldr & 0xffc0_03ff != 0xf940_0211 {
                return None;
            }
            let pages = i64::from((((adrp >> 5 & 0x7_ffff) << 2 | adrp >> 29 & 3) << 11) as i32 >> 11);
            return Some((at & !0xfff).wrapping_add_signed(pages << 12) + u64::from(ldr >> 10 & 0xfff) * 8);
        }
        let code = self.code(at, 16);
        let skipped = if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) { 4 } else { 0 };
        let skipped = skipped + usize::from(code.get(skipped) == Some(&0xf2));
        let [0xff, 0x25, a, b, c, d, ..] = *code.get(skipped..)? else { return None };
        let distance = i32::from_le_bytes([a, b, c, d]);
        Some((at + skipped as u64 + 6).wrapping_add_signed(i64::from(distance)))
    }

    /// All direct branches of the file.
    #[must_use]
    pub fn branches(&self) -> Vec<Branch> {
        if self.aarch64 {
            let words = self.code.iter().flat_map(|(start, size)| (*start..start + size).step_by(4));
            return words.filter_map(|from| self.branch(from)).collect();
        }
        self.listing.keys().filter_map(|from| self.branch(*from)).collect()
    }

    /// The addresses of the instructions from `entry` up to `site`, which is left out; `None` when `site` is no instruction.
    #[must_use]
    pub fn between(&self, entry: u64, site: u64) -> Option<Vec<u64>> {
        if self.aarch64 {
            return (site >= entry && (site - entry).is_multiple_of(4)).then(|| (entry..site).step_by(4).collect());
        }
        self.listing.contains_key(&site).then(|| self.listing.range(entry..site).map(|(vaddr, _)| *vaddr).collect())
    }

    /// Where the instruction after that at an address begins; `None` when there is none.
    #[must_use]
    pub fn next(&self, vaddr: u64) -> Option<u64> {
        if self.aarch64 {
            let holds = |(start, size): &(u64, u64)| (*start..start + size).contains(&vaddr);
            return self.code.iter().any(holds).then_some(vaddr + 4);
        }
        self.listing.range(vaddr..).nth(1).filter(|_| self.listing.contains_key(&vaddr)).map(|(next, _)| *next)
    }

    /// The instruction at an address, for people.
    #[must_use]
    pub fn text(&self, vaddr: u64) -> String {
        self.listing.get(&vaddr).cloned().unwrap_or_else(|| format!("{:08x}", self.word(vaddr)))
    }

    /// Whether control may go elsewhere than to the next instruction, or into the kernel.
    #[must_use]
    pub fn leaves(&self, vaddr: u64) -> bool {
        if self.aarch64 {
            let word = self.word(vaddr);
            let register_branch = word & 0xfe00_0000 == 0xd600_0000;
            let exception = word & 0xff00_0000 == 0xd400_0000;
            return register_branch || exception || aarch64_branch(word, vaddr).is_some();
        }
        let text = self.listing.get(&vaddr).map_or("", String::as_str);
        let text = text.trim_start_matches("bnd ").trim_start_matches("notrack ");
        let mnemonic = text.split_whitespace().next().unwrap_or_default();
        mnemonic.starts_with('j') || matches!(mnemonic, "call" | "ret" | "syscall" | "ud2" | "hlt" | "int3" | "int")
    }

    /// Whether the instruction at an address moves the stack pointer in another way than by a number it names.
    #[must_use]
    pub fn moves_stack_unknown(&self, vaddr: u64) -> bool {
        if self.aarch64 {
            let word = self.word(vaddr);
            // `add` and `sub` of a register to or from the stack pointer, and moves into it.
            let extended = word & 0x1fe0_0000 == 0x0b20_0000 && word & 31 == 31 && word & 0x2000_0000 == 0;
            let logical = word & 0x1f80_0000 == 0x1200_0000 && word & 31 == 31 && word >> 29 & 3 != 3;
            let moved = word & 0x7f80_0000 == 0x1100_0000 && word & 31 == 31 && word >> 5 & 31 != 31;
            return extended || logical || moved;
        }
        let text = self.listing.get(&vaddr).map_or("", String::as_str);
        let (mnemonic, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let mut operands = operands.trim().split(',');
        let (first, second) = (operands.next().unwrap_or_default(), operands.next().unwrap_or_default());
        let by_number = matches!(mnemonic, "sub" | "add") && second.starts_with("0x");
        mnemonic == "leave" || (first == "rsp" && !by_number && !matches!(mnemonic, "test" | "cmp" | "push"))
    }

    /// Whether the instruction at an address may write one of the first `count` argument registers.
    #[must_use]
    pub fn writes_argument(&self, vaddr: u64, count: usize) -> bool {
        if self.aarch64 {
            let word = self.word(vaddr);
            // Stores name what they read there; comparisons name register 31.
            let is_store = word & 0x0a40_0000 == 0x0800_0000 || word & 0x3b40_0000 == 0x2900_0000;
            let is_hint = word & 0xffff_f01f == 0xd503_201f;
            // `ccmp` and `ccmn` name flags where others name what they write.
            let is_conditional_comparison = word & 0x3fe0_0410 == 0x3a40_0000;
            return !is_store
                && !is_hint
                && !is_conditional_comparison
                && usize::try_from(word & 31).is_ok_and(|register| register < count);
        }
        const NAMES: [[&str; 4]; 4] = [
            ["rdi", "edi", "di", "dil"],
            ["rsi", "esi", "si", "sil"],
            ["rdx", "edx", "dx", "dl"],
            ["rcx", "ecx", "cx", "cl"],
        ];
        let text = self.listing.get(&vaddr).map_or("", String::as_str);
        let (mnemonic, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if matches!(mnemonic, "mul" | "div") || (mnemonic == "imul" && !operands.contains(',')) {
            // They read what they name, and write rdx and rax.
            return count > 2;
        }
        if matches!(mnemonic, "test" | "cmp" | "push" | "endbr64" | "nop" | "call" | "bt") || mnemonic.starts_with('j')
        {
            return false;
        }
        let first = operands.trim().split(',').next().unwrap_or_default();
        NAMES.iter().take(count).any(|names| names.contains(&first)) || mnemonic == "xchg"
    }

    /// Whether all kernels emulate the instruction at an address: pushes, no-operations and direct branches of x86-64; of
    /// aarch64 what `arm_probe_decode_insn` hands to `simulate-insn.c`, but for `nop`, which came late.
    #[must_use]
    pub fn is_emulated(&self, vaddr: u64) -> bool {
        if self.aarch64 {
            let word = self.word(vaddr);
            let address = word & 0x1f00_0000 == 0x1000_0000;
            let register_branch = word & 0xff9f_fc1f == 0xd61f_0000;
            return address || register_branch || aarch64_branch(word, vaddr).is_some();
        }
        let code = self.code(vaddr, 6);
        let is_plain = matches!(code, [0x50..=0x57 | 0x90, ..] | [0x41, 0x50..=0x57, ..] | [0x0f, 0x1f, ..]);
        is_plain || matches!(code, [0xeb | 0xe9 | 0xe8 | 0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..])
    }
}

fn aarch64_branch(word: u32, from: u64) -> Option<Branch> {
    let signed = |bits: u32, width: u32| i64::from(((bits << (32 - width)) as i32) >> (32 - width)) * 4;
    let (distance, conditional) = match word {
        _ if word & 0x7c00_0000 == 0x1400_0000 => (signed(word & 0x03ff_ffff, 26), false),
        _ if word & 0xff00_0000 == 0x5400_0000 => (signed(word >> 5 & 0x7_ffff, 19), true),
        _ if word & 0x7e00_0000 == 0x3400_0000 => (signed(word >> 5 & 0x7_ffff, 19), true),
        _ if word & 0x7e00_0000 == 0x3600_0000 => (signed(word >> 5 & 0x3fff, 14), true),
        _ => return None,
    };
    let call = word & 0xfc00_0000 == 0x9400_0000;
    Some(Branch { from, to: from.wrapping_add_signed(distance), conditional, call })
}

fn hexadecimal(digits: &str) -> u64 {
    u64::from_str_radix(digits.trim_start_matches("0x"), 16).unwrap_or(0)
}

fn tool(name: &str, arguments: &[&str], path: &Path) -> Result<String, String> {
    let output = Command::new(name).args(arguments).arg(path).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{name} {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim()))
}
