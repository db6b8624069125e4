//! PostgreSQL as operators run it: behind a pooler, with a standby, with roles that may do little, locked and silent.

use std::process::Command;
use std::time::Duration;

use fingerpost::{
    cluster::Cluster,
    registry::{
        self, Registry,
        model::{Actor, NewKey, Source, Visibility},
        store::{
            Store,
            error::StoreError,
            open::{OpenError, StoreOptions as Database},
        },
    },
};
use fingerpost_wire::{
    key::{KeyId, State},
    print::{HashKind, Method, Print},
};
use jid::BareJid;
use sqlx::{Connection, Executor, PgConnection};
use support::own_program;
use support::postgres::{Pooler, Postgres};
use support::process::{Output, run};
use support::programs::clean;
use support::switch::Switch;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes on a machine that is not busy.
const EVENT: Duration = Duration::from_secs(60);

type Asking = std::pin::Pin<Box<dyn Future<Output = ()>>>;

fn user(name: &str) -> BareJid {
    BareJid::new(&format!("{name}@montague.lit")).unwrap()
}

async fn open(url: &str) -> Store {
    Store::open(url, 4, true).await.unwrap()
}

async fn open_pooled(url: &str) -> Result<Store, OpenError> {
    Store::open_with(&Database { url, max_connections: 8, migrate: true, pooler: true }).await
}

async fn add(store: &Store, owner: &str, number: u8) -> Result<KeyId, StoreError> {
    let print = Print::new(HashKind::Sha256, &[number; 32]).unwrap();
    let new = NewKey::of_prints(Method::X509, vec![print], "", Source::Self_).unwrap();
    let (owner, now) = (user(owner), OffsetDateTime::now_utc());
    let id = KeyId::new(rand::random());
    Ok(store.add(&owner, &new, 99, &Actor::User(owner.clone()), now, id).await?.key.id)
}

async fn count(store: &Store, owner: &str) -> Result<usize, StoreError> {
    Ok(store.keys_of(&user(owner)).await?.len())
}

