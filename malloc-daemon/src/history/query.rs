//! Questions to the store: how counters went over time, what changed between two times, what happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use redb::ReadTransaction;

pub use super::answer::{Account, Change, Course, Covered, Crossers, Filter, Gap, Point, QueryError, Range, Told};
use super::record::{self, Image, ImageId, Incident, OTHERS, Step, TextId, What};
use super::row::{Figures, Row, field};
use super::store::{IMAGES, INCIDENTS, ROWS, STEPS, Source, StoreError, TEXTS};
use super::tiers::TIERS;
use crate::aggregate::model::{ProcessId, Stack};

/// Points of one answer.
pub const POINTS: usize = 1000;
/// Images whose changes are told apart in one answer; the changes of more are put together. 16,384 x about 600 B = 10 MB.
const APART: usize = 16_384;
/// Rows between two looks at the clock.
const BETWEEN_LOOKS: u32 = 1024;

/// A step that a question covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    tier: usize,
    sequence: u64,
    step: Step,
}

/// A view of the store at one moment.
pub struct View {
    txn: ReadTransaction,
    deadline: Instant,
    /// A store that is closed cannot be read any further.
    _open: Arc<Source>,
}

impl View {
    pub(super) fn new(source: Arc<Source>, deadline: Instant) -> Result<Self, StoreError> {
        Ok(Self { txn: source.begin()?, deadline, _open: source })
    }

