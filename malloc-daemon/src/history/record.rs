//! The other records of the store: steps, images, incidents, stacks.

use super::codec::{In, Out};
use crate::aggregate::model::{Frame, ProcessId, Stack};

/// Version of the layout of these records.
const VERSION: u8 = 1;

/// A moment at which counters were written, and the time that they cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Milliseconds since 1970 at its end, by the clock of then.
    pub end_unix_ms: u64,
    /// Milliseconds that it covers, clock changes left out.
    pub duration_ms: u64,
    /// Which run of a daemon wrote it, from 1.
    pub run: u64,
    /// Sequence of the step of the finest tier at which it begins: that one is not within.
    pub after: u64,
    /// Images whose counters did not change are not in it; this many did and were put together.
    pub folded: u64,
    /// Losses that cannot be laid to one process, as they were counted until then in this run.
    pub losses: u64,
}

impl Step {
    /// Milliseconds since 1970 at its begin, by the clock of its end.
    #[must_use]
    pub fn start_unix_ms(&self) -> u64 {
        self.end_unix_ms.saturating_sub(self.duration_ms)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Out::versioned(VERSION);
        out.number(self.end_unix_ms).number(self.duration_ms).number(self.run).number(self.after);
        out.number(self.folded).number(self.losses);
        out.bytes().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = In::versioned(bytes, VERSION)?;
        Some(Self {
            end_unix_ms: record.number()?,
            duration_ms: record.number()?,
            run: record.number()?,
            after: record.number()?,
            folded: record.number()?,
            losses: record.number()?,
        })
    }
}

/// Numbers an image of a process within a store; 0 stands for those that were put together.
pub type ImageId = u64;
/// The images of a step that are put together.
pub const OTHERS: ImageId = 0;
/// Numbers a text, a frame or a stack within a store.
pub type TextId = u64;

/// Who an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The process.
    pub id: ProcessId,
    /// When the image was first seen, nanoseconds since boot.
    pub image_ns: u64,
    /// Which run of a daemon saw it.
    pub run: u64,
    /// Its last name.
    pub comm: String,
    /// Path of its executable.
    pub exe: Option<String>,
    /// Its control group.
    pub cgroup: Option<String>,
    /// Kind of its allocator.
    pub allocator: Option<String>,
}

impl Image {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Out::versioned(VERSION);
        out.number(self.id.pid.into()).number(self.id.start_ticks).number(self.image_ns).number(self.run);
        out.text(&self.comm);
        for text in [&self.exe, &self.cgroup, &self.allocator] {
            out.number(text.is_some().into()).text(text.as_deref().unwrap_or_default());
        }
        out.bytes().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = In::versioned(bytes, VERSION)?;
        let id = ProcessId { pid: u32::try_from(record.number()?).ok()?, start_ticks: record.number()? };
        let (image_ns, run, comm) = (record.number()?, record.number()?, record.text()?);
        let mut texts = [const { None }; 3];
        for text in &mut texts {
            let present = record.number()? != 0;
            *text = Some(record.text()?).filter(|_| present);
        }
        let [exe, cgroup, allocator] = texts;
        Some(Self { id, image_ns, run, comm, exe, cgroup, allocator })
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The threshold of a process rose.
    Raise {
        /// Before, bytes.
        from_bytes: u64,
        /// After, bytes.
        to_bytes: u64,
        /// The chunk whose free raised it, bytes; `None`: not known.
        chunk_bytes: Option<u64>,
    },
    /// `malloc` mapped a chunk.
    Crossing {
        /// Bytes mapped.
        bytes: u64,
        /// How many crossings it stands for.
        weight: u64,
        /// Nanoseconds in `mmap`.
        mmap_ns: u64,
    },
}

/// A raise or a sampled crossing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incident {
    /// What happened.
    pub what: What,
    /// To which image; `None`: it was not known any more.
    pub image: Option<ImageId>,
    /// Process and thread.
    pub id: ProcessId,
    /// Thread.
    pub tid: u32,
    /// When, milliseconds since 1970 by the clock of then.
    pub unix_ms: u64,
    /// Sequence of the step that it was written with.
    pub sequence: u64,
    /// The stack on which it happened.
    pub stack: Option<TextId>,
    /// The stack that mapped the chunk of a raise.
    pub mapped_by: Option<TextId>,
}

impl Incident {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Out::versioned(VERSION);
        match self.what {
            What::Raise { from_bytes, to_bytes, chunk_bytes } => {
                out.number(0).number(from_bytes).number(to_bytes).maybe(chunk_bytes);
            }
            What::Crossing { bytes, weight, mmap_ns } => {
                out.number(1).number(bytes).number(weight).number(mmap_ns);
            }
        }
        out.maybe(self.image).number(self.id.pid.into()).number(self.id.start_ticks).number(self.tid.into());
        out.number(self.unix_ms).number(self.sequence);
        for text in [self.stack, self.mapped_by] {
            out.number(text.is_some().into()).number(text.unwrap_or(0));
        }
        out.bytes().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = In::versioned(bytes, VERSION)?;
        let what = match record.number()? {
            0 => What::Raise { from_bytes: record.number()?, to_bytes: record.number()?, chunk_bytes: record.maybe()? },
            1 => What::Crossing { bytes: record.number()?, weight: record.number()?, mmap_ns: record.number()? },
            _ => return None,
        };
        let image = record.maybe()?;
        let id = ProcessId { pid: u32::try_from(record.number()?).ok()?, start_ticks: record.number()? };
        let tid = u32::try_from(record.number()?).ok()?;
        let (unix_ms, sequence) = (record.number()?, record.number()?);
        let mut text = || {
            let (present, text) = (record.number()?, record.number()?);
            Some((present != 0).then_some(text))
        };
        Some(Self { what, image, id, tid, unix_ms, sequence, stack: text()?, mapped_by: text()? })
    }
}

