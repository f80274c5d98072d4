//! Finds the files that a command will map, before it runs.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::Access;

use super::ElfFacts;
use crate::host::file::{FileError, Root, open_in_root};

/// How many programs may stand for each other, script for interpreter or `env` for program: the kernel follows four
/// interpreters.
const LEVELS: usize = 4;
/// How much of a script's first line the kernel reads (`BINPRM_BUF_SIZE`).
const FIRST_LINE_BYTES: usize = 256;
/// How long the dynamic loader may take to list libraries.
const LISTING: Duration = Duration::from_secs(5);
/// The most that is read of its list: 10,000 libraries with paths of 100 bytes.
const LISTING_BYTES: usize = 1 << 20;
/// Where `execvp` looks without `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The files of a command, absolute paths, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandFiles {
    /// What is executed, in that order: scripts, `env`, interpreters, the program.
    pub executables: Vec<PathBuf>,
    /// The libraries that the loader maps, itself included. Libraries loaded later (`dlopen`) are not among them.
    pub libraries: Vec<PathBuf>,
    /// Libraries that the loader does not find: the command will not start.
    pub missing: Vec<OsString>,
}

/// Why the files of a command cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("command not found: {}; give its path, or check PATH", .command.display())]
    NotFound {
        /// As it was named.
        command: OsString,
    },
    /// The file is there, but may not be executed.
    #[error("{} is not executable; run `chmod +x` on it, or name the program that reads it", path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
    },
    /// Scripts name each other as interpreters.
    #[error("{} needs more than {LEVELS} interpreters one after the other", path.display())]
    TooManyLevels {
        /// The command.
        path: PathBuf,
    },
    /// The loader is not one that is known to list libraries without running the program.
    #[error("{} wants the unknown loader {}; attach to the running process instead", path.display(), loader.display())]
    UnknownLoader {
        /// The program.
        path: PathBuf,
        /// Its interpreter.
        loader: PathBuf,
    },
    /// The loader failed or took too long.
    #[error("{} does not list the libraries of {}: {reason}", loader.display(), path.display())]
    Listing {
        /// The program.
        path: PathBuf,
        /// Its interpreter.
        loader: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The surroundings a command will run in.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Its environment; `PATH` and the variables of the loader are taken from here.
    pub environment: &'a [(OsString, OsString)],
    /// Its working directory, absolute.
    pub directory: &'a Path,
}

/// Which files `program` with `arguments` will map. Runs the dynamic loader in the mode that lists libraries and runs
/// nothing of the program.
///
/// # Errors
/// [`CommandError`]. What is no ELF file, or one for another machine, is no error here: only its path is returned.
pub fn command_files(
    program: &OsStr,
    arguments: &[OsString],
    surroundings: Surroundings<'_>,
    elf: &impl ElfFacts,
) -> Result<CommandFiles, CommandError> {
    let mut files = CommandFiles::default();
    let mut path = surroundings.resolve(program)?;
    let mut arguments = arguments.to_vec();
    for _ in 0..=LEVELS {
        let Some(file) = open_in_root(Root::Host, &path)? else {
            return Err(CommandError::NotFound { command: path.into() });
        };
        add(&mut files.executables, path.clone());
        let mut first_line = [0; FIRST_LINE_BYTES];
        let length = file.file.read_at(&mut first_line, 0).unwrap_or(0);
        if let Some((interpreter, argument)) = script_interpreter(first_line.get(..length).unwrap_or_default()) {
            arguments.insert(0, path.into());
            arguments.splice(0..0, argument);
            path = surroundings.resolve_path(&interpreter)?;
            continue;
        }
        if let Some(loader) = elf.interpreter(&file) {
            surroundings.list_libraries(&loader, &[], &path, &mut files)?;
        } else if lists_without_running(&path)
            && let Some((options, program)) = program_of_loader(&arguments)
        {
            let program = surroundings.resolve_path(Path::new(program))?;
            add(&mut files.executables, program.clone());
            surroundings.list_libraries(&path, options, &program, &mut files)?;
            return Ok(files);
        }
        match program_of_env(&path, &arguments) {
            Some((program, rest)) => {
                // A program that env does not find is env's error to report.
                let Ok(next) = surroundings.resolve(&program) else { return Ok(files) };
                (path, arguments) = (next, rest);
            }
            None => return Ok(files),
        }
    }
    Err(CommandError::TooManyLevels { path })
}

