//! Writes a step with everything that belongs to it in one transaction.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use redb::{ReadableTable, Table, WriteTransaction};

use super::{IMAGES, INCIDENTS, META, ROWS, STEPS, Store, StoreError, TEXTS};
use crate::aggregate::model::Stack;
use crate::history::record::{self, Image, ImageId, Incident, Step, TextId};
use crate::history::row::Row;
use crate::history::tiers::{TIERS, put_together};

/// Raises and crossings that are kept. 20,000 x about 60 bytes, and stacks that are kept once each.
const KEPT_INCIDENTS: u64 = 20_000;

/// An incident with its stacks.
#[derive(Clone, Debug)]
pub(in crate::history) struct NewIncident {
    pub(in crate::history) incident: Incident,
    pub(in crate::history) stack: Option<Arc<Stack>>,
    pub(in crate::history) mapped_by: Option<Arc<Stack>>,
}

/// What is written at once. Sequence and run are the store's.
#[derive(Clone, Debug, Default)]
pub(in crate::history) struct Batch {
    pub(in crate::history) step: Step,
    pub(in crate::history) rows: Vec<(ImageId, Row)>,
    /// Images that are new or have another name.
    pub(in crate::history) images: Vec<(ImageId, Image)>,
    pub(in crate::history) incidents: Vec<NewIncident>,
}

type Records<'t> = Table<'t, u64, &'static [u8]>;

impl Store {
    /// Writes a step; it is on disk when this returns.
    pub(in crate::history) fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut next = self.next;
        let sequence = next.sequence;
        let txn = self.db.begin_write()?;
        let mut bytes = 0;
        {
            let mut images = txn.open_table(IMAGES)?;
            for (number, image) in &batch.images {
                bytes += put(&mut images, *number, &image.encode())?;
                next.image = next.image.max(number + 1);
            }
            let mut rows = txn.open_table(ROWS[0])?;
            for (image, row) in &batch.rows {
                let row = row.encode();
                bytes += row.len() as u64 + 20;
                rows.insert((sequence, *image), row.as_slice())?;
            }
            let step = Step { run: next.run, after: sequence - 1, ..batch.step };
            bytes += put(&mut txn.open_table(STEPS[0])?, sequence, &step.encode())?;
            let (mut texts, mut incidents) = (txn.open_table(TEXTS)?, txn.open_table(INCIDENTS)?);
            for new in &batch.incidents {
                let stack = new.stack.as_deref().map(|stack| put_stack(&mut texts, stack, &mut bytes)).transpose()?;
                let mapped_by =
                    new.mapped_by.as_deref().map(|stack| put_stack(&mut texts, stack, &mut bytes)).transpose()?;
                let incident = Incident { sequence, stack, mapped_by, ..new.incident };
                bytes += put(&mut incidents, next.incident, &incident.encode())?;
                next.incident += 1;
            }
            if let Some(oldest) = next.incident.checked_sub(KEPT_INCIDENTS) {
                incidents.retain_in(..oldest, |_, _| false)?;
            }
        }
        next.sequence += 1;
        bytes += roll_up(&txn, next.run)?;
        for (tier, held) in TIERS.iter().enumerate() {
            keep_newest(&txn, tier, held.steps)?;
        }
        {
            let mut meta = txn.open_table(META)?;
            meta.insert("next_sequence", next.sequence)?;
            meta.insert("next_image", next.image)?;
            meta.insert("next_incident", next.incident)?;
        }
        txn.commit()?;
        self.next = next;
        self.unchecked = self.unchecked.saturating_add(bytes);
        Ok(())
    }
}

fn put(table: &mut Records<'_>, key: u64, value: &[u8]) -> Result<u64, StoreError> {
    table.insert(key, value)?;
    Ok(value.len() as u64 + 12)
}

