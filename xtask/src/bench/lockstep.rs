//! Counting a call against an empty program, to a hundredth: two processes that take turns of milliseconds, each with a
//! libc file and a recording of its own, so that the machine's pace changes for both alike.
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{
    Place,
    observers::{self, Running},
    statistics::{Ratio, median, paired_ratio},
};

/// What is measured, where it could not be.
pub const NAME: &str = "`call` and the empty program in turns";
/// Turns of each process.
pub const TURNS: usize = 600;
/// Turns before the first that counts.
const WARM_UP: usize = 5;
/// What `pairs` is told for a turn of 5,000 pairs: it divides by its 9 rounds.
const PAIRS: &str = "45000";

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// CPU time of a pair with `call` as a multiple of one with the empty program.
    pub ratio: Ratio,
    /// Median of a pair with the empty program, nanoseconds of CPU time.
    pub blank_ns: f64,
    /// The same with `call`.
    pub call_ns: f64,
}

/// Measures.
pub fn measure(place: &Place) -> Result<Figures> {
    let mut blank = Observed::start(place, true)?;
    let mut call = Observed::start(place, false)?;
    let (mut blanks, mut calls) = (Vec::new(), Vec::new());
    for turn in 0..WARM_UP + TURNS {
        // Whoever is second finds the caches as the first left them: each is second in every other turn.
        let (of_blank, of_call) = if turn % 2 == 0 {
            let of_blank = blank.turn()?;
            (of_blank, call.turn()?)
        } else {
            let of_call = call.turn()?;
            (blank.turn()?, of_call)
        };
        if turn >= WARM_UP {
            blanks.push(of_blank);
            calls.push(of_call);
        }
    }
    blank.stop()?;
    call.stop()?;
    let ratio = paired_ratio(&calls, &blanks).context("no turn was measured")?;
    let told = |values| median(values).context("a turn took no time");
    Ok(Figures { ratio, blank_ns: told(blanks)?, call_ns: told(calls)? })
}

/// A process and its recording.
struct Observed {
    process: Child,
    asked: ChildStdin,
    told: BufReader<ChildStdout>,
    recording: Option<Running>,
}

impl Observed {
    fn start(place: &Place, blank: bool) -> Result<Self> {
        let folder = place.folder.join(if blank { "libc-blank" } else { "libc-call" });
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let libc = folder.join("libc.so.6");
        fs::copy(&place.libc, &libc).with_context(|| format!("cannot write {}", libc.display()))?;
        let mut command = Command::new(place.folder.join("pairs"));
        command.args(["1", PAIRS, "64", "turns"]).env("LD_LIBRARY_PATH", &folder);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("pairs does not start")?;
        let asked = process.stdin.take().context("pairs has no input")?;
        let told = BufReader::new(process.stdout.take().context("pairs has no output")?);
        let mut observed = Self { process, asked, told, recording: None };
        // It has its libc now.
        observed.turn()?;
        observed.recording = Some(observers::record_process(place, observed.process.id(), blank)?);
        Ok(observed)
    }

    /// One turn; nanoseconds of CPU time for a pair.
    fn turn(&mut self) -> Result<f64> {
        self.asked.write_all(b"\n").context("pairs is gone")?;
        let mut line = String::new();
        self.told.read_line(&mut line).context("pairs is gone")?;
        line.trim().parse().with_context(|| format!("pairs says {line:?}"))
    }

    fn stop(mut self) -> Result<()> {
        drop(self.asked);
        self.process.wait().context("pairs is gone")?;
        self.recording.take().map_or(Ok(()), Running::stop)
    }
}
