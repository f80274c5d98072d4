//! `serve`: observes all processes and answers HTTP requests until stopped.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::aggregate::model::Configuration;
use crate::cli::Serve;
use crate::config::{Config, Loaded, Source};
use crate::daemon::{Observing, Wishes};
use crate::history::History;
use crate::host::privileges::{self, Keep};
use crate::http::{Access, Api, Limits, Listen, Listener, Readiness, Sources, push, serve};
use crate::observe::cache::Folder;
use crate::observe::{Probing, unix_ms};
use crate::own_memory;
use crate::report::prometheus::Totals;
use crate::systemd;

/// Runs the service.
pub fn run(args: &Serve) -> anyhow::Result<ExitCode> {
    own_memory::keep_small();
    let source = Source::new(args);
    let loaded = source.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Large answers are rendered off the reactor.
        .max_blocking_threads(4)
        .build()
        .context("cannot start the runtime")?;
    let cache_dir = cache_folder(&loaded.config)?;
    runtime.block_on(service(source, loaded, cache_dir))
}

async fn service(source: Source, loaded: Loaded, cache_dir: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    let mut off = signal(SignalKind::user_defined1()).context("cannot catch SIGUSR1")?;
    let mut on = signal(SignalKind::user_defined2()).context("cannot catch SIGUSR2")?;
    let Loaded { config, references } = loaded;
    // The address first: a port that is taken must not cost the observed programs anything.
    let listeners = listeners(&config, references.socket).await?;
    let folder = config.history.directory.clone().or_else(super::report::state_folder);
    let history = folder.map(|folder| History::start(&folder, config.history.max_bytes)).transpose();
    let history = history.context("cannot start the history")?;
    let reader = history.as_ref().map(History::reader);
    privileges::keep_or_say(Keep::Starting);
    let wishes = Wishes { cache_dir, ..wishes(&config) };
    let observing = Observing::start(wishes, history).context("cannot start observing")?;
    // What answers requests needs no privilege at all.
    privileges::keep_or_say(Keep::Nothing);
    for listener in &listeners {
        match listener.listen() {
            Listen::Tcp(address) if references.access.tls.is_some() => eprintln!("listening on https://{address}"),
            Listen::Tcp(address) => eprintln!("listening on http://{address}"),
            Listen::Unix(path) => eprintln!("listening on unix:{}", path.display()),
        }
    }
    let (access, access_seen) = watch::channel(Arc::new(references.access));
    let (configuration, configuration_seen) = watch::channel(Arc::new(in_force(&source)));
    let sources = Sources {
        snapshots: observing.snapshots.clone(),
        readiness: observing.readiness.clone(),
        configuration: configuration_seen,
        access: access_seen,
    };
    let totals = Totals::new(config.metrics.label, config.metrics.names as usize);
    let limits = Limits { connections: config.http.connections as usize, ..Limits::default() };
    let api = Api::new(sources, totals, env!("CARGO_PKG_VERSION")).with_history(reader);
    let pushing = config.push.collector.clone().map(|to| tokio::spawn(push(api.clone(), to, config.push.interval)));
    let mut readiness = observing.readiness.clone();
    let reporting = systemd::report(readiness.clone(), observing.snapshots.clone(), observing.progress.clone());
    let mut running = Running { source, config, observing, access, configuration };
    let stop = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                () = failure(&mut readiness) => return,
                _ = hangup.recv() => systemd::reloading(|| running.reload()),
                _ = off.recv() => running.switch(false),
                _ = on.recv() => running.switch(true),
            }
        }
    };
    let reporting = tokio::spawn(reporting);
    serve(listeners, api, limits, async {
        stop.await;
        systemd::stopping();
    })
    .await;
    reporting.abort();
    if let Some(pushing) = pushing {
        pushing.abort();
    }
    let observing = running.observing;
    let stopped = tokio::task::spawn_blocking(move || observing.stop()).await.context("the observer died")?;
    if let Err(error) = stopped {
        bail!(error);
    }
    Ok(ExitCode::SUCCESS)
}

async fn listeners(config: &Config, socket: crate::http::SocketOptions) -> anyhow::Result<Vec<Listener>> {
    let inherited = Listener::inherited()?;
    if !inherited.is_empty() {
        return Ok(inherited);
    }
    let mut listeners = Vec::new();
    for listen in &config.listen {
        listeners.push(Listener::bind(listen, socket).await?);
    }
    Ok(listeners)
}

async fn failure(readiness: &mut watch::Receiver<Readiness>) {
    if readiness.wait_for(|readiness| matches!(readiness, Readiness::Failed(_))).await.is_err() {
        // The observer ended without a failure: only a stop does that.
        std::future::pending::<()>().await;
    }
}

fn wishes(config: &Config) -> Wishes {
    Wishes {
        depth: config.depth,
        deep: config.deep.clone(),
        faults: config.faults,
        stepped: config.stepped,
        interval: config.interval,
        cache_dir: None,
        budget: config.budget / 100.0,
        probing: if config.probing { Probing::On } else { Probing::Off },
    }
}

fn in_force(source: &Source) -> Configuration {
    let file = source.file().map(|file| file.display().to_string());
    Configuration { file, since_unix_ms: unix_ms(), ..Configuration::default() }
}

/// The service at work, as far as a reload changes it.
struct Running {
    source: Source,
    /// What is in force; what only a restart takes over is as it was at the start.
    config: Config,
    observing: Observing,
    access: watch::Sender<Arc<Access>>,
    configuration: watch::Sender<Arc<Configuration>>,
}

impl Running {
    /// Takes all probes out of all programs, or puts them back.
    fn switch(&mut self, probing: bool) {
        self.config.probing = probing;
        let taken = self.observing.change(wishes(&self.config));
        tracing::warn!(probing, taken, "probing is switched by a signal");
    }

    /// Takes the file over; a bad one changes nothing, and is told.
    fn reload(&mut self) {
        if let Err(why) = self.try_reload() {
            tracing::error!("the configuration is not reloaded, the one before stays in force: {why}");
            self.configuration.send_modify(|now| Arc::make_mut(now).refused = Some((unix_ms(), why)));
        }
    }

    fn try_reload(&mut self) -> Result<(), String> {
        let Loaded { config: wanted, references } = self.source.load().map_err(|error| error.to_string())?;
        let restart_for = self.config.restart_for(&wanted);
        let config = Config { depth: self.config.depth.max(wanted.depth), ..wanted };
        if !self.observing.change(wishes(&config)) {
            return Err("the observer has not taken over the change before this one; reload again".to_owned());
        }
        self.access.send_replace(Arc::new(references.access));
        if !restart_for.is_empty() {
            tracing::warn!("a restart is needed to take over: {}", restart_for.join(", "));
        }
        self.configuration.send_replace(Arc::new(Configuration { restart_for, ..in_force(&self.source) }));
        let Config { listen, socket, metrics, push, history, cache, .. } = self.config.clone();
        let connections = self.config.http.connections;
        self.config = Config { listen, socket, metrics, push, history, cache, ..config };
        self.config.http.connections = connections;
        tracing::info!("the configuration is reloaded");
        Ok(())
    }
}

/// The folder that was named, which has to be usable, or the one that systemd made for this service.
fn cache_folder(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = &config.cache.directory {
        Folder::open(path).context("cache.directory")?;
        return Ok(Some(path.clone()));
    }
    let by_systemd = std::env::var_os("CACHE_DIRECTORY");
    // Several are separated by colons; the first is this service's own.
    let first = by_systemd.as_ref().and_then(|paths| std::env::split_paths(paths).next());
    Ok(first.filter(|path| path.is_absolute()))
}
