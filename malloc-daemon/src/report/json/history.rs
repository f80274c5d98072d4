//! `/v1/history`, `/v1/diff`, `/v1/report`: what the history knows.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::document::SCHEMA_VERSION;
use super::incidents::{OneStack, one_stack};
use crate::aggregate::model::End;
use crate::history::query::{Account, Change, Course, Covered, Crossers, Gap, Point, Range, Told};
use crate::history::record::{Image, What};
use crate::history::row::{FIELDS, Figures, Kind};
use crate::history::{State, Status};

/// Processes of one answer, unless told otherwise.
pub const LIMIT: usize = 100;

/// `/v1/history`
#[derive(Debug, Serialize)]
pub struct History<'a> {
    schema_version: u32,
    from_unix_ms: u64,
    to_unix_ms: u64,
    covered: Cover,
    processes: Vec<Who<'a>>,
    points: Vec<OnePoint<'a>>,
}

/// `/v1/diff`, and the first part of `/v1/report`.
#[derive(Debug, Serialize)]
pub struct Diff<'a> {
    schema_version: u32,
    from_unix_ms: u64,
    to_unix_ms: u64,
    covered: Cover,
    processes: Vec<OneChange<'a>>,
    /// Images that are not told apart; `null`: there are none.
    others: Option<OneDelta<'a>>,
    left_out: usize,
}

/// `/v1/report` and `report --format json`
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    #[serde(flatten)]
    diff: Diff<'a>,
    raises: Vec<OneRaise<'a>>,
    crossings: Vec<OneCrossers<'a>>,
}

/// How the history is doing, in `/v1/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    state: String,
    why: Option<String>,
    directory: String,
    bytes: u64,
    max_bytes: u64,
    steps: u64,
    last_unix_ms: Option<u64>,
    dropped: u64,
    missed: u64,
    pruned: u64,
    set_aside: Option<String>,
}

#[derive(Debug, Serialize)]
struct Cover {
    from_unix_ms: Option<u64>,
    to_unix_ms: Option<u64>,
    step_ms: u64,
    steps: usize,
    gaps: Vec<OneGap>,
    losses: u64,
    folded_images: u64,
}

#[derive(Debug, Serialize)]
struct OneGap {
    from_unix_ms: u64,
    to_unix_ms: u64,
    restarted: bool,
    clock_changed: bool,
}

#[derive(Debug, Serialize)]
struct Who<'a> {
    pid: u32,
    start_time_ticks: u64,
    comm: &'a str,
    exe: Option<&'a str>,
    cgroup: Option<&'a str>,
    allocator: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct OnePoint<'a> {
    from_unix_ms: u64,
    to_unix_ms: u64,
    sequence: u64,
    delta: Counters<'a>,
    at_end: Option<Levels<'a>>,
}

#[derive(Debug, Serialize)]
struct OneChange<'a> {
    #[serde(flatten)]
    who: Who<'a>,
    from_unix_ms: u64,
    to_unix_ms: u64,
    ended: Option<&'static str>,
    complete: bool,
    growth_bytes: i64,
    delta: Counters<'a>,
    at_end: Levels<'a>,
}

#[derive(Debug, Serialize)]
struct OneDelta<'a> {
    growth_bytes: i64,
    delta: Counters<'a>,
}

#[derive(Debug, Serialize)]
struct OneRaise<'a> {
    pid: u32,
    start_time_ticks: u64,
    thread: u32,
    comm: Option<&'a str>,
    unix_ms: u64,
    from_bytes: u64,
    to_bytes: u64,
    chunk_bytes: Option<u64>,
    freed_by: Option<OneStack<'a>>,
    mapped_by: Option<OneStack<'a>>,
}

#[derive(Debug, Serialize)]
struct OneCrossers<'a> {
    calls: u64,
    bytes: u64,
    comms: &'a [String],
    stack: Option<OneStack<'a>>,
}

/// By how much counters grew; `null`: not measured.
#[derive(Debug)]
struct Counters<'a>(&'a Figures);

/// The figures that stand for a moment, and the counters so far.
#[derive(Debug)]
struct Levels<'a>(&'a Figures);

impl Serialize for Counters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (place, (name, kind)) in FIELDS.iter().enumerate() {
            if *kind == Kind::Counter {
                map.serialize_entry(name, &self.0.get(place))?;
            }
        }
        map.end()
    }
}

impl Serialize for Levels<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (place, (name, _)) in FIELDS.iter().enumerate() {
            map.serialize_entry(name, &self.0.get(place))?;
        }
        map.end()
    }
}

