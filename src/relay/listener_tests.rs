use fingerpost_wire::dst_addr::DstAddr;
use jid::Jid;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::relay::{metrics::Cause, table};

const HASH: &str = "972b7bf47291ca609517f67f86b5081086052dad";

async fn start(
    options: ListenerOptions,
) -> (SocketAddr, CancellationToken, TransferTable, TaskTracker) {
    let (soft, tasks) = (CancellationToken::new(), TaskTracker::new());
    let table = TransferTable::new(table::TransferOptions::default(), tasks.clone(), soft.clone());
    let listener =
        Socks5Listener::bind(&["127.0.0.1:0"], options, &table, &soft, &tasks).await.unwrap();
    (listener.local_addrs()[0], soft, table, tasks)
}

fn request(hash: &str) -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 3, 40];
    bytes.extend(hash.as_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// Greets, requests the hash, and returns the reply's code.
async fn connect(address: SocketAddr, hash: &str) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut reply = [0; 2];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply, [5, 0]);
    stream.write_all(&request(hash)).await.unwrap();
    let mut reply = [0; 47];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[3..], request(hash)[3..], "BND echoes the request");
    (stream, reply[1])
}

#[tokio::test]
async fn third_connection_to_a_hash_is_refused() {
    let (address, _soft, table, _tasks) = start(ListenerOptions::default()).await;
    let (_romeo, first) = connect(address, HASH).await;
    let (_juliet, second) = connect(address, &HASH.to_uppercase()).await;
    let (mut tybalt, third) = connect(address, HASH).await;
    assert_eq!((first, second, third), (0, 0, 2));
    assert_eq!(tybalt.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(table.counts().waiting, 1);
}

#[tokio::test]
async fn a_transfer_goes_from_greeting_to_last_byte() {
    let (address, _soft, table, _tasks) = start(ListenerOptions::default()).await;
    let (romeo, juliet) = (Jid::new("r@m.lit/o").unwrap(), Jid::new("j@c.lit/b").unwrap());
    let hash = DstAddr::compute("s", &romeo, &juliet).to_string();
    // A client that sends everything at once, even before the replies.
    let mut early = TcpStream::connect(address).await.unwrap();
    let mut all = vec![5, 1, 0];
    all.extend(request(&hash));
    all.extend(b"hello");
    early.write_all(&all).await.unwrap();
    early.read_exact(&mut [0; 2 + 47]).await.unwrap();
    let (mut late, code) = connect(address, &hash).await;
    assert_eq!(code, 0);
    table.try_activate(&romeo, "s", &juliet).unwrap();
    early.shutdown().await.unwrap();
    let mut got = Vec::new();
    late.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"hello");
}

#[tokio::test]
async fn wrong_cmd_and_atyp_get_their_reply_code() {
    let (address, _soft, _table, _tasks) = start(ListenerOptions::default()).await;
    for (request, code) in [
        (vec![5, 2, 0, 3, 1, b'a', 0, 0], 7),
        (vec![5, 3, 0, 1, 127, 0, 0, 1, 0, 80], 7),
        (vec![5, 1, 0, 1, 127, 0, 0, 1, 0, 80], 8),
        (vec![5, 1, 0, 3, 1, b'a', 0, 0], 4),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[5, 1, 0]).await.unwrap();
        stream.write_all(&request).await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got[..4], [5, 0, 5, code], "{request:?}");
    }
}

#[tokio::test]
async fn a_slow_handshake_is_ended_and_does_not_hold_up_accept() {
    let handshake_timeout = Duration::from_millis(100);
    let (address, _soft, _table, _tasks) =
        start(ListenerOptions { handshake_timeout, ..ListenerOptions::default() }).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[5]).await.unwrap();
    assert_eq!(connect(address, HASH).await.1, 0);
    assert_eq!(slow.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_address_has_only_so_many_connections_and_is_told() {
    let (address, _soft, table, _tasks) =
        start(ListenerOptions { connections_per_ip: 1, ..ListenerOptions::default() }).await;
    let (first, code) = connect(address, HASH).await;
    assert_eq!(code, 0);
    for refused in 1..=3 {
        let (mut second, code) = connect(address, HASH).await;
        assert_eq!(code, 2);
        assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(table.plane().metrics().refusals(Cause::AddressLimit), refused);
    }
    assert_eq!(table.counts().waiting, 1, "the refused ones took no part");
    drop(first);
}

#[tokio::test]
async fn silent_connections_keep_nobody_of_their_address_out() {
    let (address, _soft, table, _tasks) = start(ListenerOptions {
        handshake_timeout: Duration::from_secs(600),
        ..ListenerOptions::default()
    })
    .await;
    let ListenerOptions { connections, connections_per_ip, .. } = ListenerOptions::default();
    let bounds = Bounds::of(connections, connections_per_ip);
    let mut silent = Vec::new();
    for n in 0..bounds.of_one + 8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Whatever they send before they fall silent.
        stream.write_all(&[5, 1, 0, 5, 1, 0, 3, 40, b'a'][..n % 9]).await.unwrap();
        silent.push(stream);
    }
    let (_served, code) = connect(address, HASH).await;
    assert_eq!(code, 0);
    // The oldest ones made room: they got only the answer to the greeting, then the end.
    for stream in &mut silent[..8] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty() || rest == [5, 0], "{rest:?}");
    }
    assert!(table.plane().metrics().refusals(Cause::MadeRoom) >= 8);
    assert_eq!(table.plane().metrics().refusals(Cause::AddressLimit), 0);
}

