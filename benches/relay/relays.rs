//! The relays, each started privately on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use super::bound::Work;
use super::link::Link;
use support::process::Process;
use support::servers::{Kind, LOAD, PROXY, Server};
use support::{COMPONENT, SECRET, free_port, own_program, wait_for};

/// A relay, and the way to get a pair of connections through it.
pub(crate) struct Relay {
    pub(crate) name: &'static str,
    way: Way,
    process: Option<Process>,
    server: Option<Server>,
    /// Held while connections are on their way to the listener.
    alone: Mutex<()>,
    /// The port of Fingerpost's status server.
    http: Option<u16>,
    _directory: Option<TempDir>,
}

enum Way {
    /// One end connects to `port`, and the other arrives at the listener.
    Forward { port: u16, sink: TcpListener },
    /// Both ends connect to the SOCKS5 port of a proxy; the link activates them.
    Socks5 { port: u16, jid: &'static str, link: Arc<Mutex<Link>> },
}

impl Relay {
    /// Returns a relay that has no process, server or directory of its own.
    fn of(name: &'static str, way: Way) -> Self {
        let (process, server, alone) = (None, None, Mutex::default());
        Self { name, way, process, server, alone, http: None, _directory: None }
    }

    /// No relay: the baseline for all others.
    pub(crate) fn direct() -> Self {
        let sink = sink();
        let port = sink.local_addr().unwrap().port();
        let way = Way::Forward { port, sink };
        Self::of("direct", way)
    }

    /// HAProxy in TCP mode with forced splice; 0 for `pipe` leaves the pipes' size to it.
    pub(crate) fn haproxy(name: &'static str, pipe: usize) -> Self {
        Self::forward(name, |port, sink, directory| {
            let config = directory.join("haproxy.cfg");
            let pipes = if pipe > 0 { format!("  tune.pipesize {pipe}\n") } else { String::new() };
            let text = format!(
                "global\n  maxconn 6000\n{pipes}defaults\n  mode tcp\n  option splice-request\n  option splice-response\n  \
                 timeout connect 5s\n  timeout client 60s\n  timeout server 60s\nlisten relay\n  \
                 bind 127.0.0.1:{port}\n  server sink 127.0.0.1:{sink}\n"
            );
            std::fs::write(&config, text).unwrap();
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(config);
            command
        })
    }

    /// The least that a relay on epoll(7) can do.
    pub(crate) fn bound() -> Self {
        Self::forward(super::BOUND, |port, sink, _| super::bound::command(port, sink))
    }

    /// The least that a relay of many bytes can do.
    pub(crate) fn splice_bound() -> Self {
        Self::forward(super::BOUND, |port, sink, _| super::bound::splice_command(port, sink))
    }

    /// The least that a component can do with an in-band bytestream.
    pub(crate) fn in_band_bound(name: &'static str, work: Work) -> Self {
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let command = super::bound::component(server.local_addr().unwrap().port(), work);
        let process = Process::start(command, &directory.path().join("log"));
        let link = Arc::new(Mutex::new(Link::plain(&server)));
        let way = Way::Socks5 { port: 0, jid: COMPONENT, link };
        Self { process: Some(process), _directory: Some(directory), ..Self::of(name, way) }
    }

    /// socat, which copies, with a process for each connection.
    pub(crate) fn socat() -> Self {
        Self::forward("socat", |port, sink, _| {
            let mut command = Command::new("socat");
            command
                .arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=128"))
                .arg(format!("TCP:127.0.0.1:{sink}"));
            command
        })
    }

    fn forward(name: &'static str, command: impl FnOnce(u16, u16, &Path) -> Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sink = sink();
        let port = free_port();
        let command = command(port, sink.local_addr().unwrap().port(), directory.path());
        let process = Process::start(command, &directory.path().join("log"));
        wait_for(
            name,
            Duration::from_secs(10),
            || process.log(),
            || TcpStream::connect(("127.0.0.1", port)).is_ok(),
        );
        // The probe's own connection has come through too.
        let _first = sink.accept();
        Self {
            process: Some(process),
            _directory: Some(directory),
            ..Self::of(name, Way::Forward { port, sink })
        }
    }

    /// Returns the mod_proxy65 of a server that has this program as a component.
    pub(crate) fn mod_proxy65(name: &'static str, kind: Kind) -> Self {
        let server = Server::start_to_measure(kind);
        let link = Arc::new(Mutex::new(Link::connect(&server.component_address())));
        let way = Way::Socks5 { port: server.proxy_port().unwrap(), jid: PROXY, link };
        Self { server: Some(server), ..Self::of(name, way) }
    }

