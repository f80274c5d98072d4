//! Proves that the heap is read as glibc itself has it: the daemon's numbers against malloc_info and mallinfo2.
#![cfg(feature = "real-kernel")]

use std::process::Command;

use kernel_tests::daemon::{Attached, Serving};
use kernel_tests::document::Image;
use kernel_tests::libcs;
use kernel_tests::process::Running;
use kernel_tests::victim;
use rustix::process::Signal;
use serde_json::Value;

/// What a victim at rest says of its heap.
fn account(victim: &mut Running) -> Value {
    let line = victim.read_line();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// HEAP-1: every number as glibc prints it.
fn assert_heap(truth: &Value, image: &Image) {
    let told = truth["arenas"].as_array().expect("arenas");
    let read = image.0["arenas"].as_array().unwrap_or_else(|| panic!("arenas of {}", image.0));
    assert_eq!(read.len(), told.len(), "arenas");
    for (nth, (read, told)) in read.iter().zip(told).enumerate() {
        assert_eq!(read["system_bytes"], told["system"], "arena {nth}: {read}");
        assert_eq!(read["max_system_bytes"], told["max"], "arena {nth}: {read}");
        assert_eq!(read["main"], nth == 0);
        assert_eq!(read["free_complete"], true, "arena {nth}: {read}");
        let sizes = read["free_sizes"].as_array().expect("sizes").iter().filter_map(|size| size["calls"].as_u64());
        assert_eq!(Some(sizes.sum()), read["free_chunks"].as_u64(), "arena {nth}: {read}");
    }
    assert_eq!(read[0]["top_bytes"], truth["keepcost"], "the top of the main arena");
    assert_eq!(image.0["heap"]["retained_bytes"], truth["fordblks"], "{}", image.0["heap"]);
    assert_eq!(image.0["heap"]["complete"], true);
    assert_eq!(image.number("/threshold/mmapped_chunks"), truth["hblks"].as_u64().expect("hblks"));
    assert_eq!(image.number("/threshold/mmapped_bytes"), truth["hblkhd"].as_u64().expect("hblkhd"));
    let resident = image.number("/heap/retained_resident_bytes");
    assert!(resident <= image.number("/heap/retained_bytes"), "{}", image.0["heap"]);
    assert!(image.number("/heap/resident_bytes") > resident, "a page that is free and resident is resident");
}

// HEAP-1, THRESH-1: a process at rest, whether it has one arena or several.
#[test]
fn every_arena_and_every_free_byte_is_what_glibc_says() {
    for threads in ["0", "1", "5"] {
        let mut victim = Running::start(Command::new(victim::program("heap_holes")).arg(threads));
        let truth = account(&mut victim);
        let (_, document) = Attached::to(victim.pid()).interrupt();
        assert_heap(&truth, &document.image(victim.pid(), "heap_holes"));
        victim.close_input();
        assert_eq!(victim.end().code(), 0);
    }
}

// HEAP-1: `serve` reads it by itself, without anything happening in the process.
#[test]
fn a_served_process_is_read_at_first_sight() {
    let mut victim = Running::start(Command::new(victim::program("heap_holes")).arg("2"));
    let truth = account(&mut victim);
    let serving = Serving::start(&[]);
    let image = serving.image_when("its heap", victim.pid(), |image| !image.is_null("/heap"));
    assert_heap(&truth, &image);
    assert_eq!(serving.stop(Signal::TERM).code(), 0);
}

// HEAP-1, THRESH-1: the structures of each release, of a process whose executable is the dynamic loader.
#[test]
fn the_structures_of_every_release_are_read_as_that_libc_says() {
    for libc in libcs::all() {
        for threads in ["0", "4"] {
            let mut victim = Running::start(&mut libc.command("heap_holes", &[threads]));
            let truth = account(&mut victim);
            let (_, document) = Attached::to(victim.pid()).interrupt();
            let image = document.image(victim.pid(), "ld-linux-x86-64.so.2");
            println!("{}, {threads} threads: {}", libc.suite, image.0["allocator"]);
            assert_eq!(image.text("/allocator/kind"), "glibc", "{}", libc.suite);
            assert_eq!(image.text("/allocator/version"), format!("2.{}", libc.minor()));
            assert!(
                image.text("/allocator/path").ends_with("libc.so.6") || libc.minor() < 34,
                "{}",
                image.0["allocator"]
            );
            assert_heap(&truth, &image);
            victim.close_input();
            assert_eq!(victim.end().code(), 0);
        }
    }
}