/// Asks until an answer is what is waited for.
async fn until<T, R>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, StoreError>,
    wanted: impl Fn(Result<T, StoreError>) -> Option<R>,
) -> R {
    let asking = async {
        loop {
            if let Some(answer) = wanted(ask().await) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(EVENT, asking).await.expect(what)
}

/// Asks until the answer is good, as a user does.
async fn until_good<T>(ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    until("it goes on without a restart", ask, Result::ok).await
}

/// Asks until the answer is that the database takes no changes; on a busy machine another error may come first.
async fn until_read_only<T>(ask: impl AsyncFnMut() -> Result<T, StoreError>) {
    let is_refused = |answer: Result<T, StoreError>| match answer {
        Ok(_) => panic!("the database takes changes"),
        Err(error) => error.to_string().contains("takes no changes").then_some(()),
    };
    until("it says that the database takes no changes", ask, is_refused).await;
}

fn registry(store: &Store) -> Registry {
    let component = BareJid::new("xtls.montague.lit").unwrap();
    let options = registry::RegistryOptions {
        component,
        visibility: Visibility::Everyone,
        keys_per_user: 99,
    };
    Registry::new(store.clone(), options)
}

fn lost_notices() -> u64 {
    let mut text = String::new();
    fingerpost::metrics::write(&mut text);
    let line =
        text.lines().find_map(|line| line.strip_prefix("fingerpost_registry_notices_lost_total "));
    line.unwrap().parse().unwrap()
}

/// Runs `fingerpost serve` on a database that it cannot use.
fn serve(url: &str, more: &str) -> Output {
    fingerpost("serve", url, more)
}

/// Runs a command of `fingerpost` on a database.
fn fingerpost(name: &str, url: &str, more: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fingerpost.toml");
    let text = format!(
        "[component]\njid = 'xtls.example.test'\nsecret = 's'\nserver = '127.0.0.1:9'\n\
         [socks5]\nlisten = ['127.0.0.1:0']\n[http]\nlisten = ''\n[database]\nurl = '{url}'\n{more}\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut command: Command = clean(&own_program("fingerpost"));
    command.arg(name).arg("-c").arg(&file);
    run(command, EVENT)
}

#[tokio::test]
async fn a_role_that_may_not_create_tables_serves_where_nothing_is_to_be_migrated() {
    let postgres = Postgres::start();
    add(&open(&postgres.url()).await, "romeo", 1).await.unwrap();
    postgres.add_role("plain", "");
    let store = open(&postgres.url_of("plain")).await;
    add(&store, "romeo", 2).await.unwrap();
    assert_eq!(count(&store, "romeo").await.unwrap(), 2);

    let empty = Postgres::start();
    empty.add_role("plain", "");
    let refused = Store::open(&empty.url_of("plain"), 4, true).await.unwrap_err();
    assert!(refused.is_forbidden(), "{refused}");
    let output = serve(&empty.url_of("plain"), "");
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("fingerpost migrate"), "{output:?}");
}

#[test]
fn a_schema_newer_than_the_program_ends_each_command_with_status_78_and_a_cure() {
    let postgres = Postgres::start();
    let url = postgres.url();
    assert_eq!(fingerpost("migrate", &url, "").code, 0);
    postgres.query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'of the future', TRUE, '\\x00', 0)",
    );
    let rows = "SELECT string_agg(version::TEXT, ',' ORDER BY version) FROM _sqlx_migrations";
    let before = postgres.query(rows);
    let known = format!("fingerpost {} knows versions up to ", env!("CARGO_PKG_VERSION"));
    for name in ["serve", "check", "migrate"] {
        for more in ["", "pooler = true", "migrate = false"] {
            let output = fingerpost(name, &url, more);
            assert_eq!(output.code, 78, "{name} {more}: {output:?}");
            for text in
                ["its schema has version 9999", &known, "hint: install the newer fingerpost"]
            {
                assert!(output.stderr.contains(text), "{name} {more}: {output:?}");
            }
        }
    }
    // A migration of another program whose number is in between is not a newer schema.
    postgres.query("UPDATE _sqlx_migrations SET version = 0 WHERE version = 9999");
    let output = fingerpost("serve", &url, "");
    assert_eq!(output.code, 78, "{output:?}");
    assert!(output.stderr.contains("another program or another build"), "{output:?}");
    postgres.query("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 0");
    assert_eq!(postgres.query(rows), before, "nothing was changed");
}

/// A server may become silent at any statement. None of these statements belongs to a user's request.
#[tokio::test]
async fn each_statement_that_is_not_answered_is_given_up() {
    let postgres = Postgres::start();
    drop(open(&postgres.url()).await);
    let component = &BareJid::new("xtls.montague.lit").unwrap();
    let silenced = async |text: &str, ask: fn(Store, BareJid) -> Asking| {
        let switch = Switch::start(postgres.port());
        let store = open_pooled(&switch.url()).await.unwrap();
        switch.silence_before(text);
        let done = timeout(EVENT, ask(store, component.clone())).await;
        done.unwrap_or_else(|_| panic!("{text}: waits without end"));
        assert!(switch.has_come(), "{text}");
    };
    tokio::join!(
        silenced("INSERT INTO instances", |store, component| {
            Box::pin(async move {
                drop(Cluster::join(&store, &component, String::new()).await);
            })
        }),
        silenced("FROM instances", |store, component| {
            Box::pin(async move { assert!(store.instances(&component).await.is_err()) })
        }),
        silenced("MAX(seq)", |store, _| {
            Box::pin(async move { assert!(store.changes().await.is_err()) })
        }),
    );
}

#[tokio::test]
async fn an_ipv6_address_and_several_hosts_are_taken_as_libpq_takes_them() {
    let postgres = Postgres::start();
    let port = postgres.port();
    add(&open(&format!("postgresql://fingerpost@[::1]:{port}/fingerpost")).await, "romeo", 1)
        .await
        .unwrap();
    // Nobody listens at the first one.
    let url = format!(
        "postgresql://fingerpost@127.0.0.1:9,[::1]:{port}/fingerpost?target_session_attrs=read-write"
    );
    assert_eq!(count(&open(&url).await, "romeo").await.unwrap(), 1);
}