/// Closes the coarser steps that are full, and those of runs that ended.
fn roll_up(txn: &WriteTransaction, run: u64) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for (tier, name) in [(1, "rolled_1m"), (2, "rolled_1h")] {
        let rolled = txn.open_table(META)?.get(name)?.map_or(0, |value| value.value());
        let fine: Vec<(u64, Step)> = {
            let steps = txn.open_table(STEPS[tier - 1])?;
            let all = steps.range(rolled + 1..)?.map(|entry| {
                let (key, value) = entry?;
                Ok(Step::decode(value.value()).map(|step| (key.value(), step)))
            });
            all.filter_map(Result::transpose).collect::<Result<_, redb::StorageError>>()?
        };
        for group in groups(&fine, TIERS[tier].step_ms, TIERS[tier - 1].step_ms, run) {
            let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else { continue };
            let rows: Vec<(ImageId, Row)> = {
                let rows = txn.open_table(ROWS[tier - 1])?;
                let all = rows.range((*first, 0)..=(*last, u64::MAX))?.map(|entry| {
                    let (key, value) = entry?;
                    Ok(Row::decode(value.value()).map(|row| (key.value().1, row)))
                });
                all.filter_map(Result::transpose).collect::<Result<_, redb::StorageError>>()?
            };
            let steps: Vec<Step> = group.iter().map(|(_, step)| *step).collect();
            let Some((step, rows)) = put_together(TIERS[tier], &steps, rows) else { continue };
            bytes += put(&mut txn.open_table(STEPS[tier])?, *last, &step.encode())?;
            let mut table = txn.open_table(ROWS[tier])?;
            for (image, row) in rows {
                let row = row.encode();
                bytes += row.len() as u64 + 20;
                table.insert((*last, image), row.as_slice())?;
            }
            txn.open_table(META)?.insert(name, *last)?;
        }
    }
    Ok(bytes)
}

/// Runs of steps that make a coarse one: long enough, or followed by a step of another run of the daemon.
fn groups(fine: &[(u64, Step)], step_ms: u64, fine_ms: u64, run: u64) -> Vec<&[(u64, Step)]> {
    let mut groups = Vec::new();
    let mut rest = fine;
    while let Some((_, first)) = rest.first() {
        let mut taken = 0;
        let mut duration = 0;
        while let Some((_, step)) = rest.get(taken)
            && step.run == first.run
            && duration + fine_ms / 2 < step_ms
        {
            duration += step.duration_ms;
            taken += 1;
        }
        let over = first.run != run;
        if duration + fine_ms / 2 < step_ms && !(over || taken < rest.len()) {
            break;
        }
        let (group, later) = rest.split_at(taken);
        groups.push(group);
        rest = later;
    }
    groups
}

/// Retention by number of steps: no clock can make it forget everything.
fn keep_newest(txn: &WriteTransaction, tier: usize, kept: usize) -> Result<(), StoreError> {
    let mut steps = txn.open_table(STEPS[tier])?;
    let held = redb::ReadableTableMetadata::len(&steps)?;
    let mut oldest_kept = None;
    for _ in kept as u64..held {
        if let Some((key, _)) = steps.pop_first()? {
            oldest_kept = Some(key.value() + 1);
        }
    }
    if let Some(oldest) = oldest_kept {
        txn.open_table(ROWS[tier])?.retain_in(..(oldest, 0), |_, _| false)?;
    }
    Ok(())
}

fn put_stack(
    texts: &mut Table<'_, TextId, &'static [u8]>,
    stack: &Stack,
    bytes: &mut u64,
) -> Result<TextId, StoreError> {
    let (frames, cut) = record::kept(stack);
    let frames = frames.iter().map(|frame| intern(texts, &record::encode_frame(frame), bytes));
    let frames = frames.collect::<Result<Vec<_>, _>>()?;
    intern(texts, &record::encode_stack(&frames, cut), bytes)
}

/// The number of a text: its hash, or one near it where another text has that already.
fn intern(texts: &mut Table<'_, TextId, &'static [u8]>, text: &[u8], bytes: &mut u64) -> Result<TextId, StoreError> {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let mut number = hasher.finish();
    loop {
        let held = texts.get(number)?.map(|held| held.value() == text);
        match held {
            Some(true) => return Ok(number),
            Some(false) => number = number.wrapping_add(1),
            None => {
                *bytes += put(texts, number, text)?;
                return Ok(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(of: &[(u64, u64)]) -> Vec<(u64, Step)> {
        let step = |(n, (run, duration_ms)): (usize, &(u64, u64))| {
            (n as u64 + 1, Step { run: *run, duration_ms: *duration_ms, ..Step::default() })
        };
        of.iter().enumerate().map(step).collect()
    }

    #[test]
    fn a_coarse_step_closes_when_it_is_long_enough_or_its_run_is_over() {
        let lengths = |fine: &[(u64, Step)], run| -> Vec<usize> {
            groups(fine, 60_000, 10_000, run).iter().map(|group| group.len()).collect()
        };
        let six = steps(&[(1, 10_001); 6]);
        assert_eq!(lengths(&six, 1), [6]);
        assert_eq!(lengths(&six[..5], 1), [] as [usize; 0], "more may come");
        assert_eq!(lengths(&six[..5], 2), [5], "no more will come");
        let short = steps(&[(1, 9_990); 13]);
        assert_eq!(lengths(&short, 1), [6, 6]);
        let two = steps(&[(1, 10_000), (1, 10_000), (2, 10_000)]);
        assert_eq!(lengths(&two, 2), [2]);
    }
}