#[tokio::test]
async fn activated_and_announced_transfers_do_not_count_against_their_address() {
    let (address, _soft, table, _tasks) =
        start(ListenerOptions { connections_per_ip: 2, ..ListenerOptions::default() }).await;
    let (romeo, juliet) = (Jid::new("r@m.lit/o").unwrap(), Jid::new("j@c.lit/b").unwrap());
    let mut kept = Vec::new();
    for sid in ["1", "2", "3", "4"] {
        let hash = DstAddr::compute(sid, &romeo, &juliet).to_string();
        for _ in 0..2 {
            let (stream, code) = connect(address, &hash).await;
            assert_eq!(code, 0, "{sid}");
            kept.push(stream);
        }
        table.try_activate(&romeo, sid, &juliet).unwrap();
    }
    // Two connections wait, and the address has no seats left.
    let (_one, code) = connect(address, HASH).await;
    assert_eq!(code, 0);
    let (_two, code) = connect(address, &HASH.replace('9', "8")).await;
    assert_eq!(code, 0);
    let (_refused, code) = connect(address, HASH).await;
    assert_eq!(code, 2);
    // A connection that a session expects is accepted all the same.
    let announced = DstAddr::compute("session", &romeo, &juliet);
    let mut registration = table.register([announced]);
    let (_expected, code) = connect(address, &announced.to_string()).await;
    assert_eq!(code, 0);
    assert!(registration.arrived().await.is_some());
    assert_eq!(table.plane().metrics().refusals(Cause::AddressLimit), 1);
}