/// The network swallows what the first host is sent.
#[tokio::test]
async fn a_host_that_is_silent_does_not_hide_the_next_one() {
    let postgres = Postgres::start();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hosts = [silent.local_addr().unwrap().port(), postgres.port()];
    let url =
        format!("postgres://fingerpost@127.0.0.1:{},127.0.0.1:{}/fingerpost", hosts[0], hosts[1]);
    add(&open(&url).await, "romeo", 1).await.unwrap();
}

/// A planned change of the primary: the old one goes on to answer, but takes no changes.
#[tokio::test]
async fn after_a_change_of_the_primary_nothing_is_read_from_or_written_to_the_old_one() {
    let old = Postgres::start();
    let new = old.standby();
    let url = format!(
        "postgresql://fingerpost@127.0.0.1:{},127.0.0.1:{}/fingerpost",
        new.port(),
        old.port()
    );
    let store = open(&url).await;
    let registry = registry(&store);
    let listening = tokio::spawn({
        let registry = registry.clone();
        async move { registry.listen().await }
    });
    timeout(EVENT, registry.blocks_changed()).await.expect("it listens");
    let key = add(&store, "romeo", 1).await.unwrap();
    let state =
        async || registry.profile(&user("romeo")).await.map(|profile| profile.keys[0].state);
    assert_eq!(state().await.unwrap(), State::Active);
    new.wait_for(&old);
    old.set("default_transaction_read_only", "on");
    until_read_only(async || add(&store, "romeo", 2).await).await;
    new.promote();
    for number in 3..9 {
        until_good(async || add(&store, "romeo", number).await).await;
    }
    // Another component changes it there.
    let there = Store::open(&new.url(), 2, false).await.unwrap();
    there.revoke(key, &Actor::Offline, "", OffsetDateTime::now_utc()).await.unwrap();
    timeout(EVENT, registry.blocks_changed()).await.expect("it listens at the new primary");
    assert_eq!(state().await.unwrap(), State::Revoked);
    assert!(lost_notices() > 0);
    assert_eq!(count(&store, "romeo").await.unwrap(), 7);
    let of_old = old.query("SELECT count(*) FROM keys");
    assert_eq!(of_old, "1", "nothing was written there since");
    listening.abort();
}

#[tokio::test]
async fn a_server_that_is_read_only_for_a_while_is_used_again() {
    let postgres = Postgres::start();
    let store = open(&postgres.url()).await;
    let component = BareJid::new("xtls.montague.lit").unwrap();
    add(&store, "romeo", 1).await.unwrap();
    postgres.set("default_transaction_read_only", "on");
    until_read_only(async || add(&store, "romeo", 2).await).await;
    until_read_only(async || count(&store, "romeo").await).await;
    assert_eq!(store.last_write(&component, OffsetDateTime::now_utc()).await, None);
    postgres.set("default_transaction_read_only", "off");
    until_good(async || add(&store, "romeo", 3).await).await;
    assert_eq!(count(&store, "romeo").await.unwrap(), 2);
}

/// Holds a lock until it is dropped.
async fn lock(postgres: &Postgres, statement: &'static str) -> PgConnection {
    let mut holder = PgConnection::connect(&postgres.url()).await.unwrap();
    holder.execute("BEGIN").await.unwrap();
    holder.execute(statement).await.unwrap();
    holder
}

#[tokio::test]
async fn requests_end_while_somebody_holds_a_lock() {
    let postgres = Postgres::start();
    for connections in [1, 4] {
        let store = Store::open(&postgres.url(), connections, true).await.unwrap();
        let holder = lock(&postgres, "LOCK TABLE keys").await;
        let mut requests = JoinSet::new();
        for number in 0..8 {
            let (one, other) = (store.clone(), store.clone());
            requests.spawn(async move { add(&one, "romeo", number).await.map(|_| 0) });
            requests.spawn(async move { count(&other, "romeo").await });
        }
        let ended = timeout(EVENT, requests.join_all()).await.expect("they end");
        for end in ended {
            let error = end.unwrap_err().to_string();
            assert!(error.contains("timeout") || error.contains("within 10 s"), "{error}");
        }
        drop(holder);
        until_good(async || add(&store, "romeo", 99).await).await;
    }
    // The turn of those that change.
    let store = open(&postgres.url()).await;
    let holder = lock(&postgres, "SELECT pg_advisory_xact_lock(7380950580517106548)").await;
    let changing = tokio::spawn({
        let store = store.clone();
        async move { add(&store, "romeo", 7).await }
    });
    assert_eq!(count(&store, "romeo").await.unwrap(), 1, "reading needs no turn");
    let error = timeout(EVENT, changing).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("statement timeout"), "{error}");
    drop(holder);
    until_good(async || add(&store, "romeo", 8).await).await;
}

