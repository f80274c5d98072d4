//! What `top` knows and what its keys do to it; nothing here asks or draws.

use std::collections::BTreeMap;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::columns::{COLUMNS, Figure};
use crate::report::json::document::{Gone, Health, ListDifference, ListedProcess, OneProcess};

/// Which image of which process: pid, start, first seen.
pub type Key = (u32, u64, u64);

/// Characters of a filter.
const FILTER: usize = 64;

/// What was asked for and came.
pub struct Look {
    /// What changed in the list.
    pub list: ListDifference,
    /// The process that is shown whole, or why it is not.
    pub one: Option<(u32, Result<OneProcess<'static>, String>)>,
    /// How far all of it can be believed; `None`: nobody to ask.
    pub health: Option<Health<'static>>,
}

/// An image with how fast its counts grow.
pub struct Row {
    /// As it was told last.
    pub process: ListedProcess<'static>,
    /// Its calls are estimates.
    pub estimated: bool,
    /// Outermost calls a second.
    pub calls: Figure,
    /// Bytes that they ask for, a second.
    pub bytes: Figure,
    /// System calls by which memory comes and goes, a second.
    pub kernel: Figure,
}

/// What to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Draw.
    Draw,
    /// Ask for what is shown now, then draw.
    Ask,
    /// End.
    Quit,
}

/// Everything that is drawn.
pub struct State {
    /// Where it comes from, for the first line.
    pub from: String,
    pub rows: BTreeMap<Key, Row>,
    /// Of the last look; 0: none yet.
    pub sequence: u64,
    /// Of the window of the last look, milliseconds.
    duration_ms: Option<u64>,
    pub health: Option<Health<'static>>,
    /// Why the last look failed.
    pub trouble: Option<String>,
    /// Lines that this command's own log has, and the newest.
    pub log: Option<(u64, String)>,
    /// Index into [`COLUMNS`].
    pub sort: usize,
    pub descending: bool,
    pub filter: String,
    pub editing: bool,
    pub ended: bool,
    pub paused: bool,
    /// The line with the cursor; `None`: the first.
    pub cursor: Option<Key>,
    /// The process that is shown whole.
    pub chosen: Option<u32>,
    pub one: Option<(u32, Result<OneProcess<'static>, String>)>,
    /// Lines of it that are scrolled past.
    pub scroll: u16,
    /// Lines that fit; the last drawing says.
    pub page: usize,
}

impl State {
    pub fn new(from: String, chosen: Option<u32>) -> Self {
        let sort = COLUMNS.iter().position(|column| column.title == "RETAINED").unwrap_or_default();
        Self {
            from,
            rows: BTreeMap::new(),
            sequence: 0,
            duration_ms: None,
            health: None,
            trouble: None,
            log: None,
            sort,
            descending: true,
            filter: String::new(),
            editing: false,
            ended: false,
            paused: false,
            cursor: None,
            chosen,
            one: None,
            scroll: 0,
            page: 20,
        }
    }

    pub fn take(&mut self, look: Look) {
        self.trouble = None;
        self.health = look.health.or(self.health.take());
        self.one = look.one.or(self.one.take());
        let ListDifference { list, whole, gone, .. } = look.list;
        if list.sequence == self.sequence && !whole {
            return;
        }
        let now = list.window.duration_ms;
        let ms = self.duration_ms.and_then(|before| now.checked_sub(before)).unwrap_or_default();
        self.duration_ms = Some(now);
        self.sequence = list.sequence;
        let mut before = std::mem::take(&mut self.rows);
        if ms == 0 && whole {
            before.clear();
        }
        let mut changed = BTreeMap::new();
        for process in list.processes {
            let key = (process.pid, process.start_time_ticks, process.image_ns);
            let old = before.remove(&key).map(|row| row.process);
            changed.insert(key, Row::of(process, old.as_ref(), ms));
        }
        if !whole {
            for Gone { pid, start_time_ticks, image_ns } in gone {
                before.remove(&(pid, start_time_ticks, image_ns));
            }
            // In the others nothing was counted.
            for (key, row) in before {
                let same = row.process.clone();
                changed.insert(key, Row::of(row.process, Some(&same), ms));
            }
        }
        self.rows = changed;
    }