pub(super) fn encode_frame(frame: &Frame) -> Vec<u8> {
    let mut out = Out::versioned(VERSION);
    for text in [&frame.function, &frame.module, &frame.file] {
        out.number(text.is_some().into()).text(text.as_deref().unwrap_or_default());
    }
    out.maybe(frame.offset).maybe(frame.line.map(u64::from)).number(frame.inlined.into());
    out.bytes().to_vec()
}

pub(super) fn decode_frame(bytes: &[u8]) -> Option<Frame> {
    let mut record = In::versioned(bytes, VERSION)?;
    let mut texts = [const { None }; 3];
    for text in &mut texts {
        let present = record.number()? != 0;
        *text = Some(record.text()?).filter(|_| present);
    }
    let [function, module, file] = texts;
    let (offset, line) = (record.maybe()?, record.maybe()?);
    let line = line.and_then(|line| u32::try_from(line).ok());
    Some(Frame { function, module, file, offset, line, inlined: record.number()? != 0, build_id: None })
}

pub(super) fn encode_stack(frames: &[TextId], cut: Option<&str>) -> Vec<u8> {
    let mut out = Out::versioned(VERSION);
    out.number(cut.is_some().into()).text(cut.unwrap_or_default());
    for frame in frames {
        out.number(*frame);
    }
    out.bytes().to_vec()
}

/// The frames of a stack and why it ends; the frames are named by their numbers.
pub(super) fn decode_stack(bytes: &[u8]) -> Option<(Vec<TextId>, Option<String>)> {
    let mut record = In::versioned(bytes, VERSION)?;
    let present = record.number()? != 0;
    let cut = Some(record.text()?).filter(|_| present);
    let mut frames = Vec::new();
    while !record.is_empty() {
        frames.push(record.number()?);
    }
    Some((frames, cut))
}

/// Frames of a stack that are kept: the allocation and who asked for it.
pub(super) const FRAMES: usize = 48;

/// A stack as it is kept: the innermost frames.
pub(super) fn kept(stack: &Stack) -> (&[Frame], Option<&str>) {
    match stack.frames.get(..FRAMES) {
        Some(inner) if stack.frames.len() > FRAMES => (inner, Some("the history keeps the innermost frames")),
        _ => (&stack.frames, stack.cut.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_step_reads_back_as_it_was(v in any::<[u64; 6]>()) {
            let [end_unix_ms, duration_ms, run, after, folded, losses] = v;
            let step = Step { end_unix_ms, duration_ms, run, after, folded, losses };
            prop_assert_eq!(Step::decode(&step.encode()), Some(step));
        }

        #[test]
        fn an_image_reads_back_as_it_was(pid: u32, start_ticks: u64, comm: String, exe: Option<String>, cgroup: Option<String>) {
            let id = ProcessId { pid, start_ticks };
            let image = Image { id, image_ns: 7, run: 2, comm, exe, cgroup, allocator: None };
            prop_assert_eq!(Image::decode(&image.encode()), Some(image));
        }

        #[test]
        fn an_incident_reads_back_as_it_was(raise: bool, a: u64, b: u64, chunk in proptest::option::of(0..u64::MAX), tid: u32, stack: Option<u64>) {
            let what = if raise {
                What::Raise { from_bytes: a, to_bytes: b, chunk_bytes: chunk }
            } else {
                What::Crossing { bytes: a, weight: b, mmap_ns: 9 }
            };
            let id = ProcessId { pid: tid, start_ticks: b };
            let incident =
                Incident { what, image: chunk, id, tid, unix_ms: a, sequence: b, stack, mapped_by: None };
            prop_assert_eq!(Incident::decode(&incident.encode()), Some(incident));
        }

        #[test]
        fn a_frame_and_a_stack_read_back_as_they_were(
            function: Option<String>, module: Option<String>, line: Option<u32>, inlined: bool, ids: Vec<u64>, cut: Option<String>,
        ) {
            let frame = Frame { function, module, offset: Some(5), file: None, line, inlined, build_id: None };
            prop_assert_eq!(decode_frame(&encode_frame(&frame)), Some(frame));
            prop_assert_eq!(decode_stack(&encode_stack(&ids, cut.as_deref())), Some((ids, cut)));
        }

        #[test]
        fn any_bytes_are_records_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (Step::decode(&bytes), Image::decode(&bytes), Incident::decode(&bytes));
            let _ = (decode_frame(&bytes), decode_stack(&bytes));
        }
    }
}
