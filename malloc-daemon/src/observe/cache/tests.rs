//! A file found again gives what it gave before; another file, or a spoilt entry, never does.

use std::path::PathBuf;

use super::*;
use crate::host::file::open_in_root;
use crate::targets::locate::stripped_miniature;
use crate::targets::{Digest, locate as located_in};

struct Place {
    place: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { place: tempfile::tempdir().unwrap() }
    }

    fn folder(&self) -> PathBuf {
        self.place.path().join("cache")
    }

    fn file(&self, bytes: &[u8]) -> TargetFile {
        let path = self.place.path().join("libc.so.6");
        std::fs::write(&path, bytes).unwrap();
        open_in_root(Root::Host, &path).unwrap().unwrap()
    }

    /// A daemon that has just started.
    fn cache(&self) -> Cache {
        let mut cache = Cache::default();
        cache.keep_in(&self.folder()).unwrap();
        cache
    }

    fn entry(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path());
        let first = entries.next().expect("an entry");
        assert!(entries.next().is_none());
        first
    }

    /// Puts another text in place of the entry's, with a checksum that fits.
    fn put(&self, body: &[u8]) {
        std::fs::write(self.entry(), [format!("{}\n", Digest::of(body)).as_bytes(), body].concat()).unwrap();
    }
}

#[test]
fn a_file_found_again_gives_the_same_from_memory_and_from_the_folder() {
    let (place, bytes) = (Place::new(), stripped_miniature());
    let truth = located_in(&*bytes, None).unwrap();
    let mut first = place.cache();
    assert_eq!(first.locate(&place.file(&bytes), Root::Host).unwrap(), truth);
    assert_eq!(first.locate(&place.file(&bytes), Root::Host).unwrap(), truth);
    assert_eq!(first.counts, Counts { stored: 1, from_memory: 1, ..Counts::default() });
    let mut second = place.cache();
    assert_eq!(second.locate(&place.file(&bytes), Root::Host).unwrap(), truth);
    assert_eq!(second.counts, Counts { from_folder: 1, ..Counts::default() });
}

#[test]
fn a_changed_file_of_the_same_build_id_and_size_is_looked_into_anew() {
    let (place, bytes) = (Place::new(), stripped_miniature());
    let mut cache = place.cache();
    let before = cache.locate(&place.file(&bytes), Root::Host).unwrap();
    // The code of sysmalloc begins otherwise: its probe moves.
    let mut changed = bytes.clone();
    let sysmalloc = before.functions.iter().find(|function| function.name == "sysmalloc").unwrap();
    changed[usize::try_from(sysmalloc.file_offset).unwrap()] ^= 0xff;
    assert_eq!(ContentId::of(&changed).build_id, ContentId::of(&bytes).build_id);
    assert_eq!(cache.locate(&place.file(&changed), Root::Host), located_in(&*changed, None));
    assert_eq!((cache.counts.from_memory, cache.counts.from_folder), (0, 0));
    // And a daemon that starts again has both.
    assert_eq!(place.cache().locate(&place.file(&bytes), Root::Host).unwrap(), before);
}

#[test]
fn a_spoilt_entry_is_set_aside_and_written_anew() {
    let (place, bytes) = (Place::new(), stripped_miniature());
    let truth = place.cache().locate(&place.file(&bytes), Root::Host).unwrap();
    let whole = std::fs::read(place.entry()).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut spoilt = whole.clone();
        spoilt[at] ^= 0x01;
        std::fs::write(place.entry(), &spoilt).unwrap();
        let mut cache = place.cache();
        assert_eq!(cache.locate(&place.file(&bytes), Root::Host).unwrap(), truth, "byte {at}");
        assert_eq!(cache.counts, Counts { refused: 1, stored: 1, ..Counts::default() }, "byte {at}");
        assert_eq!(std::fs::read(place.entry()).unwrap(), whole);
    }
    for length in [0, 1, 64, 65, whole.len() / 2, whole.len() - 1] {
        std::fs::write(place.entry(), &whole[..length]).unwrap();
        let mut cache = place.cache();
        assert_eq!(cache.locate(&place.file(&bytes), Root::Host).unwrap(), truth, "{length} bytes");
        assert_eq!(cache.counts.refused, 1);
    }
}