    /// Fingerpost, attached to this program as its XMPP server.
    pub(crate) fn fingerpost() -> Self {
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = server.local_addr().unwrap().to_string();
        let (process, directory, [port, http]) = start_fingerpost(&address);
        let link = Arc::new(Mutex::new(Link::accept(&server)));
        serve_meanwhile(&link);
        let way = Way::Socks5 { port, jid: COMPONENT, link };
        Self {
            process: Some(process),
            http: Some(http),
            _directory: Some(directory),
            ..Self::of("Fingerpost", way)
        }
    }

    /// A program that writes `answer` for every `request` bytes that it reads: the baseline for requests.
    fn constant(request: usize, answer: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let answer = answer.to_owned();
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut bytes, mut answers, mut pending) = (vec![0; 1 << 18], Vec::new(), 0);
            while let Ok(n @ 1..) = stream.read(&mut bytes) {
                pending += n;
                answers.clear();
                for _ in 0..pending / request {
                    answers.extend_from_slice(answer.as_bytes());
                }
                pending %= request;
                if stream.write_all(&answers).is_err() {
                    return;
                }
            }
        });
        let link = Arc::new(Mutex::new(Link::plain(&listener)));
        let way = Way::Socks5 { port: 0, jid: COMPONENT, link };
        Self::of("constant", way)
    }

    /// Returns a program that answers a disco#info request as this one does.
    pub(crate) fn to_constant(&self) -> Self {
        let (jid, link) = self.link().unwrap();
        let mut link = link.lock().unwrap();
        let request = link.information_request(jid);
        link.send(&request);
        Self::constant(request.len(), &link.stanza())
    }

    /// Fingerpost as a component of a real server, beside this program as another component.
    pub(crate) fn fingerpost_at(name: &'static str, kind: Kind) -> Self {
        let server = Server::start_to_measure(kind);
        let (process, directory, [port, http]) = start_fingerpost(&server.component_address());
        let link = Arc::new(Mutex::new(Link::connect(&server.component_address())));
        let ready = || process.log().contains("link up");
        wait_for("the component's login", Duration::from_secs(30), || process.log(), ready);
        let way = Way::Socks5 { port, jid: COMPONENT, link };
        Self {
            process: Some(process),
            server: Some(server),
            http: Some(http),
            _directory: Some(directory),
            ..Self::of(name, way)
        }
    }

    /// Returns whether it is the one that must reach the goals.
    pub(crate) fn is_ours(&self) -> bool {
        self.name.starts_with("Fingerpost")
    }

    /// Returns the link to ask its proxy by, and the proxy's address.
    pub(crate) fn link(&self) -> Option<(&'static str, &Mutex<Link>)> {
        match &self.way {
            Way::Forward { .. } => None,
            Way::Socks5 { jid, link, .. } => Some((jid, link)),
        }
    }

    /// Returns so many pairs of connections: the writing ends, and the reading ends.
    pub(crate) fn connect(&self, pairs: usize) -> Vec<(TcpStream, TcpStream)> {
        // In step, so that a relay that answers late is late once and not for each pair. ejabberd's queue of new
        // connections is short; a connection that finds it full waits for a second.
        let step = if self.name.starts_with("ejabberd") { 1 } else { STEP };
        let sizes = (0..pairs).step_by(step).map(|begun| step.min(pairs - begun));
        sizes.flat_map(|size| self.connect_step(size)).collect()
    }

    fn connect_step(&self, pairs: usize) -> Vec<(TcpStream, TcpStream)> {
        match &self.way {
            Way::Forward { port, sink } => (0..pairs)
                .map(|_| {
                    let writer = TcpStream::connect(("127.0.0.1", *port)).unwrap();
                    writer.set_nodelay(true).unwrap();
                    let reader = sink.accept().unwrap().0;
                    reader.set_nodelay(true).unwrap();
                    (writer, reader)
                })
                .collect(),
            Way::Socks5 { port, jid, link } => {
                let sids: Vec<String> = {
                    let mut link = link.lock().unwrap();
                    (0..pairs).map(|_| link.next_sid()).collect()
                };
                let (from, target) = {
                    let link = link.lock().unwrap();
                    (link.from(), link.target())
                };
                let hashes: Vec<String> = sids
                    .iter()
                    .map(|sid| HEXLOWER.encode(&Sha1::digest(format!("{sid}{from}{target}"))))
                    .collect();
                let both: Vec<&String> = hashes.iter().chain(&hashes).collect();
                let mut streams = socks5(*port, &both);
                link.lock().unwrap().activate(jid, &sids);
                let readers = streams.split_off(pairs);
                streams.into_iter().zip(readers).collect()
            }
        }
    }

    /// Returns both ends of so many pairs, connected in one step. Two direct connections count as a pair.
    pub(crate) fn set_up(&self, pairs: usize) -> Vec<TcpStream> {
        let connect = |port| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        };
        let join = |port, sink: &TcpListener, connections| {
            let mut ends: Vec<TcpStream> = (0..connections).map(|_| connect(port)).collect();
            ends.extend((0..connections).map(|_| sink.accept().unwrap().0));
            ends
        };
        match &self.way {
            Way::Socks5 { .. } => {
                self.connect(pairs).into_iter().flat_map(<[TcpStream; 2]>::from).collect()
            }
            Way::Forward { .. } if self.process.is_none() => {
                let sink = sink();
                join(sink.local_addr().unwrap().port(), &sink, 2 * pairs)
            }
            Way::Forward { port, sink } => {
                // One thread at a time: a relay makes no second connection if the first has ended before.
                let _alone = self.alone.lock().unwrap();
                join(*port, sink, pairs)
            }
        }
    }

    /// Returns the relay's process.
    fn id(&self) -> Option<u32> {
        let own = self.process.as_ref().map(Process::id);
        own.or_else(|| self.server.as_ref().and_then(Server::id))
    }

    /// Returns how often a thing has happened in Fingerpost, by its metrics: the sum of all lines that begin so.
    pub(crate) fn counted(&self, begin: &str) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http.unwrap())).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(begin));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Returns the relay's processes: its own and its children.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let Some(own) = self.id() else { return Vec::new() };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let parent = |id: u32| -> Option<u32> {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
        };
        ids.filter(|id| *id == own || parent(*id) == Some(own)).collect()
    }

    /// Returns the resident bytes of the relay and its children.
    pub(crate) fn resident(&self) -> f64 {
        self.processes().into_iter().map(|id| kib(&format!("/proc/{id}/status"), "VmRSS:")).sum()
    }

    /// Returns the processor time of the relay and its children, seconds.
    pub(crate) fn processor_time(&self) -> f64 {
        let own = self.id();
        let ticks = |id: u32| -> Option<f64> {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
            // utime and stime; for the relay itself also those of its ended children.
            let last = if Some(id) == own { 15 } else { 13 };
            Some(fields.get(11..last)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum())
        };
        self.processes().into_iter().filter_map(ticks).sum::<f64>() / 100.0
    }
}

