//! Keeps the log short: repeats are folded, and a storm of lines is cut to one a second, with what was left out counted.

use std::io::{self, Write};
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

#[cfg(test)]
mod tests {
    use super::*;
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