    /// How the counters of the processes chosen went.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn course(&self, range: Range, filter: &Filter) -> Result<Course, QueryError> {
        let length = self.recorded_ms(range)?;
        let step_ms = range.step_ms.unwrap_or(length / 200).max(length.div_ceil(POINTS as u64));
        let spans = self.spans(range, step_ms)?;
        let mut points: Vec<(Point, HashSet<ImageId>)> = Vec::new();
        let mut open: Option<(u64, u64)> = None;
        let mut chosen = Chosen::new(filter);
        let mut longest = 0;
        for span in &spans {
            let (start, end) = (span.step.start_unix_ms(), span.step.end_unix_ms);
            // A point ends where it is long enough, and where steps are missing.
            let joined = open.is_some_and(|(duration, until)| {
                until == span.step.after
                    && (duration + span.step.duration_ms) * 2 <= step_ms * 2 + span.step.duration_ms
            });
            let mut point = match points.pop_if(|_| joined) {
                Some(open) => open,
                None => {
                    let now = None;
                    let delta = Figures::NONE;
                    (
                        Point { from_unix_ms: start, to_unix_ms: end, sequence: span.sequence, delta, now },
                        HashSet::new(),
                    )
                }
            };
            let duration = if joined { open.map_or(0, |(duration, _)| duration) } else { 0 } + span.step.duration_ms;
            longest = longest.max(duration);
            open = Some((duration, span.sequence));
            (point.0.to_unix_ms, point.0.sequence) = (end, span.sequence);
            self.rows(span, &mut |image, row| {
                if chosen.has(self, image)? {
                    point.0.delta.add(&row.delta);
                    point.0.delta.measured_by(&row.now);
                    point.0.now = Some(row.now);
                    point.1.insert(image);
                }
                Ok(())
            })?;
            points.push(point);
        }
        points.retain(|(_, images)| !images.is_empty());
        for (point, images) in &mut points {
            point.now = point.now.filter(|_| images.len() == 1 && !images.contains(&OTHERS));
        }
        let mut covered = covered(&spans);
        covered.step_ms = longest;
        let images: HashSet<ImageId> = points.iter().flat_map(|(_, images)| images.iter().copied()).collect();
        let images = images.into_iter().filter_map(|image| chosen.known.remove(&image).flatten());
        let mut images: Vec<Image> = images.collect();
        images.sort_by_key(|image| (image.id, image.run, image.image_ns));
        Ok(Course { covered, images, points: points.into_iter().map(|(point, _)| point).collect() })
    }

    /// What happened.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn account(&self, range: Range, filter: &Filter) -> Result<Account, QueryError> {
        let spans = self.spans(range, range.step_ms.unwrap_or(self.recorded_ms(range)? / 60))?;
        let mut chosen = Chosen::new(filter);
        let mut changes: HashMap<ImageId, Change> = HashMap::new();
        let mut folded = 0;
        for span in &spans {
            self.rows(span, &mut |image, row| {
                if !chosen.has(self, image)? {
                    return Ok(());
                }
                let apart = changes.len() < APART || changes.contains_key(&image);
                folded += u64::from(!apart);
                let change = changes.entry(if apart { image } else { OTHERS }).or_insert_with(|| Change {
                    image: None,
                    delta: Figures::NONE,
                    now: Figures::NONE,
                    from_unix_ms: span.step.start_unix_ms(),
                    to_unix_ms: 0,
                    ended: None,
                    complete: true,
                });
                change.delta.add(&row.delta);
                change.delta.measured_by(&row.now);
                change.to_unix_ms = span.step.end_unix_ms;
                change.complete &= row.complete;
                if apart && image != OTHERS {
                    change.now = row.now;
                    change.ended = row.ended.or(change.ended);
                }
                Ok(())
            })?;
        }
        let mut covered = covered(&spans);
        covered.folded += folded;
        let (raises, crossings) = self.incidents(range, &mut chosen)?;
        let changes = changes.into_iter().map(|(image, mut change)| {
            change.image = chosen.image(self, image)?;
            Ok(change)
        });
        let changes = changes.collect::<Result<Vec<Change>, QueryError>>()?;
        Ok(Account { covered, changes: merged(changes), raises, crossings })
    }

    /// Begin and end of what is kept, milliseconds since 1970 by the clocks of then.
    ///
    /// # Errors
    ///
    /// See [`QueryError`].
    pub fn kept(&self) -> Result<Option<(u64, u64)>, QueryError> {
        let spans = self.spans(Range { from_unix_ms: 0, to_unix_ms: u64::MAX, step_ms: None }, u64::MAX)?;
        let first = spans.iter().map(|span| span.step.start_unix_ms()).min();
        Ok(first.zip(spans.iter().map(|span| span.step.end_unix_ms).max()))
    }

    /// Milliseconds of the time in which steps were written.
    fn recorded_ms(&self, range: Range) -> Result<u64, QueryError> {
        Ok(self.spans(range, 0)?.iter().map(|span| span.step.duration_ms).fold(0, u64::saturating_add))
    }

    /// Steps that cover the time, each moment once: of the coarsest tier that is fine enough, of coarser ones before
    /// that begins, of finer ones after it ends.
    fn spans(&self, range: Range, step_ms: u64) -> Result<Vec<Span>, QueryError> {
        let finest = TIERS.iter().rposition(|tier| tier.step_ms <= step_ms).unwrap_or(0);
        let mut tiers = Vec::new();
        for steps in STEPS {
            let mut held = Vec::new();
            for entry in self.txn.open_table(steps)?.range::<u64>(..)? {
                let (sequence, step) = entry?;
                held.extend(Step::decode(step.value()).map(|step| (sequence.value(), step)));
            }
            tiers.push(held);
        }
        let (mut spans, mut until) = (Vec::new(), 0);
        for (tier, steps) in tiers.iter().enumerate().rev() {
            // Where the next finer tier begins, this one is not needed any more.
            let finer = tier.checked_sub(1).and_then(|finer| tiers.get(finer)?.first()).map(|(_, step)| step.after);
            for (sequence, step) in steps {
                let needed = tier <= finest || finer.is_none_or(|finer| step.after < finer);
                if step.after >= until && needed {
                    until = *sequence;
                    spans.push(Span { tier, sequence: *sequence, step: *step });
                }
            }
        }
        spans.retain(|Span { step, .. }| {
            step.end_unix_ms > range.from_unix_ms && step.start_unix_ms() < range.to_unix_ms
        });
        Ok(spans)
    }

    fn rows(&self, span: &Span, f: &mut dyn FnMut(ImageId, Row) -> Result<(), QueryError>) -> Result<(), QueryError> {
        let rows = self.txn.open_table(ROWS[span.tier])?;
        let mut seen = 0u32;
        self.in_time()?;
        for entry in rows.range((span.sequence, 0)..=(span.sequence, u64::MAX))? {
            seen += 1;
            if seen.is_multiple_of(BETWEEN_LOOKS) {
                self.in_time()?;
            }
            let (key, value) = entry?;
            if let Some(row) = Row::decode(value.value()) {
                f(key.value().1, row)?;
            }
        }
        Ok(())
    }

    fn in_time(&self) -> Result<(), QueryError> {
        if Instant::now() < self.deadline { Ok(()) } else { Err(QueryError::TooSlow) }
    }

    fn image(&self, number: ImageId) -> Result<Option<Image>, QueryError> {
        Ok(self.txn.open_table(IMAGES)?.get(number)?.and_then(|image| Image::decode(image.value())))
    }

    fn incidents(&self, range: Range, chosen: &mut Chosen<'_>) -> Result<(Vec<Told>, Vec<Crossers>), QueryError> {
        let (mut raises, mut crossings) = (Vec::new(), BTreeMap::<Option<TextId>, Crossers>::new());
        for entry in self.txn.open_table(INCIDENTS)?.range::<u64>(..)? {
            self.in_time()?;
            let Some(incident) = Incident::decode(entry?.1.value()) else { continue };
            let within = (range.from_unix_ms..range.to_unix_ms).contains(&incident.unix_ms);
            if !within || !chosen.has_incident(self, &incident)? {
                continue;
            }
            let comm = match incident.image {
                Some(image) => chosen.image(self, image)?.map(|image| image.comm),
                None => None,
            };
            match incident.what {
                What::Raise { .. } => {
                    let (stack, mapped_by) = (self.stack(incident.stack)?, self.stack(incident.mapped_by)?);
                    raises.push(Told { incident, comm, stack, mapped_by });
                }
                What::Crossing { bytes, weight, .. } => {
                    let group = crossings.entry(incident.stack).or_insert_with(|| Crossers {
                        stack: None,
                        calls: 0,
                        bytes: 0,
                        comms: Vec::new(),
                    });
                    group.calls = group.calls.saturating_add(weight);
                    group.bytes = group.bytes.saturating_add(bytes.saturating_mul(weight));
                    if let Some(comm) = comm.filter(|comm| !group.comms.contains(comm) && group.comms.len() < 8) {
                        group.comms.push(comm);
                    }
                }
            }
        }
        let mut groups = Vec::with_capacity(crossings.len());
        for (stack, mut group) in crossings {
            group.stack = self.stack(stack)?;
            groups.push(group);
        }
        groups.sort_by_key(|group| std::cmp::Reverse((group.bytes, group.calls)));
        Ok((raises, groups))
    }

    fn stack(&self, number: Option<TextId>) -> Result<Option<Stack>, QueryError> {
        let texts = self.txn.open_table(TEXTS)?;
        let Some(number) = number else { return Ok(None) };
        let Some((frames, cut)) = texts.get(number)?.and_then(|stack| record::decode_stack(stack.value())) else {
            return Ok(None);
        };
        let mut stack = Stack { frames: Vec::with_capacity(frames.len()), cut };
        for frame in frames {
            let frame = texts.get(frame)?.and_then(|frame| record::decode_frame(frame.value()));
            stack.frames.push(frame.unwrap_or_default());
        }
        Ok(Some(stack))
    }
}

