//! The log, and its level, which may change while the program runs.

use std::{
    borrow::Cow,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::warn;
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// The level of the log: what the configuration says, or what an admin has chosen for a while. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogLevel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    configured: String,
    chosen: Option<String>,
}

impl LogLevel {
    /// Starts the log of the whole process, on standard error. `level` is one word or a filter of targets.
    pub fn start(level: &str, json: bool) -> Self {
        let (filter, handle) = reload::Layer::new(filter(level));
        let longest = if json { usize::MAX } else { LONGEST };
        let layer = fmt::layer().with_writer(move || Lines { longest });
        let registry = tracing_subscriber::registry().with(filter);
        let started = if json {
            registry.with(layer.json()).try_init()
        } else {
            registry.with(layer.with_ansi(false)).try_init()
        };
        if let Err(error) = started {
            warn!(%error, "a log is already there");
        }
        let state = State { filter: Some(handle), configured: level.to_owned(), chosen: None };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The level in force, and whether it is the configuration's.
    pub fn now(&self) -> (String, bool) {
        let state = self.lock();
        let level = state.chosen.as_ref().unwrap_or(&state.configured).clone();
        (level, state.chosen.is_none())
    }

    /// The configuration was read again. What an admin has chosen stays.
    pub fn set_configured(&self, level: &str) {
        self.lock().configured = level.to_owned();
        self.apply();
    }

    /// Another level until it is chosen anew; `None` is the configuration's.
    pub fn choose(&self, level: Option<&str>) {
        self.lock().chosen = level.map(ToOwned::to_owned);
        self.apply();
    }

    fn apply(&self) {
        let (level, _) = self.now();
        if let Some(handle) = &self.lock().filter
            && let Err(error) = handle.reload(filter(&level))
        {
            warn!(%error, "the level of the log cannot be changed");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What libraries say of whole stanzas may hold content and digests: never below their warnings. What rPGP warns of is
/// in what users send: it would fill the log at the rate of their requests, and they are told themselves.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("warn,pgp=off,fingerpost={level}"))
}

/// The longest line of the log, in bytes. JSON is not cut, for that would not be JSON.
const LONGEST: usize = 4096;

/// Standard error, where each event is one line, whatever others have put into it.
struct Lines {
    longest: usize,
}

impl Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(&one_line(event, self.longest))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// An event, which comes with its line end, as one line of at most `longest` bytes.
fn one_line(event: &[u8], longest: usize) -> Cow<'_, [u8]> {
    let text = event.strip_suffix(b"\n").unwrap_or(event);
    if text.len() <= longest && !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Cow::Borrowed(event);
    }
    let mut line = Vec::with_capacity(text.len().min(longest) + 8);
    for part in text.utf8_chunks() {
        for c in part.valid().chars() {
            if line.len() >= longest {
                line.extend("…".as_bytes());
                line.push(b'\n');
                return Cow::Owned(line);
            }
            match c {
                '\n' => line.extend(b"\\n"),
                '\r' => line.extend(b"\\r"),
                c => line.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
    line.push(b'\n');
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_bounded_length() {
        assert_eq!(*one_line(b"link up\n", 20), *b"link up\n");
        assert_eq!(*one_line(b"a\nb\r\nc\n", 20), *b"a\\nb\\r\\nc\n");
        let long = "ä".repeat(5000) + "\n";
        let line = one_line(long.as_bytes(), 4096);
        assert!(line.len() <= 4096 + 4 && line.ends_with("…\n".as_bytes()));
        assert_eq!(*one_line(long.as_bytes(), usize::MAX), *long.as_bytes());
    }
}
