//! The log, and its level, which may change while the program runs.
//!
//! No part of the program waits for the log's reader. A line is written at once if that cannot block; otherwise it goes
//! into a bounded queue, and a thread of its own writes it. Lines that do not fit are dropped and counted; the log
//! reports the count when the reader continues.

use std::{
    borrow::Cow,
    io::{self, Stderr, Write},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use tracing::warn;
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// The log level: the configured one, or the one that an admin has chosen temporarily. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogLevel(Arc<Mutex<LevelState>>);

#[derive(Debug, Default)]
struct LevelState {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    configured: String,
    chosen: Option<String>,
}

impl LogLevel {
    /// Starts the log of the whole process, on standard error. `level` is one word or a filter of targets.
    pub fn start(level: &str, json: bool) -> Self {
        let (filter, handle) = reload::Layer::new(filter(level));
        let longest = if json { usize::MAX } else { LONGEST };
        let lines = Lines { longest, output: output() };
        let layer = fmt::layer().with_writer(move || lines.clone());
        let registry = tracing_subscriber::registry().with(filter);
        let started = if json {
            registry.with(layer.json()).try_init()
        } else {
            registry.with(layer.with_ansi(false)).try_init()
        };
        if let Err(error) = started {
            warn!(%error, "a log is already there");
        }
        let state = LevelState { filter: Some(handle), configured: level.to_owned(), chosen: None };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Returns the level in force, and whether it is the configured one.
    pub fn now(&self) -> (String, bool) {
        let state = self.lock();
        let level = state.chosen.as_ref().unwrap_or(&state.configured).clone();
        (level, state.chosen.is_none())
    }

    /// Sets the configured level after a reload. A level that an admin has chosen stays in force.
    pub fn set_configured(&self, level: &str) {
        self.lock().configured = level.to_owned();
        self.apply();
    }

    /// Chooses another level until the next choice; `None` returns to the configured level.
    pub fn choose(&self, level: Option<&str>) {
        self.lock().chosen = level.map(ToOwned::to_owned);
        self.apply();
    }

    fn apply(&self) {
        let (level, _) = self.now();
        if let Some(handle) = &self.lock().filter
            && let Err(error) = handle.reload(filter(&level))
        {
            warn!(%error, "could not change the log level");
        }
    }

    fn lock(&self) -> MutexGuard<'_, LevelState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Builds the filter for a level. Libraries may log whole stanzas, with content and digests, so never below their
/// warnings. rPGP warns about what users send, which would fill the log at the rate of their requests; the users get an
/// error anyway.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("warn,pgp=off,fingerpost={level}"))
}

/// The longest line of the log, in bytes. JSON is not cut, for that would not be JSON.
const LONGEST: usize = 4096;

/// Standard error, with each event on one line, whatever strangers have put into it.
#[derive(Clone)]
struct Lines {
    longest: usize,
    output: &'static LogOutput<Stderr>,
}

impl Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.output.put(&one_line(event, self.longest));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that may wait for the log's reader.
const QUEUE: usize = 1 << 20;

/// The bytes that a writable pipe accepts at once, without waiting (PIPE_BUF of Linux).
const AT_ONCE: usize = 4096;

/// How long the last lines may take at the end of the program, and the interval between checks.
const LAST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(5));

/// Returns the log's own output, which the first line creates.
fn output() -> &'static LogOutput<Stderr> {
    static OUTPUT: OnceLock<LogOutput<Stderr>> = OnceLock::new();
    OUTPUT.get_or_init(|| {
        LogOutput::new(io::stderr(), |dropped| {
            warn!(dropped, "log lines dropped: the reader of the log did not keep up");
        })
    })
}

/// Waits a moment until all lines are written; the reader of the log may be gone.
pub async fn flush() {
    let written = async {
        while output().shared.waiting.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(LAST.1).await;
        }
    };
    let _gone = tokio::time::timeout(LAST.0, written).await;
}