#[tokio::test]
async fn any_port_is_taken() {
    let (address, _soft, _table, _tasks) = start(ListenerOptions::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut all = vec![5, 1, 0];
    all.extend(&request(HASH)[..45]);
    all.extend([0x1d, 0xc9]);
    stream.write_all(&all).await.unwrap();
    let mut reply = [0; 2 + 47];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    assert_eq!(reply[47..], [0x1d, 0xc9]);
}

#[tokio::test]
async fn a_half_closed_connection_is_asked_for_before_a_nat_forgets_it() {
    let listener = open("127.0.0.1:0".parse().unwrap(), false, false, 0).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let address = listener.local_addr().unwrap();
    let (_there, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (accepted, _) = accepted.unwrap();
    let socket = SockRef::from(&accepted);
    assert!(socket.keepalive().unwrap());
    let (time, interval) =
        (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
    let probes = socket.tcp_keepalive_retries().unwrap();
    assert!(time < Duration::from_secs(45) && time + interval * probes <= Duration::from_secs(60));
}

#[tokio::test]
async fn a_largest_segment_holds_for_both_ends() {
    let (address, _soft, table, _tasks) =
        start(ListenerOptions { max_segment: 1220, ..ListenerOptions::default() }).await;
    let (romeo, juliet) = (Jid::new("r@m.lit/o").unwrap(), Jid::new("j@c.lit/b").unwrap());
    let announced = DstAddr::compute("s", &romeo, &juliet);
    let mut registration = table.register([announced]);
    let (theirs, _) = connect(address, &announced.to_string()).await;
    let mut ours = registration.arrived().await.unwrap();
    for socket in [SockRef::from(&theirs), SockRef::from(&*ours.stream_mut())] {
        assert!(socket.tcp_mss().unwrap() <= 1220);
    }
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

#[tokio::test]
async fn a_load_balancer_that_names_nobody_counts_as_itself() {
    let local = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(),
        v2(0x20, 0x00, &[]),
        v2(0x20, 0x11, &[192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x1d, 0xc9]),
        v2(0x21, 0x00, &[]),
        v2(0x21, 0x31, &[b'/'; 216]),
    ];
    for header in local {
        let options = ListenerOptions {
            proxy_protocol: true,
            connections_per_ip: 1,
            ..ListenerOptions::default()
        };
        let (address, _soft, table, _tasks) = start(options).await;
        let ask = async |header: &[u8]| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let all = [header, &[5, 1, 0], &request(HASH)[..]].concat();
            for piece in all.chunks(7) {
                stream.write_all(piece).await.unwrap();
            }
            let mut reply = [0; 2 + 47];
            stream.read_exact(&mut reply).await.unwrap();
            (stream, reply[3])
        };
        let (_one, code) = ask(&header).await;
        assert_eq!(code, 0, "{header:?}");
        let (_two, code) = ask(&header).await;
        assert_eq!(code, 2, "its own address has one place: {header:?}");
        let (_three, code) = ask(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").await;
        assert_eq!(code, 0, "and another one has another");
        assert_eq!(table.plane().metrics().refusals(Cause::ProxyHeader), 0);
    }
}

#[tokio::test]
async fn a_health_check_is_no_fault() {
    for proxy_protocol in [false, true] {
        let (address, _soft, table, tasks) =
            start(ListenerOptions { proxy_protocol, ..ListenerOptions::default() }).await;
        let headers: &[&[u8]] = match proxy_protocol {
            true => &[b"", b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"],
            false => &[b""],
        };
        for header in headers {
            for resets in [false, true] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(header).await.unwrap();
                if resets {
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(stream);
                } else {
                    stream.shutdown().await.unwrap();
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                }
            }
        }
        // A connection that was cut in the middle counts as one.
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(if proxy_protocol { b"PROX" } else { &[5] }).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
        tasks.close();
        while tasks.len() > acceptors() + 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let metrics = table.plane().metrics();
        assert_eq!(metrics.refusals(Cause::Handshake), 1);
        assert_eq!(metrics.refusals(Cause::ProxyHeader), 0);
    }
}

#[tokio::test]
async fn at_the_limit_connections_wait_in_the_kernel() {
    // Long enough for the second connection's own handshake on a busy machine.
    let handshake_timeout = Duration::from_secs(2);
    let (address, _soft, _table, _tasks) =
        start(ListenerOptions { connections: 1, handshake_timeout, ..ListenerOptions::default() })
            .await;
    let _silent = TcpStream::connect(address).await.unwrap();
    // Served only after the silent one has been removed.
    assert_eq!(connect(address, HASH).await.1, 0);
}

#[tokio::test]
async fn an_idle_address_takes_no_place_from_a_busy_one() {
    for busy in 0..2 {
        let (soft, tasks) = (CancellationToken::new(), TaskTracker::new());
        let table =
            TransferTable::new(table::TransferOptions::default(), tasks.clone(), soft.clone());
        let options = ListenerOptions { connections: 1, ..ListenerOptions::default() };
        let names = ["127.0.0.1:0", "127.0.0.1:0"];
        let listener = Socks5Listener::bind(&names, options, &table, &soft, &tasks).await.unwrap();
        // Both loops wait for a connection before the first one comes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let served = connect(listener.local_addrs()[busy], HASH);
        let (_stream, code) = timeout(Duration::from_secs(60), served).await.unwrap();
        assert_eq!(code, 0, "the only place is free: the other address is idle");
    }
}

#[tokio::test]
async fn the_token_ends_accepting_and_handshakes() {
    let (address, soft, _table, tasks) = start(ListenerOptions::default()).await;
    let mut open = TcpStream::connect(address).await.unwrap();
    open.write_all(&[5, 1, 0]).await.unwrap();
    open.read_exact(&mut [0; 2]).await.unwrap();
    soft.cancel();
    tasks.close();
    tasks.wait().await;
    assert_eq!(open.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(
        TcpStream::connect(address).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
}

#[tokio::test]
async fn both_families_are_served_by_one_socket() {
    let (soft, tasks) = (CancellationToken::new(), TaskTracker::new());
    let table = TransferTable::new(table::TransferOptions::default(), tasks.clone(), soft.clone());
    let listener =
        Socks5Listener::bind(&["[::]:0"], ListenerOptions::default(), &table, &soft, &tasks)
            .await
            .unwrap();
    let port = listener.local_addrs()[0].port();
    assert_eq!(connect((Ipv4Addr::LOCALHOST, port).into(), HASH).await.1, 0);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (soft, tasks) = (CancellationToken::new(), TaskTracker::new());
    let table = TransferTable::new(table::TransferOptions::default(), tasks.clone(), soft.clone());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = taken.local_addr().unwrap().to_string();
    let error = Socks5Listener::bind(&[&name], ListenerOptions::default(), &table, &soft, &tasks)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&name), "{error}");
}
