//! The shell around the view: the terminal, its keys, and the time between two documents.

use std::{future::Future, io, time::Duration};

use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{StatusDocument, TopKey, TopView};

/// The terminal, which is given back as it was, whatever happens.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows a view until the user ends it, with a new document from `fetch` in each `every`.
///
/// `fetch` says in a sentence why it has none; the view shows that and goes on.
///
/// # Errors
/// If the terminal can be neither read nor written.
pub async fn watch<F, R>(every: Duration, fetch: F) -> io::Result<()>
where
    F: Fn() -> R,
    R: Future<Output = Result<StatusDocument, String>>,
{
    let mut screen = Screen(ratatui::try_init()?);
    let mut view = TopView::default();
    let mut keys = EventStream::new();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.0.draw(|frame| view.draw(frame.area(), frame.buffer_mut()))?;
        tokio::select! {
            _ = ticks.tick() => match fetch().await {
                Ok(document) => view.take(document, Instant::now().into_std()),
                Err(why) => view.fail(why),
            },
            event = keys.next() => match event {
                Some(event) => {
                    if let Some(key) = pressed(&event?) && !view.press(key) {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

/// Returns the key of an event, if it has a meaning.
fn pressed(event: &Event) -> Option<TopKey> {
    let key = event.as_key_event().filter(|key| key.kind != KeyEventKind::Release)?;
    Some(match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => TopKey::Quit,
        KeyCode::Char('q') | KeyCode::Esc => TopKey::Quit,
        KeyCode::Char('s') => TopKey::Order,
        KeyCode::Char('p' | ' ') => TopKey::Pause,
        KeyCode::Char('j') | KeyCode::Down => TopKey::Down(1),
        KeyCode::Char('k') | KeyCode::Up => TopKey::Up(1),
        KeyCode::PageDown => TopKey::Down(10),
        KeyCode::PageUp => TopKey::Up(10),
        KeyCode::Home => TopKey::Up(usize::MAX),
        _ => return None,
    })
}