impl Surroundings<'_> {
    fn resolve(&self, program: &OsStr) -> Result<PathBuf, CommandError> {
        if program.as_bytes().contains(&b'/') {
            return self.resolve_path(Path::new(program));
        }
        let mut refused = None;
        let search = self.variable("PATH").unwrap_or(OsStr::new(DEFAULT_PATH));
        for directory in std::env::split_paths(search).filter(|_| !program.is_empty()) {
            // An empty entry of PATH is the working directory, which joining makes of it.
            match self.resolve_path(&directory.join(program)) {
                Ok(path) => return Ok(path),
                Err(error @ CommandError::NotExecutable { .. }) => refused = refused.or(Some(error)),
                Err(_) => {}
            }
        }
        Err(refused.unwrap_or_else(|| CommandError::NotFound { command: program.to_owned() }))
    }

    fn resolve_path(&self, path: &Path) -> Result<PathBuf, CommandError> {
        // Taking it apart leaves out `.` and doubled slashes.
        let absolute: PathBuf = self.directory.join(path).components().collect();
        if !std::fs::metadata(&absolute).is_ok_and(|file| file.is_file()) {
            return Err(CommandError::NotFound { command: path.into() });
        }
        match rustix::fs::access(&absolute, Access::EXEC_OK) {
            Ok(()) => Ok(absolute),
            Err(_) => Err(CommandError::NotExecutable { path: absolute }),
        }
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
    }

    fn list_libraries(
        &self,
        loader: &Path,
        options: &[OsString],
        path: &Path,
        files: &mut CommandFiles,
    ) -> Result<(), CommandError> {
        if !lists_without_running(loader) {
            return Err(CommandError::UnknownLoader { path: path.to_path_buf(), loader: loader.to_path_buf() });
        }
        let failed = |reason: String| {
            let (path, loader) = (path.to_path_buf(), loader.to_path_buf());
            CommandError::Listing { path, loader, reason }
        };
        let mut command = Command::new(loader);
        // Both loaders know the option; glibc's knows the variable as well and would else run the program should an
        // unusual build lack the option.
        command
            .arg("--list")
            .args(options)
            .arg(path)
            .env_clear()
            .envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.env("LD_TRACE_LOADED_OBJECTS", "1").current_dir(self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let answer = read_until(&mut child, Instant::now() + LISTING);
        // It has closed its output by ending, or is to end now.
        let _ = child.kill();
        child.wait().map_err(|error| failed(error.to_string()))?;
        let text = answer.map_err(failed)?;
        for entry in listed(&text) {
            match entry {
                Listed::At(library) => add(&mut files.libraries, self.directory.join(library)),
                Listed::Missing(name) => add(&mut files.missing, name),
            }
        }
        Ok(())
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, one: T) {
    if !list.contains(&one) {
        list.push(one);
    }
}

/// Whether a loader is glibc's or musl's, by name: others may run the program when asked to list its libraries.
fn lists_without_running(loader: &Path) -> bool {
    let name = loader.file_name().map_or(b"".as_slice(), OsStrExt::as_bytes);
    let known: [&[u8]; 5] = [b"ld-linux", b"ld-musl-", b"ld-2.", b"ld64.so.", b"ld.so.1"];
    loader.is_absolute() && known.iter().any(|prefix| name.starts_with(prefix))
}

/// Reads what the child prints until it ends, with a bound on time and length.
fn read_until(child: &mut Child, deadline: Instant) -> Result<Vec<u8>, String> {
    let Some(mut output) = child.stdout.take() else { return Ok(Vec::new()) };
    let mut text = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap_or_default();
        match rustix::event::poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(format!("no answer in {} s", LISTING.as_secs())),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.to_string()),
            Ok(_) => {}
        }
        let count = output.read(&mut part).map_err(|error| error.to_string())?;
        if count == 0 {
            return Ok(text);
        }
        text.extend_from_slice(part.get(..count).unwrap_or_default());
        if text.len() > LISTING_BYTES {
            return Err(format!("it prints more than {LISTING_BYTES} bytes"));
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Listed {
    At(PathBuf),
    Missing(OsString),
}

/// The lines `name => /path (0xaddress)`, `/path (0xaddress)` and `name => not found`; the kernel's own library has no
/// path.
fn listed(text: &[u8]) -> impl Iterator<Item = Listed> + '_ {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        let line = line.trim_ascii();
        let (name, place) = match position(line, b" => ") {
            Some(at) => (line.get(..at)?, line.get(at.checked_add(4)?..)?),
            None => (line, line),
        };
        if place == b"not found" {
            return Some(Listed::Missing(OsString::from_vec(name.to_vec())));
        }
        let path = place.get(..last_position(place, b" (0x")?)?;
        path.contains(&b'/').then(|| Listed::At(PathBuf::from(OsString::from_vec(path.to_vec()))))
    })
}

