//! The columns of `top`: what each shows of a row, and how it sorts.

use std::cmp::Ordering;

use super::state::Row;
use crate::report::printable;
use crate::report::units;

/// A figure, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Figure {
    /// Not measured at this depth, or not read.
    NotMeasured,
    /// Known after the next look.
    NotYet,
    /// What it is.
    Is(f64),
}

impl Figure {
    fn of(value: Option<u64>) -> Self {
        value.map_or(Self::NotMeasured, |value| Self::Is(value as f64))
    }

    /// The difference of two counts a second.
    pub fn speed(now: Option<u64>, before: Option<u64>, ms: u64) -> Self {
        match (now, before) {
            (None, _) => Self::NotMeasured,
            (Some(now), Some(before)) if now >= before && ms > 0 => {
                Self::Is((now - before) as f64 * 1000.0 / ms as f64)
            }
            _ => Self::NotYet,
        }
    }
}

/// One column.
pub struct Column {
    /// What stands above it.
    pub title: &'static str,
    /// Cells that it takes.
    pub width: u16,
    /// It sorts by letters, and stands left.
    pub is_text: bool,
    /// Columns of a higher rank give way first where the terminal is narrow.
    pub rank: u8,
    figure: fn(&Row) -> Figure,
    words: fn(&Row, f64) -> String,
    text: fn(&Row) -> Option<String>,
}

const NONE: Column = Column {
    title: "",
    width: 0,
    is_text: false,
    rank: 0,
    figure: |_| Figure::NotMeasured,
    words: |_, value| units::count(value as u64),
    text: |_| None,
};

fn bytes(_: &Row, value: f64) -> String {
    units::bytes(value as u64)
}

fn guess(row: &Row) -> &'static str {
    if row.estimated { "~" } else { "" }
}

/// All of them, from left to right.
pub const COLUMNS: [Column; 14] = [
    Column {
        title: "PID",
        width: 7,
        figure: |row| Figure::Is(row.process.pid.into()),
        words: |_, value| format!("{value}"),
        ..NONE
    },
    Column { title: "NAME", width: 16, is_text: true, text: |row| Some(printable(&row.process.comm, 32)), ..NONE },
    Column {
        title: "CALLS/S",
        width: 10,
        rank: 3,
        figure: |row| row.calls,
        words: |row, value| format!("{}{}", guess(row), units::count(value.round() as u64)),
        ..NONE
    },
    Column {
        title: "BYTES/S",
        width: 10,
        rank: 4,
        figure: |row| row.bytes,
        words: |row, value| format!("{}{}", guess(row), units::bytes(value as u64)),
        ..NONE
    },
    Column {
        title: "SYSC/S",
        width: 7,
        rank: 9,
        figure: |row| row.kernel,
        words: |_, value| units::count(value.round() as u64),
        ..NONE
    },
    Column {
        title: "CROSSINGS",
        width: 10,
        rank: 5,
        figure: |row| Figure::of(row.process.crossings.map(|count| count.calls)),
        ..NONE
    },
    Column {
        title: "MAPPED",
        width: 9,
        rank: 8,
        figure: |row| Figure::of(row.process.threshold.as_ref().map(|threshold| threshold.mmapped_bytes)),
        words: bytes,
        ..NONE
    },
    Column {
        title: "THRESHOLD",
        width: 9,
        rank: 2,
        figure: |row| Figure::of(row.process.threshold.as_ref().map(|threshold| threshold.bytes)),
        words: bytes,
        ..NONE
    },
    Column {
        title: "MODE",
        width: 7,
        is_text: true,
        rank: 7,
        text: |row| row.process.threshold.as_ref().map(|threshold| printable(&threshold.mode, 8)),
        ..NONE
    },
    Column {
        title: "RAISES",
        width: 6,
        rank: 6,
        figure: |row| Figure::of(row.process.threshold.as_ref().map(|threshold| threshold.raises)),
        ..NONE
    },
    Column {
        title: "RETAINED",
        width: 10,
        rank: 1,
        figure: |row| Figure::of(row.process.heap.map(|heap| heap.retained_bytes)),
        words: |row, value| {
            let least = if row.process.heap.is_some_and(|heap| !heap.complete) { ">" } else { "" };
            format!("{least}{}", units::bytes(value as u64))
        },
        ..NONE
    },
    Column {
        title: "TOP",
        width: 9,
        rank: 10,
        figure: |row| Figure::of(row.process.heap.map(|heap| heap.top_bytes)),
        words: bytes,
        ..NONE
    },
    Column {
        title: "DEPTH",
        width: 9,
        is_text: true,
        rank: 11,
        text: |row| Some(printable(&row.process.depth, 9)),
        ..NONE
    },
    Column {
        title: "COST",
        width: 8,
        rank: 6,
        figure: |row| {
            let share = row.process.cost.as_ref().and_then(|cost| cost.share);
            share.map_or(Figure::NotMeasured, Figure::Is)
        },
        words: |_, value| match value * 100.0 {
            percent if percent > 0.0 && percent < 0.01 => "~<0.01%".to_owned(),
            percent => format!("~{percent:.2}%"),
        },
        ..NONE
    },
];

impl Column {
    /// What stands in the cell.
    pub fn shown(&self, row: &Row) -> String {
        if self.is_text {
            return (self.text)(row).unwrap_or_else(|| "-".to_owned());
        }
        match (self.figure)(row) {
            Figure::NotMeasured => "-".to_owned(),
            Figure::NotYet => "..".to_owned(),
            Figure::Is(value) => (self.words)(row, value),
        }
    }

    /// Which of two rows comes first; what is not known comes last, whichever way.
    pub fn order(&self, a: &Row, b: &Row, descending: bool) -> Ordering {
        let turned = |order: Ordering| if descending { order.reverse() } else { order };
        if self.is_text {
            let [a, b] = [a, b].map(|row| (self.text)(row));
            return a.is_none().cmp(&b.is_none()).then_with(|| turned(a.cmp(&b)));
        }
        match ((self.figure)(a), (self.figure)(b)) {
            (Figure::Is(a), Figure::Is(b)) => turned(a.total_cmp(&b)),
            (Figure::Is(_), _) => Ordering::Less,
            (_, Figure::Is(_)) => Ordering::Greater,
            _ => Ordering::Equal,
        }
    }
}

/// The columns that fit so many cells, from left to right.
pub fn fitting(width: u16) -> Vec<&'static Column> {
    let mut shown: Vec<&Column> = COLUMNS.iter().collect();
    let taken = |shown: &[&Column]| shown.iter().map(|column| column.width + 1).sum::<u16>();
    while taken(&shown) > width + 1 {
        let Some(at) = (0..shown.len()).max_by_key(|at| shown[*at].rank).filter(|at| shown[*at].rank > 0) else {
            break;
        };
        shown.remove(at);
    }
    shown
}
