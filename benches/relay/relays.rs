//! The relays, each started privately on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use sha1::{Digest, Sha1};
use tempfile::TempDir;

use super::support::process::Process;
use super::support::{COMPONENT, SECRET, free_port, wait_for};

/// A relay, and how to get a pair of connections through it.
pub(crate) struct Relay {
    pub(crate) name: &'static str,
    way: Way,
    process: Option<Process>,
    _folder: Option<TempDir>,
}

enum Way {
    /// One end connects to `port`, and the other arrives at the listener.
    Forward { port: u16, sink: TcpListener },
    /// Both ends connect to the SOCKS5 port; the link activates them.
    Socks5 { port: u16, link: Mutex<Link> },
}

impl Relay {
    /// No relay: what all are compared with.
    pub(crate) fn direct() -> Self {
        let sink = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = sink.local_addr().unwrap().port();
        let way = Way::Forward { port, sink };
        Self { name: "direct", way, process: None, _folder: None }
    }

    /// HAProxy in TCP mode with splice forced; `pipe` 0 leaves the pipes' size to it.
    pub(crate) fn haproxy(name: &'static str, pipe: usize) -> Self {
        Self::forward(name, |port, sink, folder| {
            let config = folder.join("haproxy.cfg");
            let pipes = if pipe > 0 { format!("  tune.pipesize {pipe}\n") } else { String::new() };
            let text = format!(
                "global\n  maxconn 4000\n{pipes}defaults\n  mode tcp\n  option splice-request\n  option splice-response\n  \
                 timeout connect 5s\n  timeout client 60s\n  timeout server 60s\nlisten relay\n  \
                 bind 127.0.0.1:{port}\n  server sink 127.0.0.1:{sink}\n"
            );
            std::fs::write(&config, text).unwrap();
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(config);
            command
        })
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
        let folder = tempfile::tempdir().unwrap();
        let sink = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free_port();
        let command = command(port, sink.local_addr().unwrap().port(), folder.path());
        let process = Process::start(command, &folder.path().join("log"));
        wait_for(
            name,
            Duration::from_secs(10),
            || process.log(),
            || TcpStream::connect(("127.0.0.1", port)).is_ok(),
        );
        // The connection of the wait has come through too.
        let _first = sink.accept();
        Self {
            name,
            way: Way::Forward { port, sink },
            process: Some(process),
            _folder: Some(folder),
        }
    }

    /// Fingerpost, attached to an XMPP server that is this program.
    pub(crate) fn fingerpost() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free_port();
        let config = folder.path().join("fingerpost.toml");
        let text = format!(
            "[component]\njid = \"{COMPONENT}\"\nserver = \"{}\"\nsecret = \"{SECRET}\"\n\
             [database]\nurl = \"sqlite::memory:\"\n[socks5]\nlisten = [\"127.0.0.1:{port}\"]\n\
             [http]\nlisten = \"\"\n[limits]\nrequests_per_second = 1000000\nconnections_per_ip = 100000\n\
             sessions_per_user = 100000\n",
            server.local_addr().unwrap()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fingerpost"));
        command.arg("serve").arg("-c").arg(config);
        let process = Process::start(command, &folder.path().join("log"));
        let link = Mutex::new(Link::accept(&server));
        let way = Way::Socks5 { port, link };
        Self { name: "Fingerpost", way, process: Some(process), _folder: Some(folder) }
    }

    /// Whether it is the one that must reach the goals.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.way, Way::Socks5 { .. })
    }

    /// So many pairs of connections: who writes, and who reads.
    pub(crate) fn connect(&self, pairs: usize) -> Vec<(TcpStream, TcpStream)> {
        (0..pairs)
            .map(|_| match &self.way {
                Way::Forward { port, sink } => {
                    let writer = TcpStream::connect(("127.0.0.1", *port)).unwrap();
                    (writer, sink.accept().unwrap().0)
                }
                Way::Socks5 { port, link } => {
                    let mut link = link.lock().unwrap();
                    let (sid, target) = (link.next_sid(), "b@example.test/b");
                    let hash = hex(&Sha1::digest(format!("{sid}{FROM}{target}")));
                    let ends = (socks5(*port, &hash), socks5(*port, &hash));
                    link.activate(&sid, target);
                    ends
                }
            })
            .collect()
    }

    /// The processor time of the relay and its children, seconds.
    pub(crate) fn processor_time(&self) -> f64 {
        let Some(process) = &self.process else { return 0.0 };
        let own = process.id();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ticks: f64 = ids
            .filter_map(|id| {
                let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
                let fields: Vec<String> =
                    stat.rsplit(") ").next()?.split(' ').map(str::to_owned).collect();
                let parent: u32 = fields.get(1)?.parse().ok()?;
                // utime and stime; of the relay itself also those of its ended children.
                let last = if id == own { 15 } else { 13 };
                (id == own || parent == own).then(|| {
                    fields[11..last].iter().filter_map(|f| f.parse::<f64>().ok()).sum::<f64>()
                })
            })
            .sum::<f64>();
        ticks / 100.0
    }
}

/// Who activates.
const FROM: &str = "a@example.test/a";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A connection through the SOCKS5 handshake.
fn socks5(port: u16, hash: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    let mut request = vec![5, 1, 0, 3, 40];
    request.extend(hash.as_bytes());
    request.extend([0, 0]);
    stream.write_all(&request).unwrap();
    let mut reply = [0; 47];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[1], 0, "the proxy refused");
    stream
}

/// The server's end of a component link (XEP-0114), as far as a benchmark needs it.
struct Link {
    stream: TcpStream,
    sids: u64,
}

impl Link {
    fn accept(server: &TcpListener) -> Self {
        let (stream, _) = server.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut link = Self { stream, sids: 0 };
        link.read_until("<stream:stream");
        link.send(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
             xmlns:stream='http://etherx.jabber.org/streams' id='bench' from='xtls.example.test'>",
        );
        link.read_until("</handshake>");
        link.send("<handshake/>");
        link
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        let mut block = [0; 4096];
        while !String::from_utf8_lossy(&read).contains(text) {
            let n = self.stream.read(&mut block).unwrap();
            assert_ne!(n, 0, "the component left: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&block[..n]);
        }
        String::from_utf8_lossy(&read).into_owned()
    }

    fn next_sid(&mut self) -> String {
        self.sids += 1;
        format!("s{}", self.sids)
    }

    fn activate(&mut self, sid: &str, target: &str) {
        self.send(&format!(
            "<iq type='set' id='{sid}' from='{FROM}' to='{COMPONENT}'><query \
             xmlns='http://jabber.org/protocol/bytestreams' sid='{sid}'><activate>{target}</activate></query></iq>"
        ));
        let answer = self.read_until(sid);
        assert!(answer.contains("result"), "{answer}");
    }
}
