use jid::Jid;

use super::*;
use crate::mediator::table;

const HASH: &str = "972b7bf47291ca609517f67f86b5081086052dad";

async fn start(options: Options) -> (SocketAddr, CancellationToken, Table, TaskTracker) {
    let (soft, tasks) = (CancellationToken::new(), TaskTracker::new());
    let table = Table::new(table::Options::default(), tasks.clone(), soft.clone());
    let listener = Listener::bind(&["127.0.0.1:0"], options, &table, &soft, &tasks).await.unwrap();
    (listener.local_addrs()[0], soft, table, tasks)
}

fn request(hash: &str) -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 3, 40];
    bytes.extend(hash.as_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// Greets, asks for the hash, and gives the reply's code.
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
    let (address, _soft, table, _tasks) = start(Options::default()).await;
    let (_romeo, first) = connect(address, HASH).await;
    let (_juliet, second) = connect(address, &HASH.to_uppercase()).await;
    let (mut tybalt, third) = connect(address, HASH).await;
    assert_eq!((first, second, third), (0, 0, 2));
    assert_eq!(tybalt.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(table.counts().waiting, 1);
}

#[tokio::test]
async fn a_transfer_goes_from_greeting_to_last_byte() {
    let (address, _soft, table, _tasks) = start(Options::default()).await;
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
    let (address, _soft, _table, _tasks) = start(Options::default()).await;
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
        start(Options { handshake_timeout, ..Options::default() }).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[5]).await.unwrap();
    assert_eq!(connect(address, HASH).await.1, 0);
    assert_eq!(slow.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let (address, _soft, _table, _tasks) =
        start(Options { connections_per_ip: 1, ..Options::default() }).await;
    let (first, code) = connect(address, HASH).await;
    assert_eq!(code, 0);
    let mut second = TcpStream::connect(address).await.unwrap();
    assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0);
    drop(first);
}

#[tokio::test]
async fn at_the_limit_connections_wait_in_the_kernel() {
    let handshake_timeout = Duration::from_millis(100);
    let (address, _soft, _table, _tasks) =
        start(Options { connections: 1, handshake_timeout, ..Options::default() }).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    // Served only when the silent one has been thrown out.
    assert_eq!(connect(address, HASH).await.1, 0);
}

#[tokio::test]
async fn an_idle_address_takes_no_place_from_a_busy_one() {
    for busy in 0..2 {
        let (soft, tasks) = (CancellationToken::new(), TaskTracker::new());
        let table = Table::new(table::Options::default(), tasks.clone(), soft.clone());
        let options = Options { connections: 1, ..Options::default() };
        let names = ["127.0.0.1:0", "127.0.0.1:0"];
        let listener = Listener::bind(&names, options, &table, &soft, &tasks).await.unwrap();
        // Both loops wait for a connection before the first one comes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let served = connect(listener.local_addrs()[busy], HASH);
        let (_stream, code) = timeout(Duration::from_secs(3), served).await.unwrap();
        assert_eq!(code, 0, "the only place is free: the other address is idle");
    }
}

#[tokio::test]
async fn the_token_ends_accepting_and_handshakes() {
    let (address, soft, _table, tasks) = start(Options::default()).await;
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
    let table = Table::new(table::Options::default(), tasks.clone(), soft.clone());
    let listener =
        Listener::bind(&["[::]:0"], Options::default(), &table, &soft, &tasks).await.unwrap();
    let port = listener.local_addrs()[0].port();
    assert_eq!(connect((Ipv4Addr::LOCALHOST, port).into(), HASH).await.1, 0);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (soft, tasks) = (CancellationToken::new(), TaskTracker::new());
    let table = Table::new(table::Options::default(), tasks.clone(), soft.clone());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = taken.local_addr().unwrap().to_string();
    let error =
        Listener::bind(&[&name], Options::default(), &table, &soft, &tasks).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&name), "{error}");
}

#[test]
fn an_ipv6_network_counts_as_one_address() {
    let ip = |text: &str| network(text.parse().unwrap());
    assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
    assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
    assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
    assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
}
