//! A relay that does nothing but the system calls that none on epoll(7) can do without: what is out of reach.
//!
//! For a pair it calls accept(2), connect(2), and epoll_ctl(2) for each socket; for a message epoll_wait(2), recv(2) and
//! send(2). It has no handshakes, limits, timers or counters, and loses bytes if a socket takes fewer than it is given,
//! so it serves single bytes and idle pairs only.
//!
//! For throughput there is a relay that only calls epoll_wait(2) and splice(2), with a thread for each core and a pipe of 1 MiB
//! for each pair. It moves bytes in one direction only.
//!
//! For in-band bytestreams there is a component that does nothing but read, find the ends of stanzas, and write them
//! again, many in one call. So it moves as many stanzas and bytes in either direction as one that brokers a stream. It
//! may wait before each read, so that several blocks have come.

use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use base64::{Engine, engine};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Names the ports of the listener and of the sink for a process that is to be this relay.
const PORTS: &str = "FINGERPOST_BENCH_BOUND";
/// Names these ports for a process that is to be the relay that only splices.
const SPLICE_PORTS: &str = "FINGERPOST_BENCH_BOUND_SPLICE";
/// Names the port of the server and the work for a process that is to be this component.
const SERVER: &str = "FINGERPOST_BENCH_BOUND_IN_BAND";
/// How long a component waits until several blocks have come.
const WAIT: Duration = Duration::from_micros(200);
/// The size of a pipe.
const PIPE: usize = 1 << 20;
/// The name of the listener among events.
const LISTENER: u64 = u64::MAX;

/// Returns a command that runs this program as the relay for single bytes.
pub(crate) fn command(port: u16, sink: u16) -> Command {
    relay(PORTS, port, sink)
}

/// Returns a command that runs this program as the relay that only splices.
pub(crate) fn splice_command(port: u16, sink: u16) -> Command {
    relay(SPLICE_PORTS, port, sink)
}

fn relay(variable: &str, port: u16, sink: u16) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(variable, format!("{port} {sink}"));
    command
}

/// What a component does with blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Decodes and encodes them.
    Base64,
    /// Copies them.
    Copy,
    /// Copies them, after waiting until several have come.
    CopyLater,
}

/// Returns a command that runs this program as the component.
pub(crate) fn component(port: u16, work: Work) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(SERVER, format!("{port} {work:?}"));
    command
}

/// Runs the relay or the component, and never returns, if this process is to be one.
pub(crate) fn run_if_asked() {
    if let Ok(server) = std::env::var(SERVER) {
        let (port, work) = server.split_once(' ').unwrap();
        let works = [Work::Base64, Work::Copy, Work::CopyLater];
        let work = works.into_iter().find(|known| format!("{known:?}") == work).unwrap();
        run_component(port.parse().unwrap(), work);
    }
    let ports = |variable| {
        let ports = std::env::var(variable).ok()?;
        let (port, sink) = ports.split_once(' ').unwrap();
        Some([port, sink].map(|port| port.parse::<u16>().unwrap()))
    };
    if let Some(ports) = ports(SPLICE_PORTS) {
        run_splices(ports);
    }
    let Some([port, sink]) = ports(PORTS) else { return };
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let poller = epoll::create(CreateFlags::CLOEXEC).unwrap();
    epoll::add(&poller, &listener, EventData::new_u64(LISTENER), EventFlags::IN).unwrap();
    let mut pairs: Vec<Option<[TcpStream; 2]>> = Vec::new();
    let mut free = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(256);
    let mut buffer = vec![0; 16 << 10];
    loop {
        events.clear();
        epoll::wait(&poller, spare_capacity(&mut events), None).unwrap();
        for event in events.drain(..) {
            let (name, flags) = (event.data.u64(), event.flags);
            if name == LISTENER {
                let Ok((here, _)) = listener.accept() else { continue };
                let there = TcpStream::connect(("127.0.0.1", sink)).unwrap();
                let index = free.pop().unwrap_or(pairs.len());
                let pair = [here, there];
                for (side, stream) in pair.iter().enumerate() {
                    stream.set_nodelay(true).unwrap();
                    stream.set_nonblocking(true).unwrap();
                    let name = EventData::new_u64((2 * index + side) as u64);
                    let reports = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
                    epoll::add(&poller, stream, name, reports).unwrap();
                }
                pairs.resize_with(pairs.len().max(index + 1), || None);
                pairs[index] = Some(pair);
                continue;
            }
            let (index, side) = (name as usize / 2, name as usize % 2);
            let Some(pair) = &mut pairs[index] else { continue };
            let moved = match pair[side].read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Ok(n @ 1..) => pair[1 - side].write(&buffer[..n]).is_ok(),
                _ => false,
            };
            if !moved || flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
                pairs[index] = None;
                free.push(index);
            }
        }
    }
}

