//! Which of a process's mappings may hold its heap: private memory without a file, and the allocator's own variables.

/// Addresses from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
}

/// Where reading is allowed. Memory of a file may wait for whoever serves that file, so none is read but that of the
/// allocator's own file, which the daemon has read before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regions {
    heaps: Vec<Region>,
    variables: Vec<Region>,
}

impl Regions {
    /// Of writable private mappings: those without a file, and those of the allocator's file.
    #[must_use]
    pub fn new(mut heaps: Vec<Region>, mut variables: Vec<Region>) -> Self {
        heaps.sort_by_key(|region| region.start);
        variables.sort_by_key(|region| region.start);
        Self { heaps: joined(heaps), variables }
    }

    /// The memory without a file around an address; neighbouring mappings are one.
    #[must_use]
    pub fn heap(&self, address: u64) -> Option<Region> {
        around(&self.heaps, address)
    }

    /// Whether that many bytes may belong to the heap.
    #[must_use]
    pub fn holds_heap(&self, address: u64, bytes: u64) -> bool {
        self.heap(address).is_some_and(|region| bytes <= region.end - address)
    }

    /// Whether that many bytes may be variables of the allocator: initialized ones lie in its file's mapping, the
    /// others behind it.
    #[must_use]
    pub fn holds_variables(&self, address: u64, bytes: u64) -> bool {
        let own = around(&self.variables, address);
        own.is_some_and(|region| bytes <= region.end - address) || self.holds_heap(address, bytes)
    }
}

fn around(regions: &[Region], address: u64) -> Option<Region> {
    let after = regions.partition_point(|region| region.start <= address);
    let region = *regions.get(after.checked_sub(1)?)?;
    (address < region.end).then_some(region)
}

/// A heap may be several mappings: the kernel splits them by what `madvise` and `mprotect` said of their parts.
fn joined(sorted: Vec<Region>) -> Vec<Region> {
    let mut joined: Vec<Region> = Vec::with_capacity(sorted.len());
    for region in sorted {
        match joined.last_mut() {
            Some(last) if last.end >= region.start => last.end = last.end.max(region.end),
            _ => joined.push(region),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_lie_in_one_region_whole() {
        let regions = Regions::new(
            vec![Region { start: 0x3000, end: 0x4000 }, Region { start: 0x1000, end: 0x2000 }],
            vec![Region { start: 0x9000, end: 0xa000 }],
        );
        assert!(regions.holds_heap(0x1000, 0x1000));
        assert!(!regions.holds_heap(0x1000, 0x1001));
        assert!(!regions.holds_heap(0x2000, 1));
        assert!(!regions.holds_heap(0x9000, 1), "the file's own memory is no heap");
        assert!(regions.holds_variables(0x9ff8, 8) && !regions.holds_variables(0x9ff8, 9));
        assert!(!regions.holds_heap(u64::MAX, u64::MAX));
    }

    #[test]
    fn neighbours_are_one_heap() {
        let regions = Regions::new(
            vec![Region { start: 0x1000, end: 0x2000 }, Region { start: 0x2000, end: 0x5000 }],
            Vec::new(),
        );
        assert_eq!(regions.heap(0x4fff), Some(Region { start: 0x1000, end: 0x5000 }));
    }
}
