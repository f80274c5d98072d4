//! The configuration file: every key with its default, read whole or refused with the place and the remedy.

mod references;
mod select;
mod source;
#[cfg(test)]
mod tests;
mod value;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use malloc_common::depth::Depth;
use serde::Deserialize;

use crate::http::{Collector, DEFAULT_LISTEN, Listen};

pub use self::references::References;
pub use self::select::{Deep, Pattern, Subject};
pub use self::source::{Loaded, Source};

/// Where the file is looked for unless `--config` names another.
pub const DEFAULT_FILE: &str = "/etc/malloc-daemon/config.toml";

/// The most that is read of a configuration file, 1 MiB: a hundred thousand selectors.
const FILE_BYTES: u64 = 1 << 20;

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to answer; at least one place.
    #[serde(deserialize_with = "value::listen")]
    pub listen: Vec<Listen>,
    /// How deep all processes are probed.
    #[serde(deserialize_with = "value::parsed")]
    pub depth: Depth,
    /// Time between two snapshots, 10 ms to an hour.
    #[serde(deserialize_with = "value::interval")]
    pub interval: Duration,
    /// Page faults of mapped chunks are counted.
    pub faults: bool,
    /// Public functions are probed also where the kernel steps over the probed instruction.
    pub stepped: bool,
    /// Part of a process's CPU time that counting its calls may take, per cent, 0.01 to 100.
    #[serde(deserialize_with = "value::percent")]
    pub budget: f64,
    /// Whether programs carry probes at all.
    pub probing: bool,
    /// Processes probed down to `call`.
    pub deep: Deep,
    /// Who may ask, and how many at a time.
    pub http: Http,
    /// Sockets in the file system.
    pub socket: Socket,
    /// TLS over TCP.
    pub tls: Tls,
    /// `/metrics`.
    pub metrics: Metrics,
    /// What is kept from one start to the next.
    pub cache: Cache,
    /// Metrics for collectors that are pushed to.
    pub push: Push,
    /// The history on disk.
    pub history: History,
}

/// Who may ask, and how many at a time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Names, beside those of the loopback and the address itself, under which clients reach the daemon over TCP.
    #[serde(deserialize_with = "value::hosts")]
    pub hosts: Vec<String>,
    /// Connections served at one time, 1 to 4,096.
    #[serde(deserialize_with = "value::between::<_, 1, 4096>")]
    pub connections: u32,
    /// File with the token that clients must show; `None`: no token.
    #[serde(deserialize_with = "value::path")]
    pub token_file: Option<PathBuf>,
}

/// Sockets in the file system.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Socket {
    /// Permissions, at most `0o777`.
    #[serde(deserialize_with = "value::mode")]
    pub mode: u32,
    /// Group that owns them; `None`: the daemon's own.
    #[serde(deserialize_with = "value::word")]
    pub group: Option<String>,
}

/// TLS over TCP: both files or none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificate chain, PEM.
    #[serde(deserialize_with = "value::path")]
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(deserialize_with = "value::path")]
    pub key: Option<PathBuf>,
}

/// The history on disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// Its folder, which must exist; `None`: the first of `$STATE_DIRECTORY`, else there is no history.
    #[serde(deserialize_with = "value::path")]
    pub directory: Option<PathBuf>,
    /// How large its file may become, at least 8 MiB.
    pub max_bytes: u64,
}

/// `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// What processes are summed by.
    #[serde(deserialize_with = "value::label")]
    pub label: crate::report::prometheus::Label,
    /// Names with series of their own, 1 to 10,000; the rest share `other`.
    #[serde(deserialize_with = "value::between::<_, 1, 10_000>")]
    pub names: u32,
}

/// Metrics for collectors that are pushed to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Push {
    /// The collector; `None`: nothing is pushed.
    #[serde(deserialize_with = "value::optional")]
    pub collector: Option<Collector>,
    /// Time between two pushes, 10 ms to an hour.
    #[serde(deserialize_with = "value::interval")]
    pub interval: Duration,
}

/// What is kept from one start to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Folder for what was inferred of stripped libcs; `None`: the service manager's, if it gives one.
    #[serde(deserialize_with = "value::path")]
    pub directory: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN.parse().into_iter().collect(),
            depth: Depth::Sysmalloc,
            interval: Duration::from_secs(1),
            faults: false,
            stepped: false,
            budget: 1.0,
            probing: true,
            deep: Deep::default(),
            http: Http::default(),
            socket: Socket::default(),
            tls: Tls::default(),
            metrics: Metrics::default(),
            cache: Cache::default(),
            push: Push::default(),
            history: History::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { hosts: Vec::new(), connections: 256, token_file: None }
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self { mode: 0o660, group: None }
    }
}

impl Default for History {
    fn default() -> Self {
        Self { directory: None, max_bytes: crate::history::DEFAULT_BYTES }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { label: crate::report::prometheus::Label::Comm, names: 200 }
    }
}

impl Default for Push {
    fn default() -> Self {
        Self { collector: None, interval: Duration::from_secs(15) }
    }
}

/// Why a file is no configuration; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; name another file with --config", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no file, or too large to be one.
    #[error("{} is no configuration: it must be a regular file of at most {FILE_BYTES} bytes of UTF-8", .0.display())]
    NoText(PathBuf),
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {what}", file.display())]
    Wrong {
        /// Which.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong, and what to write instead.
        what: String,
    },
    /// Something that it refers to is wrong.
    #[error("configuration, {key}: {what}")]
    Reference {
        /// The key.
        key: &'static str,
        /// What is wrong, and what to do.
        what: String,
    },
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
        let no_text = || ConfigError::NoText(file.to_owned());
        if !std::fs::metadata(file).map_err(unreadable)?.is_file() {
            return Err(no_text());
        }
        let mut text = String::new();
        match File::open(file).and_then(|file| file.take(FILE_BYTES + 1).read_to_string(&mut text)) {
            Ok(read) if read as u64 <= FILE_BYTES => Self::parse(&text, file),
            Err(error) if error.kind() != std::io::ErrorKind::InvalidData => Err(unreadable(error)),
            _ => Err(no_text()),
        }
    }

    /// Reads a text; `file` is its name in errors.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Wrong`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let wrong = |at: usize, what: String| {
            let (line, column) = place(text, at);
            ConfigError::Wrong { file: file.to_owned(), line, column, what }
        };
        let config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            wrong(at, with_remedy(error.message()))
        })?;
        if config.tls.certificate.is_some() != config.tls.key.is_some() {
            let at = text.find("[tls]").unwrap_or(0);
            return Err(wrong(at, "certificate and key belong together: give both, or neither".to_owned()));
        }
        if config.history.max_bytes < crate::history::LEAST_BYTES {
            let (at, least) = (text.find("max_bytes").unwrap_or(0), crate::history::LEAST_BYTES);
            return Err(wrong(at, format!("a history needs at least {least} bytes")));
        }
        if config.deep.len() > select::SELECTORS {
            let at = text.find("[deep]").unwrap_or(0);
            let most = select::SELECTORS;
            return Err(wrong(at, format!("these are more than {most} selectors: let one pattern stand for several")));
        }
        Ok(config)
    }
}

/// The parser's own messages say what it met; this adds what to do about it.
fn with_remedy(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    let remedy = if message.starts_with("unknown field") {
        "correct the name or remove the line"
    } else if message.starts_with("invalid type") {
        "write it as the shipped config.toml does"
    } else if message.starts_with("duplicate key") {
        "keep one of the two"
    } else {
        return message;
    };
    format!("{message}; {remedy}")
}

/// Line and column of a byte, both from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}