/// A pair of which the bytes of one direction are spliced.
struct Spliced {
    from: TcpStream,
    to: TcpStream,
    pipe: (OwnedFd, OwnedFd),
    /// The bytes in the pipe.
    held: usize,
}

impl Spliced {
    /// Moves bytes until one of the sockets is not ready. Returns `false` when the stream is over.
    fn go_on(&mut self) -> bool {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            if self.held == 0 {
                match splice(&self.from, None, &self.pipe.1, None, PIPE, flags) {
                    Ok(n) if n > 0 => self.held = n,
                    Err(rustix::io::Errno::AGAIN) => return true,
                    _ => return false,
                }
            }
            match splice(&self.pipe.0, None, &self.to, None, self.held, flags) {
                Ok(n) if n > 0 => self.held -= n,
                Err(rustix::io::Errno::AGAIN) => return true,
                _ => return false,
            }
        }
    }
}

/// Splices, with the pairs shared out among a thread for each core.
fn run_splices([port, sink]: [u16; 2]) -> ! {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads: Vec<_> = (0..cores)
        .map(|_| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let poller = Arc::new(epoll::create(CreateFlags::CLOEXEC).unwrap());
            let polled = Arc::clone(&poller);
            std::thread::spawn(move || splice_pairs(&polled, &receiver));
            (poller, sender)
        })
        .collect();
    for number in 0.. {
        let from = listener.accept().unwrap().0;
        let to = TcpStream::connect(("127.0.0.1", sink)).unwrap();
        for stream in [&from, &to] {
            stream.set_nodelay(true).unwrap();
            stream.set_nonblocking(true).unwrap();
        }
        let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        // An unprivileged user gets 64 of that size.
        let _smaller = fcntl_setpipe_size(&pipe.1, PIPE);
        let (poller, sender) = &threads[number % cores];
        let name = EventData::new_u64((number / cores) as u64);
        let sockets = [from.try_clone().unwrap(), to.try_clone().unwrap()];
        sender.send(Spliced { from, to, pipe, held: 0 }).unwrap();
        let [from, to] = sockets;
        let flags = EventFlags::RDHUP | EventFlags::ET;
        epoll::add(poller, from, name, flags | EventFlags::IN).unwrap();
        epoll::add(poller, to, name, flags | EventFlags::OUT).unwrap();
    }
    unreachable!("the numbers do not end")
}

fn splice_pairs(poller: &OwnedFd, new: &Receiver<Spliced>) {
    let mut pairs: Vec<Option<Spliced>> = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(poller, spare_capacity(&mut events), None).unwrap();
        pairs.extend(new.try_iter().map(Some));
        for event in events.drain(..) {
            let pair = &mut pairs[event.data.u64() as usize];
            if pair.as_mut().is_some_and(|pair| !pair.go_on()) {
                *pair = None;
            }
        }
    }
}

fn run_component(port: u16, work: Work) -> ! {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let engine = engine::Simd::standard(engine::general_purpose::PAD);
    let (mut bytes, mut end, mut out) = (vec![0; 1 << 18], 0, Vec::new());
    let mut block = vec![0; 1 << 17];
    loop {
        if work == Work::CopyLater {
            std::thread::sleep(WAIT);
        }
        match stream.read(&mut bytes[end..]) {
            Ok(n @ 1..) => end += n,
            _ => std::process::exit(0),
        }
        let mut start = 0;
        while let Some(length) = stanza(&bytes[start..end]) {
            let stanza = &bytes[start..start + length];
            start += length;
            match text(stanza).filter(|_| work == Work::Base64) {
                Some((begin, end)) => {
                    let n = engine.decode_slice(&stanza[begin..end], &mut block).unwrap();
                    out.extend_from_slice(&stanza[..begin]);
                    let at = out.len();
                    out.resize(at + end - begin, 0);
                    engine.encode_slice(&block[..n], &mut out[at..]).unwrap();
                    out.extend_from_slice(&stanza[end..]);
                }
                None => out.extend_from_slice(stanza),
            }
        }
        bytes.copy_within(start..end, 0);
        end -= start;
        stream.write_all(&out).unwrap();
        out.clear();
    }
}

/// Returns the length of the first stanza, if it is complete. All are IQs.
fn stanza(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    while rest.skip_until(b'<').is_ok_and(|n| n > 0) {
        if rest.starts_with(b"/iq>") {
            return Some(bytes.len() - rest.len() + b"/iq>".len());
        }
    }
    None
}

/// Returns where the text of a block begins and ends.
fn text(stanza: &[u8]) -> Option<(usize, usize)> {
    let head = &stanza[..stanza.len().min(512)];
    let data = head.windows(5).position(|part| part == b"<data")?;
    let begin = data + head[data..].iter().position(|byte| *byte == b'>')? + 1;
    Some((begin, stanza.len() - b"</data></iq>".len()))
}
