//! Proves that whatever is wrong with its input, the daemon says so in a sentence and harms nobody.
#![cfg(feature = "real-kernel")]

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel_tests::daemon::{Serving, binary, command, record_program, run_daemon};
use kernel_tests::document::Image;
use kernel_tests::process::{Ended, run, write_executable};
use kernel_tests::truth::Truth;
use kernel_tests::victim;
use tempfile::TempDir;

/// Refused with this status, in a sentence, without a panic and without an answer on standard output.
fn assert_refused(ended: &Ended, code: i32) {
    assert_eq!(ended.code(), code, "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    assert!(!ended.stderr.trim().is_empty(), "it says why");
    assert_eq!(ended.stdout, "", "nothing that looks like an answer");
}

fn refused(arguments: &[&str], code: i32) -> String {
    let ended = run_daemon(arguments);
    assert_refused(&ended, code);
    ended.stderr
}

/// A file of these bytes that may be executed.
fn executable(directory: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    write_executable(&path, bytes);
    path
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A whole 32-bit x86 program that exits with 0: header, one segment, three instructions.
fn elf_32_bit() -> Vec<u8> {
    let code = [0x31, 0xdb, 0xb8, 0x01, 0x00, 0x00, 0x00, 0xcd, 0x80]; // xor ebx,ebx; mov eax,1; int 0x80
    let (base, header, total) = (0x0804_8000_u32, 52 + 32, 52 + 32 + 9);
    let mut bytes = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 3] {
        bytes.extend(half.to_le_bytes()); // ET_EXEC, EM_386
    }
    for word in [1, base + header, 52, 0, 0] {
        bytes.extend(word.to_le_bytes()); // version, entry, program headers, no sections, flags
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes()); // sizes and counts
    }
    for word in [1, 0, base, base, total, total, 5, 0x1000] {
        bytes.extend(word.to_le_bytes()); // PT_LOAD, read and execute
    }
    bytes.extend(code);
    bytes
}

#[test]
fn an_unknown_process_is_refused() {
    // Above the largest pid that Linux gives out.
    let message = refused(&["record", "--pid", "4194305"], 2);
    assert!(message.contains("4194305"), "{message}");
    refused(&["trace", "--pid", "4194305"], 2);
    refused(&["locate", "--pid", "4194305"], 2);
}

#[test]
fn a_process_that_has_ended_is_refused() {
    let mut child = Command::new("/bin/true").spawn().expect("true");
    let pid = child.id().to_string();
    child.wait().expect("its end");
    refused(&["record", "--pid", &pid], 2);
}

// A zombie has no memory and no code; it must not be waited for either.
#[test]
fn a_process_that_ended_and_was_not_collected_is_refused() {
    let mut child = Command::new("/bin/true").spawn().expect("true");
    let stat = format!("/proc/{}/stat", child.id());
    kernel_tests::process::until("a zombie", || {
        std::fs::read_to_string(&stat).ok().filter(|stat| stat.contains(") Z ")).map(|_| ())
    });
    refused(&["record", "--pid", &child.id().to_string()], 2);
    child.wait().expect("its end");
}

#[test]
fn a_process_number_that_is_none_is_refused() {
    for pid in ["0", "-1", "abc", "99999999999999"] {
        let ended = run_daemon(["record", &format!("--pid={pid}")]);
        assert_refused(&ended, 2);
    }
}

#[test]
fn a_command_that_does_not_exist_is_refused() {
    let message = refused(&["record", "--", "/nonexistent/program"], 2);
    assert!(message.contains("/nonexistent/program"), "{message}");
}

// COUNT-1 where its libc is part of the program; HONEST-1 where it cannot be found: no numbers, never zeroes.
#[test]
fn a_static_program_is_counted_or_said_not_to_be() {
    let program = match victim::static_program("sizes") {
        Ok(program) => program,
        Err(reason) => panic!("this test needs a static libc: {reason}"),
    };
    let recording = record_program(&program, &["small"]);
    assert_eq!(recording.ended.code(), 0, "{}", recording.ended.stderr);
    let (truth, image) = recording.only();
    let located = image.0["allocator"]["located_by"].is_string();
    let measured = !image.is_null("/funnel/call") && !image.is_null("/funnel/call/calls");
    assert!(located || !measured, "counts of an allocator that was not found: {}", image.0);
    if measured {
        // A static libc starts with a few calls of its own (the loader's search paths): the same ones whatever the
        // program does, so that the difference of two runs is the program's.
        let longer = record_program(&program, &[]);
        let (longer_truth, longer_image) = longer.only();
        for function in ["malloc", "calloc", "realloc"] {
            let own = |image: &Image, truth: &Truth| image.calls(function) - truth.functions[function].calls;
            assert_eq!(own(&image, truth), own(&longer_image, longer_truth), "{function}");
        }
    } else {
        let why = image.0["not_measured"].as_array().is_some_and(|reasons| !reasons.is_empty());
        assert!(why, "what is not measured is named with its reason: {}", image.0);
    }
}

