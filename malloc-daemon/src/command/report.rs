//! `report`: what happened between two times, from the history on disk or from the daemon that keeps it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Zoned;

use super::client::{Answer, Url, escaped, get};
use super::{INCOMPLETE, stdout_style, write_output};
use crate::cli::{Format, Report};
use crate::history::query::{Filter, Range};
use crate::history::{self, StoreError, time};
use crate::http::{COMPLETE, DEFAULT_LISTEN, Token};
use crate::report::{json, text};

/// Where the packaged service keeps its state.
const STATE: &str = "/var/lib/malloc-daemon";
/// How long reading may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Processes in a text report.
const LINES: usize = 40;

/// Reads and reports.
pub fn run(args: &Report) -> anyhow::Result<ExitCode> {
    let now = Zoned::now();
    let range = Range {
        from_unix_ms: time::parse(&args.from, &now).context("--from")?,
        to_unix_ms: time::parse(&args.to, &now).context("--to")?,
        step_ms: None,
    };
    if range.from_unix_ms >= range.to_unix_ms {
        bail!(
            "--from is not before --to: {} and {}",
            time::shown(range.from_unix_ms, &now),
            time::shown(range.to_unix_ms, &now)
        );
    }
    match (&args.url, &args.history) {
        (Some(url), _) => ask(url, args, range),
        (None, Some(folder)) => read(folder, args, range, &now),
        (None, None) => {
            let folder = state_folder().unwrap_or_else(|| PathBuf::from(STATE));
            match history::view(&folder, PATIENCE) {
                Ok(_) => read(&folder, args, range, &now),
                Err(StoreError::Missing(_)) => {
                    let url: Url = format!("http://{DEFAULT_LISTEN}").parse().map_err(anyhow::Error::msg)?;
                    ask(&url, args, range).with_context(|| format!("there is no history in {}", folder.display()))
                }
                Err(error) => bail!("{error}; name another with --history DIR, or a daemon with --url URL"),
            }
        }
    }
}

/// The first state directory that systemd gives.
pub(super) fn state_folder() -> Option<PathBuf> {
    let folders = std::env::var("STATE_DIRECTORY").ok()?;
    folders.split(':').find(|folder| !folder.is_empty()).map(PathBuf::from)
}

fn read(folder: &Path, args: &Report, range: Range, now: &Zoned) -> anyhow::Result<ExitCode> {
    let filter = Filter { pid: args.pid, comm: args.comm.clone(), exe: args.exe.clone() };
    let account = history::view(folder, PATIENCE)?.account(range, &filter)?;
    let bytes = match args.format {
        Format::Text => text::account(&account, range, LINES, now, stdout_style()).into_bytes(),
        Format::Json => json::to_vec(&json::history::report(&account, range, usize::MAX)),
    };
    write_output(Path::new("-"), &bytes)?;
    Ok(status(account.is_whole()))
}

fn status(is_whole: bool) -> ExitCode {
    if is_whole { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) }
}

/// The daemon has done all the work.
fn ask(url: &Url, args: &Report, range: Range) -> anyhow::Result<ExitCode> {
    let format = match args.format {
        Format::Text => "text",
        Format::Json => "json",
    };
    let mut path = format!("/v1/report?from={}&to={}&format={format}", range.from_unix_ms, range.to_unix_ms);
    for (name, value) in
        [("pid", args.pid.map(|pid| pid.to_string())), ("comm", args.comm.clone()), ("exe", args.exe.clone())]
    {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", escaped(&value)));
        }
    }
    let token = args.token_file.as_deref().map(Token::read).transpose()?;
    let Answer { headers, body } = get(url, token.as_ref(), &path)?;
    write_output(Path::new("-"), &body)?;
    Ok(status(headers.get(COMPLETE).is_some_and(|told| told == "true")))
}
