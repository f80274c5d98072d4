//! Which steps there are, how long they stay, and how fine ones become a coarse one: pure.

use std::collections::HashMap;

use super::record::{ImageId, OTHERS, Step};
use super::row::Row;

/// Steps of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Length of a step, milliseconds.
    pub step_ms: u64,
    /// Steps that are kept.
    pub steps: usize,
    /// Images of their own in a step; the least active of more are put together.
    pub images: usize,
}

/// The tiers, the finest first: 10 s for half an hour, a minute for a day, an hour for 31 days, all of recorded time.
pub const TIERS: [Tier; 3] = [
    Tier { step_ms: 10_000, steps: 180, images: 1024 },
    Tier { step_ms: 60_000, steps: 1_440, images: 512 },
    Tier { step_ms: 3_600_000, steps: 744, images: 512 },
];

/// Puts consecutive steps of a finer tier together. `fine` are their rows, the older ones first; `None`: there is no step.
#[must_use]
pub fn put_together(tier: Tier, steps: &[Step], fine: Vec<(ImageId, Row)>) -> Option<(Step, Vec<(ImageId, Row)>)> {
    let (first, last) = (steps.first()?, steps.last()?);
    let mut rows: HashMap<ImageId, Row> = HashMap::new();
    for (image, row) in fine {
        rows.entry(image).and_modify(|held| *held = held.then(&row)).or_insert(row);
    }
    let (rows, folded) = bounded(tier, rows.into_iter().collect());
    let step = Step {
        end_unix_ms: last.end_unix_ms,
        duration_ms: steps.iter().map(|step| step.duration_ms).fold(0, u64::saturating_add),
        run: last.run,
        after: first.after,
        folded: steps.iter().map(|step| step.folded).sum::<u64>() + folded,
        losses: last.losses,
    };
    Some((step, rows))
}

/// Puts the least active images together where there are too many; the sums stay what they are.
pub fn bounded(tier: Tier, mut rows: Vec<(ImageId, Row)>) -> (Vec<(ImageId, Row)>, u64) {
    let mut folded = 0;
    if rows.len() > tier.images {
        let activity = |row: &Row| {
            let delta = &row.delta;
            let figure = |place| delta.get(place).unwrap_or(0);
            let asked = figure(super::row::field::CALL_BYTES).saturating_add(delta.taken_bytes());
            (asked, figure(super::row::field::RAISES), figure(super::row::field::CALLS))
        };
        rows.sort_by_key(|(image, row)| (*image != OTHERS, std::cmp::Reverse(activity(row)), *image));
        // One place is for those that are put together.
        let rest = rows.split_off(tier.images - 1);
        folded = rest.len() as u64;
        let rest = rest.into_iter().map(|(_, row)| row).reduce(|sum, row| sum.then(&row));
        if let Some(mut rest) = rest {
            // Their counters are those of different processes: only what was added has a meaning.
            (rest.now, rest.ended) = (super::row::Figures::NONE, None);
            match rows.first_mut() {
                Some((OTHERS, held)) => *held = held.then(&rest),
                _ => rows.push((OTHERS, rest)),
            }
        }
    }
    rows.sort_by_key(|(image, _)| *image);
    (rows, folded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::row::tests::figures;
    use crate::history::row::{FIELDS, Figures, Kind};
    use proptest::prelude::*;

    fn sum<'a>(rows: impl Iterator<Item = &'a Row>) -> Figures {
        let mut sum = Figures::NONE;
        rows.for_each(|row| sum.add(&row.delta));
        sum
    }

    fn small(delta: Figures) -> Figures {
        // So that no sum saturates: the order of adding would matter then.
        let mut small = Figures::NONE;
        for (place, (_, kind)) in FIELDS.iter().enumerate() {
            small.set(place, delta.get(place).filter(|_| *kind == Kind::Counter).map(|value| value >> 16));
        }
        small
    }

    proptest! {
        #[test]
        fn putting_steps_together_keeps_sums_first_and_last(
            rows in proptest::collection::vec((0..12u64, figures(), figures()), 1..60),
            images in 2..14usize,
        ) {
            // HIST-1
            let fine: Vec<(ImageId, Row)> = rows
                .into_iter()
                .map(|(image, now, delta)| (image, Row { now, delta: small(delta), ended: None, complete: true }))
                .collect();
            let steps: Vec<Step> =
                (0..6).map(|n| Step { end_unix_ms: 1000 + n * 10, duration_ms: 10, after: 40 + n, ..Step::default() }).collect();
            let tier = Tier { images, ..TIERS[1] };
            let (step, coarse) = put_together(tier, &steps, fine.clone()).unwrap();
            prop_assert!(coarse.len() <= images);
            prop_assert_eq!(sum(fine.iter().map(|(_, row)| row)), sum(coarse.iter().map(|(_, row)| row)));
            prop_assert_eq!((step.after, step.end_unix_ms, step.duration_ms), (40, 1050, 60));
            let distinct: std::collections::BTreeSet<_> = fine.iter().map(|(image, _)| *image).collect();
            if distinct.len() <= images {
                prop_assert_eq!(coarse.len(), distinct.len());
                for (image, row) in &coarse {
                    let last = fine.iter().rev().find(|(held, _)| held == image).unwrap();
                    prop_assert_eq!(row.now, last.1.now);
                }
            }
            prop_assert!(coarse.is_sorted_by_key(|(image, _)| *image));
        }
    }

    #[test]
    fn nothing_put_together_is_nothing() {
        assert_eq!(put_together(TIERS[1], &[], Vec::new()), None);
    }
}
