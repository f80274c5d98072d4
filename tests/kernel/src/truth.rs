//! What a victim says of itself, read from its line of JSON.

use std::collections::BTreeMap;

use serde_json::Value;

/// The counters of one function, or of the crossings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Calls that could succeed by their arguments.
    pub calls: u64,
    /// Bytes requested, or mapped; `None` for `free`, which requests none.
    pub bytes: Option<u64>,
    /// Calls that could not succeed; `None` where there is no such thing.
    pub failed: Option<u64>,
    /// Calls by bucket, inclusive `(lo, hi)`; `None` for `free`.
    pub sizes: Option<BTreeMap<(u64, u64), u64>>,
}

impl Row {
    /// Reads a row as the victims and the daemon both write it; `null` and absent are `None`.
    ///
    /// # Panics
    /// If `calls` is no number or a bucket is malformed.
    #[must_use]
    pub fn parse(row: &Value) -> Self {
        let sizes = row.get("sizes").and_then(Value::as_array).map(|buckets| {
            let mut sizes = BTreeMap::new();
            for bucket in buckets {
                let field = |name: &str| {
                    bucket[name].as_u64().unwrap_or_else(|| panic!("bucket without a number {name}: {bucket}"))
                };
                // The last bucket has no upper bound.
                let hi = if bucket.get("hi").is_some_and(Value::is_null) { u64::MAX } else { field("hi") };
                let twice = sizes.insert((field("lo"), hi), field("calls"));
                assert!(twice.is_none(), "a bucket appears twice: {bucket}");
            }
            sizes
        });
        Row {
            calls: row["calls"].as_u64().unwrap_or_else(|| panic!("row without calls: {row}")),
            bytes: row.get("bytes").and_then(Value::as_u64),
            failed: row.get("failed").and_then(Value::as_u64),
            sizes,
        }
    }

    /// The sum of two rows.
    #[must_use]
    pub fn plus(&self, other: &Row) -> Row {
        let mut sizes = self.sizes.clone();
        if let (Some(sizes), Some(more)) = (&mut sizes, &other.sizes) {
            for (bucket, calls) in more {
                *sizes.entry(*bucket).or_default() += calls;
            }
        }
        Row {
            calls: self.calls + other.calls,
            bytes: self.bytes.map(|bytes| bytes + other.bytes.unwrap_or(0)),
            failed: self.failed.map(|failed| failed + other.failed.unwrap_or(0)),
            sizes,
        }
    }

    /// What is in this row beyond the other; `None` if the other has more of anything.
    #[must_use]
    pub fn minus(&self, other: &Row) -> Option<Row> {
        let less = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => a.checked_sub(b).map(Some),
            (a, None) => Some(a),
            (None, Some(_)) => None,
        };
        let mut sizes = self.sizes.clone();
        if let Some(sizes) = &mut sizes {
            for (bucket, calls) in other.sizes.iter().flatten() {
                let left = sizes.get(bucket).copied().unwrap_or(0).checked_sub(*calls)?;
                sizes.insert(*bucket, left);
            }
            sizes.retain(|_, calls| *calls > 0);
        }
        Some(Row {
            calls: self.calls.checked_sub(other.calls)?,
            bytes: less(self.bytes, other.bytes)?,
            failed: less(self.failed, other.failed)?,
            sizes,
        })
    }
}

/// The threshold as the rule gives it, for a program of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Where it stands at the end.
    pub bytes: u64,
    /// How often a free raised it.
    pub raises: u64,
    /// Whether the program set it itself.
    pub pinned: bool,
}

/// One process's account of itself.
#[derive(Clone, Debug)]
pub struct Truth {
    /// The program's name.
    pub victim: String,
    /// Its process.
    pub pid: u32,
    /// Public functions by name, `free` among them.
    pub functions: BTreeMap<String, Row>,
    /// Chunks mapped one by one; sizes are mapped lengths.
    pub crossings: Row,
    /// Mapped chunks given back.
    pub munmap_chunk: u64,
    /// Mapped chunks resized by the kernel.
    pub mremap_chunk: u64,
    /// Where the threshold must stand.
    pub threshold: Threshold,
    /// What else the victim counted.
    pub facts: BTreeMap<String, u64>,
}

impl Truth {
    /// Reads one line.
    ///
    /// # Panics
    /// If it is no account.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_u64).expect(pointer);
        const FUNCTIONS: [&str; 9] =
            ["malloc", "calloc", "realloc", "memalign", "aligned_alloc", "posix_memalign", "valloc", "pvalloc", "free"];
        Truth {
            victim: value["victim"].as_str().expect("victim").to_owned(),
            pid: u32::try_from(number("/pid")).expect("a pid"),
            functions: FUNCTIONS.iter().map(|name| ((*name).to_owned(), Row::parse(&value[*name]))).collect(),
            crossings: Row::parse(&value["crossings"]),
            munmap_chunk: number("/munmap_chunk"),
            mremap_chunk: number("/mremap_chunk"),
            threshold: Threshold {
                bytes: number("/threshold/bytes"),
                raises: number("/threshold/raises"),
                pinned: number("/threshold/pinned") == 1,
            },
            facts: value["facts"]
                .as_object()
                .expect("facts")
                .iter()
                .map(|(name, value)| (name.clone(), value.as_u64().expect("a number")))
                .collect(),
        }
    }

    /// Reads every line that is an account; victims may answer other bytes before it on the same line.
    #[must_use]
    pub fn parse_all(output: &str) -> Vec<Self> {
        output.lines().filter_map(|line| line.find("{\"victim\"").map(|start| Truth::parse(&line[start..]))).collect()
    }

    /// A number of the victim's own.
    ///
    /// # Panics
    /// If it printed none of this name.
    #[must_use]
    pub fn fact(&self, name: &str) -> u64 {
        *self.facts.get(name).unwrap_or_else(|| panic!("{} has no fact {name}", self.victim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_a_row_and_the_row_make_the_whole() {
        let row = |text: &str| Row::parse(&serde_json::from_str(text).unwrap());
        let whole =
            row(r#"{"calls":3,"bytes":30,"failed":1,"sizes":[{"lo":8,"hi":9,"calls":2},{"lo":14,"hi":15,"calls":1}]}"#);
        let part = row(r#"{"calls":1,"bytes":8,"failed":0,"sizes":[{"lo":8,"hi":9,"calls":1}]}"#);
        let beyond = whole.minus(&part).unwrap();
        assert_eq!(beyond.plus(&part), whole);
        assert_eq!(part.minus(&whole), None);
    }

    #[test]
    fn a_row_without_bytes_has_none_rather_than_zero() {
        let free = Row::parse(&serde_json::from_str(r#"{"calls":3,"bytes":null,"sizes":null}"#).unwrap());
        assert_eq!((free.calls, free.bytes, free.failed, free.sizes), (3, None, None, None));
    }

    #[test]
    fn a_bucket_without_an_upper_bound_is_the_last_one() {
        let row = |hi: &str| {
            let text = format!(r#"{{"calls":1,"bytes":9,"sizes":[{{"lo":246290604621824,"hi":{hi},"calls":1}}]}}"#);
            Row::parse(&serde_json::from_str(&text).unwrap())
        };
        assert_eq!(row("null"), row("18446744073709551615"));
    }
}
