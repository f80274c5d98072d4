//! What is drawn, on a terminal of cells, and what keys do.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::screen;
use super::state::{Look, State, Then};
use crate::aggregate::model::{Configuration, Count, Estimate, Process, Snapshot, Window};
use crate::report::json::{self, read};
use crate::report::sample;

fn look(snapshot: &Snapshot, chosen: Option<u32>) -> Look {
    let list = json::to_vec(&json::list_difference(snapshot, 0, None));
    let health = json::to_vec(&json::health(snapshot, &Configuration::default(), "0.1.0"));
    let one = chosen.map(|pid| {
        let told = json::one_process(snapshot, pid).ok_or_else(|| format!("process {pid} is not known"));
        (pid, told.and_then(|told| read::one_process(&json::to_vec(&told))))
    });
    Look { list: read::list(&list).expect("a list"), one, health: Some(read::health(&health).expect("health")) }
}

fn estimated() -> Process {
    let mut process = sample::sqlite();
    process.id.pid = 5;
    let estimate = Estimate { coverage_ppm: 250_000, calls_95: Some((600_000, 640_000)), bytes_95: None };
    process.funnel.call_estimate = Some(estimate);
    process
}

/// Two looks, two seconds apart, between which one process made a thousand calls.
fn state(chosen: Option<u32>) -> State {
    let mut hostile = sample::hostile();
    hostile.comm = "<b>\x1b[2J\u{202e}漢字".to_owned();
    let others = || vec![sample::at_depth_syscall(), hostile.clone(), estimated()];
    let mut first = others();
    first.push(sample::sqlite());
    let mut grown = sample::sqlite();
    grown.funnel.call = Some(Count { calls: 619_427, bytes: 61_298_567 });
    let mut next = others();
    next.push(grown);
    let mut state = State::new("http://127.0.0.1:7878".to_owned(), chosen);
    state.take(look(&sample::snapshot(first), chosen));
    let window = Window { start_unix_ms: 1_700_000_000_000, end_unix_ms: 1_700_000_012_000, duration_ms: 12_000 };
    state.take(look(&Snapshot { sequence: 43, window, ..sample::snapshot(next) }, chosen));
    state
}

fn drawn(state: &mut State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| screen::draw(frame, state)).expect("drawn");
    terminal.backend().to_string()
}

fn press(state: &mut State, code: KeyCode) -> Then {
    state.press(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn the_table_tells_speeds_estimates_and_what_is_not_measured() {
    insta::assert_snapshot!(drawn(&mut state(None), 150, 10));
}

#[test]
fn a_narrow_terminal_has_the_columns_that_matter_most() {
    insta::assert_snapshot!(drawn(&mut state(None), 50, 8));
    for width in 1..30 {
        drawn(&mut state(None), width, 4);
        drawn(&mut state(Some(5)), width, 3);
    }
}

#[test]
fn one_process_is_shown_whole() {
    insta::assert_snapshot!(drawn(&mut state(Some(5)), 100, 45));
    insta::assert_snapshot!(drawn(&mut state(Some(77)), 70, 30));
}

#[test]
fn no_name_reaches_the_terminal_as_it_is() {
    for chosen in [None, Some(666)] {
        let text = drawn(&mut state(chosen), 150, 40);
        assert!(text.contains("<b>\\x1b[2J"), "{text}");
        assert!(!text.replace('\n', "").chars().any(crate::report::is_unsafe), "{text}");
    }
    let text = screen::plain(&state(None), 200);
    assert!(text.contains("<b>\\x1b[2J") && !text.replace('\n', "").chars().any(crate::report::is_unsafe), "{text}");
}

#[test]
fn the_newest_line_of_the_log_is_a_line_of_the_picture() {
    let mut state = state(None);
    let without = drawn(&mut state, 120, 10);
    state.log = Some((3, "WARN process \x1b[2J is left alone".to_owned()));
    let with = drawn(&mut state, 120, 10);
    let lines: Vec<&str> = with.lines().collect();
    assert!(lines[8].contains("3 lines of log, the newest: WARN process \\x1b[2J is left alone"), "{with}");
    assert_eq!(lines[9], without.lines().next_back().expect("the keys"), "{with}");
    assert_eq!(lines[..2], without.lines().take(2).collect::<Vec<_>>()[..]);
}

#[test]
fn text_without_a_terminal_has_the_same_figures() {
    insta::assert_snapshot!(screen::plain(&state(None), 200));
}

#[test]
fn keys_sort_filter_move_and_end() {
    let mut state = state(None);
    let first = |state: &State| state.view()[0].1.process.pid;
    // By what is retained; the last are those of which it is not known.
    assert_eq!(state.view().last().expect("one").1.process.pid, 77);
    while super::columns::COLUMNS[state.sort].title != "PID" {
        press(&mut state, KeyCode::Char('>'));
    }
    assert_eq!(first(&state), 4242);
    press(&mut state, KeyCode::Char('r'));
    assert_eq!(first(&state), 5);
    press(&mut state, KeyCode::End);
    let view = state.view();
    assert_eq!(state.position(&view), view.len() - 1);
    press(&mut state, KeyCode::Char('/'));
    for letter in "java 77".chars() {
        assert_eq!(press(&mut state, KeyCode::Char(letter)), Then::Draw);
    }
    assert_eq!(state.view().len(), 1);
    press(&mut state, KeyCode::Enter);
    assert_eq!(press(&mut state, KeyCode::Enter), Then::Ask);
    assert_eq!(state.chosen, Some(77));
    for expected in [Then::Draw, Then::Draw, Then::Quit] {
        assert_eq!(press(&mut state, KeyCode::Esc), expected, "the process, the filter, then the end");
    }
    assert_eq!(press(&mut state, KeyCode::Char('q')), Then::Quit);
    assert_eq!(state.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Then::Quit);
}

#[test]
fn an_image_that_is_gone_leaves_and_one_that_did_not_change_stays() {
    let mut state = state(None);
    let difference =
        br#"{"schema_version":1,"sequence":44,"window":{"start_unix_ms":0,"end_unix_ms":0,"duration_ms":14000},
        "processes":[],"since":43,"whole":false,"gone":[{"pid":77,"start_time_ticks":99,"image_ns":991000000}]}"#;
    let health = state.health.clone();
    state.take(Look { list: read::list(difference).expect("a difference"), one: None, health });
    let pids: Vec<u32> = state.rows.keys().map(|key| key.0).collect();
    assert_eq!(pids, [5, 666, 4242]);
    let quiet = &state.rows.values().find(|row| row.process.pid == 4242).expect("it runs").calls;
    assert_eq!(*quiet, super::columns::Figure::Is(0.0), "measured, and none");
}

#[test]
fn ten_thousand_processes_are_as_many_lines_as_fit() {
    let crowd = (1..=10_000).map(|pid| {
        let mut process = sample::at_depth_syscall();
        process.id.pid = pid;
        process
    });
    let mut state = State::new("here".to_owned(), None);
    state.take(look(&sample::snapshot(crowd.collect()), None));
    press(&mut state, KeyCode::End);
    let text = drawn(&mut state, 80, 12);
    assert!(text.contains("10000 java") && text.contains("9993 java") && !text.contains("9991 java"), "{text}");
}