/// Which images are asked for, looked up once each.
struct Chosen<'a> {
    filter: &'a Filter,
    known: HashMap<ImageId, Option<Image>>,
}

impl<'a> Chosen<'a> {
    fn new(filter: &'a Filter) -> Self {
        Self { filter, known: HashMap::new() }
    }

    fn image(&mut self, view: &View, number: ImageId) -> Result<Option<Image>, QueryError> {
        if let Some(known) = self.known.get(&number) {
            return Ok(known.clone());
        }
        let image = view.image(number)?;
        if self.known.len() < APART {
            self.known.insert(number, image.clone());
        }
        Ok(image)
    }

    fn has(&mut self, view: &View, number: ImageId) -> Result<bool, QueryError> {
        if self.filter.everyone() && self.known.len() >= APART {
            return Ok(true);
        }
        let image = self.image(view, number)?;
        Ok(self.filter.everyone() || image.is_some_and(|image| self.filter.matches(&image)))
    }

    fn has_incident(&mut self, view: &View, incident: &Incident) -> Result<bool, QueryError> {
        match incident.image {
            Some(image) => self.has(view, image),
            // Its image was not known: the number of the process is all there is.
            None => {
                Ok(Filter { pid: self.filter.pid.filter(|pid| *pid != incident.id.pid), ..self.filter.clone() }
                    .everyone())
            }
        }
    }
}

