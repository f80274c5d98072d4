//! The daemon's snapshot document, read by the names that docs/api.md promises.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::truth::Row;

/// A whole document.
#[derive(Clone, Debug)]
pub struct Document(pub Value);

/// One image of one process: what ran between two execs.
#[derive(Clone, Debug)]
pub struct Image(pub Value);

impl Document {
    /// Reads it.
    ///
    /// # Panics
    /// If it is no JSON or of another version than the tests know.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_eq!(value["schema_version"], 1, "schema_version");
        Document(value)
    }

    /// Every image, in the order of the document.
    ///
    /// # Panics
    /// If there is no list of processes.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        self.0["processes"].as_array().expect("processes").iter().cloned().map(Image).collect()
    }

    /// The image of that process under that program's name.
    ///
    /// # Panics
    /// Unless there is exactly one.
    #[must_use]
    pub fn image(&self, pid: u32, program: &str) -> Image {
        // The kernel keeps 15 bytes of a name.
        let comm = program.get(..15).unwrap_or(program);
        let mut found: Vec<_> =
            self.images().into_iter().filter(|image| image.pid() == pid && image.comm() == comm).collect();
        let known: Vec<_> = self.images().iter().map(|image| (image.pid(), image.comm().to_owned())).collect();
        assert_eq!(found.len(), 1, "images of pid {pid}, comm {comm}; the document has {known:?}");
        found.remove(0)
    }

    /// Proves that nothing was lost anywhere (LOSS-1).
    ///
    /// # Panics
    /// If the document is not complete or a loss counter is above zero.
    pub fn assert_complete(&self) {
        assert_nothing_lost("the document", &self.0);
    }
}

impl Image {
    /// The process.
    ///
    /// # Panics
    /// If it has no pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.number("/pid").try_into().expect("a pid")
    }

    /// The program's name, up to 15 bytes.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn comm(&self) -> &str {
        self.0["comm"].as_str().expect("comm")
    }

    /// The number at this JSON pointer.
    ///
    /// # Panics
    /// If it is absent or `null`, which is "not measured" (HONEST-1).
    #[must_use]
    pub fn number(&self, pointer: &str) -> u64 {
        let value = self.0.pointer(pointer);
        value.and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} is {value:?}, not a number, in {}", self.0))
    }

    /// The text at this JSON pointer.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        let value = self.0.pointer(pointer);
        value.and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} is {value:?}, not a text"))
    }

    /// Whether the value at this JSON pointer is there and `null`.
    #[must_use]
    pub fn is_null(&self, pointer: &str) -> bool {
        self.0.pointer(pointer).is_some_and(Value::is_null)
    }

    /// The functions by name. One without a row has not been called.
    ///
    /// # Panics
    /// If there is no list of functions, or one has no name or appears twice.
    #[must_use]
    pub fn functions(&self) -> BTreeMap<String, Row> {
        let mut functions = BTreeMap::new();
        for row in self.0["functions"].as_array().unwrap_or_else(|| panic!("functions of {}", self.0)) {
            let name = row["name"].as_str().expect("a function's name").to_owned();
            let twice = functions.insert(name, Row::parse(row));
            assert!(twice.is_none(), "{} appears twice", row["name"]);
        }
        functions
    }

    /// How often the function was called; 0 if it has no row.
    #[must_use]
    pub fn calls(&self, function: &str) -> u64 {
        self.functions().get(function).map_or(0, |row| row.calls)
    }

    /// The crossings.
    #[must_use]
    pub fn crossings(&self) -> Row {
        Row::parse(&self.0["crossings"])
    }

    /// System calls of that name by where they came from.
    ///
    /// # Panics
    /// If the document does not say.
    #[must_use]
    pub fn origins(&self, syscall: &str) -> BTreeMap<String, u64> {
        let origins = self.0["syscalls"][syscall]["by_origin"].as_object();
        origins
            .unwrap_or_else(|| panic!("syscalls.{syscall}.by_origin of {}", self.0))
            .iter()
            .map(|(origin, calls)| (origin.clone(), calls.as_u64().expect("a number")))
            .collect()
    }

    /// Proves that nothing of this image was lost (LOSS-1).
    ///
    /// # Panics
    /// If the image is not complete or a loss counter is above zero.
    pub fn assert_complete(&self) {
        assert_nothing_lost(&format!("{} ({})", self.comm(), self.pid()), &self.0);
    }

    /// Proves the sums that hold in every image at depth `call`: parts and wholes agree.
    ///
    /// # Panics
    /// If one does not.
    pub fn assert_sums(&self) {
        let functions = self.functions();
        let requests = functions.iter().filter(|(name, _)| *name != "free");
        let (calls, bytes) = requests.fold((0, 0), |(calls, bytes), (_, row)| {
            (calls + row.calls, bytes + row.bytes.expect("a request has bytes"))
        });
        assert_eq!(self.number("/funnel/call/calls"), calls, "funnel.call.calls is the sum of the functions");
        assert_eq!(self.number("/funnel/call/bytes"), bytes, "funnel.call.bytes is the sum of the functions");
        for (name, row) in &functions {
            if let Some(sizes) = &row.sizes {
                assert_eq!(sizes.values().sum::<u64>(), row.calls, "{name}: buckets add up to the calls");
            }
        }
        let crossings = self.crossings();
        let in_buckets = crossings.sizes.as_ref().map(|sizes| sizes.values().sum::<u64>());
        assert_eq!(in_buckets, Some(crossings.calls), "crossings: buckets add up");
        for syscall in ["mmap", "munmap", "mremap", "brk"] {
            let by_origin: u64 = self.origins(syscall).values().sum();
            let failed = self.number(&format!("/syscalls/{syscall}/failed"));
            let calls = self.number(&format!("/syscalls/{syscall}/calls"));
            assert_eq!(calls, failed + by_origin, "{syscall}: calls = failed + origins");
        }
        assert_eq!(crossings.calls, self.number("/syscalls/mmap/by_origin/crossing"), "crossings are mmaps");
        assert!(
            self.number("/funnel/sysmalloc/calls") <= self.number("/funnel/arena/calls"),
            "sysmalloc is inside the arena"
        );
    }
}

fn assert_nothing_lost(whose: &str, value: &Value) {
    let losses = value["losses"].as_array().unwrap_or_else(|| panic!("{whose}: no list of losses"));
    let counted: Vec<_> = losses.iter().filter(|loss| loss["count"] != 0).collect();
    assert!(counted.is_empty(), "{whose}: {counted:?}");
    assert_eq!(value["complete"], true, "{whose}: complete");
}
