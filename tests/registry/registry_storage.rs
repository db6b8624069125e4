//! The registry's database beside other programs and under failing parts: changes by another process are in force at
//! once, and a disk or a server that has failed is used again without a restart.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fingerpost::{
    cluster::{Cluster, Event},
    registry::{
        self, Registry,
        model::{Actor, NewKey, Source, Visibility},
        store::{Store, records::ExternalChanges},
    },
};
use fingerpost_wire::{
    key::{KeyId, State},
    print::{HashKind, Method, Print},
};
use jid::BareJid;
use serde_json::{Value, json};
use support::postgres::{Pooler, Postgres};
use support::process::run;
use support::programs::{Component, Options, Xtls, clean, page, script};
use support::servers::{Kind, Server};
use support::switch::Switch;
use support::{own_program, wait_for};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Returns the answer of a component's page at `path`: the status line and the text.
fn get(port: u16, path: &str) -> (String, String) {
    let answer = page(port, path).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), text.to_owned())
}

/// Sends a request as alice; returns the answer's type and condition.
fn ask(server: &Server, kind: &str, payload: &str) -> (String, Value) {
    let xml = format!("<iq from='[from]' to='[component]' id='k' type='{kind}'>{payload}</iq>");
    let report = script("probe.py", server, json!({"stanzas": [{"id": "k", "xml": xml}]}));
    (report["k"]["type"].as_str().unwrap_or_default().to_owned(), report["k"].clone())
}

/// Adds a key of which only the print is known.
fn add(server: &Server, byte: u8) -> (String, Value) {
    let print = format!("{byte:02X}").repeat(32);
    let payload = format!(
        "<add xmlns='urn:fingerpost:keys:0'><key method='x509'><print hash='sha-256'>{print}</print></key></add>"
    );
    ask(server, "set", &payload)
}

/// Each command of OPERATING.md that changes keys, beside the running component, on SQLite.
#[test]
fn what_the_commands_change_is_in_force_in_the_running_component_at_once() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::login(&server, "bob");
    let seen = || {
        let seen = bob.run(["keys", alice.jid(), "--json"]);
        assert_eq!(seen.code, 0, "{seen:?}\n{}", component.log());
        let lines = seen.stdout.lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let keys = |args: &[&str]| {
        let done = component.command([&["keys"], args].concat());
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout
    };
    let before = seen();
    assert_eq!((before.len(), &before[0]["state"]), (1, &json!("active")), "{before:?}");
    let id = before[0]["id"].as_str().unwrap();
    keys(&["attest", id]);
    assert_eq!(seen()[0]["assurance"], "attested");
    let print = "AB".repeat(32);
    keys(&["add", alice.jid(), "--method", "x509", "--print", &print, "--label", "second"]);
    assert_eq!(seen().len(), 2);
    let exported = keys(&["export"]);
    keys(&["revoke", id, "--reason", "lost"]);
    assert_eq!(seen()[0]["state"], "revoked");
    assert!(keys(&["show", id]).contains("revoked"));
    keys(&["erase", alice.jid(), "--yes"]);
    assert_eq!(seen(), [] as [Value; 0]);
    let file = alice.home().join("keys.jsonl");
    std::fs::write(&file, exported).unwrap();
    keys(&["import", file.to_str().unwrap()]);
    let after = seen();
    assert_eq!((after.len(), &after[0]["state"]), (2, &json!("active")), "{after:?}");
    assert_eq!(keys(&["list", alice.jid()]).matches("active").count(), 2);
    // Every spelling of the address is the same user.
    assert_eq!(
        keys(&["list", &format!("{}.", alice.jid().to_uppercase())]).matches("active").count(),
        2
    );
}