    /// The rows that fit the filter, in order; what is not known comes last.
    pub fn view(&self) -> Vec<(Key, &Row)> {
        let words: Vec<String> = self.filter.to_lowercase().split_whitespace().map(str::to_owned).collect();
        let fits = |row: &Row| {
            let process = &row.process;
            let texts = [Some(&process.comm), process.exe.as_ref(), process.cgroup.as_ref()];
            let has = |word: &String| {
                process.pid.to_string().contains(word)
                    || texts.iter().flatten().any(|text| text.to_lowercase().contains(word))
            };
            (self.ended || process.ended.is_none()) && words.iter().all(has)
        };
        let mut rows: Vec<(Key, &Row)> =
            self.rows.iter().filter(|(_, row)| fits(row)).map(|(key, row)| (*key, row)).collect();
        let column = &COLUMNS[self.sort];
        rows.sort_by(|(a, x), (b, y)| column.order(x, y, self.descending).then(a.cmp(b)));
        rows
    }

    /// Where the cursor is in a view.
    pub fn position(&self, view: &[(Key, &Row)]) -> usize {
        self.cursor.and_then(|cursor| view.iter().position(|(key, _)| *key == cursor)).unwrap_or_default()
    }

    pub fn press(&mut self, key: KeyEvent) -> Then {
        if key.kind == KeyEventKind::Release {
            return Then::Draw;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Then::Quit } else { Then::Draw };
        }
        if self.editing { self.edit(key.code) } else { self.act(key.code) }
    }

    fn edit(&mut self, code: KeyCode) -> Then {
        match code {
            KeyCode::Enter => self.editing = false,
            KeyCode::Esc => {
                self.editing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.filter.chars().count() < FILTER => self.filter.push(letter),
            _ => {}
        }
        Then::Draw
    }

    fn act(&mut self, code: KeyCode) -> Then {
        let page = isize::try_from(self.page.max(1)).unwrap_or(1);
        match code {
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Esc if self.chosen.is_some() => self.chosen = None,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => return Then::Quit,
            KeyCode::Char('/') => self.editing = true,
            KeyCode::Char('e') => self.ended = !self.ended,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('r') => self.descending = !self.descending,
            KeyCode::Char('<') | KeyCode::Left => self.sort_by(COLUMNS.len() - 1),
            KeyCode::Char('>') | KeyCode::Right => self.sort_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-page),
            KeyCode::PageDown => self.step(page),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Enter if self.chosen.is_none() => {
                let view = self.view();
                let chosen = view.get(self.position(&view)).map(|(key, _)| key.0);
                (self.chosen, self.scroll) = (chosen, 0);
                return Then::Ask;
            }
            _ => {}
        }
        Then::Draw
    }

    fn sort_by(&mut self, distance: usize) {
        self.sort = (self.sort + distance) % COLUMNS.len();
        self.descending = !COLUMNS[self.sort].is_text;
    }

    /// Moves the cursor, or what is shown of one process.
    fn step(&mut self, lines: isize) {
        if self.chosen.is_some() {
            // Drawing holds it to the end of the text.
            let to = isize::try_from(self.scroll).unwrap_or_default().saturating_add(lines);
            self.scroll = u16::try_from(to.clamp(0, isize::from(i16::MAX))).unwrap_or_default();
            return;
        }
        let view = self.view();
        let last = isize::try_from(view.len().saturating_sub(1)).unwrap_or_default();
        let at = isize::try_from(self.position(&view)).unwrap_or_default().saturating_add(lines).clamp(0, last);
        let to = usize::try_from(at).ok().and_then(|at| view.get(at)).map(|(key, _)| *key);
        self.cursor = to;
    }
}

impl Row {
    fn of(process: ListedProcess<'static>, before: Option<&ListedProcess<'static>>, ms: u64) -> Self {
        let (calls, old) = (process.funnel.call, before.and_then(|before| before.funnel.call));
        let estimated = calls.is_some_and(|calls| calls.estimate.is_some());
        // An estimate grows in leaps, when a window of time was counted: its speed is the mean.
        let since = |old: Option<u64>| if estimated { (Some(0), process.observed_ms) } else { (old, ms) };
        let speed = |now: Option<u64>, old: Option<u64>| {
            let (old, ms) = since(old);
            Figure::speed(now, old, ms)
        };
        let kernel = |process: &ListedProcess<'static>| {
            let s = &process.syscalls;
            [s.mmap, s.munmap, s.mremap, s.brk].iter().fold(0, |sum: u64, call| sum.saturating_add(call.calls))
        };
        Self {
            calls: speed(calls.map(|level| level.calls), old.map(|level| level.calls)),
            bytes: speed(calls.map(|level| level.bytes), old.map(|level| level.bytes)),
            kernel: Figure::speed(Some(kernel(&process)), before.map(kernel), ms),
            estimated,
            process,
        }
    }
}
