//! `top`: the processes as a table on the terminal, from a running daemon, or one process observed by this command itself.

mod columns;
mod screen;
mod source;
mod state;
#[cfg(test)]
mod tests;
mod whole;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::source::{Ask, Daemon, PACE, TICK, source, work};
use self::state::{Look, State, Then};
use super::INCOMPLETE;
use super::client::Url;
use super::subject::Signals;
use crate::cli::Top;
use crate::http::{DEFAULT_LISTEN, Token};
use crate::log::{self, Hold};

/// How long `--once` waits for the snapshot after the one that it met.
const NEXT: Duration = Duration::from_secs(10);
/// Columns of `--once` where no terminal says how many there are.
const WIDE: u16 = 200;

/// Draws until asked to end.
pub fn run(args: &Top) -> anyhow::Result<ExitCode> {
    let url = match (&args.url, args.pid) {
        (Some(url), _) => Some(url.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(format!("http://{DEFAULT_LISTEN}").parse::<Url>().map_err(anyhow::Error::msg)?),
    };
    let from = url.as_ref().map_or_else(|| "this command".to_owned(), ToString::to_string);
    let token = args.token_file.as_deref().map(Token::read).transpose()?;
    let daemon = url.map(|url| Daemon { url, token });
    let state = State::new(from, args.pid);
    if args.once {
        return once(daemon, args.pid, state);
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("there is no terminal to draw on: --once prints the table once, as text");
    }
    // A line of the log would smear the picture: the newest is a part of it, all are written after it.
    let hold = log::hold();
    let ended = show(daemon, args.pid, state, &hold);
    // Where standard error is closed, nobody wants them.
    let _ = std::io::stderr().write_all(&hold.end());
    ended
}

/// Draws until asked to end, and puts the terminal back.
fn show(daemon: Option<Daemon>, pid: Option<u32>, state: State, hold: &Hold) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch(&[SIGINT, SIGTERM, SIGHUP])?;
    let (asks, asked) = mpsc::channel::<Ask>();
    let (tell, told) = mpsc::channel::<anyhow::Result<Look>>();
    // Asking may take long, and a process is observed by one thread: the keys are not to wait for either.
    std::thread::Builder::new()
        .name("top".to_owned())
        .spawn(move || work(source(daemon, pid), &asked, &tell))
        .context("cannot start a thread")?;
    let mut shown = Shown { state, asks, told, asked_at: Instant::now(), waiting: false };
    shown.ask();
    // Who cannot be asked at all is told of on the plain terminal.
    let first = shown.told.recv().context("asking ended")??;
    shown.took(Ok(first));
    let mut terminal = ratatui::try_init().context("this terminal cannot be drawn on: --once prints text")?;
    let ended = shown.until_quit(&mut terminal, &mut signals, hold);
    ratatui::try_restore().context("the terminal cannot be put back; `reset` does it")?;
    ended.map(|()| ExitCode::SUCCESS)
}

struct Shown {
    state: State,
    asks: mpsc::Sender<Ask>,
    told: mpsc::Receiver<anyhow::Result<Look>>,
    /// When the last question was asked.
    asked_at: Instant,
    /// It is not answered yet.
    waiting: bool,
}

impl Shown {
    fn until_quit(&mut self, terminal: &mut DefaultTerminal, signals: &mut Signals, hold: &Hold) -> anyhow::Result<()> {
        let mut stale = true;
        while signals.came().is_empty() {
            let newest = hold.newest();
            stale |= newest != self.state.log;
            if stale {
                self.state.log = newest;
                terminal.draw(|frame| screen::draw(frame, &mut self.state)).context("cannot draw")?;
            }
            stale = event::poll(TICK).context("cannot read keys")?;
            if stale {
                // Another event is a terminal of another size: it is drawn anew.
                if let Event::Key(key) = event::read().context("cannot read keys")? {
                    match self.state.press(key) {
                        Then::Quit => return Ok(()),
                        Then::Ask => self.ask(),
                        Then::Draw => {}
                    }
                }
            }
            while let Ok(answer) = self.told.try_recv() {
                self.took(answer);
                stale = true;
            }
            if !self.waiting && !self.state.paused && self.asked_at.elapsed() >= PACE {
                self.ask();
            }
        }
        Ok(())
    }

    fn ask(&mut self) {
        (self.waiting, self.asked_at) = (true, Instant::now());
        // Where nobody takes it, no answer comes either, and the picture says how old it is.
        let _ = self.asks.send(Ask { since: self.state.sequence, chosen: self.state.chosen });
    }

    fn took(&mut self, answer: anyhow::Result<Look>) {
        self.waiting = false;
        match answer {
            Ok(look) => self.state.take(look),
            Err(error) => self.state.trouble = Some(format!("{error:#}; what is shown is of the last answer")),
        }
    }
}

/// Two looks, so that it is known how fast counts grow.
fn once(daemon: Option<Daemon>, pid: Option<u32>, mut state: State) -> anyhow::Result<ExitCode> {
    let mut source = source(daemon, pid)?;
    state.take(source.look(Ask { since: 0, chosen: None })?);
    let (first, met) = (state.sequence, Instant::now());
    while state.sequence == first && met.elapsed() < NEXT {
        let due = Instant::now() + PACE / 2;
        while Instant::now() < due {
            source.tick()?;
            std::thread::sleep(TICK);
        }
        state.take(source.look(Ask { since: first, chosen: None })?);
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let of_terminal =
        || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col).filter(|n| *n > 0);
    print!("{}", screen::plain(&state, columns.or_else(of_terminal).unwrap_or(WIDE)));
    let complete = state.health.as_ref().is_none_or(|health| health.complete);
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
}