/// Returns the bytes of a line in KiB of a file of the kernel.
pub(crate) fn kib(path: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
    kib.unwrap_or_default() * 1024.0
}

/// Returns a listener with a long queue.
fn sink() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

/// Serves a link while nothing else uses it.
fn serve_meanwhile(link: &Arc<Mutex<Link>>) {
    let link = Arc::downgrade(link);
    std::thread::spawn(move || {
        while let Some(link) = link.upgrade() {
            if let Ok(mut link) = link.try_lock() {
                link.serve();
            }
            drop(link);
            std::thread::sleep(Duration::from_secs(2));
        }
    });
}

/// Pairs connected in one step.
const STEP: usize = 64;

/// Starts Fingerpost; returns also its SOCKS5 port and that of its status server.
fn start_fingerpost(server: &str) -> (Process, TempDir, [u16; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let [port, http] = [free_port(), free_port()];
    let config = directory.path().join("fingerpost.toml");
    let text = format!(
        "[component]\njid = \"{COMPONENT}\"\nserver = \"{server}\"\nsecret = \"{SECRET}\"\n\
         [database]\nurl = \"sqlite::memory:\"\n[socks5]\nlisten = [\"127.0.0.1:{port}\"]\n\
         [http]\nlisten = \"127.0.0.1:{http}\"\n[registry]\nimport_pep = false\n[access]\nusers = [\"example.test\", \"{LOAD}\"]\n\
         [broker]\nrequire_tls = false\n\
         [limits]\nrequests_per_second = 1000000\nconnections_per_ip = 1000000\nsessions = 100000\n\
         sessions_per_user = 1000000\n[ibb]\nmemory = 1073741824\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(own_program("fingerpost"));
    command.arg("serve").arg("-c").arg(config);
    (Process::start(command, &directory.path().join("log")), directory, [port, http])
}

/// Connections through the SOCKS5 handshake, in step.
fn socks5(port: u16, hashes: &[&String]) -> Vec<TcpStream> {
    let mut streams: Vec<TcpStream> = hashes
        .iter()
        .map(|_| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        })
        .collect();
    for stream in &mut streams {
        stream.write_all(&[5, 1, 0]).unwrap();
    }
    for (stream, hash) in streams.iter_mut().zip(hashes) {
        stream.read_exact(&mut [0; 2]).unwrap();
        let mut request = vec![5, 1, 0, 3, 40];
        request.extend(hash.as_bytes());
        request.extend([0, 0]);
        stream.write_all(&request).unwrap();
    }
    for stream in &mut streams {
        let mut reply = [0; 47];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[1], 0, "the proxy refused");
    }
    streams
}
