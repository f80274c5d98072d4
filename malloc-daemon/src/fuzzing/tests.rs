//! Every input that is kept in the repository is read without harm, and the seeds are what the fixtures make.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use lzma_rust2::{XzOptions, XzWriter};
use object::read::elf::SectionHeader as _;

use super::*;
use crate::host::btf::tests::kernel;
use crate::report::inference::encode;
use crate::targets::elf::Elf;
use crate::targets::fixture::{Symtab, address, libc, note};
use crate::targets::locate::{analyse_knowing, stripped_miniature};

/// What the repository may hold of inputs: a few hundred bytes to some kilobytes each, and 16 KiB of each target's corpus.
const KEPT_BYTES: u64 = 400 << 10;
/// Where they lie: made here, once found to do harm, found to reach more of the code.
const KINDS: [&str; 3] = ["seeds", "regressions", "corpus"];

fn kept(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind)
}

/// The files below `fuzz/KIND/`, each with the name of its target.
fn inputs(kind: &str) -> Vec<(String, PathBuf)> {
    let folders = fs::read_dir(kept(kind)).into_iter().flatten().map(|folder| folder.unwrap().path());
    let files = folders.flat_map(|folder| {
        let target = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.into_iter().map(move |file| (target.clone(), file))
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn section(file: &[u8], name: &[u8]) -> Vec<u8> {
    let elf = Elf::parse(file).unwrap();
    let section = elf.section(name).unwrap();
    assert!(section.sh_size(object::LittleEndian) > 0);
    elf.bytes_of(section).unwrap().to_vec()
}

/// A process's auxiliary vector and memory: two headers, a dynamic section, the linker's structure, two objects.
fn memory() -> Vec<u8> {
    const START: u64 = 4096;
    let header = |kind: u64, vaddr: u64| words(&[kind, 0, vaddr, 0, 0, 0, 0]);
    let (dynamic, debug, first, second) = (START + 112, START + 144, START + 192, START + 232);
    [
        words(&[3, START, 5, 2, 0, 0, 0, 0]),
        header(6, START),
        header(2, dynamic),
        words(&[21, debug, 0, 0]),
        words(&[1, first, 0, 0, 0, 0]),
        words(&[0, 0, dynamic, second, 0]),
        words(&[0, 0, dynamic, 0, first]),
    ]
    .concat()
}

/// The seeds that are made here: target, name and bytes.
fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (named, stripped, inferred) =
        (libc().bytes(Symtab::Kept), libc().bytes(Symtab::Stripped), stripped_miniature());
    let mut seeds = Vec::new();
    for target in ["elf", "symbols", "locate", "functions"] {
        seeds.push((target, "named.elf", named.clone()));
    }
    seeds.push(("elf", "stripped.elf", stripped.clone()));
    seeds.push(("locate", "stripped.elf", stripped));
    seeds.push(("locate", "inferred.elf", inferred.clone()));
    seeds.push(("debug_data", "named.xz", compressed(&named)));
    let arguments = "libc\0memory_sbrk_more\0 8@%rax -4@16(%rdi) 8@$-1 4@x1 8@[sp, 16]\0";
    seeds.push(("notes", "two", [note(address(1), arguments), note(address(3), "libc\0memory_heap_new\0\0")].concat()));
    let frames = section(&inferred, b".eh_frame");
    seeds.push(("unwind", "frames", [frames.clone(), vec![0x11; frames.len()]].concat()));
    seeds.push(("eh_frame", "frames", frames));
    seeds.push(("code", "x86_64", section(&inferred, b".text")[..512].to_vec()));
    let aarch64 =
        [0xd503_233f, 0xa9bf_7bfd, 0x9100_03fd, 0x9000_0ae1, 0xf940_0421, 0xb400_0060, 0x9400_0010, 0xd65f_03c0];
    seeds.push(("code", "aarch64", aarch64.iter().flat_map(|word: &u32| word.to_le_bytes()).collect()));
    seeds.push(("perf_map", "two", b"7f0000001000 40 LazyCompile:~f a.js:1\n0x7f0000002000 1f Stub\n".to_vec()));
    for (name, text) in [
        ("maps", &b"7f2efeb26000-7f2efec7b000 r-xp 00026000 fe:00 1234567    /usr/lib/libc.so.6 (deleted)\n"[..]),
        ("stat", b"42 (a) b) R 1 42 42 0 -1 4194560 1 0 0 0 7 8 0 0 20 0 3 0 99 4096 1 184467 1 1 0 0 0\n"),
        ("status", b"Name:\ta\nTgid:\t42\nUid:\t1000\t1000\t1000\t1000\n"),
        ("cgroup", b"12:memory:/a\n1:name=systemd:/b\n0::/system.slice/x.service\n"),
        ("mountinfo", b"36 35 98:0 /a\\040b /mnt rw,noatime master:1 - fuse.sshfs server:/x rw\n"),
    ] {
        seeds.push(("proc", name, text.to_vec()));
    }
    seeds.push(("btf", "kernel", kernel("start_boottime")));
    seeds.push(("link_map", "two", memory()));
    for (name, request) in [
        ("snapshot", "GET /v1/snapshot?since=41 HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n"),
        (
            "two",
            "GET /metrics HTTP/1.1\r\nHost: [::1]:7878\r\nAccept: application/openmetrics-text\r\n\r\nHEAD / HTTP/1.0\r\n\r\n",
        ),
        (
            "crossings",
            "GET /v1/crossings?by=stack&pid=4242&limit=3 HTTP/1.1\r\nhost: 127.0.0.1\r\nif-none-match: \"a\"\r\n\r\n",
        ),
        ("question", "/v1/report?from=-2h&to=2026-11-26T14:30:00Z&step=1m&pid=7&comm=a%20b&limit=5&format=text\n"),
        (
            "chunked",
            "POST /v1/processes/4242 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
    ] {
        seeds.push(("http", name, request.as_bytes().to_vec()));
    }
    let (_, made) = analyse_knowing(&*inferred, None::<&[u8]>, None).unwrap();
    let id = ContentId { build_id: None, size_bytes: 0, digest: targets::Digest([0; 32]) };
    let entry = encode(&id, &made.unwrap());
    // Without its checksum, and without the number of the rules, which changes with them.
    let body = String::from_utf8(entry).unwrap().split_once('\n').unwrap().1.to_owned();
    seeds.push(("inference", "entry", body.replace(&targets::locate::RULES.to_string(), "1").into_bytes()));
    seeds
}

#[test]
fn the_seeds_are_what_the_fixtures_make() {
    for (target, name, bytes) in seeds() {
        let path = kept("seeds").join(target).join(name);
        if std::env::var_os("WRITE_SEEDS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let held = fs::read(&path).unwrap_or_default();
        assert!(held == bytes, "{}: write the seeds anew with WRITE_SEEDS=1", path.display());
    }
}

#[test]
fn every_target_has_a_seed_and_all_inputs_are_small() {
    let all: Vec<_> = KINDS.into_iter().flat_map(inputs).collect();
    for (name, _) in TARGETS {
        assert!(inputs("seeds").iter().any(|(target, _)| target == name), "{name} has no seed");
    }
    for (name, path) in &all {
        assert!(target(name).is_some(), "{} belongs to no target", path.display());
    }
    let bytes: u64 = all.iter().map(|(_, path)| path.metadata().unwrap().len()).sum();
    assert!(bytes < KEPT_BYTES, "{bytes} bytes of inputs");
}

#[test]
fn no_kept_input_makes_a_reader_fail() {
    for (_, path) in ["seeds", "regressions"].into_iter().flat_map(inputs) {
        let bytes = fs::read(&path).unwrap();
        // Whoever finds one reader's input may hand it to another.
        for (name, read) in TARGETS {
            println!("{name} of {}", path.display());
            read(&bytes);
        }
    }
    for (name, path) in inputs("corpus") {
        println!("{}", path.display());
        target(&name).unwrap()(&fs::read(&path).unwrap());
    }
}
