//! The loads over running pairs: as many bytes as possible, and single bytes in both directions.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::relays::Relay;

/// The duration of one measurement.
pub(crate) const TIME: Duration = Duration::from_secs(2);
/// The size of one read or write.
const BLOCK: usize = 256 * 1024;
/// The number of timed round trips, and of the untimed ones before them.
const TRIPS: (usize, usize) = (20_000, 2_000);

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// All pairs together.
    pub(crate) bytes_per_second: f64,
    /// The relay's processor time.
    pub(crate) seconds_per_gb: f64,
}

/// Drives a relay with so many pairs of threads: in each pair one writes as fast as it can and the other reads.
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
    // The first moments, while windows grow, do not count.
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

/// Returns the round-trip time of a byte through a relay, all on one core: median and 99th percentile, µs.
pub(crate) fn trips(relay: &Relay) -> (f64, f64) {
    let (mut here, mut there) = relay.connect(1).remove(0);
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
    });
    let mut processes = relay.processes();
    processes.push(std::process::id());
    pin(&processes, "0");
    let mut times: Vec<f64> = (0..TRIPS.0 + TRIPS.1)
        .map(|_| {
            let begin = Instant::now();
            here.write_all(&[1]).unwrap();
            here.read_exact(&mut [0]).unwrap();
            begin.elapsed().as_secs_f64() * 1e6
        })
        .skip(TRIPS.1)
        .collect();
    pin(&processes, "0-1023");
    let _ended = here.shutdown(Shutdown::Both);
    echo.join().unwrap();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Pins all threads of some processes to some cores.
fn pin(processes: &[u32], cores: &str) {
    for id in processes {
        let mut taskset = Command::new("taskset");
        let done = taskset.args(["-a", "-c", "-p", cores, &id.to_string()]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}
