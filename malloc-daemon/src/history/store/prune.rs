//! Makes room: the oldest of the coarsest goes first, then what nothing refers to any more.

use std::collections::HashSet;

use redb::{ReadableTable, ReadableTableMetadata};

use super::{IMAGES, INCIDENTS, META, ROWS, STEPS, Store, StoreError, TEXTS};
use crate::history::record::{self, ImageId, Incident, OTHERS};

/// Of the file that is used before something has to go, in hundredths: the rest is what a commit needs beside what it
/// replaces.
const HIGH: u64 = 75;
/// Down to which is made room.
const LOW: u64 = 65;
/// Of the file that is freed in one commit, as a part: freed pages are of use only to the next.
const PART: u64 = 16;

impl Store {
    /// Looks at how full the file is when enough was written since the last look, and makes room. `live` are images that
    /// may be written again.
    pub(in crate::history) fn keep_within(&mut self, live: &HashSet<ImageId>) -> Result<(), StoreError> {
        let file = self.size.now();
        if self.unchecked < (file / 32).max(16 << 10) {
            return Ok(());
        }
        self.unchecked = 0;
        let used = self.used()?;
        if used <= file * HIGH / 100 {
            return Ok(());
        }
        // A file that is full to its last page cannot even be emptied: room is sought while there still is some.
        if !self.disk_full && self.size.reserve_double() {
            return Ok(());
        }
        self.make_room(used - file * LOW / 100, live)
    }

    /// Bytes of the file that hold something.
    fn used(&self) -> Result<u64, StoreError> {
        let txn = self.db.begin_write()?;
        let stats = txn.stats()?;
        let used = stats.allocated_pages() * stats.page_size() as u64;
        txn.abort()?;
        Ok(used)
    }

    /// Frees at least so many bytes, as far as there is anything to free.
    pub(in crate::history) fn make_room(&mut self, bytes: u64, live: &HashSet<ImageId>) -> Result<(), StoreError> {
        let part = (self.size.now() / PART).max(64 << 10);
        let mut freed = 0;
        while freed < bytes {
            let round = self.drop_oldest(part.min(bytes - freed))?;
            if round == 0 {
                break;
            }
            freed += round;
        }
        self.sweep(live)
    }

    /// One round: steps of the coarsest tier that has any but its last; at last incidents. Returns the bytes of what went.
    fn drop_oldest(&mut self, bytes: u64) -> Result<u64, StoreError> {
        let txn = self.db.begin_write()?;
        let (mut freed, mut gone) = (0, 0);
        for tier in (0..STEPS.len()).rev() {
            let mut steps = txn.open_table(STEPS[tier])?;
            let mut rows = txn.open_table(ROWS[tier])?;
            while freed < bytes && steps.len()? > 1 {
                let Some(end) = steps.pop_first()?.map(|(key, _)| key.value()) else { break };
                rows.retain_in(..=(end, u64::MAX), |_, row| {
                    freed += row.len() as u64 + 20;
                    false
                })?;
                (freed, gone) = (freed + 40, gone + 1);
            }
            if freed >= bytes {
                break;
            }
        }
        if freed == 0 {
            let mut incidents = txn.open_table(INCIDENTS)?;
            for _ in 0..incidents.len()?.div_ceil(2) {
                freed += incidents.pop_first()?.map_or(0, |(_, incident)| incident.value().len() as u64 + 12);
                gone += 1;
            }
        }
        let pruned = self.pruned + gone;
        txn.open_table(META)?.insert("pruned", pruned)?;
        txn.commit()?;
        self.pruned = pruned;
        Ok(freed)
    }

    /// Removes images, frames and stacks that nothing refers to.
    pub(in crate::history) fn sweep(&mut self, live: &HashSet<ImageId>) -> Result<(), StoreError> {
        let txn = self.db.begin_write()?;
        {
            let mut images: HashSet<ImageId> = live.clone();
            for rows in ROWS {
                for entry in txn.open_table(rows)?.iter()? {
                    images.insert(entry?.0.value().1);
                }
            }
            let mut kept: HashSet<u64> = HashSet::new();
            for entry in txn.open_table(INCIDENTS)?.iter()? {
                let Some(incident) = Incident::decode(entry?.1.value()) else { continue };
                images.extend(incident.image);
                kept.extend([incident.stack, incident.mapped_by].into_iter().flatten());
            }
            images.insert(OTHERS);
            txn.open_table(IMAGES)?.retain(|image, _| images.contains(&image))?;
            let mut texts = txn.open_table(TEXTS)?;
            let stacks: Vec<u64> = kept.iter().copied().collect();
            for stack in stacks {
                let frames = texts.get(stack)?.and_then(|stack| record::decode_stack(stack.value()));
                kept.extend(frames.into_iter().flat_map(|(frames, _)| frames));
            }
            texts.retain(|text, _| kept.contains(&text))?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Brings a store that was allowed to be larger down to a size.
    pub(super) fn shrink(mut self, max_bytes: u64) -> Result<(), StoreError> {
        let used = self.used()?;
        // Compacted, the file ends with its last page that is used: it must be allowed to double.
        let target = max_bytes * 2 / 5;
        if used > target {
            self.make_room(used - target, &HashSet::new())?;
        }
        let Some(db) = std::sync::Arc::get_mut(&mut self.db) else { return Ok(()) };
        db.compact()?;
        Ok(())
    }
}