fn covered(spans: &[Span]) -> Covered {
    let mut covered = Covered {
        from_unix_ms: spans.first().map(|span| span.step.start_unix_ms()),
        to_unix_ms: spans.last().map(|span| span.step.end_unix_ms),
        step_ms: spans.iter().map(|span| span.step.duration_ms).max().unwrap_or(0),
        steps: spans.len(),
        gaps: Vec::new(),
        losses: 0,
        folded: spans.iter().map(|span| span.step.folded).sum(),
    };
    let mut losses = BTreeMap::new();
    for span in spans {
        let (first, last) = losses.entry(span.step.run).or_insert((span.step.losses, 0));
        (*first, *last) = (*first.min(&mut { span.step.losses }), span.step.losses);
    }
    covered.losses = losses.values().map(|(first, last): &(u64, u64)| last.saturating_sub(*first)).sum();
    for pair in spans.windows(2) {
        let [before, after] = pair else { continue };
        let (from, to) = (before.step.end_unix_ms, after.step.start_unix_ms());
        let restarted = before.step.run != after.step.run;
        // Steps are as exact as the daemon's rhythm: what is below two seconds is no gap.
        let clock_changed =
            to + 2_000 < from || (!restarted && to > from + 2_000 && after.step.after == before.sequence);
        if restarted || clock_changed || to > from + 2_000 {
            covered.gaps.push(Gap { from_unix_ms: from, to_unix_ms: to, restarted, clock_changed });
        }
    }
    covered
}

/// Images that are one process under one name are told together; the largest come first.
fn merged(mut changes: Vec<Change>) -> Vec<Change> {
    changes.sort_by_key(|change| change.image.as_ref().map(|image| (image.id, image.run, image.image_ns)));
    let mut merged: Vec<Change> = Vec::new();
    let who = |change: &Change| -> Option<(ProcessId, String, Option<String>)> {
        change.image.as_ref().map(|image| (image.id, image.comm.clone(), image.exe.clone()))
    };
    for change in changes {
        match merged.last_mut().filter(|last| who(last).is_some() && who(last) == who(&change)) {
            Some(last) => {
                last.delta.add(&change.delta);
                last.from_unix_ms = last.from_unix_ms.min(change.from_unix_ms);
                (last.now, last.to_unix_ms, last.ended) = (change.now, change.to_unix_ms, change.ended);
                last.complete &= change.complete;
                last.image = change.image;
            }
            None => merged.push(change),
        }
    }
    merged.sort_by_key(|change| {
        let calls = change.delta.get(field::CALLS).or(change.delta.get(field::SYSMALLOC_CALLS)).unwrap_or(0);
        std::cmp::Reverse((change.delta.taken_bytes(), change.delta.get(field::CALL_BYTES).unwrap_or(0), calls))
    });
    merged
}
