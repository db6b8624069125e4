//! A SOCKS5 client for bytestreams: CONNECT to the hash that names the stream (XEP-0065, 5.3.2).

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::dial;

/// How long connecting may take, and how long both exchanges.
const CONNECT: Duration = Duration::from_secs(5);
/// The silence after which a streamhost is probed, and the interval of the probes.
const SILENCE: Duration = Duration::from_secs(15);
const PROBE: Duration = Duration::from_secs(5);
const PROBES: u32 = 5;

/// Connects to a streamhost, from a port on which a listener for direct connections may join.
///
/// # Errors
/// Those of connecting.
pub(super) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    dial_chosen(host, port, |found| found).await
}

/// Does the same for those addresses of the host that `choose` leaves.
///
/// # Errors
/// Those of connecting.
pub(super) async fn dial_chosen(
    host: &str,
    port: u16,
    choose: impl FnOnce(Vec<SocketAddr>) -> Vec<SocketAddr>,
) -> io::Result<TcpStream> {
    let address = match host.parse::<Ipv6Addr>() {
        Ok(_) => format!("[{host}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    };
    let dialling = dial::dial_chosen(&address, choose);
    let stream = timeout(CONNECT, dialling).await?.map_err(io::Error::other)?;
    stream.set_nodelay(true)?;
    watch(&stream)?;
    Ok(stream)
}

/// Asks a streamhost for `hash` (40 hex digits).
///
/// # Errors
/// If it refuses, or answers something else, or does not answer.
pub(super) async fn ask(stream: TcpStream, hash: &str) -> io::Result<TcpStream> {
    timeout(CONNECT, exchange(stream, hash)).await?
}

async fn exchange(mut stream: TcpStream, hash: &str) -> io::Result<TcpStream> {
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    if method != [5, 0] {
        return Err(io::Error::other("the streamhost wants a login"));
    }
    let len = u8::try_from(hash.len()).map_err(io::Error::other)?;
    let mut request = vec![5, 1, 0, 3, len];
    request.extend_from_slice(hash.as_bytes());
    request.extend_from_slice(&[0, 0]);
    stream.write_all(&request).await?;
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    if head[1] != 0 {
        return Err(io::Error::other(format!("the streamhost refused with code {}", head[1])));
    }
    let rest = match head[3] {
        1 => 3 + 2,
        4 => 15 + 2,
        _ => usize::from(head[4]) + 2,
    };
    let mut address = vec![0; rest];
    stream.read_exact(&mut address).await?;
    Ok(stream)
}

/// Turns keepalive on; without it a dead network would never show while nothing is sent. While something is sent, the
/// stream reads the kernel's counters: TCP_USER_TIMEOUT would also end a connection to a live peer that does not read.
pub(super) fn watch(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_silent_streamhost_is_asked_and_one_that_does_not_read_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        watch(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        let longest = SILENCE + PROBE * socket.tcp_keepalive_retries().unwrap();
        assert!(longest < Duration::from_secs(60), "{longest:?}");
    }
}