/// The network forgets every connection while each has a query under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_under_way_end_when_the_server_goes_silent_and_the_pool_recovers() {
    let postgres = Postgres::start();
    let switch = Switch::start(postgres.port());
    let store = Store::open(&switch.url(), 2, true).await.unwrap();
    let holder = lock(&postgres, "LOCK TABLE keys").await;
    let mut requests = JoinSet::new();
    for number in 0..4 {
        let (one, other) = (store.clone(), store.clone());
        requests.spawn(async move { add(&one, "romeo", number).await.map(|_| 0) });
        requests.spawn(async move { count(&other, "romeo").await });
    }
    support::wait_for("queries under way", EVENT, String::new, || {
        postgres.query("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            == "2"
    });
    switch.silence();
    let ended = timeout(EVENT, requests.join_all()).await.expect("they end");
    assert!(ended.iter().all(Result::is_err), "{ended:?}");
    drop(holder);
    until_good(async || add(&store, "romeo", 9).await).await;
    assert_eq!(count(&store, "romeo").await.unwrap(), 1);
}

#[tokio::test]
async fn few_connections_are_enough_under_load() {
    let postgres = Postgres::start();
    for connections in [1, 3] {
        let store = Store::open(&postgres.url(), connections, true).await.unwrap();
        let mut requests = JoinSet::new();
        for number in 0..20 {
            let name = format!("user{connections}x{number}");
            let store = store.clone();
            requests.spawn(async move {
                add(&store, &name, number).await?;
                count(&store, &name).await
            });
        }
        for end in requests.join_all().await {
            assert_eq!(end.unwrap(), 1);
        }
    }
}

#[tokio::test]
async fn a_server_with_too_few_connections_is_refused_before_it_is_used() {
    let postgres = Postgres::start();
    open(&postgres.url()).await;
    postgres.add_role("few", "CONNECTION LIMIT 3");
    let url = postgres.url_of("few");
    let output = serve(&url, "");
    assert_eq!(output.code, 78, "{output:?}");
    for text in ["3 connections", "10 are needed", "max_connections"] {
        assert!(output.stderr.contains(text), "{output:?}");
    }
    // With one it works, also while another one hears of changes.
    let store = Store::open(&url, 1, true).await.unwrap();
    store.check_connections().await.unwrap();
    let _changes = store.changes().await.unwrap();
    for number in 0..9 {
        add(&store, "romeo", number).await.unwrap();
    }
}

#[tokio::test]
async fn a_pooler_is_refused_by_name_unless_it_is_configured() {
    let postgres = Postgres::start();
    // As it is shipped, and as its users make it for other programs.
    for (connections, more) in [
        (3, ""),
        (3, "ignore_startup_parameters = extra_float_digits"),
        (1, "ignore_startup_parameters = extra_float_digits"),
    ] {
        let pooler = Pooler::start(postgres.port(), connections, more);
        let output = serve(&pooler.url(), "");
        assert_eq!(output.code, 78, "{output:?}");
        for text in ["PgBouncer", "pooler = true"] {
            assert!(output.stderr.contains(text), "{output:?}");
        }
        // Nothing was left in its connections, or made.
        assert_eq!(
            postgres.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
            "0"
        );
    }
    let session = Pooler::start(
        postgres.port(),
        8,
        "ignore_startup_parameters = extra_float_digits\npool_mode = session",
    );
    add(&open(&session.url()).await, "romeo", 1).await.unwrap();
}

