//! A SOCKS5 client for bytestreams: CONNECT to the hash that names the stream (XEP-0065, 5.3.2).

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Connecting and both exchanges may take this long together.
const CONNECT: Duration = Duration::from_secs(5);
/// A streamhost that has not acknowledged anything for so long is gone. A slow peer behind it is another matter.
const SILENCE: Duration = Duration::from_secs(30);

/// Connects to a streamhost and asks for `hash` (40 hex digits).
///
/// # Errors
/// As connecting does, or if the streamhost refuses.
pub(super) async fn connect(host: &str, port: u16, hash: &str) -> io::Result<TcpStream> {
    timeout(CONNECT, exchange(host, port, hash)).await?
}

async fn exchange(host: &str, port: u16, hash: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    watch(&stream)?;
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

/// Without this a network that is gone would show to a writer after a quarter of an hour, and to a reader never.
fn watch(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(SILENCE / 2).with_interval(SILENCE / 6);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    Ok(())
}