#[test]
fn a_file_that_is_no_program_is_refused() {
    let directory = directory();
    let libc = std::fs::read(victim::program("trace_one")).expect("a program");
    let files: [(&str, Vec<u8>); 6] = [
        ("empty", Vec::new()),
        ("text", b"hello, this is no program\n".to_vec()),
        ("magic-only", b"\x7fELF".to_vec()),
        ("header-only", libc[..64].to_vec()),
        ("truncated", libc[..libc.len() / 2].to_vec()),
        ("wild-offsets", libc.iter().enumerate().map(|(i, b)| if (32..64).contains(&i) { 0xff } else { *b }).collect()),
    ];
    for (name, bytes) in files {
        let path = executable(&directory, name, &bytes);
        refused(&["locate", utf8(&path)], 2);
    }
    refused(&["locate", utf8(directory.path())], 2);
    refused(&["locate", "/dev/zero"], 2);
    refused(&["locate", "/nonexistent"], 2);
}

#[test]
fn a_32_bit_program_is_refused_by_name() {
    let directory = directory();
    let path = executable(&directory, "tiny32", &elf_32_bit());
    let message = refused(&["locate", utf8(&path)], 2);
    assert!(message.contains("32"), "{message}");
}

// SAFE-1: it still runs as it does alone, where the kernel runs it at all.
#[test]
fn a_32_bit_command_ends_as_it_does_alone() {
    let directory = directory();
    let path = executable(&directory, "tiny32", &elf_32_bit());
    let alone = match Command::new(&path).status() {
        Ok(status) => status.code().expect("a code"),
        // No 32-bit programs here: refused in a sentence.
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOEXEC.raw_os_error()), "{error}");
            2
        }
    };
    let ended = run_daemon(["record", "--output", "/dev/null", "--", utf8(&path)]);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    assert_eq!(ended.code(), alone, "{}", ended.stderr);
}

// SAFE-1: a real 32-bit program with a libc of its own, on machines that can build one.
#[test]
fn a_32_bit_victim_is_unharmed() {
    let Ok(program) = victim::program_32_bit("trace_one") else {
        // No 32-bit libc here: the program built by hand above stands for it.
        return a_32_bit_command_ends_as_it_does_alone();
    };
    let recording = record_program(&program, &[]);
    assert_eq!(recording.ended.code(), Command::new(&program).status().expect("it runs").code().expect("a code"));
}

#[test]
fn a_user_without_rights_is_told_which() {
    // Where this user may read it, unlike a build directory below a private home.
    let place = directory();
    std::fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("permissions");
    let program = executable(&place, "malloc-daemon", &std::fs::read(binary()).expect("the daemon"));
    for arguments in
        [["record", "--", "/bin/true"].as_slice(), &["serve", "--listen", "127.0.0.1:0"], &["trace", "--pid", "1"]]
    {
        let ended = run(Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
            .arg(&program)
            .args(arguments)
            .current_dir("/"));
        assert_refused(&ended, 2);
        let message = ended.stderr.to_lowercase();
        assert!(message.contains("root") || message.contains("cap_"), "{arguments:?}: {message}");
    }
}

#[test]
fn an_address_in_use_is_refused_by_name() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address").to_string();
    let message = refused(&["serve", "--listen", &address], 2);
    assert!(message.contains(&address), "{message}");
}

#[test]
fn two_daemons_do_not_disturb_each_other() {
    let (first, second) = (Serving::start(&[]), Serving::start(&[]));
    assert_ne!(first.address, second.address);
    assert_eq!((first.get("/readyz").status, second.get("/readyz").status), (200, 200));
}

#[test]
fn an_unknown_depth_format_or_option_is_refused() {
    let message = refused(&["record", "--depth", "abyss", "--", "/bin/true"], 2);
    assert!(message.contains("abyss"), "{message}");
    refused(&["record", "--format", "xml", "--", "/bin/true"], 2);
    refused(&["record", "--duration", "soon", "--pid", "1"], 2);
    refused(&["record", "--no-such-option"], 2);
    refused(&["record"], 2);
}

#[test]
fn an_address_that_is_none_is_refused() {
    for address in ["nowhere", "127.0.0.1:99999", "256.0.0.1:80", "unix:", ""] {
        refused(&["serve", "--listen", address], 2);
    }
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_command_runs() {
    let directory = directory();
    let trace = directory.path().join("ran");
    let ended = run(&mut {
        let mut command = command(["record", "--output", "/nonexistent/report.json", "--", "/bin/touch"]);
        command.arg(&trace);
        command
    });
    assert_refused(&ended, 2);
    assert!(!trace.exists(), "the command did not run");
}