/// A file that may block; writing to it never waits.
#[derive(Debug)]
struct LogOutput<F> {
    shared: Arc<LogFile<F>>,
    queue: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
struct LogFile<F> {
    file: F,
    /// Held while a line is written at once.
    writing: Mutex<()>,
    /// The waiting lines, and their bytes.
    waiting: AtomicUsize,
    bytes: AtomicUsize,
    /// The lines dropped since the last report.
    dropped: AtomicU64,
}

impl<F: AsFd + Send + Sync + 'static> LogOutput<F> {
    /// Starts the thread that writes the queued lines. Calls `told` with the number of dropped lines.
    fn new(file: F, told: impl Fn(u64) + Send + 'static) -> Self {
        let shared = Arc::new(LogFile {
            file,
            writing: Mutex::default(),
            waiting: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        });
        let (queue, lines) = mpsc::channel::<Vec<u8>>();
        let thread = {
            let shared = Arc::clone(&shared);
            move || {
                for line in lines {
                    shared.write(&line);
                    shared.bytes.fetch_sub(line.len(), Ordering::Relaxed);
                    if shared.waiting.fetch_sub(1, Ordering::Release) == 1 {
                        let dropped = shared.dropped.swap(0, Ordering::Relaxed);
                        if dropped > 0 {
                            told(dropped);
                        }
                    }
                }
            }
        };
        // Without the thread, lines are still written at once where that cannot block.
        let _started = thread::Builder::new().name("log".to_owned()).spawn(thread);
        Self { shared, queue }
    }

    /// Writes a line now, queues it, or drops it.
    fn put(&self, line: &[u8]) {
        let shared = &*self.shared;
        if shared.waiting.load(Ordering::Acquire) == 0
            && line.len() <= AT_ONCE
            && let Ok(_writing) = shared.writing.try_lock()
            && shared.takes_one()
        {
            shared.write(line);
            return;
        }
        if shared.bytes.load(Ordering::Relaxed).saturating_add(line.len()) > QUEUE {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        shared.bytes.fetch_add(line.len(), Ordering::Relaxed);
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(line.to_vec()).is_err() {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            shared.bytes.fetch_sub(line.len(), Ordering::Relaxed);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<F: AsFd> LogFile<F> {
    /// Returns whether a short line can be written without waiting.
    fn takes_one(&self) -> bool {
        let mut file = [PollFd::new(&self.file, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut file, Some(&at_once)), Ok(1))
            && file[0].revents().contains(PollFlags::OUT)
    }

    /// Writes a line, however long that takes. If the reader of the log is gone, nothing can report that.
    fn write(&self, mut line: &[u8]) {
        while !line.is_empty() {
            match rustix::io::write(&self.file, line) {
                Ok(n) if n > 0 => line = &line[n..],
                Err(rustix::io::Errno::INTR) => {}
                // Another program has made the file non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    let _ready = poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None);
                }
                _ => return,
            }
        }
    }
}

/// Returns an event, which comes with its line end, as one line of at most `longest` bytes.
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
    use std::io::{BufRead, BufReader, PipeReader};

    use super::*;

    /// Logs 10,000 lines before the reader begins. Returns what the reader sees, and how many lines were dropped.
    fn logged(length: usize) -> (Vec<String>, u64) {
        let (reader, writer): (PipeReader, _) = io::pipe().unwrap();
        let (tell, told) = mpsc::channel();
        let output = LogOutput::new(writer, move |dropped| tell.send(dropped).unwrap());
        // Nothing reads the log, yet this returns.
        for n in 0..10_000 {
            output.put(format!("{n:0length$}\n").as_bytes());
        }
        let reading =
            thread::spawn(|| BufReader::new(reader).lines().map(Result::unwrap).collect());
        let dropped =
            if 10_000 * (length + 1) > QUEUE + (1 << 16) { told.recv().unwrap() } else { 0 };
        drop(output);
        let read: Vec<String> = reading.join().unwrap();
        (read, dropped)
    }

    #[test]
    fn a_reader_that_stands_still_stops_nobody_and_loses_only_what_is_too_much() {
        let (read, dropped) = logged(50);
        assert_eq!((read.len(), dropped), (10_000, 0));
        assert!(read.iter().enumerate().all(|(n, line)| line.parse() == Ok(n)), "in their order");
        let (read, dropped) = logged(1000);
        assert!(dropped > 0 && read.len() as u64 + dropped == 10_000, "{} {dropped}", read.len());
        assert!(read.iter().all(|line| line.len() == 1000), "each line is whole");
    }

    #[test]
    fn a_line_is_written_before_the_next_thing_is_done() {
        let (reader, writer) = io::pipe().unwrap();
        let output = LogOutput::new(writer, |_| {});
        output.put(b"one\n");
        assert_eq!(output.shared.waiting.load(Ordering::Acquire), 0);
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).unwrap();
        assert_eq!(line, "one\n");
        // The reader is gone.
        output.put(b"two\n");
    }

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
