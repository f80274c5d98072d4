//! What was inferred of a file's code, as the cache folder keeps it from one start of the daemon to the next.

use malloc_common::function;
use serde::{Deserialize, Serialize};

use crate::targets::identity::{ContentId, Digest};
use crate::targets::locate::{INFERRED_NAMES, Inference, RULES, Unidentified};
use crate::targets::symbols::{Binding, Name, Source, Symbol};

/// The number of this form. What another form says is left alone.
const FORMAT: u32 = 2;
/// The largest entry: a hundred symbols and reasons of a line each take 20 KiB.
pub const ENTRY_BYTES: u64 = 64 << 10;
/// The most symbols, reasons or notes of one entry.
const ITEMS: usize = 256;
/// The longest name or sentence, bytes.
const TEXT: usize = 1024;

/// Why an entry is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its digest is not that of its text: it was cut short or changed.
    #[error("its checksum does not fit its text")]
    Damaged,
    /// It is not what this program writes.
    #[error("it is not of the form that is written here")]
    Malformed,
    /// It is of another form, or was inferred by other rules.
    #[error("another version of this program wrote it")]
    OtherVersion,
    /// It is about another file.
    #[error("it is about another file")]
    OtherFile,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    format: u32,
    rules: u64,
    /// Build id, size and SHA-256 of all bytes: the inference reads nothing else.
    file: String,
    symbols: Vec<Row>,
    unidentified: Vec<Lack>,
    notes: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    address: u64,
    size: u64,
    witnessed: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lack {
    name: String,
    why: String,
}

/// The entry for a file of that content: a line with the SHA-256 of the rest, then a line of JSON.
#[must_use]
pub fn encode(file: &ContentId, inferred: &Inference) -> Vec<u8> {
    let row = |symbol: &Symbol| Row {
        name: symbol.name.clone(),
        address: symbol.vaddr,
        size: symbol.size,
        witnessed: symbol.source == Source::Usdt,
    };
    let lack = |lack: &Unidentified| Lack { name: lack.name.to_owned(), why: lack.why.clone() };
    let entry = Entry {
        format: FORMAT,
        rules: RULES,
        file: file.to_string(),
        symbols: inferred.symbols.iter().map(row).collect(),
        unidentified: inferred.unidentified.iter().map(lack).collect(),
        notes: inferred.notes.clone(),
    };
    let body = super::json::to_vec(&entry);
    [format!("{}\n", Digest::of(&body)).into_bytes(), body].concat()
}

/// Reads an entry back: one for a file of this very content, by these very rules.
///
/// # Errors
/// Why it is not believed.
pub fn decode(file: &ContentId, bytes: &[u8]) -> Result<Inference, Refused> {
    if bytes.len() as u64 > ENTRY_BYTES {
        return Err(Refused::Malformed);
    }
    let at = bytes.iter().position(|byte| *byte == b'\n').ok_or(Refused::Damaged)?;
    let (sum, body) = (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default());
    if sum != Digest::of(body).to_string().as_bytes() {
        return Err(Refused::Damaged);
    }
    let entry: Entry = serde_json::from_slice(body).map_err(|_| Refused::Malformed)?;
    if (entry.format, entry.rules) != (FORMAT, RULES) {
        return Err(Refused::OtherVersion);
    }
    if entry.file != file.to_string() {
        return Err(Refused::OtherFile);
    }
    let texts = entry.symbols.iter().map(|row| &row.name).chain(entry.unidentified.iter().map(|lack| &lack.why));
    let long = texts.chain(&entry.notes).any(|text| text.len() > TEXT);
    if long || [entry.symbols.len(), entry.unidentified.len(), entry.notes.len()].iter().any(|count| *count > ITEMS) {
        return Err(Refused::Malformed);
    }
    let symbols = entry.symbols.into_iter().map(symbol).collect::<Option<Vec<_>>>().ok_or(Refused::Malformed)?;
    let unidentified = entry.unidentified.into_iter().map(|lack| {
        let name = INFERRED_NAMES.into_iter().find(|known| *known == lack.name)?;
        Some(Unidentified { name, why: lack.why })
    });
    let unidentified = unidentified.collect::<Option<Vec<_>>>().ok_or(Refused::Malformed)?;
    Ok(Inference { symbols, unidentified, notes: entry.notes })
}

fn symbol(row: Row) -> Option<Symbol> {
    let name = Name::parse(&row.name);
    let known = INFERRED_NAMES.contains(&name.base)
        || (name.cold && function::ALL.iter().any(|function| function.name() == name.base));
    let source = if row.witnessed { Source::Usdt } else { Source::Inferred };
    known.then_some(Symbol {
        name: row.name,
        vaddr: row.address,
        size: row.size,
        binding: Binding::Local,
        source,
        file: None,
    })
}
