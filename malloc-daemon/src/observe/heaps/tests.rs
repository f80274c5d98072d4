//! Memory that never answers, on a thread that waits for it.

use std::sync::mpsc::channel;

use malloc_common::abi::{SLOT_LIVE, Slot};
use malloc_common::site::{ArenaLayout, MpLayout};

use super::*;
use crate::aggregate::model::{NANOSECONDS_PER_TICK, Threshold, ThresholdMode, ThresholdSource};

const PLACE: Place = Place {
    mp: 0,
    mp_layout: MpLayout::From235,
    main_arena: None,
    arena_layout: ArenaLayout::Unknown,
    links: None,
    code: 0,
};

fn image(pid: u32) -> Arc<RawImage> {
    let slot = Slot { tgid: pid, state: SLOT_LIVE, start_ns: NANOSECONDS_PER_TICK, first_ns: boot_ns(), ..Slot::FREE };
    Arc::new(RawImage { slot, histograms: Vec::new() })
}

fn heap(resident_bytes: u64) -> Heap {
    Heap {
        read_ns: boot_ns(),
        took_us: 1,
        threshold: Threshold {
            bytes: 131_072,
            trim_bytes: 131_072,
            mode: ThresholdMode::Dynamic,
            source: ThresholdSource::Memory,
            raises: 0,
            mmapped_chunks: 0,
            mmapped_bytes: 0,
        },
        top_pad: 131_072,
        max_mmapped_bytes: 0,
        arenas: Vec::new(),
        every_arena: true,
        not_read: None,
        page_bytes: 4096,
        resident_bytes: Some(resident_bytes),
        minor_faults: None,
    }
}

/// Asks until `satisfied`, as collections do.
fn until(heaps: &mut Heaps, images: &[Arc<RawImage>], mut satisfied: impl FnMut(&Heaps) -> bool) {
    let deadline = Instant::now() + 4 * PATIENCE;
    while !satisfied(heaps) {
        assert!(Instant::now() < deadline, "in vain");
        let started = Instant::now();
        heaps.ask(images, &|_| Some(PLACE), &|_| None);
        assert!(started.elapsed() < PATIENCE / 4, "asking waits for nobody");
        std::thread::yield_now();
    }
}

#[test]
fn a_process_whose_memory_does_not_answer_is_left_alone_and_the_others_are_read() {
    let (release, held) = channel::<()>();
    let held = Mutex::new(held);
    let read: Read = Arc::new(move |job: &Job| {
        if job.id.pid == 1 {
            let _ended = held.lock().expect("one reader").recv();
        }
        Ok(heap(job.id.pid.into()))
    });
    let mut heaps = Heaps::with(Pace::CLOSE, read);
    let images = [image(1), image(2), image(3)];
    until(&mut heaps, &images, |heaps| heaps.of(&images[0]).is_err());
    assert!(heaps.of(&images[0]).expect_err("blocked").contains("did not return"));
    for other in &images[1..] {
        until(&mut heaps, &images, |heaps| matches!(heaps.of(other), Ok(Some(_))));
    }
    assert_eq!(heaps.stuck.load(Ordering::Relaxed), 1);
    assert!(heaps.known.values().filter(|known| known.blocked).all(|known| !known.asked));
    // A read that returns in the end frees its thread, and tells nothing any more.
    drop(release);
    until(&mut heaps, &images, |heaps| heaps.stuck.load(Ordering::Relaxed) == 0);
    assert!(heaps.of(&images[0]).is_err());
}

#[test]
fn a_reading_of_another_life_or_another_program_is_not_the_images() {
    let mut heaps = Heaps::with(Pace::CLOSE, Arc::new(|_: &Job| Ok(heap(7))));
    let mut image = image(9);
    until(&mut heaps, std::slice::from_ref(&image), |heaps| matches!(heaps.of(&image), Ok(Some(_))));
    Arc::make_mut(&mut image).slot.born = BORN_EXEC;
    Arc::make_mut(&mut image).slot.first_ns = u64::MAX;
    assert_eq!(heaps.of(&image), Ok(None), "an exec came after the reading");
    Arc::make_mut(&mut image).slot.first_ns = 0;
    Arc::make_mut(&mut image).slot.end_ns = 1;
    assert_eq!(heaps.of(&image), Ok(None), "the image had ended");
    Arc::make_mut(&mut image).slot.end_ns = 0;
    Arc::make_mut(&mut image).slot.start_ns = 0;
    assert_eq!(heaps.of(&image), Ok(None), "the pid was used again");
}

#[test]
fn a_process_in_which_nothing_happens_is_not_read_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let read: Read = Arc::new(move |_: &Job| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(heap(7))
    });
    let mut heaps = Heaps::with(Pace::CLOSE, read);
    let mut image = image(9);
    until(&mut heaps, std::slice::from_ref(&image), |heaps| matches!(heaps.of(&image), Ok(Some(_))));
    heaps.ask(std::slice::from_ref(&image), &|_| Some(PLACE), &|_| None);
    assert_eq!((heaps.thread.as_ref().map(|t| t.under_way), count.load(Ordering::Relaxed)), (Some(0), 1));
    Arc::make_mut(&mut image).slot.counters[0] += 1;
    until(&mut heaps, std::slice::from_ref(&image), |_| count.load(Ordering::Relaxed) == 2);
    heaps.finish();
    assert_eq!(count.load(Ordering::Relaxed), 3, "a last reading is made whether anything happened or not");
}
