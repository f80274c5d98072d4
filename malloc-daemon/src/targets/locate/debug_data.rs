//! Reads the symbols in `.gnu_debugdata`: a small ELF file, xz-compressed, that some distributions keep in stripped files.

use std::io::Read as _;

use lzma_rust2::XzReader;
use object::read::ReadRef;

use crate::targets::elf::{Elf, ElfError, SECTION_LIMIT};
use crate::targets::symbols::{self, Source, Symbol, Table};

/// The most that the compressed form may take; Fedora's libc has 100 KiB.
pub(crate) const COMPRESSED_LIMIT: u64 = 8 << 20;
/// The most memory the decoder may take, in KiB: a dictionary of 64 MiB, which `xz -9` uses, and its tables.
const DECODER_LIMIT_KIB: u32 = 66 << 10;

/// The symbols in the file's `.gnu_debugdata`; `None` when it has none.
pub fn symbols<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    wanted: impl Fn(&str) -> bool,
) -> Option<Result<Vec<Symbol>, ElfError>> {
    let section = elf.section(b".gnu_debugdata")?;
    Some(elf.bytes_within(section, COMPRESSED_LIMIT).and_then(|compressed| {
        let inner = decompress(compressed, SECTION_LIMIT)?;
        let inner = Elf::parse(&*inner)?;
        Ok(symbols::read(&inner, Table::Full, Source::DebugData, wanted)?.unwrap_or_default())
    }))
}

/// The decompressed bytes, at most `limit` of them.
pub(crate) fn decompress(compressed: &[u8], limit: u64) -> Result<Vec<u8>, ElfError> {
    let mut inner = Vec::new();
    XzReader::new_mem_limit(compressed, true, DECODER_LIMIT_KIB)
        .take(limit.saturating_add(1))
        .read_to_end(&mut inner)
        .map_err(|_| ElfError::Malformed { what: "the xz stream in .gnu_debugdata" })?;
    let found = inner.len() as u64;
    if found > limit {
        return Err(ElfError::TooLarge { what: "what .gnu_debugdata holds", found, limit });
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use lzma_rust2::{XzOptions, XzWriter};
    use proptest::prelude::*;

    use super::*;

    fn compress(bytes: &[u8]) -> Vec<u8> {
        let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).expect("a writer");
        writer.write_all(bytes).expect("memory");
        writer.finish().expect("memory")
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        let bomb = compress(&[0; 100_001]);
        assert!(bomb.len() < 1000);
        assert!(matches!(decompress(&bomb, 100_000), Err(ElfError::TooLarge { found: 100_001, .. })));
        assert!(decompress(&bomb, 100_001).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_stream_makes_the_decoder_panic(at in 0usize..400, value: u8, keep in 0usize..400) {
            let mut stream = compress(&[b'x'; 3000].map(|byte| byte ^ 7));
            let length = stream.len();
            stream[at % length] ^= value;
            stream.truncate(length.saturating_sub(keep % 40));
            let _ = decompress(&stream, 10_000);
        }

        #[test]
        fn what_was_compressed_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(decompress(&compress(&bytes), 2000), Ok(bytes));
        }
    }
}
