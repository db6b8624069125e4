use fingerpost_wire::stanza::Refusal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

const OK: &[u8] = b"OK";

fn jid(text: &str) -> Jid {
    Jid::new(text).unwrap()
}

fn table(options: TransferOptions) -> TransferTable {
    TransferTable::new(options, TaskTracker::new(), CancellationToken::new())
}

/// Returns a connection: the user's end and ours.
async fn connection() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let user = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    (user, ours.into())
}

/// Connects to a hash and reads the reply.
async fn arrive(table: &TransferTable, hash: DstAddr) -> Option<TcpStream> {
    let (mut user, socket) = connection().await;
    match table.arrive(hash, socket, OK) {
        SocketArrival::Taken => {
            let mut reply = [0; 2];
            user.read_exact(&mut reply).await.unwrap();
            assert_eq!(reply, OK);
            Some(user)
        }
        SocketArrival::Refused(..) => None,
        SocketArrival::Gone(error) => panic!("{error}"),
    }
}

struct Names {
    requester: Jid,
    target: Jid,
    hash: DstAddr,
}

fn names() -> Names {
    let (requester, target) = (jid("romeo@montague.lit/o"), jid("juliet@capulet.lit/b"));
    Names { hash: DstAddr::compute("sid", &requester, &target), requester, target }
}

fn condition(result: Result<(), NotActivated>) -> &'static str {
    result.map_or_else(|error| Refusal::from(error).condition.as_str(), |()| "ok")
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..30_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it did not happen");
}

#[tokio::test]
async fn bytes_before_activation_are_kept() {
    let table = table(TransferOptions::default());
    let Names { requester, target, hash } = names();
    let mut juliet = arrive(&table, hash).await.unwrap();
    juliet.write_all(b"early").await.unwrap();
    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "not-allowed");
    let mut romeo = arrive(&table, hash).await.unwrap();
    romeo.write_all(b"too").await.unwrap();
    assert!(arrive(&table, hash).await.is_none(), "a third");
    assert_eq!(table.counts(), Counts { waiting: 1, ..Counts::default() });

    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "ok");
    assert!(arrive(&table, hash).await.is_none(), "a third connection to an active transfer");
    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "not-allowed");
    assert_eq!(table.counts(), Counts { active: 1, ..Counts::default() });
    let mut got = [0; 5];
    romeo.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"early");
    romeo.shutdown().await.unwrap();
    let mut rest = Vec::new();
    juliet.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"too");
    drop(juliet);
    until(|| table.counts() == Counts { bytes: 8, ..Counts::default() }).await;
    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "item-not-found");
}

#[tokio::test]
async fn only_the_requester_can_activate() {
    let table = table(TransferOptions::default());
    let Names { requester, target, hash } = names();
    let _juliet = arrive(&table, hash).await.unwrap();
    let _romeo = arrive(&table, hash).await.unwrap();
    for asker in [&target, &jid("tybalt@capulet.lit/x"), &jid("romeo@montague.lit")] {
        assert_eq!(condition(table.try_activate(asker, "sid", &target)), "item-not-found");
    }
    assert_eq!(condition(table.try_activate(&requester, "other", &target)), "item-not-found");
    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "ok");
}

#[tokio::test]
async fn a_user_has_only_so_many_active_transfers() {
    let table =
        table(TransferOptions { sessions: 2, sessions_per_user: 1, ..TransferOptions::default() });
    let target = jid("juliet@capulet.lit/b");
    let mut kept = Vec::new();
    let mut expected = ["ok", "resource-constraint", "ok", "resource-constraint"].into_iter();
    for asker in ["a@x.lit/1", "a@x.lit/2", "b@x.lit/1", "c@x.lit/1"] {
        let hash = DstAddr::compute("sid", &jid(asker), &target);
        kept.push((arrive(&table, hash).await.unwrap(), arrive(&table, hash).await.unwrap()));
        let got = condition(table.try_activate(&jid(asker), "sid", &target));
        assert_eq!(Some(got), expected.next(), "{asker}");
    }
    kept.remove(0);
    until(|| table.counts().active == 1).await;
    assert_eq!(condition(table.try_activate(&jid("a@x.lit/2"), "sid", &target)), "ok");
}

#[tokio::test]
async fn an_unactivated_transfer_is_removed() {
    let activation_timeout = Duration::from_millis(30);
    let table = table(TransferOptions { activation_timeout, ..TransferOptions::default() });
    let mut user = arrive(&table, names().hash).await.unwrap();
    assert_eq!(user.read(&mut [0]).await.unwrap(), 0, "closed");
    assert_eq!(table.counts(), Counts::default());
}

