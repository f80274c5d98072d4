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
    /// Say what happened between two times, from the history that `serve` keeps.
    Report(Report),
    /// Show the processes as a table on the terminal, with how fast they allocate and what they hold.
    Top(Top),
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
    /// Probe functions that are called often also where the kernel has to step over the probed instruction: a hit costs
    /// about ten times as much there. `locate` shows which they are, `doctor` the price.
    #[arg(long)]
    pub stepped: bool,
    /// Part of a process's CPU time that counting its calls may take, in per cent; more is estimated from windows
    /// of time. 100: no limit [default: 1].
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub budget: Option<f64>,
    /// Time between two snapshots [default: 1s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub interval: Option<Duration>,
    /// Keep what was inferred of stripped libcs here from one start to the next [default: $CACHE_DIRECTORY, if set].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Keep a history in this folder, which must exist [default: $STATE_DIRECTORY, if set].
    #[arg(long, value_name = "DIR")]
    pub history: Option<PathBuf>,
    /// How large the history may become, e.g. 256MiB [default: 64MiB].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub history_size: Option<u64>,
}

/// `check-config`
#[derive(Args, Debug)]
pub struct CheckConfig {
    /// The file [default: /etc/malloc-daemon/config.toml].
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `report`
#[derive(Args, Debug)]
#[command(after_help = "Times: 03:00, 2026-11-26 03:00, -2h, now, RFC 3339, or milliseconds since 1970.\n\n\
    Examples:\n  malloc-daemon report --from 02:55 --to 03:10\n  \
    malloc-daemon report --from -2h --comm nginx --url http://127.0.0.1:7878")]
pub struct Report {
    /// Begin of the time to report on.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from: String,
    /// Its end.
    #[arg(long, value_name = "TIME", default_value = "now", allow_hyphen_values = true)]
    pub to: String,
    /// Only processes with this number.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Only processes of this name.
    #[arg(long, value_name = "NAME")]
    pub comm: Option<String>,
    /// Only processes of this executable: its path, or the last part of it.
    #[arg(long, value_name = "PATH")]
    pub exe: Option<String>,
    /// Read the history in this folder, whether a daemon runs or not [default: the state directory that systemd gives,
    /// else /var/lib/malloc-daemon].
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub history: Option<PathBuf>,
    /// Ask the daemon that answers here: http://ADDR:PORT or unix:PATH.
    #[arg(long, value_name = "URL")]
    pub url: Option<crate::command::Url>,
    /// Show the daemon the token in this file, which nobody else may read (mode 0600).
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How to write the report.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `record`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  malloc-daemon record -- sqlite3 test.db 'select 1'\n  \
    malloc-daemon record --pid 4242 --duration 10s\n  malloc-daemon record --all --depth sysmalloc --duration 1m --format json -o all.json\n  \
    malloc-daemon record --format collapsed --weight bytes -o crossings.folded -- ./server\n  \
    malloc-daemon record --pid 4242 --duration 1m --format pprof -o crossings.pb.gz")]
pub struct Record {
    /// How deep: syscall, sysmalloc, arena or call [default: call; sysmalloc with --all].
    #[arg(long, value_name = "DEPTH", value_parser = parse_depth)]
    pub depth: Option<Depth>,
    /// How to write the report.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: RecordFormat,
    /// What the lines of `--format collapsed` count.
    #[arg(long, value_name = "WHAT", default_value = "calls")]
    pub weight: Weight,
    /// Where to write it; `-` is standard output [default: standard error for text, else standard output].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Stop after this time, e.g. 10s, 500ms, 2m. Without it: until the process ends, or Ctrl-C.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Probe functions that are called often also where the kernel has to step over the probed instruction: a hit costs
    /// about ten times as much there. `locate` shows which they are, `doctor` the price.
    #[arg(long)]
    pub stepped: bool,
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

/// `top`
#[derive(Args, Debug)]
#[command(after_help = "Keys: q ends, Enter shows one process whole and Esc goes back, / filters, < and > choose the \
    column to sort by, r turns the order, e shows ended processes too, space pauses.\n\n\
    `-` is not measured at this depth, `..` known after the next look, `~` estimated, `>` at least.")]
pub struct Top {
    /// Ask the daemon that answers here: http://ADDR:PORT or unix:PATH [default: http://127.0.0.1:7878].
    #[arg(long, value_name = "URL", conflicts_with = "pid")]
    pub url: Option<crate::command::Url>,
    /// Show the daemon the token in this file, which nobody else may read (mode 0600).
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Observe this process and its children down to `call`, as `record` does; no daemon is needed.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Print the table once, as text, and end: for scripts, and where there is no terminal.
    #[arg(long)]
    pub once: bool,
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
pub enum RecordFormat {
    /// For people.
    Text,
    /// The snapshot document, with raises and crossings.
    Json,
    /// Stacks of crossings, a line each, for flame graphs.
    Collapsed,
    /// Stacks of crossings and raises for pprof, packed.
    Pprof,
}

/// What a line of folded stacks counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weight {
    /// Chunks that `malloc` mapped.
    Calls,
    /// Their bytes.
    Bytes,
}

/// Formats of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// The snapshot document.
    Json,
}

fn parse_percent(word: &str) -> Result<f64, String> {
    let percent = word.parse::<f64>().ok();
    percent.filter(|percent| (0.01..=100.0).contains(percent)).ok_or_else(|| "write 0.01 to 100".to_owned())
}

fn parse_depth(word: &str) -> Result<Depth, String> {
    word.parse().map_err(|error: malloc_common::depth::UnknownDepth| error.to_string())
}

/// Bytes with a unit: powers of 1,024 (`KiB`, `MiB`, `GiB`) or of 1,000 (`KB`, `MB`, `GB`).
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(format!("{unit:?} is no unit of bytes; write 64MiB or 2GiB")),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    match bytes {
        Some(bytes) if bytes >= crate::history::LEAST_BYTES => Ok(bytes),
        Some(_) => Err(format!("a history needs at least {} MiB", crate::history::LEAST_BYTES >> 20)),
        None => Err("it is no number of bytes; write 64MiB or 2GiB".to_owned()),
    }
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
        assert!(parse(&["malloc-daemon", "record", "--format", "collapsed", "--weight", "bytes", "--all"]));
        assert!(parse(&["malloc-daemon", "record", "--format", "pprof", "-o", "x.pb.gz", "--pid", "1"]));
        assert!(!parse(&["malloc-daemon", "report", "--from", "-1h", "--format", "pprof"]));
    }

    #[test]
    fn bytes_are_read_with_their_unit() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("100MB"), Ok(100_000_000));
        for wrong in ["", "MiB", "64XB", "1KiB", "99999999999GiB", "-1"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_report_takes_times_before_now() {
        let parse = |words: &[&str]| Cli::try_parse_from(words.iter().copied()).is_ok();
        assert!(parse(&["malloc-daemon", "report", "--from", "-2h", "--to", "-1h", "--pid", "7"]));
        assert!(!parse(&["malloc-daemon", "report"]), "a begin is needed");
        assert!(!parse(&["malloc-daemon", "report", "--from", "-1h", "--url", "ftp://x"]));
    }
}