fn position(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn last_position(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).rposition(|window| window == part)
}

/// The interpreter in `#!interpreter [argument]`, as the kernel takes it apart: one argument, blanks included.
fn script_interpreter(start: &[u8]) -> Option<(PathBuf, Option<OsString>)> {
    let line = start.strip_prefix(b"#!")?.split(|&byte| byte == b'\n' || byte == 0).next()?.trim_ascii();
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
    let (interpreter, rest) = line.split_at_checked(end)?;
    let argument = rest.trim_ascii();
    let argument = (!argument.is_empty()).then(|| OsString::from_vec(argument.to_vec()));
    (!interpreter.is_empty()).then(|| (PathBuf::from(OsString::from_vec(interpreter.to_vec())), argument))
}

/// What `env` is going to run: the first word that is neither option nor assignment, in the words of `-S` too. Options
/// with a value of their own (`-u NAME`, `-C DIR`) are skipped with it.
fn program_of_env(path: &Path, arguments: &[OsString]) -> Option<(OsString, Vec<OsString>)> {
    if path.file_name() != Some(OsStr::new("env")) {
        return None;
    }
    let mut words = arguments.iter().flat_map(|word| split_string(word));
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"-u" | b"-C" | b"--unset" | b"--chdir" => {
                words.next();
            }
            [b'-', ..] => {}
            bytes if bytes.contains(&b'=') => {}
            _ => return Some((word, words.collect())),
        }
    }
    None
}

/// The options of a loader that is named as the command, and the program it is to run.
fn program_of_loader(arguments: &[OsString]) -> Option<(&[OsString], &OsString)> {
    /// Those that take the next word; `--option=value` is one word.
    const VALUED: [&str; 7] = [
        "--library-path",
        "--inhibit-rpath",
        "--audit",
        "--preload",
        "--argv0",
        "--glibc-hwcaps-prepend",
        "--glibc-hwcaps-mask",
    ];
    let mut at = 0;
    loop {
        let word = arguments.get(at)?;
        match word.as_bytes() {
            _ if VALUED.iter().any(|option| word == option) => at += 2,
            [b'-', b'-', ..] => at += 1,
            _ => return Some((arguments.get(..at)?, word)),
        }
    }
}

