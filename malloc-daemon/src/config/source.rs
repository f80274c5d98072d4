//! Where a configuration comes from: a file, and the command line that wins over it.

use std::path::{Path, PathBuf};

use super::{Config, ConfigError, DEFAULT_FILE, Pattern, References};
use crate::cli::Serve;

/// A file, if there is one, and a command line.
#[derive(Clone, Debug)]
pub struct Source {
    file: Option<PathBuf>,
    line: Serve,
}

/// A configuration with what it refers to.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is configured.
    pub config: Config,
    /// What it refers to.
    pub references: References,
}

impl Source {
    /// The file that the command line names, or the default one if it exists.
    #[must_use]
    pub fn new(line: &Serve) -> Self {
        let default = Path::new(DEFAULT_FILE);
        let file = line.config.clone().or_else(|| default.exists().then(|| default.to_owned()));
        Self { file, line: line.clone() }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads everything.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let mut config = self.file.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
        let line = &self.line;
        if !line.listen.is_empty() {
            config.listen.clone_from(&line.listen);
        }
        config.depth = line.depth.unwrap_or(config.depth);
        config.interval = line.interval.unwrap_or(config.interval);
        config.faults |= line.faults;
        config.stepped |= line.stepped;
        if line.history.is_some() {
            config.history.directory.clone_from(&line.history);
        }
        config.history.max_bytes = line.history_size.unwrap_or(config.history.max_bytes);
        if line.cache_dir.is_some() {
            config.cache.directory.clone_from(&line.cache_dir);
        }
        config.budget = line.budget.unwrap_or(config.budget);
        if !line.pid.is_empty() {
            config.deep.pid.clone_from(&line.pid);
        }
        if !line.comm.is_empty() {
            config.deep.comm = line.comm.iter().filter_map(|name| Pattern::exactly(name)).collect();
        }
        let references = config.references()?;
        Ok(Loaded { config, references })
    }
}

impl Config {
    /// Keys in which `wanted` differs and that only a restart takes over.
    #[must_use]
    pub fn restart_for(&self, wanted: &Self) -> Vec<&'static str> {
        let differs = [
            ("listen", self.listen != wanted.listen),
            ("depth", wanted.depth < self.depth),
            ("faults", self.faults != wanted.faults),
            ("stepped", self.stepped != wanted.stepped),
            ("http.connections", self.http.connections != wanted.http.connections),
            ("socket.mode", self.socket.mode != wanted.socket.mode),
            ("socket.group", self.socket.group != wanted.socket.group),
            ("metrics.label", self.metrics.label != wanted.metrics.label),
            ("history.directory", self.history.directory != wanted.history.directory),
            ("history.max_bytes", self.history.max_bytes != wanted.history.max_bytes),
            ("metrics.names", self.metrics.names != wanted.metrics.names),
            ("cache.directory", self.cache != wanted.cache),
            ("push.collector", self.push.collector != wanted.push.collector),
            ("push.interval", self.push.interval != wanted.push.interval),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use malloc_common::depth::Depth;

    fn loaded(options: &[&str], text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        let words = ["malloc-daemon", "serve", "--config", file.to_str().unwrap()];
        let Command::Serve(line) = Cli::try_parse_from(words.iter().chain(options)).unwrap().command else {
            unreachable!()
        };
        Source::new(&line).load().unwrap().config
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let text = "listen = ['127.0.0.1:1']\ndepth = 'arena'\ninterval = '7s'\n[deep]\npid = [1]\ncomm = ['a*']\n";
        let file = loaded(&[], text);
        assert_eq!((file.depth, file.interval.as_secs(), &file.deep.pid[..]), (Depth::Arena, 7, &[1][..]));
        let both = loaded(&["--depth", "call", "--pid", "2", "--listen", "unix:/a", "--listen", "[::1]:2"], text);
        assert_eq!((both.depth, both.interval.as_secs(), &both.deep.pid[..]), (Depth::Call, 7, &[2][..]));
        assert_eq!(both.listen, ["unix:/a".parse().unwrap(), "[::1]:2".parse().unwrap()]);
        assert_eq!(both.deep.comm, file.deep.comm);
        assert_eq!(loaded(&["--comm", "b*"], text).deep.comm, [Pattern::exactly("b*").unwrap()]);
    }

    #[test]
    fn what_a_reload_cannot_change_is_named() {
        let running = Config::default();
        let wanted = loaded(
            &[],
            "listen = ['127.0.0.1:1']\ndepth = 'call'\ninterval = '7s'\nfaults = true\n[metrics]\nnames = 3\n",
        );
        assert_eq!(running.restart_for(&wanted), ["listen", "faults", "metrics.names"]);
        assert_eq!(wanted.restart_for(&running), ["listen", "depth", "faults", "metrics.names"]);
        assert!(running.restart_for(&running).is_empty());
    }
}
