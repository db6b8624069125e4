//! A TCP forwarder that a test turns to another port, or that becomes silent as a firewall does that forgot its connections.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    thread,
};

/// Passes connections on to a port on loopback. Its threads end with the test program.
pub struct Switch {
    port: u16,
    target: Arc<AtomicU16>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// How often all were silenced.
    silenced: Arc<AtomicUsize>,
    /// Whether new connections are silent, too.
    is_cut: Arc<AtomicBool>,
    /// All connections are silenced before this text passes.
    last: Arc<Mutex<Option<String>>>,
}

/// Copies one direction until its connection is silenced; from then on it takes all and gives nothing, not even an end.
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    silenced: &AtomicUsize,
    before: usize,
    last: &Mutex<Option<String>>,
) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut last = last.lock().unwrap();
        let is_last = |last: &String| String::from_utf8_lossy(&bytes[..count]).contains(last);
        if last.take_if(|last| is_last(last)).is_some() {
            silenced.fetch_add(1, Ordering::SeqCst);
        }
        drop(last);
        if silenced.load(Ordering::SeqCst) == before && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    if silenced.load(Ordering::SeqCst) == before {
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Switch {
    /// Starts to pass connections on to this port.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, open) =
            (Arc::new(AtomicU16::new(target)), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (silenced, is_cut) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let this = Self {
            port,
            target: Arc::clone(&target),
            open: Arc::clone(&open),
            silenced: Arc::clone(&silenced),
            is_cut: Arc::clone(&is_cut),
            last: Arc::default(),
        };
        let last = Arc::clone(&this.last);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if is_cut.load(Ordering::SeqCst) {
                    open.lock().unwrap().push(client);
                    continue;
                }
                let to = ("127.0.0.1", target.load(Ordering::SeqCst));
                let Ok(server) = TcpStream::connect(to) else { continue };
                let before = silenced.load(Ordering::SeqCst);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (silenced, last) = (Arc::clone(&silenced), Arc::clone(&last));
                    thread::spawn(move || pass(from, to, &silenced, before, &last));
                }
                open.lock().unwrap().extend([client, server]);
            }
        });
        this
    }

    /// Keeps the connections that there are open, and passes nothing on; new ones work.
    pub fn silence(&self) {
        self.silenced.fetch_add(1, Ordering::SeqCst);
    }

    /// The same, once, as soon as a connection is to carry this text; that is not passed on either.
    pub fn silence_before(&self, text: &str) {
        *self.last.lock().unwrap() = Some(text.to_owned());
    }

    /// Whether the text of [`Switch::silence_before`] has come.
    pub fn has_come(&self) -> bool {
        self.last.lock().unwrap().is_none()
    }

    /// Keeps the connections open and silent, and new ones are accepted and get nothing either, until [`Switch::mend`].
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        self.silence();
    }

    /// New connections work again.
    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a PostgreSQL behind it.
    pub fn url(&self) -> String {
        format!("postgres://fingerpost@127.0.0.1:{}/fingerpost", self.port)
    }

    /// Passes new connections on to this port, and ends those that there are.
    pub fn turn(&self, target: u16) {
        self.target.store(target, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