/// How counters went.
#[must_use]
pub fn history(course: &Course, range: Range) -> History<'_> {
    History {
        schema_version: SCHEMA_VERSION,
        from_unix_ms: range.from_unix_ms,
        to_unix_ms: range.to_unix_ms,
        covered: cover(&course.covered),
        processes: course.images.iter().map(who).collect(),
        points: course.points.iter().map(one_point).collect(),
    }
}

/// What changed; at most `limit` processes.
#[must_use]
pub fn diff(account: &Account, range: Range, limit: usize) -> Diff<'_> {
    let (known, others): (Vec<&Change>, Vec<&Change>) = account.changes.iter().partition(|c| c.image.is_some());
    Diff {
        schema_version: SCHEMA_VERSION,
        from_unix_ms: range.from_unix_ms,
        to_unix_ms: range.to_unix_ms,
        covered: cover(&account.covered),
        processes: known.iter().take(limit).filter_map(|change| one_change(change)).collect(),
        others: others
            .first()
            .map(|change| OneDelta { growth_bytes: change.delta.growth_bytes(), delta: Counters(&change.delta) }),
        left_out: known.len().saturating_sub(limit),
    }
}

/// What happened.
#[must_use]
pub fn report(account: &Account, range: Range, limit: usize) -> Report<'_> {
    Report {
        diff: diff(account, range, limit),
        raises: account.raises.iter().rev().take(1000).rev().filter_map(one_raise).collect(),
        crossings: account.crossings.iter().take(limit).map(one_crossers).collect(),
    }
}

/// How the history is doing.
#[must_use]
pub fn health(status: &Status) -> Health {
    let (state, why) = match &status.state {
        State::Starting => ("starting", None),
        State::Recording => ("recording", None),
        State::Off(why) => ("off", Some(why.clone())),
    };
    Health {
        state: state.to_owned(),
        why,
        directory: status.folder.display().to_string(),
        bytes: status.bytes,
        max_bytes: status.max_bytes,
        steps: status.steps,
        last_unix_ms: status.last_unix_ms,
        dropped: status.dropped,
        missed: status.missed,
        pruned: status.pruned,
        set_aside: status.set_aside.clone(),
    }
}

fn cover(covered: &Covered) -> Cover {
    let gap = |gap: &Gap| OneGap {
        from_unix_ms: gap.from_unix_ms,
        to_unix_ms: gap.to_unix_ms,
        restarted: gap.restarted,
        clock_changed: gap.clock_changed,
    };
    Cover {
        from_unix_ms: covered.from_unix_ms,
        to_unix_ms: covered.to_unix_ms,
        step_ms: covered.step_ms,
        steps: covered.steps,
        gaps: covered.gaps.iter().map(gap).collect(),
        losses: covered.losses,
        folded_images: covered.folded,
    }
}

fn who(image: &Image) -> Who<'_> {
    Who {
        pid: image.id.pid,
        start_time_ticks: image.id.start_ticks,
        comm: &image.comm,
        exe: image.exe.as_deref(),
        cgroup: image.cgroup.as_deref(),
        allocator: image.allocator.as_deref(),
    }
}

fn one_point(point: &Point) -> OnePoint<'_> {
    OnePoint {
        from_unix_ms: point.from_unix_ms,
        to_unix_ms: point.to_unix_ms,
        sequence: point.sequence,
        delta: Counters(&point.delta),
        at_end: point.now.as_ref().map(Levels),
    }
}

fn one_change(change: &Change) -> Option<OneChange<'_>> {
    Some(OneChange {
        who: who(change.image.as_ref()?),
        from_unix_ms: change.from_unix_ms,
        to_unix_ms: change.to_unix_ms,
        ended: change.ended.map(ended),
        complete: change.complete,
        growth_bytes: change.delta.growth_bytes(),
        delta: Counters(&change.delta),
        at_end: Levels(&change.now),
    })
}

fn ended(end: End) -> &'static str {
    match end {
        End::Exited => "exited",
        End::Replaced => "replaced",
        End::OomKilled => "oom_killed",
    }
}

fn one_raise(told: &Told) -> Option<OneRaise<'_>> {
    let What::Raise { from_bytes, to_bytes, chunk_bytes } = told.incident.what else { return None };
    Some(OneRaise {
        pid: told.incident.id.pid,
        start_time_ticks: told.incident.id.start_ticks,
        thread: told.incident.tid,
        comm: told.comm.as_deref(),
        unix_ms: told.incident.unix_ms,
        from_bytes,
        to_bytes,
        chunk_bytes,
        freed_by: told.stack.as_ref().map(one_stack),
        mapped_by: told.mapped_by.as_ref().map(one_stack),
    })
}

fn one_crossers(crossers: &Crossers) -> OneCrossers<'_> {
    OneCrossers {
        calls: crossers.calls,
        bytes: crossers.bytes,
        comms: &crossers.comms,
        stack: crossers.stack.as_ref().map(one_stack),
    }
}
