//! Tells the service manager what the daemon does: ready, alive, reloading, stopping. Without one nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::aggregate::model::{Snapshot, Verdict};
use crate::http::Readiness;
use crate::report::json;

/// The status line is renewed this often, and more often where the watchdog is told of.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Says that the probes are in place once they are, and from then on, for as long as the observer gets on with its work,
/// that the daemon is alive: an observer that hangs is not.
pub async fn report(
    mut readiness: watch::Receiver<Readiness>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut progress: watch::Receiver<()>,
) {
    if readiness.wait_for(|readiness| *readiness == Readiness::Ready).await.is_err() || !has_manager() {
        return;
    }
    let mut status = status(&snapshots.borrow_and_update());
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    // A third of the time allowed: one delay does not end the service.
    let alive_every = sd_notify::watchdog_enabled().map(|time| time / 3);
    loop {
        // Not woken by each step of the observer, which makes some a second whatever happens.
        tokio::time::sleep(alive_every.unwrap_or(STATUS_EVERY).min(STATUS_EVERY)).await;
        match progress.has_changed() {
            Ok(true) => progress.mark_unchanged(),
            Ok(false) => continue,
            Err(_) => return,
        }
        if alive_every.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        if !snapshots.has_changed().unwrap_or(false) {
            continue;
        }
        let now = self::status(&snapshots.borrow_and_update());
        if now != status {
            status = now;
            tell(&[NotifyState::Status(&status)]);
        }
    }
}

/// Runs a reload between the two messages that `Type=notify-reload` waits for.
pub fn reloading(reload: impl FnOnce()) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
    reload();
    tell(&[NotifyState::Ready]);
}

/// Says that the end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("taking the probes out")]);
}

/// Whether there is anybody to tell.
fn has_manager() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// One line for `systemctl status`.
fn status(snapshot: &Snapshot) -> String {
    let live = snapshot.processes.iter().filter(|process| process.ended.is_none()).count();
    let broken = snapshot.probes.iter().filter(|probe| matches!(probe.verdict, Verdict::Broken(_))).count();
    let attached = snapshot.probes.iter().filter(|probe| probe.verdict == Verdict::Attached).count();
    let mut line = format!("{}: {live} processes, {attached} groups of probes", json::status(snapshot));
    if broken > 0 {
        line += &format!(", {broken} broken");
    }
    if let Some((reason, count)) = snapshot.losses.first() {
        line += &format!(", {count} lost by {}", reason.name());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_status_is_one_line_with_what_is_wrong() {
        let mut snapshot = sample::snapshot(vec![sample::sqlite()]);
        assert!(status(&snapshot).starts_with("ok: 1 processes, "), "{}", status(&snapshot));
        snapshot.probes[0].verdict = Verdict::Broken("two\nlines".to_owned());
        let line = status(&snapshot);
        assert!(line.starts_with("broken: ") && line.ends_with(", 1 broken") && !line.contains('\n'), "{line}");
        assert!(status(&sample::lossy()).contains(" lost by process_table_full"), "{}", status(&sample::lossy()));
    }
}
