//! The log, and its level, which may change while the program runs.

use std::{
    io,
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
        let layer = fmt::layer().with_writer(io::stderr);
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

/// What libraries say of whole stanzas may hold content and digests: never below their warnings.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("warn,fingerpost={level}"))
}
