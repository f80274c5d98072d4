//! `serve`: observes all processes and answers HTTP requests until stopped.

use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Serve;
use crate::daemon::{Observing, Wishes};
use crate::http::{Api, Limits, Listen, Listener, Readiness, serve};

/// Runs the service.
pub fn run(args: &Serve) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Large answers are rendered off the reactor.
        .max_blocking_threads(4)
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(service(args))
}

async fn service(args: &Serve) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    // The address first: a port that is taken must not cost the observed programs anything.
    let listener = Listener::bind(&args.listen).await?;
    let observing = Observing::start(Wishes {
        depth: args.depth,
        pids: args.pid.clone(),
        comms: args.comm.clone(),
        interval: args.interval,
    })
    .context("cannot start observing")?;
    match listener.listen() {
        Listen::Tcp(address) => eprintln!("listening on http://{address}"),
        Listen::Unix(path) => eprintln!("listening on unix:{}", path.display()),
    }
    let api = Api::new(observing.snapshots.clone(), observing.readiness.clone(), env!("CARGO_PKG_VERSION"), &[]);
    let mut readiness = observing.readiness.clone();
    let asked = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let failed = async {
        let failure = readiness.wait_for(|readiness| matches!(readiness, Readiness::Failed(_))).await;
        if failure.is_err() {
            // The observer ended without a failure: only a stop does that.
            std::future::pending::<()>().await;
        }
    };
    serve(listener, api, Limits::default(), async {
        tokio::select! {
            () = asked => {}
            () = failed => {}
        }
    })
    .await;
    let stopped = tokio::task::spawn_blocking(move || observing.stop()).await.context("the observer died")?;
    if let Err(error) = stopped {
        bail!(error);
    }
    Ok(ExitCode::SUCCESS)
}
