//! Heaps made by hand, sound ones and ones that lie.

use proptest::prelude::*;

use super::*;
use crate::aggregate::heap::Free;

const MAIN: u64 = 0x7f00_0020_0000;
const MP: u64 = 0x7f00_0020_4000;
const HEAP: u64 = 0x5500_0000_0000;
const HEAP_BYTES: usize = 1 << 20;
const OTHER_HEAP: u64 = 0x7e00_0400_0000;
const OTHER: u64 = OTHER_HEAP + 48;

/// Two pieces of memory for the main arena and one for a second arena's heap.
struct Image {
    pieces: Vec<(u64, Vec<u8>)>,
    place: Place,
}

impl Memory for Image {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let piece = self.pieces.iter().find(|(start, bytes)| {
            address >= *start && address.saturating_add(into.len() as u64) <= start + bytes.len() as u64
        });
        let Some((start, bytes)) = piece else { return false };
        let at = (address - start) as usize;
        into.copy_from_slice(&bytes[at..at + into.len()]);
        true
    }

    fn absent(&self, start: u64, end: u64) -> Option<u64> {
        Some((end - start) / 4)
    }
}

impl Image {
    fn put(&mut self, address: u64, value: u64) {
        let (start, bytes) =
            self.pieces.iter_mut().find(|(s, b)| address >= *s && address + 8 <= *s + b.len() as u64).expect("memory");
        let at = (address - *start) as usize;
        bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn regions(&self) -> Regions {
        let region = |(start, bytes): &(u64, Vec<u8>)| Region { start: *start, end: start + bytes.len() as u64 };
        Regions::new(self.pieces[1..].iter().map(region).collect(), self.pieces[..1].iter().map(region).collect())
    }

    fn offsets(&self) -> malloc_common::site::ArenaOffsets {
        self.place.arena_layout.offsets().expect("a known layout")
    }

    fn arena(&mut self, at: u64, next: u64, top: u64, top_bytes: u64, system: u64) {
        let offsets = self.offsets();
        for (offset, value) in [
            (offsets.top, top),
            (offsets.next, next),
            (offsets.attached_threads, 1),
            (offsets.system_mem, system),
            (offsets.max_system_mem, system + 4096),
        ] {
            self.put(at + u64::from(offset), value);
        }
        self.put(top + 8, top_bytes | 1);
        for bin in 0..127 {
            let links = at + u64::from(offsets.bins) + bin * 16;
            self.put(links, links - 16);
            self.put(links + 8, links - 16);
        }
    }

    /// Chains chunks into a bin.
    fn bin(&mut self, arena: u64, bin: u64, chunks: &[(u64, u64)]) {
        let head = arena + u64::from(self.offsets().bins) + (bin - 1) * 16 - 16;
        let mut previous = head;
        for (at, size) in chunks {
            self.put(previous + 16, *at);
            self.put(at + 8, size | 1);
            self.put(at + 24, previous);
            previous = *at;
        }
        self.put(previous + 16, head);
        self.put(head + 24, previous);
    }

    fn fastbin(&mut self, arena: u64, index: u64, chunks: &[u64]) {
        let mut link = arena + u64::from(self.offsets().fastbins.expect("fastbins")) + 8 * index;
        for (nth, at) in chunks.iter().enumerate() {
            let mixed = if nth > 0 && self.place.links == Some(Links::Protected) { link >> 12 } else { 0 };
            self.put(link, at ^ mixed);
            self.put(at + 8, ((index + 2) * 16) | 1);
            link = at + 16;
        }
        self.put(link, if self.place.links == Some(Links::Protected) { link >> 12 } else { 0 });
    }

    fn read_all(&self) -> Result<Reading, &'static str> {
        read(self, &self.place, &self.regions())
    }

    fn free(&self, arena: usize) -> Free {
        let arenas = self.read_all().expect("a reading").arenas.expect("arenas");
        arenas[arena].free.clone().expect("free chunks")
    }
}