#[tokio::test]
async fn cancelling_ends_what_waits_and_what_runs() {
    let (tasks, hard) = (TaskTracker::new(), CancellationToken::new());
    let table = TransferTable::new(TransferOptions::default(), tasks.clone(), hard.clone());
    let Names { requester, target, hash } = names();
    let mut waiting = arrive(&table, DstAddr::compute("w", &target, &target)).await.unwrap();
    let mut juliet = arrive(&table, hash).await.unwrap();
    let _romeo = arrive(&table, hash).await.unwrap();
    table.try_activate(&requester, "sid", &target).unwrap();
    hard.cancel();
    tasks.close();
    tasks.wait().await;
    let cut = juliet.read(&mut [0]).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset, "her stream was not complete");
    assert_eq!(waiting.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(table.counts(), Counts::default());
    assert!(arrive(&table, hash).await.is_none());
}

#[tokio::test]
async fn a_registration_takes_one_connection() {
    let table = table(TransferOptions::default());
    let Names { requester, target, hash } = names();
    let other = DstAddr::compute("other", &requester, &target);
    let mut registration = table.register([hash, other]);
    assert_eq!(table.counts().registered, 2);
    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "not-allowed");
    let mut user = arrive(&table, hash).await.unwrap();
    user.write_all(b"x").await.unwrap();
    let mut socket = registration.arrived().await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'x');
    assert!(arrive(&table, hash).await.is_none());
    assert!(arrive(&table, other).await.is_none());
    assert!(registration.arrived().await.is_none());
    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "ok");
    drop(registration);
    assert_eq!(table.counts(), Counts::default());
    assert_eq!(condition(table.try_activate(&requester, "sid", &target)), "item-not-found");
}

#[tokio::test]
async fn a_connection_that_came_before_its_registration_is_handed_over() {
    let table = table(TransferOptions::default());
    let hash = names().hash;
    let mut user = arrive(&table, hash).await.unwrap();
    user.write_all(b"x").await.unwrap();
    let mut registration = table.register(vec![hash]);
    let mut socket = registration.arrived().await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'x');
    assert!(arrive(&table, hash).await.is_none());
}

#[tokio::test]
async fn a_registration_takes_nothing_from_others() {
    let table = table(TransferOptions::default());
    let Names { requester, target, hash } = names();
    let first = table.register([hash]);
    drop(table.register([hash]));
    assert_eq!(table.counts().registered, 1);
    drop(first);
    let _romeo = arrive(&table, hash).await.unwrap();
    let _juliet = arrive(&table, hash).await.unwrap();
    table.try_activate(&requester, "sid", &target).unwrap();
    drop(table.register([hash]));
    assert_eq!(table.counts().active, 1);
}

#[tokio::test]
async fn an_activation_waits_a_moment_for_the_second_side() {
    let Names { requester, target, hash } = names();
    let table = table(TransferOptions {
        activation_grace: Duration::from_millis(300),
        ..TransferOptions::default()
    });
    let _first = arrive(&table, hash).await.unwrap();
    let alone = table.activate_soon(&requester, "sid", &target).await;
    assert_eq!(alone, Err(NotActivated::OneSide));
    // It waits far longer than the second side needs.
    let table = self::table(TransferOptions {
        activation_grace: Duration::from_secs(60),
        ..TransferOptions::default()
    });
    let _first = arrive(&table, hash).await.unwrap();
    let (activated, second) =
        tokio::join!(table.activate_soon(&requester, "sid", &target), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            arrive(&table, hash).await
        });
    assert!(second.is_some());
    activated.unwrap();
}

#[tokio::test]
async fn the_oldest_transfer_that_waits_makes_room_for_the_next() {
    let table = table(TransferOptions { waiting: 2, ..TransferOptions::default() });
    let (romeo, juliet) = (jid("r@m.lit/o"), jid("j@c.lit/b"));
    let hash = |sid: &str| DstAddr::compute(sid, &romeo, &juliet);
    let mut first = arrive(&table, hash("1")).await.unwrap();
    let _second = arrive(&table, hash("2")).await.unwrap();
    // An active transfer no longer waits, and makes no room.
    let _other = arrive(&table, hash("2")).await.unwrap();
    table.try_activate(&romeo, "2", &juliet).unwrap();
    let _third = arrive(&table, hash("3")).await.unwrap();
    assert_eq!(table.plane().metrics().refusals(Cause::MadeRoom), 0);
    let _fourth = arrive(&table, hash("4")).await.unwrap();
    assert_eq!(first.read(&mut [0]).await.unwrap(), 0, "the oldest one has made room");
    assert_eq!(table.plane().metrics().refusals(Cause::MadeRoom), 1);
    assert_eq!(table.counts().waiting, 2);
    // A session that takes a transfer over removes it from the queue.
    let _session = table.register([hash("3")]);
    let _fifth = arrive(&table, hash("5")).await.unwrap();
    assert_eq!(table.plane().metrics().refusals(Cause::MadeRoom), 1);
}

#[test]
fn an_active_transfer_takes_few_bytes_of_the_table() {
    // A row that is free is no larger than one in use.
    assert!(size_of::<Option<TableEntry>>() <= 80);
}
