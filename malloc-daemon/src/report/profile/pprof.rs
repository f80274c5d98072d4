//! pprof's format: samples of `crossings`, `crossing_bytes` and `raises`, with functions, lines and mappings.

use std::collections::HashMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::message::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};
use super::{NAME, caveats, cut_of, name_of, raises, told};
use crate::aggregate::model::{Frame, Snapshot, Stack};
use crate::report::printable;

/// Each file has so many addresses to itself: a profile of several processes has no addresses of their own.
const ROOM: u64 = 1 << 48;

/// The profile, packed by gzip.
#[must_use]
pub fn pprof(snapshot: &Snapshot) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to a Vec cannot fail.
    let _ = encoder.write_all(&Builder::default().profile(snapshot).encode_to_vec());
    encoder.finish().unwrap_or_default()
}

/// What is numbered in a profile, by what it is.
#[derive(Default)]
struct Builder {
    profile: Profile,
    texts: HashMap<String, i64>,
    mappings: HashMap<(String, Option<String>), u64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<Place, u64>,
}

/// What tells locations apart: mapping, address, and each line's function and number.
type Place = (u64, u64, Vec<(u64, i64)>);

impl Builder {
    fn profile(mut self, snapshot: &Snapshot) -> Profile {
        self.text("");
        for (name, unit) in [("crossings", "count"), ("crossing_bytes", "bytes"), ("raises", "count")] {
            let value = self.value_type(name, unit);
            self.profile.sample_type.push(value);
        }
        self.profile.period_type = Some(self.value_type("crossings", "count"));
        self.profile.period = 1;
        self.profile.default_sample_type = self.text("crossing_bytes");
        self.profile.time_nanos = signed(snapshot.window.start_unix_ms.saturating_mul(1_000_000));
        self.profile.duration_nanos = signed(snapshot.window.duration_ms.saturating_mul(1_000_000));
        // Readers take the first mapping for the program itself.
        for told in told(snapshot) {
            let Some(exe) = told.process.exe.as_deref() else { continue };
            let mut frames = told.stacks.iter().flat_map(|share| &share.stack.frames);
            if let Some(own) = frames.find(|frame| frame.module.as_deref() == Some(exe)) {
                self.mapping(exe, own.build_id.as_deref());
            }
        }
        for told in told(snapshot) {
            let (comm, pid) = (&told.process.comm, told.process.id.pid);
            for share in told.stacks {
                self.sample(Some(&share.stack), [share.calls, share.bytes, 0], comm, pid);
            }
            self.sample(None, [told.rest.0, told.rest.1, 0], comm, pid);
        }
        for (id, (told, more)) in raises(snapshot) {
            for raise in &told {
                self.sample(raise.stack.as_deref(), [0, 0, 1], &raise.comm, id.pid);
            }
            let comm = snapshot.processes.iter().rev().find(|process| process.id == id).map(|process| &process.comm);
            self.sample(None, [0, 0, more], comm.map_or("", String::as_str), id.pid);
        }
        let mut comments = caveats(snapshot);
        comments.push(
            "addresses are those in the files' own numbering, each file at a multiple of 2^48: what was recorded has \
             names already"
                .to_owned(),
        );
        self.profile.comment = comments.iter().map(|comment| self.text(comment)).collect();
        self.profile
    }

    fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType { r#type: self.text(name), unit: self.text(unit) }
    }

    /// One sample, unless it stands for nothing.
    fn sample(&mut self, stack: Option<&Stack>, values: [u64; 3], comm: &str, pid: u32) {
        if values == [0; 3] {
            return;
        }
        let location_id = match stack {
            Some(stack) => self.stack(stack),
            None => vec![self.note("[no stack]")],
        };
        let comm = printable(comm, 32);
        let label = vec![
            Label { key: self.text("process"), str: self.text(&comm), num: 0 },
            Label { key: self.text("pid"), str: 0, num: pid.into() },
        ];
        self.profile.sample.push(Sample { location_id, value: values.map(signed).to_vec(), label });
    }

    fn stack(&mut self, stack: &Stack) -> Vec<u64> {
        let mut locations = Vec::new();
        // Inlined calls and the function that they were put into are one location.
        for together in stack.frames.split_inclusive(|frame| !frame.inlined) {
            locations.push(self.location(together));
        }
        locations.extend(cut_of(stack).map(|why| self.note(&why)));
        if locations.is_empty() {
            locations.push(self.note("[no stack]"));
        }
        locations
    }

    fn location(&mut self, frames: &[Frame]) -> u64 {
        let lines: Vec<(u64, i64)> = frames
            .iter()
            .map(|frame| {
                let file = frame.file.as_ref().map(|file| printable(file, NAME));
                (self.function(&name_of(frame), file.as_deref()), frame.line.map_or(0, i64::from))
            })
            .collect();
        let last = frames.last();
        let module = last.and_then(|frame| frame.module.as_deref());
        let build_id = last.and_then(|frame| frame.build_id.as_deref());
        let mapping = module.map_or(0, |module| self.mapping(module, build_id));
        let offset = last.and_then(|frame| frame.offset).unwrap_or_default().min(ROOM - 1);
        self.numbered(mapping, mapping.saturating_mul(ROOM).saturating_add(offset), lines)
    }

    /// A location that is no code: words in the place of frames.
    fn note(&mut self, words: &str) -> u64 {
        let function = self.function(words, None);
        self.numbered(0, 0, vec![(function, 0)])
    }

    fn numbered(&mut self, mapping_id: u64, address: u64, lines: Vec<(u64, i64)>) -> u64 {
        let next = self.locations.len() as u64 + 1;
        let id = *self.locations.entry((mapping_id, address, lines.clone())).or_insert(next);
        if id == next {
            let line = lines.into_iter().map(|(function_id, line)| Line { function_id, line }).collect();
            self.profile.location.push(Location { id, mapping_id, address, line });
        }
        id
    }

    fn function(&mut self, name: &str, file: Option<&str>) -> u64 {
        let (name, filename) = (self.text(name), file.map_or(0, |file| self.text(file)));
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.profile.function.push(Function { id, name, system_name: name, filename });
        }
        id
    }

    fn mapping(&mut self, module: &str, build_id: Option<&str>) -> u64 {
        let next = self.mappings.len() as u64 + 1;
        let key = (module.to_owned(), build_id.map(str::to_owned));
        let id = *self.mappings.entry(key).or_insert(next);
        if id == next {
            let start = id.saturating_mul(ROOM);
            let mapping = Mapping {
                id,
                memory_start: start,
                memory_limit: start.saturating_add(ROOM),
                filename: self.text(&printable(module, NAME)),
                build_id: build_id.map_or(0, |build_id| self.text(build_id)),
                // Whoever reads it need not look for the files.
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            };
            self.profile.mapping.push(mapping);
        }
        id
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(index) = self.texts.get(text) {
            return *index;
        }
        let index = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), index);
        index
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
