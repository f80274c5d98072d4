//! Keeps the log short: repeats are folded, and a storm of lines is cut to one a second, with what was left out counted.
//! Keeps it off a terminal that is drawn on.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may come at once: what a start or a reload has to say.
const BURST: f64 = 30.0;
/// A line that keeps coming is written again after this time, with its count.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Writes whole lines on, each `write` being one.
#[derive(Debug)]
pub struct Folding<W> {
    to: W,
    now: fn() -> Instant,
    /// Lines that may still come at once.
    allowed: f64,
    counted_at: Instant,
    last: Vec<u8>,
    last_at: Instant,
    repeated: u64,
    left_out: u64,
}

impl<W: Write> Folding<W> {
    /// Writes to `to`; `now` is the clock.
    pub fn new(to: W, now: fn() -> Instant) -> Self {
        let begun = now();
        Self { to, now, allowed: BURST, counted_at: begun, last: Vec::new(), last_at: begun, repeated: 0, left_out: 0 }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let now = (self.now)();
        let since = now.saturating_duration_since(self.counted_at).as_secs_f64();
        (self.counted_at, self.allowed) = (now, (self.allowed + since).min(BURST));
        let is_repeat = said(line) == said(&self.last);
        if is_repeat && now.saturating_duration_since(self.last_at) < REPEAT_AFTER {
            self.repeated += 1;
            return Ok(());
        }
        if self.allowed < 1.0 {
            self.left_out += 1;
            return Ok(());
        }
        self.allowed -= 1.0;
        if self.repeated > 0 {
            self.allowed -= 1.0;
            writeln!(self.to, "the line before came {} times more", self.repeated)?;
        }
        if self.left_out > 0 {
            self.allowed -= 1.0;
            writeln!(self.to, "{} lines were left out: more than one a second", self.left_out)?;
        }
        (self.repeated, self.left_out) = (0, 0);
        self.last.clear();
        self.last.extend_from_slice(line);
        self.last_at = now;
        self.to.write_all(line)
    }
}

/// A line without its time.
fn said(line: &[u8]) -> &[u8] {
    let time = line.iter().position(|letter| *letter == b' ').unwrap_or(0);
    line.get(time..).unwrap_or_default()
}

impl<W: Write> Write for Folding<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Lines that are kept while they are held; of more the oldest go.
const HELD_LINES: usize = 200;
/// Bytes of one that are kept.
const HELD_BYTES: usize = 2048;

/// What was written while it is held; `None`: it is not.
static HELD: Mutex<Option<Lines>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<Lines>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Lines {
    newest: VecDeque<Vec<u8>>,
    count: u64,
}

impl Lines {
    fn keep(&mut self, line: &[u8]) {
        self.count += 1;
        if self.newest.len() == HELD_LINES {
            self.newest.pop_front();
        }
        let end = line.strip_suffix(b"\n").unwrap_or(line);
        self.newest.push_back(end[..end.len().min(HELD_BYTES)].to_vec());
    }
}

/// Writes whole lines on, each `write` being one, unless they are held.
#[derive(Debug)]
pub struct Holding<W>(pub W);

impl<W: Write> Write for Holding<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *held() {
            Some(lines) => lines.keep(line),
            None => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Holds the log of this process as long as it lives: someone draws on the terminal that the log would go to.
#[derive(Debug)]
pub struct Hold(());

/// Holds the log from now on.
#[must_use]
pub fn hold() -> Hold {
    *held() = Some(Lines::default());
    Hold(())
}

impl Hold {
    /// How many lines are held, with the newest, without its colours.
    #[must_use]
    pub fn newest(&self) -> Option<(u64, String)> {
        let held = held();
        let lines = held.as_ref()?;
        Some((lines.count, without_colors(&String::from_utf8_lossy(lines.newest.back()?))))
    }