#[tokio::test]
async fn behind_a_pooler_all_works_and_changes_by_others_are_heard_of() {
    let postgres = Postgres::start();
    let pooler = Pooler::start(postgres.port(), 2, "");
    let store = open_pooled(&pooler.url()).await.unwrap();
    let again = open_pooled(&pooler.url()).await.unwrap();
    let mut requests = JoinSet::new();
    for number in 0..20 {
        let store = if number % 2 == 0 { store.clone() } else { again.clone() };
        let name = format!("user{number}");
        requests.spawn(async move {
            add(&store, &name, number).await?;
            count(&store, &name).await
        });
    }
    for end in requests.join_all().await {
        assert_eq!(end.unwrap(), 1);
    }
    let key = add(&store, "romeo", 1).await.unwrap();
    let registry = registry(&store);
    let listening = tokio::spawn({
        let registry = registry.clone();
        async move { registry.listen().await }
    });
    timeout(EVENT, registry.blocks_changed()).await.expect("it listens");
    let state = async || registry.profile(&user("romeo")).await.unwrap().keys[0].state;
    assert_eq!(state().await, State::Active);
    // One that is connected to PostgreSQL itself.
    let direct = open(&postgres.url()).await;
    direct.revoke(key, &Actor::Offline, "", OffsetDateTime::now_utc()).await.unwrap();
    let heard = async {
        while state().await != State::Revoked {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(EVENT, heard).await.expect("it hears of the revocation");
    direct.block(&user("tybalt"), "", &Actor::Offline, OffsetDateTime::now_utc()).await.unwrap();
    timeout(EVENT, registry.blocks_changed()).await.expect("it hears of the block");
    // Nothing of a session stays behind: no statement, no setting, no lock.
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(postgres.query(left), "0");
    listening.abort();
}

#[tokio::test]
async fn behind_a_pooler_a_lock_and_another_server_do_no_harm() {
    let mut postgres = Postgres::start();
    let standby = postgres.standby();
    let switch = Switch::start(postgres.port());
    let pooler =
        Pooler::start(switch.port(), 3, "server_login_retry = 1\nserver_connect_timeout = 2");
    let store = open_pooled(&pooler.url()).await.unwrap();
    add(&store, "romeo", 1).await.unwrap();
    let holder = lock(&postgres, "LOCK TABLE keys").await;
    let error = count(&store, "romeo").await.unwrap_err();
    assert!(error.to_string().contains("statement timeout"), "{error}");
    drop(holder);
    assert_eq!(until_good(async || count(&store, "romeo").await).await, 1);
    standby.wait_for(&postgres);
    postgres.stop();
    switch.turn(standby.port());
    let refused = add(&store, "romeo", 2).await;
    assert!(refused.is_err(), "a standby takes no changes");
    standby.promote();
    until_good(async || add(&store, "romeo", 3).await).await;
    assert_eq!(count(&store, "romeo").await.unwrap(), 2);
}

/// Instances meet by a lock and by notifications, which belong to a session: two that cannot meet say so.
#[tokio::test]
async fn behind_a_pooler_an_instance_that_is_not_alone_says_so() {
    let postgres = Postgres::start();
    let pooler = Pooler::start(postgres.port(), 2, "");
    let component = BareJid::new("xtls.montague.lit").unwrap();
    let stop = CancellationToken::new();
    let start = async || {
        let store = open_pooled(&pooler.url()).await.unwrap();
        let (cluster, running) = Cluster::join(&store, &component, String::new()).await;
        let ((events, told), (outbound, sent)) = (mpsc::channel(16), mpsc::channel(16));
        let task = tokio::spawn(running.run(events, outbound, stop.clone()));
        (store, cluster, task, (told, sent))
    };
    let (first, cluster, _task, _held) = start().await;
    assert!(cluster.leads() && first.obstacle().is_none());
    let (second, _, task, _held_too) = start().await;
    let said = async |store: &Store, is_said: bool| {
        let saying = async {
            while store.obstacle().is_some() != is_said {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(EVENT, saying).await.expect("it notices");
    };
    said(&first, true).await;
    said(&second, true).await;
    assert!(first.obstacle().unwrap().contains("pooler"));
    task.abort();
    said(&first, false).await;
    stop.cancel();
}
