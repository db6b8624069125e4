//! The load: pairs of threads, of which one writes as fast as it can and the other reads.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::relays::Relay;

/// How long one figure is measured.
pub(crate) const TIME: Duration = Duration::from_secs(2);
/// What is written and read at once.
const BLOCK: usize = 256 * 1024;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// All pairs together.
    pub(crate) bytes_per_second: f64,
    /// The relay's processor time.
    pub(crate) seconds_per_gb: f64,
}

/// Drives a relay with so many pairs.
pub(crate) fn run(relay: &Relay, pairs: usize) -> Figure {
    let ends = relay.connect(pairs);
    let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut threads = Vec::new();
    for (mut writer, mut reader) in ends {
        let stop = Arc::clone(&stop);
        threads.push(std::thread::spawn(move || {
            let block = vec![7; BLOCK];
            while !stop.load(Ordering::Relaxed) && writer.write_all(&block).is_ok() {}
            let _ended = writer.shutdown(Shutdown::Both);
        }));
        let read = Arc::clone(&read);
        threads.push(std::thread::spawn(move || {
            let mut block = vec![0; BLOCK];
            while let Ok(n @ 1..) = reader.read(&mut block) {
                read.fetch_add(n as u64, Ordering::Relaxed);
            }
        }));
    }
    // The first moments, when windows grow, do not count.
    std::thread::sleep(Duration::from_millis(200));
    let (begin, bytes, spent) =
        (Instant::now(), read.load(Ordering::Relaxed), relay.processor_time());
    std::thread::sleep(TIME);
    let bytes = (read.load(Ordering::Relaxed) - bytes) as f64;
    let spent = relay.processor_time() - spent;
    let took = begin.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    Figure { bytes_per_second: bytes / took, seconds_per_gb: spent / (bytes / 1e9) }
}
