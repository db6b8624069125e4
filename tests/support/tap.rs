//! A TCP forwarder that records the bytes, and holds them when a test wants a transfer to stand still.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::wait_for;

/// The type of the path layer's control records.
const CONTROL: u8 = 26;

/// The bytes of one connection, each way.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// From the connecting side.
    pub up: Vec<u8>,
    /// To the connecting side.
    pub down: Vec<u8>,
}

/// A forwarder on a loopback port. Its threads end with the test program.
pub struct Tap {
    port: u16,
    connections: Arc<Mutex<Vec<Arc<Mutex<Captured>>>>>,
    gate: Arc<Gate>,
}

/// Where bytes of the connecting sides wait.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// How many bytes may still pass; all if it is `None`.
    left: Option<usize>,
    /// How many connections wait.
    waiting: usize,
    /// How often the waiting bytes were discarded.
    cuts: usize,
}

impl Gate {
    /// Waits until `count` bytes may pass; returns whether they may.
    fn pass(&self, count: usize) -> bool {
        let mut state = self.state.lock().unwrap();
        let cuts = state.cuts;
        state.waiting += 1;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| state.cuts == cuts && state.left == Some(0))
            .unwrap();
        state.waiting -= 1;
        state.left = state.left.map(|left| left.saturating_sub(count));
        state.cuts == cuts
    }

    fn set(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Tap {
    /// Starts to forward connections to `target` on loopback.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections: Arc<Mutex<Vec<Arc<Mutex<Captured>>>>> = Arc::default();
        let all = Arc::clone(&connections);
        let gate = Arc::<Gate>::default();
        let gates = Arc::clone(&gate);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", target)))
                else {
                    continue;
                };
                let captured = Arc::<Mutex<Captured>>::default();
                all.lock().unwrap().push(Arc::clone(&captured));
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (up, gate) = (Arc::clone(&captured), Arc::clone(&gates));
                thread::spawn(move || {
                    forward(from, to, |bytes| {
                        let passes = gate.pass(bytes.len());
                        if passes {
                            up.lock().unwrap().up.extend_from_slice(bytes);
                        }
                        passes
                    });
                });
                thread::spawn(move || {
                    forward(server, client, |bytes| {
                        captured.lock().unwrap().down.extend_from_slice(bytes);
                        true
                    });
                });
            }
        });
        Self { port, connections, gate }
    }

    /// Holds everything that the connecting sides send after about `count` more bytes, until [`Tap::open`] or
    /// [`Tap::cut`].
    pub fn hold_after(&self, count: usize) {
        self.gate.set(|state| state.left = Some(count));
    }

    /// Waits until bytes are held.
    pub fn wait_until_held(&self, why: impl Fn() -> String) {
        let held = || {
            let state = self.gate.state.lock().unwrap();
            state.left == Some(0) && state.waiting > 0
        };
        wait_for("the middle of the transfer", super::PATIENCE, why, held);
    }

    /// Releases the held bytes, and all that follow.
    pub fn open(&self) {
        self.gate.set(|state| state.left = None);
    }

    /// Discards the held bytes, ends their connections, and lets all others pass.
    pub fn cut(&self) {
        self.gate.set(|state| {
            state.left = None;
            state.cuts += 1;
        });
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the number of bytes so far, both ways.
    pub fn count(&self) -> usize {
        let connections = self.connections.lock().unwrap();
        let count = |captured: &Captured| captured.up.len() + captured.down.len();
        connections.iter().map(|connection| count(&connection.lock().unwrap())).sum()
    }

    /// Returns the bytes so far.
    pub fn captured(&self) -> Vec<Captured> {
        self.connections
            .lock()
            .unwrap()
            .iter()
            .map(|connection| connection.lock().unwrap().clone())
            .collect()
    }
}

/// Forwards until one side ends, or until `keep` returns that it is over.
fn forward(mut from: TcpStream, mut to: TcpStream, mut keep: impl FnMut(&[u8]) -> bool) {
    let mut block = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut block) {
        if n == 0 {
            break;
        }
        if !keep(&block[..n]) {
            let _gone = from.shutdown(Shutdown::Both);
            let _gone = to.shutdown(Shutdown::Both);
            break;
        }
        if to.write_all(&block[..n]).is_err() {
            break;
        }
    }
    let _gone = to.shutdown(Shutdown::Write);
}

/// Checks that `bytes` are only TLS records and control records of the path layer (the last may be cut short), and counts
/// the former.
///
/// # Errors
/// The position of the first byte that is not part of one.
pub fn tls_records(bytes: &[u8]) -> Result<usize, String> {
    let types = record_types(bytes)?;
    Ok(types.iter().filter(|kind| **kind != CONTROL).count())
}

/// Returns whether there are control records of the path layer among TLS records.
///
/// # Panics
/// If there is something else.
pub fn has_control_records(bytes: &[u8]) -> bool {
    record_types(bytes).unwrap().contains(&CONTROL)
}

fn record_types(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let (mut at, mut types) = (0, Vec::new());
    while at < bytes.len() {
        let header =
            bytes.get(at..at + 5).ok_or(format!("{} bytes left at {at}", bytes.len() - at))?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let is_known = (20..=23).contains(&header[0]) || header[0] == CONTROL;
        let plausible = is_known && header[1] == 3 && header[2] <= 4;
        if !plausible || length > 16 * 1024 + 256 {
            return Err(format!("at {at}: {header:02x?} begins no TLS record"));
        }
        at += 5 + length;
        types.push(header[0]);
    }
    Ok(types)
}

/// Removes the SOCKS5 negotiation from the bytes of one side: greeting and request, or the two replies.
pub fn after_socks5(bytes: &[u8], from_client: bool) -> Option<&[u8]> {
    let greeting = if from_client { 2 + usize::from(*bytes.get(1)?) } else { 2 };
    let request = bytes.get(greeting..)?;
    let length = match *request.get(3)? {
        1 => 10,
        3 => 7 + usize::from(*request.get(4)?),
        4 => 22,
        _ => return None,
    };
    request.get(length..)
}