/// A main arena of 1 MiB with a top of 64 KiB, and a second one of 256 KiB.
fn sound(layout: ArenaLayout, links: Links) -> Image {
    let place = Place {
        mp: MP,
        mp_layout: MpLayout::From235,
        main_arena: Some(MAIN),
        arena_layout: layout,
        links: Some(links),
        code: 0,
    };
    let pieces = vec![(MAIN, vec![0; 0x5000]), (HEAP, vec![0; HEAP_BYTES]), (OTHER_HEAP, vec![0; HEAP_BYTES])];
    let mut image = Image { pieces, place };
    image.put(MP, 262_144);
    image.put(MP + 8, 131_072);
    image.put(MP + 16, 131_072);
    image.put(MP + 60, 3);
    image.put(MP + 80, 3 << 20);
    image.put(MP + 88, 5 << 20);
    image.arena(MAIN, OTHER, HEAP + 0xf_0000, 0x1_0000, HEAP_BYTES as u64);
    image.put(OTHER_HEAP, OTHER);
    image.arena(OTHER, MAIN, OTHER_HEAP + 0x3_0000, 0x1_0000, 256 << 10);
    image
}

#[test]
fn every_free_chunk_of_every_bin_is_counted() {
    for (layout, links) in [(ArenaLayout::Upto226, Links::Plain), (ArenaLayout::From227, Links::Protected)] {
        let mut image = sound(layout, links);
        image.bin(MAIN, 1, &[(HEAP + 0x1000, 0x530), (HEAP + 0x2000, 0x40)]);
        image.bin(MAIN, 3, &[(HEAP + 0x3000, 48)]);
        image.bin(MAIN, 126, &[(HEAP + 0x4_0000, 0x4_0000)]);
        image.fastbin(MAIN, 0, &[HEAP + 0x5000, HEAP + 0x6000]);
        let reading = image.read_all().expect("a reading");
        assert_eq!((reading.threshold.mmapped_chunks, reading.max_mmapped_bytes), (3, 5 << 20));
        assert!(reading.every_arena);
        let free = image.free(0);
        assert!(free.complete);
        assert_eq!((free.chunks, free.bytes), (6, 0x530 + 0x40 + 48 + 0x4_0000 + 64));
        assert_eq!(free.sizes.iter().map(|sizes| sizes.bytes).sum::<u64>(), free.bytes);
        assert_eq!(free.sizes.iter().map(|sizes| sizes.absent_bytes).sum::<u64>(), 0x1_0000);
        let arenas = reading.arenas.expect("arenas");
        assert_eq!(arenas.iter().map(|arena| arena.top_bytes).collect::<Vec<_>>(), [0x1_0000, 0x1_0000]);
        assert_eq!(arenas[1].max_system_bytes, (256 << 10) + 4096);
        assert_eq!(arenas[0].top_resident_bytes, Some(0xc000));
    }
}

#[test]
fn a_version_without_fastbins_is_read() {
    let mut image = sound(ArenaLayout::From243, Links::Protected);
    image.place.links = None;
    image.bin(MAIN, 2, &[(HEAP + 0x1000, 32)]);
    assert_eq!((image.free(0).complete, image.free(0).bytes), (true, 32));
}

#[test]
fn an_arena_that_never_served_has_nothing() {
    let mut image = sound(ArenaLayout::From227, Links::Plain);
    let offsets = image.offsets();
    for at in 0..(u64::from(offsets.next) / 8) {
        image.put(MAIN + at * 8, 0);
    }
    let arena = image.read_all().expect("a reading").arenas.expect("arenas").remove(0);
    assert_eq!((arena.top_bytes, arena.free), (0, Some(Free { complete: true, ..Free::default() })));
}

#[test]
fn a_link_that_is_not_answered_ends_the_walk_of_its_bin_and_of_no_other() {
    let mut image = sound(ArenaLayout::From227, Links::Plain);
    image.bin(MAIN, 3, &[(HEAP + 0x1000, 48), (HEAP + 0x2000, 48), (HEAP + 0x3000, 48)]);
    image.bin(MAIN, 4, &[(HEAP + 0x4000, 64)]);
    image.put(HEAP + 0x3000 + 24, HEAP + 0x1000);
    let free = image.free(0);
    assert_eq!((free.complete, free.bytes), (false, 48 + 48 + 64));
}

