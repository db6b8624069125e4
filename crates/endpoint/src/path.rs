//! Detects paths that silently lose large packets: a router forwards only smaller ones, and its error messages get
//! lost.
//!
//! TCP's own remedy (`net.ipv4.tcp_mtu_probing`) is off on most machines. A connection that announces small segments in
//! its handshake (TCP_MAXSEG) gets and sends no others. So `xtls` gives up a connection that shows the signs.
//! From then on every connection of this process announces small segments.
//!
//! | direction | sign |
//! |---|---|
//! | out | the oldest segment was sent again and again, and later, smaller ones were acknowledged (SACK) |
//! | in | segments have come from behind a gap, and the gap does not close |

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use fingerpost_carry::tcp;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::{Instant, Sleep},
};

/// The largest segment on a path that loses larger ones, in bytes: every path that carries IPv6 takes packets of 1,280
/// bytes (RFC 8200, section 5), of which 60 are headers.
const SMALL_SEGMENT: u32 = 1220;
/// More bytes than fit into one packet of an Ethernet, and fewer than fit into two.
pub(super) const LARGER_THAN_A_PACKET: usize = 1600;
/// How often a connection is checked.
const LOOK: Duration = Duration::from_secs(1);
/// How long a gap stays open before the path is to blame: much longer than the repair of several lost segments takes.
const OPEN: Duration = Duration::from_secs(4);
/// How often the kernel has at least repeated the oldest segment by then.
const AGAIN: u8 = 3;

/// Whether the path was found to lose large packets, for all connections of this process.
static NARROW: AtomicBool = AtomicBool::new(false);

/// The text of the error with which a connection is given up.
const GIVEN_UP: &str = "the network loses large packets";

/// The local port of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// Only this connection uses it.
    Own,
    /// Other sockets of this user may use it, so that a NAT gives them the same address.
    Shared,
}

/// Connects, with small segments if the path is known to need them.
///
/// # Errors
/// Those of connecting.
pub(super) async fn connect(address: SocketAddr, port: Port) -> io::Result<TcpStream> {
    let (socket, any) = if address.is_ipv4() {
        (TcpSocket::new_v4()?, IpAddr::from(Ipv4Addr::UNSPECIFIED))
    } else {
        (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::UNSPECIFIED))
    };
    narrow(&socket)?;
    if port == Port::Shared {
        share_port(&socket)?;
        socket.bind(SocketAddr::new(any, 0))?;
    }
    socket.connect(address).await
}

/// Lets a socket share its port. SO_REUSEADDR alone is not enough to listen on a port from which others connect.
pub(super) fn share_port(socket: &TcpSocket) -> io::Result<()> {
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)
}

/// Has a socket announce small segments, if they are known to be needed.
pub(super) fn narrow(socket: &TcpSocket) -> io::Result<()> {
    if loses_large_packets() { SockRef::from(socket).set_tcp_mss(SMALL_SEGMENT) } else { Ok(()) }
}

/// Returns whether connections of this process were found to lose large packets, so that small ones are used since.
pub fn loses_large_packets() -> bool {
    NARROW.load(Ordering::Relaxed)
}

/// A snapshot of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    /// Bytes that came in order, and the memory of bytes from behind a gap.
    received: u64,
    behind_gap: u32,
    /// Bytes that the peer has acknowledged.
    acknowledged: u64,
    /// Repetitions of the oldest segment without an answer.
    retransmits: u8,
    /// Later segments that the peer has acknowledged.
    selective: u32,
}

/// Judges a connection by its snapshots.
#[derive(Debug, Default)]
struct Judge {
    before: Signs,
    gap_since: Option<Instant>,
    stuck_since: Option<Instant>,
}

impl Judge {
    /// Returns whether the connection's path loses large packets.
    fn look(&mut self, signs: Signs, now: Instant) -> bool {
        let gap = signs.behind_gap > 0 && signs.received == self.before.received;
        let stuck = signs.retransmits >= AGAIN
            && signs.selective > 0
            && signs.acknowledged == self.before.acknowledged;
        self.before = signs;
        [(gap, &mut self.gap_since), (stuck, &mut self.stuck_since)].into_iter().any(
            |(shows, since)| {
                let began = since.get_or_insert(now);
                let lasts = shows && now.saturating_duration_since(*began) >= OPEN;
                if !shows {
                    *since = None;
                }
                lasts
            },
        )
    }
}

/// A connection that is given up when its path loses large packets.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    judge: Judge,
    look: Pin<Box<Sleep>>,
}

impl Watched {
    /// Watches a connection.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, judge: Judge::default(), look: Box::pin(tokio::time::sleep(LOOK)) }
    }

    /// Returns our own address.
    pub(super) fn local(&self) -> Option<IpAddr> {
        self.stream.local_addr().ok().map(|local| local.ip())
    }

    /// Called while all received bytes are read: gives up if the path is to blame. A connection with small segments has
    /// no better way.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if loses_large_packets() {
            return Poll::Pending;
        }
        while self.look.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            self.look.as_mut().reset(now + LOOK);
            let Some(info) = tcp::info(&self.stream) else { continue };
            let signs = Signs {
                received: info.received,
                // All bytes that came in order have been read.
                behind_gap: tcp::unread(&self.stream).unwrap_or(0),
                acknowledged: info.acknowledged,
                retransmits: info.retransmits,
                selective: info.selective,
            };
            if self.judge.look(signs, now) {
                if !NARROW.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{GIVEN_UP}: connecting again with smaller ones");
                }
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, GIVEN_UP));
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.poll_waiting(cx).map(Err),
            ready => {
                tcp::acknowledge_at_once(&self.stream);
                ready
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns after how many snapshots, one per second, the path is blamed.
    fn blamed(looks: impl Iterator<Item = Signs>) -> Option<usize> {
        let (mut judge, start) = (Judge::default(), Instant::now());
        looks
            .take(100)
            .enumerate()
            .position(|(n, signs)| judge.look(signs, start + SECOND * u32::try_from(n).unwrap()))
    }

    fn each(signs: Signs) -> impl Iterator<Item = Signs> {
        std::iter::once(Signs {
            received: signs.received,
            acknowledged: signs.acknowledged,
            ..Signs::default()
        })
        .chain(std::iter::repeat(signs))
    }

    const QUIET: Signs =
        Signs { received: 7, behind_gap: 0, acknowledged: 7, retransmits: 0, selective: 0 };

    #[test]
    fn a_gap_that_stays_open_is_the_path_s_fault() {
        let gap = Signs { behind_gap: 900, ..QUIET };
        assert_eq!(blamed(each(gap)), Some(5));
        let filled = |n: u64| Signs { received: 7 + n / 3, behind_gap: 900, ..QUIET };
        assert_eq!(blamed((0..).map(filled)), None, "each of many gaps is filled in time");
        assert_eq!(blamed(each(QUIET)), None, "silence is not a gap");
    }

    #[test]
    fn small_segments_that_pass_before_a_large_one_are_the_path_s_fault() {
        let stuck = Signs { retransmits: 3, selective: 1, ..QUIET };
        assert_eq!(blamed(each(stuck)), Some(5));
        assert_eq!(
            blamed(each(Signs { selective: 0, ..stuck })),
            None,
            "the peer is gone, or slow"
        );
        assert_eq!(blamed(each(Signs { retransmits: 1, ..stuck })), None, "one is lost");
        let slow = |n: u64| Signs { acknowledged: 7 + n / 3, ..stuck };
        assert_eq!(blamed((0..).map(slow)), None, "it goes on");
    }
}