/// The database file cannot grow: each change is refused, reading continues, and with room everything works again.
#[test]
fn a_database_that_cannot_grow_is_said_to_be_not_ready_and_recovers() {
    let server = Server::start(Kind::Prosody);
    let (options, http) = Options::default().with_pages();
    let mut component = Component::start(&server, &options);
    assert_eq!(add(&server, 1).0, "result");
    let ready = || get(http, "/readyz");
    wait_for("readiness", Duration::from_secs(20), || component.log(), || ready().1 == "ready\n");
    let process = component.id().to_string();
    let limit = |bytes: String| {
        let bytes = format!("--fsize={bytes}");
        let done = Command::new("prlimit").args(["--pid", &process, &bytes]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let log = component.config().with_file_name("fingerpost.db-wal");
    limit(format!("{}:unlimited", std::fs::metadata(log).unwrap().len()));
    for byte in 2..5 {
        let (type_, answer) = add(&server, byte);
        assert_eq!(
            (type_.as_str(), &answer["condition"]),
            ("error", &json!("internal-server-error"))
        );
    }
    wait_for(
        "the state that it is not ready",
        Duration::from_secs(40),
        || component.log(),
        || {
            let (head, text) = ready();
            head.contains("503") && text == "the database does not accept changes\n"
        },
    );
    let (type_, answer) = ask(&server, "get", "<keys xmlns='urn:fingerpost:keys:0'/>");
    assert_eq!(type_, "result", "stored keys can be read: {answer}");
    limit("unlimited:unlimited".to_owned());
    for byte in 5..8 {
        let (type_, answer) = add(&server, byte);
        assert_eq!(type_, "result", "{answer}\n{}", component.log());
    }
    wait_for("readiness", Duration::from_secs(20), || component.log(), || ready().1 == "ready\n");
    assert!(component.runs());
}

/// How an operator may put another file in the place of the database.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Replaced {
    Copied,
    Moved,
    Removed,
}

/// The prints' first bytes of the keys in a database file.
fn keys_in(file: &Path) -> Vec<String> {
    let mut command = clean(&own_program("fingerpost"));
    command
        .args(["keys", "list", "--json", "-c", "/dev/null"])
        .env("FINGERPOST_COMPONENT__JID", "xtls.example.test")
        .env("FINGERPOST_COMPONENT__SECRET", "s")
        .env("FINGERPOST_DATABASE__URL", format!("sqlite:{}", file.display()));
    let output = run(command, Duration::from_secs(30));
    assert_eq!(output.code, 0, "{output:?}");
    let keys: Value = serde_json::from_str(&output.stdout).unwrap();
    let print = |key: &Value| key["prints"][0]["print"].as_str().unwrap()[..2].to_owned();
    keys.as_array().unwrap().iter().map(print).collect()
}

fn is_sound(file: &Path) -> bool {
    use sqlx::Connection as _;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let url = format!("sqlite:{}", file.display());
        let mut db = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let found: String =
            sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut db).await.unwrap();
        db.close().await.unwrap();
        found == "ok"
    })
}