    /// Lets the log go on; what was held, as it would have been written.
    #[must_use]
    pub fn end(self) -> Vec<u8> {
        let lines = held().take().unwrap_or_default();
        let gone = lines.count - lines.newest.len() as u64;
        let mut out = Vec::new();
        if gone > 0 {
            out.extend_from_slice(format!("{gone} lines before these were not kept\n").as_bytes());
        }
        for line in lines.newest {
            out.extend_from_slice(&line);
            out.push(b'\n');
        }
        out
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        *held() = None;
    }
}

/// A line without the sequences that colour it, `ESC [ ... m`.
fn without_colors(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let coloured = part.split_once('m');
        let coloured = coloured.filter(|(codes, _)| codes.bytes().all(|code| code.is_ascii_digit() || code == b';'));
        match coloured {
            Some((_, rest)) => out.push_str(rest),
            None => out.extend(["\x1b[", part]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_written_by_nobody_and_comes_back_whole_or_counted() {
        let mut log = Holding(Vec::new());
        log.write_all(b"before\n").unwrap();
        let hold = hold();
        assert_eq!(hold.newest(), None);
        log.write_all(b"\x1b[2m01\x1b[0m \x1b[33m WARN\x1b[0m first\x1b[2J\n").unwrap();
        assert_eq!(hold.newest(), Some((1, "01  WARN first\x1b[2J".to_owned())));
        for line in 0..HELD_LINES {
            log.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        log.write_all(&[b'x'; 2 * HELD_BYTES]).unwrap();
        assert_eq!(log.0, b"before\n");
        assert_eq!(hold.newest().unwrap().0, HELD_LINES as u64 + 2);
        let kept = String::from_utf8(hold.end()).unwrap();
        assert!(kept.starts_with("2 lines before these were not kept\n1\n2\n"), "{kept}");
        assert!(kept.ends_with(&format!("\n{}\n{}\n", HELD_LINES - 1, "x".repeat(HELD_BYTES))), "{kept}");
        log.write_all(b"after\n").unwrap();
        assert_eq!(log.0, b"before\nafter\n");
    }

    use std::cell::Cell;
    use std::sync::OnceLock;

    thread_local! {
        static SECONDS: Cell<u64> = const { Cell::new(0) };
    }

    fn clock() -> Instant {
        static BEGUN: OnceLock<Instant> = OnceLock::new();
        *BEGUN.get_or_init(Instant::now) + Duration::from_secs(SECONDS.get())
    }

    fn written(log: &Folding<Vec<u8>>) -> String {
        String::from_utf8(log.to.clone()).unwrap()
    }

    #[test]
    fn a_line_that_repeats_is_told_once_with_its_count() {
        let mut log = Folding::new(Vec::new(), clock);
        for second in 0..5 {
            log.write_all(format!("{second:02} WARN the same\n").as_bytes()).unwrap();
        }
        log.write_all(b"05 WARN another\n").unwrap();
        assert_eq!(written(&log), "00 WARN the same\nthe line before came 4 times more\n05 WARN another\n");
        SECONDS.set(61);
        log.write_all(b"66 WARN another\n").unwrap();
        assert!(written(&log).ends_with("66 WARN another\n"), "after a while it is told again");
    }

    #[test]
    fn a_storm_is_cut_to_a_line_a_second() {
        let mut log = Folding::new(Vec::new(), clock);
        for second in 0..100u64 {
            SECONDS.set(second);
            for line in 0..50 {
                log.write_all(format!("{second:02} WARN {second}-{line}\n").as_bytes()).unwrap();
            }
        }
        let text = written(&log);
        let (told, counts): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains("WARN"));
        assert!(text.lines().count() <= 100 + BURST as usize, "{}", text.lines().count());
        assert!(told.len() >= 50, "{}", told.len());
        let left_out: u64 = counts.iter().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).sum();
        assert_eq!(told.len() as u64 + left_out + log.left_out, 5000, "each line is told or counted");
    }
}
