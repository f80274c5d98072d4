//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use malloc_common::depth::Depth;

/// Follows memory allocation on a live machine, from malloc down to the system call.
///
/// No restart, relink or preload of the observed programs: kernel probes count, this program reports.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more on standard error (twice: everything).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Look for separate debug files (DIR/.build-id/XX/YYYY.debug) here before /usr/lib/debug. May be repeated.
    #[arg(long, global = true, value_name = "DIR")]
    pub debug_dir: Vec<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe all processes and answer HTTP requests until stopped.
    Serve(Serve),
    /// Say whether a configuration file is good, and what is wrong with it.
    CheckConfig(CheckConfig),
    /// Record one command, one process or all of them, then report.
    Record(Record),
    /// Print each chain from malloc to the system call as it happens.
    Trace(Trace),
    /// Show where the allocator of a file or a process is, and where probes go.
    Locate(Locate),
    /// Say what this kernel, these privileges and this libc allow, and what to do about what they don't.
    Doctor(Doctor),
    /// Print what makes a shell complete this program's words.
    Completions(Completions),
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    Manual(Manual),
    /// Waits until the recorder is ready, then becomes the command to record.
    #[command(name = crate::command::GATE, hide = true)]
    Gate(Gate),
    /// Says how long the kernel programs are, for their budgets.
    #[command(hide = true)]
    Programs,
}

/// `serve`: what is given here wins over the file.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Read this configuration [default: /etc/malloc-daemon/config.toml if it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to answer on: ADDR:PORT, or unix:PATH for a socket. May be repeated [default: 127.0.0.1:7878].
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    pub listen: Vec<crate::http::Listen>,
    /// How deep all processes are probed: syscall, sysmalloc, arena or call [default: sysmalloc].
    #[arg(long, value_name = "DEPTH", value_parser = parse_depth)]
    pub depth: Option<Depth>,
    /// Probe this process down to `call`. May be repeated.
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// Probe processes of this name down to `call`, those that start later too. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub comm: Vec<String>,
    /// Count the page faults that mapped chunks take: costs something at every page fault of the machine.
    #[arg(long)]
    pub faults: bool,
    /// Time between two snapshots [default: 1s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub interval: Option<Duration>,
    /// Keep what was inferred of stripped libcs here from one start to the next [default: $CACHE_DIRECTORY, if set].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}

/// `check-config`
#[derive(Args, Debug)]
pub struct CheckConfig {
    /// The file [default: /etc/malloc-daemon/config.toml].
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `record`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  malloc-daemon record -- sqlite3 test.db 'select 1'\n  \
    malloc-daemon record --pid 4242 --duration 10s\n  malloc-daemon record --all --depth sysmalloc --duration 1m --format json -o all.json")]
pub struct Record {
    /// How deep: syscall, sysmalloc, arena or call [default: call; sysmalloc with --all].
    #[arg(long, value_name = "DEPTH", value_parser = parse_depth)]
    pub depth: Option<Depth>,
    /// How to write the report.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
    /// Where to write it; `-` is standard output [default: standard error for text, standard output for json].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Stop after this time, e.g. 10s, 500ms, 2m. Without it: until the process ends, or Ctrl-C.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Whom to record.
    #[command(flatten)]
    pub whom: Whom,
}

/// One process, all, or a command.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// Record this process, while it runs.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Record all processes.
    #[arg(long)]
    pub all: bool,
    /// Run this command and record it with its children, from its first instruction to its last.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `trace`
#[derive(Args, Debug)]
pub struct Trace {
    /// Leave out chains that ask the slow path and the kernel for fewer bytes than this.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_bytes: u64,
    /// Stop after this many chains.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Whom to trace.
    #[command(flatten)]
    pub whom: TraceWhom,
}

/// One process or a command.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct TraceWhom {
    /// Trace this process, while it runs.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Run this command and trace it with its children.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `locate`
#[derive(Args, Debug)]
pub struct Locate {
    /// Write JSON.
    #[arg(long)]
    pub json: bool,
    /// What to look at.
    #[command(flatten)]
    pub what: LocateWhat,
}

/// A file or a process.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct LocateWhat {
    /// A shared library or an executable.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The allocator of this process.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// `doctor`
#[derive(Args, Debug)]
pub struct Doctor {
    /// Write JSON.
    #[arg(long)]
    pub json: bool,
}

/// `completions`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  malloc-daemon completions bash > /etc/bash_completion.d/malloc-daemon\n  \
    malloc-daemon completions fish > ~/.config/fish/completions/malloc-daemon.fish")]
pub struct Completions {
    /// For which shell.
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// The hidden subcommand that packages are made with.
#[derive(Args, Debug)]
pub struct Manual {
    /// An existing folder.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// The hidden subcommand that becomes the recorded command.
#[derive(Args, Debug)]
pub struct Gate {
    /// Abstract name of the recorder's socket.
    pub name: String,
    /// The command.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Formats of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// The snapshot document.
    Json,
}

fn parse_depth(word: &str) -> Result<Depth, String> {
    word.parse().map_err(|error: malloc_common::depth::UnknownDepth| error.to_string())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| format!("{error}; write 10s, 500ms or 2m"))?;
    if duration.is_zero() { Err("a time must be longer than nothing".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_record_needs_exactly_one_subject() {
        let parse = |words: &[&str]| Cli::try_parse_from(words.iter().copied()).is_ok();
        assert!(parse(&["malloc-daemon", "record", "--pid", "1"]));
        assert!(parse(&["malloc-daemon", "record", "--", "ls", "-l"]));
        assert!(!parse(&["malloc-daemon", "record"]));
        assert!(!parse(&["malloc-daemon", "record", "--all", "--pid", "1"]));
        assert!(!parse(&["malloc-daemon", "record", "--depth", "deep", "--all"]));
        assert!(!parse(&["malloc-daemon", "record", "--duration", "0s", "--all"]));
    }
}
