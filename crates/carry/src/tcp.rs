//! What the kernel knows of a TCP connection: how much is on its way to the peer, how much more the socket accepts, and
//! whether the peer answers.

use std::time::Duration;

#[cfg(target_os = "linux")]
pub use linux::{info, room, unread};
#[cfg(not(target_os = "linux"))]
pub use none::{info, room, unread};
use tokio::net::TcpStream;

/// A peer that is probed repeatedly and has not answered for this long is gone.
const SILENCE: Duration = Duration::from_secs(40);

/// A peer that has not answered for this long may be gone.
const DOUBTED: Duration = Duration::from_secs(3);

/// The least number of probes by then. They are 0.2, 0.4, 0.8 … s apart on a fast path, so a single lost answer on a
/// slow path does not count.
const ASKED: u8 = 4;

/// A snapshot of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// The connection is over: nothing more can be delivered.
    pub closed: bool,
    /// Segments that the peer has not acknowledged.
    pub unacknowledged: u32,
    /// Bytes that were not sent yet.
    pub unsent: u32,
    /// Bytes that the peer has acknowledged.
    pub acknowledged: u64,
    /// Bytes that came in order.
    pub received: u64,
    /// Later segments that the peer has acknowledged.
    pub selective: u32,
    /// Repetitions of the oldest segment without an answer.
    pub retransmits: u8,
    /// Probes of a closed window without an answer.
    pub probes: u8,
    /// How long the peer has acknowledged nothing.
    pub silence: Duration,
}

impl Info {
    /// Returns whether the peer's kernel has everything, including the end of the stream if it was sent.
    pub fn is_delivered(&self) -> bool {
        self.unacknowledged == 0 && self.unsent == 0
    }

    /// Returns whether the peer may have vanished: the network is interrupted, or has forgotten the connection.
    pub fn is_doubtful(&self) -> bool {
        self.is_silent_for(DOUBTED)
    }

    /// Returns whether the peer has vanished. A peer that reads slowly, or not at all, still acknowledges every probe.
    pub fn is_gone(&self) -> bool {
        self.is_silent_for(SILENCE)
    }

    /// Returns whether the peer was asked repeatedly, and has answered nothing for this long.
    fn is_silent_for(&self, time: Duration) -> bool {
        self.retransmits.max(self.probes) >= ASKED && self.silence >= time
    }
}