/// A backup is put back by hand while the component runs: no change is acknowledged any more, the component says so, and
/// after a restart what is there is whole.
fn replaced_while_it_runs(how: Replaced) {
    let server = Server::start(Kind::Prosody);
    let (options, http) = Options::default().with_pages();
    let mut component = Component::start(&server, &options);
    assert_eq!(add(&server, 1).0, "result");
    let backup = component.database().with_file_name("backup.db");
    let done = component.command(["backup", backup.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(add(&server, 2).0, "result");
    let ready = || get(http, "/readyz");
    wait_for("readiness", Duration::from_secs(20), || component.log(), || ready().1 == "ready\n");

    let file = component.database();
    match how {
        Replaced::Copied => {
            let bytes = std::fs::copy(&backup, &file).unwrap();
            assert!(bytes > 0);
        }
        Replaced::Moved => std::fs::rename(&backup, &file).unwrap(),
        Replaced::Removed => std::fs::remove_file(&file).unwrap(),
    }
    let (type_, answer) = add(&server, 3);
    let condition = (type_.as_str(), &answer["condition"]);
    assert_eq!(condition, ("error", &json!("internal-server-error")), "{}", component.log());
    let (type_, answer) = ask(&server, "get", "<keys xmlns='urn:fingerpost:keys:0'/>");
    assert_eq!(type_, "error", "it does not know any more: {answer}");
    let (head, text) = ready();
    assert!(head.contains("503"), "{head}");
    assert!(text.contains("the database file was replaced or removed"), "{text}");
    assert!(component.log().contains("fingerpost restore"), "{}", component.log());
    if how != Replaced::Copied {
        let saved = || {
            let names = std::fs::read_dir(file.parent().unwrap()).unwrap();
            names.map(|entry| entry.unwrap().path()).find(|path| {
                path.to_str().unwrap().contains("fingerpost.db.replaced-")
                    && path.extension().is_some_and(|end| end.len() > 8)
            })
        };
        wait_for(
            "the saved file",
            Duration::from_secs(20),
            || component.log(),
            || component.log().contains("is saved in this file"),
        );
        assert_eq!(keys_in(&saved().unwrap()), ["01", "02"], "all that was acknowledged");
    }
    component.signal("TERM");
    assert_eq!(component.wait(Duration::from_secs(60)), 0, "{}", component.log());
    component.start_again();
    let expected: &[&str] = if how == Replaced::Removed { &[] } else { &["01"] };
    assert_eq!(keys_in(&file), expected);
    assert_eq!(add(&server, 4).0, "result", "{}", component.log());
    component.restart();
    assert_eq!(keys_in(&file), [expected, &["04"]].concat());
    assert!(is_sound(&file));
}

#[test]
fn a_backup_copied_over_the_database_in_use_ends_all_changes() {
    replaced_while_it_runs(Replaced::Copied);
}

#[test]
fn a_backup_moved_over_the_database_in_use_ends_all_changes() {
    replaced_while_it_runs(Replaced::Moved);
}

#[test]
fn a_database_that_is_removed_while_in_use_ends_all_changes() {
    replaced_while_it_runs(Replaced::Removed);
}

#[test]
fn a_restore_waits_for_the_end_of_the_component_and_brings_everything_back() {
    let server = Server::start(Kind::Prosody);
    let mut component = Component::start(&server, &Options::default());
    assert_eq!(add(&server, 1).0, "result");
    let backup = component.database().with_file_name("backup.db");
    let backup = backup.to_str().unwrap();
    assert_eq!(component.command(["backup", backup]).code, 0);
    assert_eq!(add(&server, 2).0, "result");
    let refused = component.command(["restore", backup]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("the database is in use"), "{refused:?}");
    assert!(refused.stderr.contains("hint: stop fingerpost"), "{refused:?}");
    assert_eq!(add(&server, 3).0, "result", "{}", component.log());
    // A crash leaves a log, which belongs to the database that is kept and not to the one that is restored.
    component.signal("KILL");
    component.wait(Duration::from_secs(10));
    let file = component.database();
    assert!(file.with_file_name("fingerpost.db-wal").metadata().unwrap().len() > 0);
    let restored = component.command(["restore", backup]);
    assert_eq!(restored.code, 0, "{restored:?}");
    let kept = restored.stdout.lines().last().unwrap().rsplit(' ').next().unwrap();
    assert_eq!(keys_in(&file), ["01"]);
    assert_eq!(keys_in(Path::new(kept)), ["01", "02", "03"]);
    component.start_again();
    assert_eq!(add(&server, 4).0, "result", "{}", component.log());
    assert!(is_sound(&file));
}

/// The primary is lost, the standby first only answers and is then promoted: nothing acknowledged is lost, and the
/// component continues by itself.
#[test]
fn a_standby_takes_the_place_of_the_primary_without_a_restart() {
    let mut primary = Postgres::start();
    let standby = primary.standby();
    let switch = Switch::start(primary.port());
    let url = switch.url();
    let server = Server::start(Kind::Prosody);
    let (options, http) = Options { database: Some(url), ..Options::default() }.with_pages();
    let mut component = Component::start(&server, &options);
    for byte in 1..4 {
        assert_eq!(add(&server, byte).0, "result");
    }
    standby.wait_for(&primary);
    primary.stop();
    switch.turn(standby.port());
    let (_, refused) = add(&server, 4);
    assert_eq!(
        refused["condition"], "internal-server-error",
        "a standby takes no changes: {refused}"
    );
    standby.promote();
    wait_for(
        "a change",
        Duration::from_secs(30),
        || component.log(),
        || add(&server, 5).0 == "result",
    );
    let (_, keys) = ask(&server, "get", "<keys xmlns='urn:fingerpost:keys:0'/>");
    let keys = keys["xml"].as_str().unwrap().to_owned();
    for byte in [1, 2, 3, 5] {
        assert!(
            keys.contains(&format!(">{}", vec![format!("{byte:02X}"); 32].join(":"))),
            "{keys}"
        );
    }
    wait_for(
        "readiness",
        Duration::from_secs(30),
        || component.log(),
        || get(http, "/readyz").1 == "ready\n",
    );
    assert!(component.runs());
}

#[test]
fn a_component_behind_a_pooler_serves_its_users() {
    let postgres = Postgres::start();
    let pooler = Pooler::start(postgres.port(), 2, "");
    let server = Server::start(Kind::Prosody);
    let (mut options, http) =
        Options { database: Some(pooler.url()), ..Options::default() }.with_pages();
    options.env.push(("FINGERPOST_DATABASE__POOLER", "true".to_owned()));
    let mut component = Component::start(&server, &options);
    for byte in 1..4 {
        assert_eq!(add(&server, byte).0, "result", "{}", component.log());
    }
    wait_for(
        "readiness",
        Duration::from_secs(30),
        || component.log(),
        || get(http, "/readyz").1 == "ready\n",
    );
    assert!(component.runs());
}

const EVENT: Duration = Duration::from_secs(60);

fn romeo() -> BareJid {
    BareJid::new("romeo@montague.lit").unwrap()
}

/// Adds a key of romeo's to a store directly, as another component does.
async fn add_to(store: &Store) -> KeyId {
    let print = Print::new(HashKind::Sha256, &[1; 32]).unwrap();
    let new = NewKey::of_prints(Method::X509, vec![print], "", Source::Self_).unwrap();
    let now = OffsetDateTime::now_utc();
    let added = store.add(&romeo(), &new, 9, &Actor::User(romeo()), now, KeyId::new(1)).await;
    added.unwrap().key.id
}

async fn revoke_in(store: &Store, key: KeyId) {
    store.revoke(key, &Actor::Offline, "", OffsetDateTime::now_utc()).await.unwrap();
}

/// The network silently forgets all connections of one component, while another one revokes a key.
#[tokio::test]
async fn a_revocation_is_in_force_where_the_listening_connection_became_silent() {
    let postgres = Postgres::start();
    let switch = Switch::start(postgres.port());
    let here = Store::open(&switch.url(), 4, true).await.unwrap();
    let there = Store::open(&postgres.url(), 2, false).await.unwrap();
    let key = add_to(&there).await;
    let component = BareJid::new("xtls.montague.lit").unwrap();
    let options =
        registry::RegistryOptions { component, visibility: Visibility::Everyone, keys_per_user: 9 };
    let registry = Registry::new(here, options);
    let listening = tokio::spawn({
        let registry = registry.clone();
        async move { registry.listen().await }
    });
    let state = async || registry.profile(&romeo()).await.unwrap().keys[0].state;
    timeout(EVENT, registry.blocks_changed()).await.expect("it listens");
    assert_eq!(state().await, State::Active);
    switch.silence();
    revoke_in(&there, key).await;
    // It listens again, so it has noticed the silence.
    timeout(EVENT, registry.blocks_changed()).await.expect("it listens again");
    assert_eq!(state().await, State::Revoked);
    listening.abort();
}

/// The connection by which instances meet becomes silent, and the database keeps the old one, which holds the lock.
/// Then a second instance comes, and the first one dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_alone_leads_again_after_its_connection_became_silent() {
    let postgres = Postgres::start();
    let switch = Switch::start(postgres.port());
    let component = BareJid::new("xtls.montague.lit").unwrap();
    let stop = CancellationToken::new();
    let start = async |url: &str| {
        let store = Store::open(url, 2, true).await.unwrap();
        let (cluster, running) = Cluster::join(&store, &component, String::new()).await;
        let ((events, told), (outbound, sent)) = (mpsc::channel(16), mpsc::channel(16));
        let task = tokio::spawn(running.run(events, outbound, stop.clone()));
        (cluster, told, task, sent)
    };
    let (first, _told, task, _sent) = start(&switch.url()).await;
    let holder = || {
        postgres.query(
            "SELECT COALESCE(max(pid), 0) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1",
        )
    };
    let leaders = || postgres.query("SELECT count(*) FROM instances WHERE leads");
    let old = holder();
    assert!(first.leads() && old != "0" && leaders() == "1");
    switch.silence();
    let bound = Duration::from_secs(60);
    // Its lease ends meanwhile: another one could have come.
    wait_for("the lead by another connection", bound, String::new, || {
        ![old.as_str(), "0"].contains(&holder().as_str()) && first.leads()
    });

    let (second, mut told, _task, _sent) = start(&postgres.url()).await;
    assert_eq!((second.leads(), second.obstacle()), (false, None));
    task.abort();
    let recall = timeout(bound, told.recv()).await.unwrap();
    let Some(Event::Recall(done)) = recall else { panic!("{recall:?}") };
    done.send(()).unwrap();
    let event = timeout(bound, told.recv()).await.unwrap();
    assert!(matches!(event, Some(Event::Lead)), "{event:?}");
    assert!(second.leads());
    assert_eq!(leaders(), "1", "the dead one is said to lead no more");
    stop.cancel();
}

#[tokio::test]
async fn connections_of_the_pool_that_became_silent_are_replaced() {
    let postgres = Postgres::start();
    let switch = Switch::start(postgres.port());
    let store = Store::open(&switch.url(), 4, true).await.unwrap();
    add_to(&store).await;
    switch.silence();
    assert_eq!(store.profile(&romeo()).await.unwrap().keys.len(), 1);
}

#[tokio::test]
async fn one_connection_in_the_pool_is_enough_beside_the_one_that_listens() {
    let postgres = Postgres::start();
    let store = Store::open(&postgres.url(), 1, true).await.unwrap();
    let mut changes = store.changes().await.unwrap().expect("PostgreSQL tells of changes");
    let key = add_to(&store).await;
    let of_romeo = ExternalChanges::Of { owners: vec![romeo()], blocks: false };
    assert_eq!(timeout(EVENT, changes.next()).await.unwrap().unwrap(), of_romeo);
    revoke_in(&store, key).await;
    assert_eq!(timeout(EVENT, changes.next()).await.unwrap().unwrap(), of_romeo);
    assert_eq!(store.profile(&romeo()).await.unwrap().keys[0].state, State::Revoked);
}

/// Runs the commands of "Backup and restore" in OPERATING.md that have this mark, in a directory of their own.
fn run_the_page(mark: &str, database: Option<String>) {
    let page = std::fs::read_to_string(support::root().join("docs/OPERATING.md")).unwrap();
    let section = page.split("\n## ").find(|text| text.starts_with("Backup and restore")).unwrap();
    let begin = format!("```sh {mark}\n");
    let commands = section.split(&begin).nth(1).unwrap().split("```").next().unwrap();
    assert!(commands.contains("keys list"), "{commands}");
    let folder = tempfile::tempdir().unwrap();
    let programs = own_program("fingerpost").parent().unwrap().to_owned();
    let mut command = clean(Path::new("bash"));
    command
        .args(["-euo", "pipefail", "-c", commands])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{}", programs.display(), support::postgres::path()));
    if let Some(url) = database {
        command
            .env("FINGERPOST_DATABASE__URL", url)
            .env("FINGERPOST_COMPONENT__JID", "xtls.example.org")
            .env("FINGERPOST_COMPONENT__SECRET", "example");
        std::fs::write(folder.path().join("fingerpost.toml"), "").unwrap();
    }
    let output = run(command, Duration::from_secs(60));
    assert_eq!(output.code, 0, "{commands}\n{output:?}");
    assert!(output.stdout.contains("juliet@example.org x509 active"), "{output:?}");
}

#[test]
fn the_pages_commands_for_backup_and_restore_work_on_sqlite() {
    run_the_page("run", None);
}

#[test]
fn the_pages_commands_for_backup_and_restore_work_on_postgresql() {
    let postgres = Postgres::start();
    run_the_page("run=postgresql", Some(postgres.url()));
}
