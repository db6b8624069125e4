//! A TCP forwarder whose target can change, and whose connections can become silent, as where the network forgets them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Forwards connections to a port that can be changed, which ends the present ones. They can also be silenced.
pub struct Switch {
    port: u16,
    target: Arc<AtomicU16>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// How often all were silenced.
    silenced: Arc<AtomicUsize>,
}

/// Copies one direction until its connection is silenced; from then on it accepts everything and delivers nothing, not
/// even an end.
fn pass(mut from: TcpStream, mut to: TcpStream, silenced: &AtomicUsize, before: usize) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if silenced.load(Ordering::SeqCst) == before && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    if silenced.load(Ordering::SeqCst) == before {
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Switch {
    /// Starts to forward connections to `target` on loopback.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, open) =
            (Arc::new(AtomicU16::new(target)), Arc::<Mutex<Vec<TcpStream>>>::default());
        let silenced = Arc::new(AtomicUsize::new(0));
        let this = Self {
            port,
            target: Arc::clone(&target),
            open: Arc::clone(&open),
            silenced: Arc::clone(&silenced),
        };
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let to = ("127.0.0.1", target.load(Ordering::SeqCst));
                let Ok(server) = TcpStream::connect(to) else { continue };
                let before = silenced.load(Ordering::SeqCst);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let silenced = Arc::clone(&silenced);
                    thread::spawn(move || pass(from, to, &silenced, before));
                }
                open.lock().unwrap().extend([client, server]);
            }
        });
        this
    }

    /// Keeps the present connections open, and forwards nothing on them; new ones work.
    pub fn silence(&self) {
        self.silenced.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address of the database behind it.
    pub fn url(&self) -> String {
        format!("postgres://fingerpost@127.0.0.1:{}/fingerpost", self.port)
    }

    /// Forwards new connections to another port, and ends the present ones.
    pub fn turn(&self, target: u16) {
        self.target.store(target, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