/// Makes the kernel acknowledge what was read at once, not after 40 ms: a server that has not switched Nagle's algorithm
/// off sends nothing more until then, and an in-band stream would stall. Linux forgets the setting with the next bytes
/// that are sent, so call it after each read.
pub fn acknowledge_at_once(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_quickack(true) {
        tracing::debug!(%error, "could not set TCP_QUICKACK");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

/// Tries the queries of this module on a socket of its own. Returns a sentence for each that the system refuses.
pub fn missing() -> Vec<String> {
    let Ok(socket) = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
    else {
        return Vec::new();
    };
    let mut missing = Vec::new();
    if info(&socket).is_none() {
        missing.push(
            "TCP_INFO does not work here: a peer that has vanished is noticed later, and a stream that ends waits for its last \
             bytes for a fixed time"
                .to_owned(),
        );
    }
    if room(&socket).is_none() {
        missing.push("SO_MEMINFO does not work here: bytes are moved in smaller pieces".to_owned());
    }
    missing
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        os::fd::{AsFd, AsRawFd},
        time::Duration,
    };

    use super::Info;

    /// TCP_CLOSE of `include/net/tcp_states.h`.
    const CLOSED: u8 = 7;

    /// The length of `struct tcp_info` up to `tcpi_notsent_bytes`, which Linux has had since 4.6.
    const LENGTH: usize = 148;

    /// The first six of the numbers in SO_MEMINFO (`include/uapi/linux/sock_diag.h`).
    const MEMINFO: usize = 24;

    /// Asks the kernel about a TCP socket; `None` if it does not say.
    pub fn info(socket: impl AsFd) -> Option<Info> {
        option::<LENGTH>(socket, libc::IPPROTO_TCP, libc::TCP_INFO).map(|bytes| read(&bytes))
    }

    /// Asks the kernel how many bytes fit into a socket's send buffer, about; `None` if it does not say.
    pub fn room(socket: impl AsFd) -> Option<usize> {
        // SK_MEMINFO_SNDBUF and SK_MEMINFO_WMEM_QUEUED.
        let [size, queued] = memory(socket, [3, 5])?;
        Some(size.saturating_sub(queued) as usize)
    }

    /// Asks the kernel how much memory the unread bytes take, including those behind a gap.
    pub fn unread(socket: impl AsFd) -> Option<u32> {
        // SK_MEMINFO_RMEM_ALLOC.
        memory(socket, [0]).map(|[unread]| unread)
    }

    /// Reads some of the numbers of SO_MEMINFO.
    fn memory<const N: usize>(socket: impl AsFd, which: [usize; N]) -> Option<[u32; N]> {
        let bytes = option::<MEMINFO>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
        Some(which.map(|at| u32::from_ne_bytes([0, 1, 2, 3].map(|n| bytes[4 * at + n]))))
    }

    /// Reads a socket option of at least `N` bytes.
    #[expect(
        unsafe_code,
        reason = "the standard library, rustix, nix and socket2 have no safe getter for TCP_INFO and SO_MEMINFO"
    )]
    fn option<const N: usize>(
        socket: impl AsFd,
        level: libc::c_int,
        name: libc::c_int,
    ) -> Option<[u8; N]> {
        let mut bytes = [0_u8; N];
        let mut length = libc::socklen_t::try_from(N).ok()?;
        // SAFETY: `bytes` is writable for `length` bytes, and the kernel writes at most that many of them and then the
        // number written into `length`. Both live until the call returns. The options are plain integers, which the
        // callers read byte by byte, so neither alignment nor a value can be invalid. The descriptor is borrowed, so it
        // is open.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                level,
                name,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        (result == 0 && length as usize == N).then_some(bytes)
    }

    /// Reads the fields at their fixed places in `struct tcp_info` (`include/uapi/linux/tcp.h`).
    pub(super) fn read(bytes: &[u8; LENGTH]) -> Info {
        let u32_at = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(eight)
        };
        Info {
            closed: bytes[0] == CLOSED,
            retransmits: bytes[2],
            probes: bytes[3],
            unacknowledged: u32_at(24),
            silence: Duration::from_millis(u32_at(56).into()),
            acknowledged: u64_at(120),
            received: u64_at(128),
            selective: u32_at(28),
            unsent: u32_at(144),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod none {
    use super::Info;

    /// Returns `None`: other systems are not asked.
    pub fn info<S>(_socket: S) -> Option<Info> {
        None
    }

    /// Returns `None`: other systems are not asked.
    pub fn unread<S>(_socket: S) -> Option<u32> {
        None
    }

    /// Returns `None`: other systems are not asked.
    pub fn room<S>(_socket: S) -> Option<usize> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    };

    use super::*;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (there, listener.accept().unwrap().0)
    }

    #[test]
    fn what_the_peer_has_not_taken_is_on_its_way() {
        let (mut reader, mut writer) = connected();
        assert!(info(&writer).unwrap().is_delivered());
        assert!(room(&writer).unwrap() > 8 * 1024, "{:?}", room(&writer));
        writer.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(n) = writer.write(&[7; 100_000]) {
            written += n;
        }
        assert!(room(&writer).unwrap() < 64 * 1024, "{:?}", room(&writer));
        let stuck = info(&writer).unwrap();
        assert!(!stuck.is_delivered() && !stuck.closed && !stuck.is_gone(), "{stuck:?}");
        writer.shutdown(Shutdown::Write).unwrap();
        assert!(unread(&reader).unwrap() > 0);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), written);
        assert_eq!(unread(&reader), Some(0));
        assert!(info(&reader).unwrap().received >= written as u64);
        // The reader has seen the end and sent a byte, so the end has been acknowledged.
        reader.write_all(b"x").unwrap();
        writer.set_nonblocking(false).unwrap();
        writer.read_exact(&mut [0]).unwrap();
        let done = info(&writer).unwrap();
        assert!(done.is_delivered(), "{done:?}");
        assert!(done.acknowledged >= written as u64, "{done:?}");
    }

    #[test]
    fn a_reset_closes() {
        let (reader, mut writer) = connected();
        socket2::SockRef::from(&reader).set_linger(Some(Duration::ZERO)).unwrap();
        drop(reader);
        assert!(writer.read(&mut [0]).is_err());
        assert!(info(&writer).unwrap().closed);
    }

    #[test]
    fn a_peer_is_gone_when_it_answers_nothing_for_long() {
        let asked = Info { retransmits: 6, silence: SILENCE, ..Info::default() };
        assert!(asked.is_gone());
        assert!(Info { probes: 5, retransmits: 0, ..asked }.is_gone());
        let later = Info { silence: SILENCE / 2, ..asked };
        assert!(!later.is_gone() && later.is_doubtful(), "it may come back");
        assert!(!Info { silence: DOUBTED / 2, ..asked }.is_doubtful());
        assert!(!Info { retransmits: 3, ..asked }.is_doubtful());
        let idle = Info { silence: Duration::from_secs(86_400), ..Info::default() };
        assert!(!idle.is_gone(), "nobody asked");
        assert!(!Info { probes: 1, ..idle }.is_gone(), "one lost answer");
    }
}