/// `-S "program argument"`, which a script line passes as one word, as the words it stands for; others unchanged.
fn split_string(word: &OsStr) -> Vec<OsString> {
    let bytes = word.as_bytes();
    let string = [b"-S".as_slice(), b"-vS", b"-iS", b"--split-string="].iter().find_map(|key| bytes.strip_prefix(*key));
    match string {
        Some(string) => {
            let words = string.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            words.map(|word| OsString::from_vec(word.to_vec())).collect()
        }
        None => vec![word.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;
    use crate::targets::Contents as Elf;

    fn files(program: &str, arguments: &[&str], directory: &Path) -> Result<CommandFiles, CommandError> {
        let environment = [("PATH".into(), format!("/usr/bin:/bin:{}", directory.display()).into())];
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let surroundings = Surroundings { environment: &environment, directory };
        command_files(OsStr::new(program), &arguments, surroundings, &Elf)
    }

    fn script(directory: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn has_library(files: &CommandFiles, prefix: &str) -> bool {
        let starts = |path: &PathBuf| path.file_name().unwrap().as_bytes().starts_with(prefix.as_bytes());
        files.libraries.iter().any(|path| starts(path) && path.is_absolute() && path.exists())
    }

    #[test]
    fn a_program_of_the_path_brings_its_libraries_and_loader() {
        let files = files("cat", &[], Path::new("/")).unwrap();
        assert_eq!(files.executables, [Path::new("/usr/bin/cat")]);
        assert!(has_library(&files, "libc.so") && has_library(&files, "ld-"), "{files:?}");
    }

    #[test]
    fn listing_runs_nothing_of_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let witness = directory.path().join("witness");
        files("touch", &[witness.to_str().unwrap()], directory.path()).unwrap();
        assert!(!witness.exists());
    }

    #[test]
    fn a_script_is_followed_through_env_to_its_interpreter() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "tool", "#!/usr/bin/env -S A=1 cat -n\nhello\n", 0o755);
        let files = files("./tool", &[], directory.path()).unwrap();
        assert_eq!(files.executables, [path.as_path(), Path::new("/usr/bin/env"), Path::new("/usr/bin/cat")]);
        assert!(has_library(&files, "libc.so"));
    }

    #[test]
    fn a_loader_that_is_named_as_the_command_lists_what_it_will_map() {
        let cat = open_in_root(Root::Host, Path::new("/usr/bin/cat")).unwrap().unwrap();
        let loader = Elf.interpreter(&cat).expect("cat has a loader");
        let loader = loader.to_str().unwrap();
        let files = files(loader, &["--argv0", "dog", "--inhibit-cache", "/usr/bin/cat", "x"], Path::new("/")).unwrap();
        assert_eq!(files.executables, [Path::new(loader), Path::new("/usr/bin/cat")]);
        assert!(has_library(&files, "libc.so") && has_library(&files, "ld-"), "{files:?}");
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(program_of_loader(&words("--library-path /x --verify")), None);
        assert_eq!(program_of_loader(&words("--library-path=/x p q")).unwrap().1, "p");
    }

    #[test]
    fn scripts_that_interpret_each_other_end_in_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loop");
        script(directory.path(), "loop", &format!("#!{}\n", path.display()), 0o755);
        assert!(matches!(files("loop", &[], directory.path()), Err(CommandError::TooManyLevels { .. })));
    }

    #[test]
    fn what_cannot_be_executed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        script(directory.path(), "data", "text\n", 0o644);
        let message = |program| files(program, &[], directory.path()).unwrap_err().to_string();
        assert!(message("no-such-program").starts_with("command not found: no-such-program"));
        assert!(message("./no-such-program").starts_with("command not found: ./no-such-program"));
        assert!(message("data").contains("/data is not executable"));
        assert!(message("").starts_with("command not found"));
        script(directory.path(), "orphan", "#!/no/such/interpreter\n", 0o755);
        assert!(message("orphan").starts_with("command not found: /no/such/interpreter"));
    }

    #[test]
    fn a_file_without_loader_has_no_libraries() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "plain", "echo\n", 0o755);
        let files = files("plain", &[], directory.path()).unwrap();
        assert_eq!(files, CommandFiles { executables: vec![path], ..CommandFiles::default() });
    }

    #[test]
    fn the_lists_of_both_loaders_are_understood() {
        let text = b"\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x y/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibz.so.1 => not found\n\tstatically linked\n\
            \t/lib64/ld-linux-x86-64.so.2 => /old/ld-2.31.so (0x00007f)\n\tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f)\n\tlibr.so => ./libr.so (0x7f)\n";
        let at = |path| Listed::At(PathBuf::from(path));
        let expected = [
            at("/lib/x y/libc.so.6"),
            at("/lib64/ld-linux-x86-64.so.2"),
            Listed::Missing("libz.so.1".into()),
            at("/old/ld-2.31.so"),
            at("/lib/ld-musl-x86_64.so.1"),
            at("./libr.so"),
        ];
        assert_eq!(listed(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn first_lines_are_taken_apart_as_the_kernel_does() {
        let parse = |line: &[u8]| script_interpreter(line);
        assert_eq!(parse(b"#! /bin/sh\n"), Some(("/bin/sh".into(), None)));
        assert_eq!(parse(b"#!/bin/awk -f  x \nrest"), Some(("/bin/awk".into(), Some("-f  x".into()))));
        assert_eq!(parse(b"#!\n"), None);
        assert_eq!(parse(b"\x7fELF"), None);
    }

    #[test]
    fn only_known_loaders_are_run() {
        let known = |path| lists_without_running(Path::new(path));
        assert!(known("/lib64/ld-linux-x86-64.so.2") && known("/lib/ld-musl-aarch64.so.1") && known("/lib/ld-2.23.so"));
        assert!(!known("/system/bin/linker64") && !known("ld-linux-x86-64.so.2") && !known("/bin/rm") && !known("/"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = listed(&text).count();
            let _ = script_interpreter(&text);
            let _ = split_string(OsStr::from_bytes(&text));
        }
    }
}