/// Whoever may write into the folder is the daemon's own user; what they write still leads to no probe inside of an
/// instruction, and to no second one of a kind.
#[test]
fn a_forged_entry_moves_no_probe_off_a_functions_start() {
    let (place, bytes) = (Place::new(), stripped_miniature());
    let id = ContentId::of(&bytes);
    let truth = place.cache().locate(&place.file(&bytes), Root::Host).unwrap();
    let before = place.cache().stored(&id).unwrap();
    assert!(before.symbols.len() > 8, "{before:?}");
    let given = |forged: &Inference| {
        std::fs::write(place.entry(), encode(&id, forged)).unwrap();
        let mut cache = place.cache();
        assert_eq!(cache.locate(&place.file(&bytes), Root::Host).unwrap(), truth, "{forged:?}");
        cache.counts.refused
    };
    for index in 0..before.symbols.len() {
        // What asks for heap may be more than one function.
        let once = |other: &usize| *other != index && before.symbols[*other].name != "__glibc_morecore";
        for other in (0..before.symbols.len()).filter(once) {
            // One function is called like another, with its own length.
            let mut forged = before.clone();
            forged.symbols[index].name.clone_from(&before.symbols[other].name);
            assert_eq!(given(&forged), 1);
        }
        for distance in [1u64, 2, 16] {
            let mut forged = before.clone();
            forged.symbols[index].vaddr += distance;
            assert_eq!(given(&forged), 1);
        }
        let mut forged = before.clone();
        forged.symbols[index].name = "malloc".to_owned();
        assert_eq!(given(&forged), 1);
        let mut forged = before.clone();
        forged.symbols[index].size += 1;
        assert_eq!(given(&forged), 1);
    }
}

#[test]
fn an_entry_of_the_same_bytes_is_taken_as_it_is_and_one_of_other_bytes_never() {
    let (place, bytes) = (Place::new(), stripped_miniature());
    let id = ContentId::of(&bytes);
    let mut truth = place.cache().locate(&place.file(&bytes), Root::Host).unwrap();
    let mut marked = place.cache().stored(&id).unwrap();
    marked.notes.push("Taken.".to_owned());
    truth.notes.push("Taken.".to_owned());
    std::fs::write(place.entry(), encode(&id, &marked)).unwrap();
    let mut cache = place.cache();
    assert_eq!(cache.locate(&place.file(&bytes), Root::Host).unwrap(), truth);
    assert_eq!(cache.counts, Counts { from_folder: 1, ..Counts::default() });
    // One byte of code is another: the same build id, the same size.
    let mut changed = bytes.clone();
    let function = truth.functions.iter().find(|function| function.name == "sysmalloc").unwrap();
    changed[usize::try_from(function.file_offset + function.size).unwrap() - 1] ^= 0xff;
    let other = ContentId::of(&changed);
    assert_eq!((&other.build_id, other.size_bytes), (&id.build_id, id.size_bytes));
    // The entry lies under the changed file's own name, even.
    std::fs::rename(place.entry(), place.folder().join(format!("{other}.inferred"))).unwrap();
    let mut cache = place.cache();
    assert_eq!(cache.locate(&place.file(&changed), Root::Host), located_in(&*changed, None));
    assert_eq!(cache.counts, Counts { refused: 1, stored: 1, ..Counts::default() });
}

#[test]
fn what_other_rules_inferred_is_replaced_and_is_no_damage() {
    let (place, bytes) = (Place::new(), stripped_miniature());
    let truth = place.cache().locate(&place.file(&bytes), Root::Host).unwrap();
    let whole = std::fs::read_to_string(place.entry()).unwrap();
    let body = whole.split_once('\n').unwrap().1;
    let rules = format!("\"rules\":{}", locate::RULES);
    assert!(body.contains(&rules));
    place.put(body.replace(&rules, "\"rules\":1").as_bytes());
    let mut cache = place.cache();
    assert_eq!(cache.locate(&place.file(&bytes), Root::Host).unwrap(), truth);
    assert_eq!(cache.counts, Counts { stored: 1, ..Counts::default() });
    assert_eq!(std::fs::read_to_string(place.entry()).unwrap(), whole);
    for body in [&b"{}"[..], b"", b"[[[[", &[0xff; 64]] {
        place.put(body);
        let mut cache = place.cache();
        assert_eq!(cache.locate(&place.file(&bytes), Root::Host).unwrap(), truth);
        assert_eq!(cache.counts.refused, 1);
    }
}

#[test]
fn a_folder_that_vanished_costs_a_count_and_nothing_else() {
    let (place, bytes) = (Place::new(), stripped_miniature());
    let mut cache = place.cache();
    std::fs::remove_dir_all(place.folder()).unwrap();
    assert_eq!(cache.locate(&place.file(&bytes), Root::Host), located_in(&*bytes, None));
    assert_eq!((cache.counts.stored, cache.counts.failed), (0, 1));
}
