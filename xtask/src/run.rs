//! Starts the built daemon and shows what it answers.
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{shell, workspace::Workspace};

/// Where `malloc-daemon serve` listens unless told otherwise.
const DEFAULT_LISTEN: &str = "127.0.0.1:7878";

/// How long attaching to every process may take: about 0.1 s a probe, a few hundred probes.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How often to look whether the daemon is ready, gone, or to be stopped.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After a ctrl-c the daemon, which got it too, is given this long before it is told to end: a
/// signal sent to this process alone never reached it.
const ENDS_BY_ITSELF: Duration = Duration::from_secs(3);

/// Lines of the answer to show.
const SHOWN_LINES: usize = 40;

/// How much of an answer to take: ten thousand processes of a few hundred bytes each.
const LONGEST_ANSWER_BYTES: u64 = 16 << 20;

/// Builds the daemon, starts it, prints one of its answers, and waits for its end or ctrl-c.
pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut build = shell::cargo();
    build.current_dir(&workspace.root);
    shell::run(build.args(["build", "--locked", "--release", "--package", "malloc-daemon"]))?;

    let listen = listen_address(arguments);
    if listen.starts_with("unix:") {
        bail!("this command asks the daemon over TCP: for {listen} start `malloc-daemon serve` itself");
    }
    if TcpStream::connect(listen).is_ok() {
        bail!("something listens at {listen} already: stop it, or choose another address with `-- --listen ADDR:PORT`");
    }
    // The terminal sends ctrl-c to the daemon as well, which ends by itself; this process waits for it.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot take signals")?;
    }
    let mut daemon =
        shell::as_root(workspace.daemon_binary(), "start the daemon, which attaches probes to the kernel")?;
    daemon.arg("serve").args(arguments);
    println!("==> malloc-daemon serve {}", arguments.join(" "));
    let mut child = daemon.spawn().with_context(|| format!("cannot start {}", workspace.daemon_binary().display()))?;

    let shown = wait_until_ready(&mut child, listen, &stop).and_then(|()| show(listen));
    if shown.is_err() && child.try_wait()?.is_none() {
        end(&mut child)?;
    }
    shown?;
    println!("running until ctrl-c");
    let mut asked_at = None;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the daemon")? {
            if !status.success() && !stop.load(Ordering::Relaxed) {
                bail!("the daemon ended with {status}");
            }
            return Ok(());
        }
        if stop.load(Ordering::Relaxed) && asked_at.get_or_insert_with(Instant::now).elapsed() > ENDS_BY_ITSELF {
            return end(&mut child);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The address that `--listen` gives, or the default.
fn listen_address(arguments: &[String]) -> &str {
    let after = arguments.iter().position(|argument| argument == "--listen").and_then(|index| arguments.get(index + 1));
    let joined = arguments.iter().find_map(|argument| argument.strip_prefix("--listen="));
    after.map(String::as_str).or(joined).unwrap_or(DEFAULT_LISTEN)
}

fn wait_until_ready(child: &mut Child, listen: &str, stop: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    let mut last = "it does not answer".to_owned();
    while start.elapsed() < READY_WITHIN {
        if let Some(status) = child.try_wait().context("cannot wait for the daemon")? {
            bail!("the daemon ended with {status} before it was ready");
        }
        if stop.load(Ordering::Relaxed) {
            bail!("stopped before the daemon was ready");
        }
        match get(listen, "/readyz") {
            Ok((200, _)) => {
                println!("    ready after {:.1} s", start.elapsed().as_secs_f64());
                return Ok(());
            }
            Ok((status, body)) => last = format!("it answers {status}: {}", body.trim_end()),
            Err(_) => {}
        }
        thread::sleep(LOOK_EVERY);
    }
    bail!("the daemon is not ready after {} s: {last} at http://{listen}/readyz", READY_WITHIN.as_secs())
}

fn show(listen: &str) -> Result<()> {
    let (status, body) =
        get(listen, "/v1/processes").with_context(|| format!("cannot read http://{listen}/v1/processes"))?;
    let pretty = match serde_json::from_str::<Value>(&body) {
        Ok(value) => serde_json::to_string_pretty(&value)?,
        Err(error) => bail!("http://{listen}/v1/processes answered {status} and no JSON ({error})"),
    };
    println!("\nhttp://{listen}/\n\n$ curl -s http://{listen}/v1/processes");
    let lines = pretty.lines().count();
    pretty.lines().take(SHOWN_LINES).for_each(|line| println!("{line}"));
    if lines > SHOWN_LINES {
        println!("... {} lines more", lines - SHOWN_LINES);
    }
    println!();
    Ok(())
}

/// Status and body of one GET. HTTP/1.0: the body ends with the connection, in one piece.
pub fn get(listen: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(listen)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // In one piece: a server may answer and close before a second one arrives.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {listen}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER_BYTES).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).context("the answer is no HTTP")
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Asks the daemon to end and waits. Through `kill`, because it may be another user's.
fn end(child: &mut Child) -> Result<()> {
    let mut kill = if shell::is_root() { Command::new("kill") } else { shell::as_root("kill", "stop the daemon")? };
    shell::run(kill.arg(child.id().to_string()))?;
    child.wait().context("cannot wait for the daemon")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_address_is_the_one_that_was_asked_for() {
        assert_eq!(listen_address(&words("--depth call")), DEFAULT_LISTEN);
        assert_eq!(listen_address(&words("--listen 127.0.0.1:9 --depth call")), "127.0.0.1:9");
        assert_eq!(listen_address(&words("--listen=[::1]:9")), "[::1]:9");
    }

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        assert_eq!(parse("HTTP/1.0 503 Unavailable\r\nA: b\r\n\r\nno\r\n"), Some((503, "no\r\n".to_owned())));
        assert_eq!(parse("SSH-2.0\r\n\r\n"), None);
    }
}
