//! Draws what `top` knows.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row as Drawn, Table, Wrap};

use super::columns::{COLUMNS, Column, fitting};
use super::state::{Row, State};
use super::whole;
use crate::report::json::document::Health;
use crate::report::printable;
use crate::report::units::{bytes, count, milliseconds};

/// One picture of everything.
pub fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let logged = Constraint::Length(u16::from(state.log.is_some()));
    let areas = Layout::vertical([Constraint::Length(2), Constraint::Min(1), logged, Constraint::Length(1)]);
    let [head, body, log, foot] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(header(state)), head);
    match state.chosen {
        Some(pid) => one(frame, body, state, pid),
        None => table(frame, body, state),
    }
    if let Some((count, newest)) = &state.log {
        let words = if *count == 1 { "1 line of log".to_owned() } else { format!("{count} lines of log, the newest") };
        frame.render_widget(Paragraph::new(format!("{words}: {}", printable(newest, 300))).yellow(), log);
    }
    frame.render_widget(Paragraph::new(footer(state)), foot);
}

fn header(state: &State) -> Text<'static> {
    let running = state.rows.values().filter(|row| row.process.ended.is_none()).count();
    let from = printable(&state.from, 120);
    let mut first = vec![Span::from("malloc-daemon ").bold(), Span::raw(format!("{from}  {running} processes"))];
    if state.paused {
        first.push(Span::from("  paused").yellow());
    }
    let second = match (&state.trouble, &state.health) {
        (Some(trouble), _) => Line::from(printable(trouble, 300)).red(),
        (None, Some(health)) => told(health),
        (None, None) if state.sequence == 0 => Line::from("asking"),
        (None, None) => Line::default(),
    };
    Text::from(vec![Line::from(first), second])
}

fn told(health: &Health<'_>) -> Line<'static> {
    let lost: Vec<String> = health
        .losses
        .iter()
        .filter(|loss| loss.count > 0)
        .map(|loss| format!("{} {}", printable(&loss.reason, 32), count(loss.count)))
        .collect();
    let broken = health.probes.iter().filter(|probe| probe.verdict == "broken").count();
    let status = Span::from(printable(&health.status, 16));
    let status = match &*health.status {
        "ok" => status.green(),
        "broken" => status.red(),
        _ => status.yellow(),
    };
    let losses = if lost.is_empty() { "no losses".to_owned() } else { format!("lost: {}", lost.join(", ")) };
    let daemon = &health.daemon;
    let cost = match health.window.duration_ms {
        0 => "not known".to_owned(),
        ms => format!("{:.1} %", daemon.cpu_ms as f64 * 100.0 / ms as f64),
    };
    Line::from(vec![
        status,
        Span::raw(format!(
            "  {losses}  {broken} broken probes  for {}  daemon: {cost} of a processor, {} resident",
            milliseconds(health.window.duration_ms),
            bytes(daemon.resident_bytes)
        )),
    ])
}

fn footer(state: &State) -> Line<'static> {
    if state.editing {
        return Line::from(format!("filter: {}_  Enter keeps it, Esc clears it", printable(&state.filter, 64)));
    }
    let keys = match state.chosen {
        Some(_) => "q quit  Esc back  arrows scroll  space pause",
        None => {
            "q quit  Enter one process  / filter  < > sort by  r reverse  e ended  space pause  - not measured  ~ estimated"
        }
    };
    let filter = if state.filter.is_empty() { String::new() } else { format!("[{}]  ", printable(&state.filter, 64)) };
    Line::from(format!("{filter}{keys}")).dim()
}

fn table(frame: &mut Frame<'_>, area: Rect, state: &mut State) {
    let lines = usize::from(area.height.saturating_sub(1));
    state.page = lines.max(1);
    let view = state.view();
    let at = state.position(&view);
    // As many as fit, with the cursor among them.
    let first = (at + 1).saturating_sub(lines).max(if at < lines { 0 } else { at + 1 - lines });
    let columns = fitting(area.width);
    let shown = view.iter().enumerate().skip(first).take(lines);
    let rows = shown.map(|(index, (_, row))| {
        let drawn = Drawn::new(columns.iter().map(|column| cell(column, column.shown(row))));
        let style = if row.process.ended.is_some() { Style::new().dim() } else { Style::new() };
        drawn.style(if index == at { style.add_modifier(Modifier::REVERSED) } else { style })
    });
    let sorted = &COLUMNS[state.sort];
    let head = columns.iter().map(|column| {
        let mark = if column.title == sorted.title { if state.descending { "v" } else { "^" } } else { "" };
        cell(column, format!("{}{mark}", column.title))
    });
    let widths = columns.iter().map(|column| Constraint::Length(column.width));
    let head = Drawn::new(head).style(Style::new().bold());
    frame.render_widget(Table::new(rows, widths).header(head).column_spacing(1), area);
}

fn cell(column: &Column, text: String) -> Cell<'static> {
    let align = if column.is_text { Alignment::Left } else { Alignment::Right };
    Cell::from(Line::from(text).alignment(align))
}

fn one(frame: &mut Frame<'_>, area: Rect, state: &mut State, pid: u32) {
    let lines = match &state.one {
        Some((shown, Ok(one))) if *shown == pid => whole::lines(one),
        Some((shown, Err(why))) if *shown == pid => vec![Line::from(printable(why, 300))],
        _ => vec![Line::from(format!("asking for process {pid}"))],
    };
    state.page = usize::from(area.height).max(1);
    // Each line may be broken into some: a bound that never hides the last.
    let width = usize::from(area.width.max(1));
    let broken: usize = lines.iter().map(|line| line.width() / width + 1).sum();
    let most = broken.saturating_sub(state.page / 2);
    state.scroll = state.scroll.min(u16::try_from(most).unwrap_or(u16::MAX));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((state.scroll, 0)), area);
}

/// The table as plain lines, for `--once`.
pub fn plain(state: &State, width: u16) -> String {
    let columns = fitting(width);
    let line = |cells: Vec<String>| {
        let padded = columns.iter().zip(cells).map(|(column, text)| {
            let width = usize::from(column.width);
            if !column.is_text {
                return format!("{text:>width$}");
            }
            let cut: String = text.chars().take(width).collect();
            format!("{cut:<width$}")
        });
        format!("{}\n", padded.collect::<Vec<_>>().join(" ").trim_end())
    };
    let mut out = line(columns.iter().map(|column| column.title.to_owned()).collect());
    for (_, row) in state.view() {
        out.push_str(&line(shown(&columns, row)));
    }
    out
}

fn shown(columns: &[&Column], row: &Row) -> Vec<String> {
    columns.iter().map(|column| column.shown(row)).collect()
}