#[test]
fn a_chunk_outside_the_heap_of_its_arena_is_not_counted() {
    for foreign in [OTHER_HEAP + 0x1000, MAIN + 0x100, 0x1000, HEAP + 0x1008, HEAP + HEAP_BYTES as u64 - 16] {
        let mut image = sound(ArenaLayout::From227, Links::Plain);
        let head = OTHER + u64::from(image.offsets().bins) + 32 - 16;
        image.put(head + 16, foreign);
        if foreign != OTHER_HEAP + 0x1000 {
            let free = image.free(1);
            assert_eq!((free.complete, free.bytes), (false, 0), "{foreign:#x}");
        }
        let head = MAIN + u64::from(image.offsets().bins) + 32 - 16;
        image.put(head + 16, foreign);
        assert!(!image.free(0).complete, "{foreign:#x}");
    }
}

#[test]
fn a_circle_of_chunks_ends_at_the_bound() {
    let mut image = sound(ArenaLayout::From227, Links::Plain);
    image.fastbin(MAIN, 0, &[HEAP + 0x1000, HEAP + 0x2000]);
    image.put(HEAP + 0x2000 + 16, HEAP + 0x1000);
    let free = image.free(0);
    assert!(!free.complete && free.chunks <= CHUNKS as u64);
}

#[test]
fn a_ring_that_leads_astray_is_not_every_arena() {
    let mut image = sound(ArenaLayout::From227, Links::Plain);
    let next = u64::from(image.offsets().next);
    for astray in [OTHER, 0, HEAP, MAIN + 8, u64::MAX] {
        image.put(OTHER + next, astray);
        let reading = image.read_all().expect("a reading");
        assert_eq!((reading.every_arena, reading.arenas.expect("arenas").len()), (false, 2), "{astray:#x}");
    }
    image.put(OTHER + next, MAIN);
    image.put(OTHER_HEAP, MAIN);
    let reading = image.read_all().expect("a reading");
    assert_eq!((reading.every_arena, reading.arenas.expect("arenas").len()), (false, 1), "its heap is another's");
}

#[test]
fn without_a_known_layout_the_parameters_alone_are_read() {
    let mut image = sound(ArenaLayout::From227, Links::Plain);
    image.place.arena_layout = ArenaLayout::Unknown;
    let reading = image.read_all().expect("a reading");
    assert_eq!((reading.threshold.bytes, reading.arenas.is_err()), (131_072, true));
    image.place.mp_layout = MpLayout::Unknown;
    assert!(image.read_all().is_err());
}

proptest! {
    // A hostile process can write what it likes: no panic, and no more work than the bound.
    #[test]
    fn no_content_makes_reading_fail_but_by_a_value(
        damage in prop::collection::vec((0usize..0x2_0000, any::<u64>(), 0usize..6), 0..60)
    ) {
        let mut image = sound(ArenaLayout::From227, Links::Protected);
        image.bin(MAIN, 1, &[(HEAP + 0x1000, 0x530), (HEAP + 0x2000, 0x40)]);
        image.fastbin(MAIN, 0, &[HEAP + 0x5000, HEAP + 0x6000]);
        for (at, value, kind) in damage {
            let near = [HEAP, OTHER_HEAP, MAIN, OTHER, HEAP + HEAP_BYTES as u64, value];
            let value = near[kind].wrapping_add(value % 0x10_0000 * u64::from(kind != 5));
            let piece = at % 3;
            let (start, length) = (image.pieces[piece].0, image.pieces[piece].1.len());
            image.put(start + (at / 3 * 8 % (length - 8)) as u64, value);
        }
        if let Ok(Reading { arenas: Ok(arenas), .. }) = image.read_all() {
            prop_assert!(arenas.len() <= ARENAS);
            let chunks: u64 = arenas.iter().filter_map(|arena| arena.free.as_ref()).map(|free| free.chunks).sum();
            prop_assert!(chunks <= CHUNKS as u64);
        }
    }
}
