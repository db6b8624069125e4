//! The store against a model that fits on a page, over random operations, on both databases; and the data of a real
//! process that is killed in the middle of its work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fingerpost::{
    cli::keys::{self, KeysCommand},
    registry::{
        self, Registry,
        model::{Actor, AuditEvent, NewKey, Party, Settings, Source, Visibility},
        store::Store,
        verdict,
    },
};
use fingerpost_secure::material::Material;
use fingerpost_wire::{
    key::{Assurance, KeyId, State, Verdict},
    print::{HashKind, Method, Print},
};
use jid::{BareJid, Jid};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use sqlx::Connection as _;
use support::postgres::Postgres;
use support::programs::{Component, Options, Script, script};
use support::servers::{Kind, Server};
use time::OffsetDateTime;

/// The operations; users and prints are small numbers.
#[derive(Clone, Debug)]
enum Op {
    Add { user: u8, print: u8, replaces: Option<u8> },
    Erase { user: u8 },
    Prove { user: u8, print: u8 },
    Retire { user: u8, print: u8 },
    Revoke { by: u8, user: u8, print: u8 },
    Settings { user: u8, visibility: Visibility },
}

fn op() -> impl Strategy<Value = Op> {
    let (user, print) = (0..3u8, 0..5u8);
    let visibility = prop::sample::select(vec![Visibility::Nobody, Visibility::Local]);
    prop_oneof![
        6 => (user.clone(), print.clone(), prop::option::of(print.clone()))
            .prop_map(|(user, print, replaces)| Op::Add { user, print, replaces }),
        1 => user.clone().prop_map(|user| Op::Erase { user }),
        2 => (user.clone(), print.clone()).prop_map(|(user, print)| Op::Prove { user, print }),
        2 => (user.clone(), print.clone()).prop_map(|(user, print)| Op::Retire { user, print }),
        3 => (user.clone(), user.clone(), print)
            .prop_map(|(by, user, print)| Op::Revoke { by, user, print }),
        1 => (user, visibility).prop_map(|(user, visibility)| Op::Settings { user, visibility }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    state: State,
    proven: bool,
    replaced_by: Option<u8>,
}

/// The expected content of the store.
#[derive(Debug, Default)]
struct Model {
    keys: BTreeMap<(u8, u8), Entry>,
    settings: BTreeMap<u8, Visibility>,
    /// What was revoked before all of its user was erased.
    buried: BTreeSet<(u8, u8)>,
}

impl Model {
    /// Returns whether an operation is allowed; if so, applies it.
    fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Add { user, print, replaces } => {
                let known = self.keys.get(&(user, print)).cloned();
                let is_buried = known.is_none() && self.buried.contains(&(user, print));
                if known.as_ref().is_some_and(|key| key.state != State::Active) {
                    return true;
                }
                if let Some(old) = replaces.filter(|old| *old != print || known.is_none()) {
                    match self.keys.get_mut(&(user, old)) {
                        Some(key) if known.is_some() && key.replaced_by == Some(print) => {}
                        Some(key) if key.state == State::Active => {
                            if !is_buried {
                                key.state = State::Superseded;
                                key.replaced_by = Some(print);
                            }
                        }
                        _ => return false,
                    }
                }
                let state = if is_buried { State::Revoked } else { State::Active };
                let fresh = Entry { state, proven: false, replaced_by: None };
                self.keys.entry((user, print)).or_insert(fresh);
                true
            }
            Op::Erase { user } => {
                let revoked = self.keys.iter().filter(|(_, key)| key.state == State::Revoked);
                let own = revoked.map(|(name, _)| *name).filter(|(owner, _)| *owner == user);
                self.buried.extend(own.collect::<Vec<_>>());
                self.keys.retain(|(owner, _), _| *owner != user);
                self.settings.remove(&user);
                true
            }
            Op::Prove { user, print } => match self.keys.get_mut(&(user, print)) {
                Some(key) if key.state == State::Active => {
                    key.proven = true;
                    true
                }
                _ => false,
            },
            Op::Retire { user, print } => match self.keys.get_mut(&(user, print)) {
                Some(key) if key.state == State::Active => {
                    key.state = State::Superseded;
                    true
                }
                _ => false,
            },
            Op::Revoke { by, user, print } => match self.keys.get_mut(&(user, print)) {
                Some(key) if by == user => {
                    key.state = State::Revoked;
                    true
                }
                _ => false,
            },
            Op::Settings { user, visibility } => {
                self.settings.insert(user, visibility);
                true
            }
        }
    }
}

fn print(number: u8) -> Print {
    Print::new(HashKind::Sha256, &[number; 32]).expect("32 bytes")
}

/// A case of its own, so that all can share a database.
struct World<'a> {
    store: &'a Store,
    case: u64,
}

impl World<'_> {
    fn user(&self, number: u8) -> BareJid {
        BareJid::new(&format!("user{number}-{}@example.org", self.case)).expect("a JID")
    }

    async fn id(&self, user: u8, number: u8) -> KeyId {
        let keys = self.store.keys_of(&self.user(user)).await.expect("the database is there");
        let found = keys.iter().find(|key| key.has(&print(number)));
        found.map_or_else(|| KeyId::new(rand::random()), |key| key.id)
    }

    async fn apply(&self, op: &Op) -> bool {
        let now = OffsetDateTime::now_utc();
        let actor = |user: u8| Actor::User(self.user(user));
        match *op {
            Op::Add { user, print: number, replaces } => {
                let old = match replaces {
                    Some(old) => Some(self.id(user, old).await),
                    None => None,
                };
                let new = NewKey::of_prints(Method::X509, vec![print(number)], "", Source::Self_)
                    .expect("a key")
                    .replacing(old);
                let id = KeyId::new(rand::random());
                self.store.add(&self.user(user), &new, 100, &actor(user), now, id).await.is_ok()
            }
            Op::Erase { user } => {
                let hash = format!("hash {}", rand::random::<u64>());
                self.store.erase(&self.user(user), &hash, &actor(user), now).await.is_ok()
            }
            Op::Prove { user, print } => {
                let id = self.id(user, print).await;
                self.store.raise(id, Assurance::Proven, &actor(user), now).await.is_ok()
            }
            Op::Retire { user, print } => {
                let id = self.id(user, print).await;
                self.store.retire(id, &actor(user), now).await.is_ok()
            }
            Op::Revoke { by, user, print } => {
                let id = self.id(user, print).await;
                self.store.revoke(id, &actor(by), "", now).await.is_ok()
            }
            Op::Settings { user, visibility } => {
                let settings = Settings { visibility, allowed: vec![self.user(0)] };
                self.store
                    .set_settings(&self.user(user), &settings, &actor(user), now)
                    .await
                    .is_ok()
            }
        }
    }

    /// Returns the content of the store, in the model's terms.
    async fn seen(&self) -> (BTreeMap<(u8, u8), Entry>, BTreeMap<u8, Visibility>) {
        let (mut keys, mut settings) = (BTreeMap::new(), BTreeMap::new());
        for user in 0..3 {
            let profile =
                self.store.profile(&self.user(user)).await.expect("the database is there");
            let number = |id: KeyId| {
                profile.keys.iter().find(|key| key.id == id).map(|key| key.prints[0].as_bytes()[0])
            };
            for key in &profile.keys {
                assert_eq!(key.prints.len(), 1, "never half a key");
                let entry = Entry {
                    state: key.state,
                    proven: key.assurance == Assurance::Proven,
                    replaced_by: key.replaced_by.and_then(number),
                };
                keys.insert((user, key.prints[0].as_bytes()[0]), entry);
            }
            if let Some(said) = &profile.settings {
                settings.insert(user, said.visibility);
            }
        }
        (keys, settings)
    }
}

/// Runs random operations on both and compares them after each.
fn compare(url: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = runtime.block_on(Store::open(url, 4, true)).expect("the database opens");
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let run = runner.run(&prop::collection::vec(op(), 1..40), |ops| {
        runtime.block_on(async {
            let world = World { store: &store, case: rand::random() };
            let mut model = Model::default();
            for op in &ops {
                let allowed = model.apply(op);
                prop_assert_eq!(world.apply(op).await, allowed, "{:?}", op);
                let (keys, settings) = world.seen().await;
                prop_assert_eq!(&keys, &model.keys, "after {:?}", op);
                prop_assert_eq!(&settings, &model.settings, "after {:?}", op);
            }
            Ok(())
        })
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

#[test]
fn the_store_does_as_the_model_on_sqlite() {
    compare("sqlite::memory:");
}

#[test]
fn the_store_does_as_the_model_on_postgresql() {
    compare(&Postgres::start().url());
}

/// A key that is revoked is revoked by each print under which its owner has added it, also if its record is full.
async fn is_revoked_by_every_print(url: &str) {
    let store = Store::open(url, 2, true).await.expect("the database opens");
    let component = BareJid::new("xtls.example.org").expect("a JID");
    let options =
        registry::RegistryOptions { component, visibility: Visibility::Everyone, keys_per_user: 9 };
    let registry = Registry::new(store, options);
    let romeo = Jid::new("romeo@example.org/orchard").expect("a JID");
    let juliet = BareJid::new("juliet@example.org").expect("a JID");
    let now = OffsetDateTime::now_utc();
    let spki = |byte| Print::new(HashKind::SpkiSha256, &[byte; 32]).expect("32 bytes");
    let add = async |prints: &[Print]| {
        let new = NewKey::of_prints(Method::X509, prints.to_vec(), "", Source::Self_);
        registry.add(&romeo, &new.expect("a key"), now).await.expect("it is added")
    };
    let judged = async |print: &Print| {
        let prints = std::slice::from_ref(print);
        let keys = registry.keys_to_judge(&juliet, &romeo.to_bare(), prints).await.expect("keys");
        verdict::judge(&keys, Some(Method::X509), print).verdict
    };
    let (key, _) = add(&[print(1)]).await;
    let (proven, _) = add(&[print(2)]).await;
    let by = Actor::User(romeo.to_bare());
    registry.revoke(&romeo, &by, key.id, "lost", now).await.expect("it is revoked");
    registry.store().raise(proven.id, Assurance::Proven, &by, now).await.expect("it is proven");
    assert_eq!(judged(&spki(101)).await, Verdict::Mismatch, "nobody has said whose it is");

    let (known, notice) = add(&[print(1), spki(101)]).await;
    assert_eq!((known.id, known.state), (key.id, State::Revoked));
    assert_eq!(known.prints, [print(1), spki(101)]);
    assert!(notice.is_some());
    assert_eq!(judged(&spki(101)).await, Verdict::Revoked);
    // One print joins the next.
    let more: Vec<Print> = (11..18).map(print).collect();
    let mut prints = vec![spki(101)];
    prints.extend_from_slice(&more);
    let (known, notice) = add(&prints).await;
    assert_eq!((known.id, known.prints.len()), (key.id, 8), "the record is full");
    assert!(notice.is_some());
    for print in &prints {
        assert_eq!(judged(print).await, Verdict::Revoked, "{print}");
    }
    let log = registry.store().audit(Some(&romeo.to_bare()), 100).await.expect("a log");
    let events: Vec<&AuditEvent> =
        log.iter().filter(|row| row.key == Some(key.id)).map(|row| &row.event).collect();
    assert_eq!(
        events,
        [&AuditEvent::Added, &AuditEvent::Revoked, &AuditEvent::Completed, &AuditEvent::Completed]
    );
    assert_eq!(add(&prints).await, (known, None), "nothing is new");

    // A proven key whose print was revoked before takes no further print otherwise.
    registry.erase(&romeo.to_bare(), &by, now).await.expect("it is erased");
    assert_eq!(judged(&more[6]).await, Verdict::Revoked);
    let (proven, _) = add(&[print(2)]).await;
    registry.store().raise(proven.id, Assurance::Proven, &by, now).await.expect("it is proven");
    let (known, _) = add(&[print(2), print(1), spki(103)]).await;
    assert_eq!((known.id, known.state), (proven.id, State::Revoked));
    for print in [print(2), print(1), spki(103)] {
        assert_eq!(judged(&print).await, Verdict::Revoked, "{print}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_revoked_by_every_print_it_is_added_by_on_sqlite() {
    is_revoked_by_every_print("sqlite::memory:").await;
}

#[tokio::test]
async fn a_revoked_key_is_revoked_by_every_print_it_is_added_by_on_postgresql() {
    is_revoked_by_every_print(&Postgres::start().url()).await;
}

/// Everything in a SQLite database, table by table; users by their address or what is left of it, and the log in its order.
async fn tables(url: &str) -> BTreeMap<String, Vec<String>> {
    // They belong to one run of the component.
    const TRANSIENT: [&str; 5] =
        ["_sqlx_migrations", "heartbeats", "open_sessions", "reachable", "watchers"];
    let mut db = sqlx::SqliteConnection::connect(url).await.expect("the database opens");
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    )
    .fetch_all(&mut db)
    .await
    .expect("tables");
    let mut tables = BTreeMap::new();
    for table in names.into_iter().filter(|name| !TRANSIENT.contains(&name.as_str())) {
        let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
            .bind(&table)
            .fetch_all(&mut db)
            .await
            .expect("columns");
        let has_users = ["keys", "settings", "allowed", "audit"].contains(&table.as_str());
        let shown = columns.iter().filter_map(|column| match (table.as_str(), column.as_str()) {
            // Numbers that only join tables.
            ("parties", "id") | ("audit", "seq") => None,
            (_, "owner" | "actor" | "other") if has_users => Some(format!(
                "quote((SELECT COALESCE(jid, erased) FROM parties WHERE id = t.{column}))"
            )),
            (_, column) => Some(format!("quote(t.{column})")),
        });
        let shown = shown.collect::<Vec<_>>().join(" || ' ' || ");
        let order = if table == "audit" { "ORDER BY seq" } else { "" };
        let text = sqlx::AssertSqlSafe(format!("SELECT {shown} FROM {table} AS t {order}"));
        let mut rows: Vec<String> =
            sqlx::query_scalar(text).fetch_all(&mut db).await.expect("rows");
        if table != "audit" {
            rows.sort();
        }
        tables.insert(table, rows);
    }
    db.close().await.expect("the database closes");
    tables
}

/// Does what operations have not: what admins do, and the component's own certificate.
async fn administer(world: &World<'_>, seed: u8) {
    let now = OffsetDateTime::now_utc();
    let admin = Actor::Admin(BareJid::new("admin@example.org").expect("a JID"));
    let id = world.id(seed % 3, seed % 5).await;
    let store = world.store;
    let _ = store.raise(id, Assurance::Attested, &admin, now).await;
    store.block(&world.user(seed % 3), "spam", &admin, now).await.expect("blocked");
    let domain = BareJid::new("spam.example").expect("a domain");
    store.block(&domain, "", &Actor::Offline, now).await.expect("blocked");
    if seed.is_multiple_of(2) {
        store.unblock(&world.user(seed % 3), &admin, now).await.expect("unblocked");
    }
    if seed.is_multiple_of(3) {
        let user = world.user((seed % 3 + 1) % 3);
        store.retire_account(&user, "another hash", &admin, now).await.expect("retired");
    }
    let component = BareJid::new("xtls.example.org").expect("a JID");
    store.keep_identity(&component, b"certificate", b"private key").await.expect("kept");
    let der = rcgen_certificate();
    let material = Material::parse(Method::X509, &der).expect("a certificate");
    let new = NewKey::of_material(material, &[], "with material", Source::Self_).expect("a key");
    let user = world.user(2);
    let id = KeyId::new(rand::random());
    store.add(&user, &new, 100, &Actor::User(user.clone()), now, id).await.expect("added");
}

fn rcgen_certificate() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

async fn exported(store: &Store) -> String {
    let component = BareJid::new("xtls.example.org").expect("a JID");
    let now = OffsetDateTime::now_utc();
    let mut out = Vec::new();
    let command = KeysCommand::Export { jid: None };
    keys::run(command, store, &component, false, now, &mut out).await.expect("an export");
    String::from_utf8(out).expect("text")
}

async fn import(store: &Store, text: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let component = BareJid::new("xtls.example.org").expect("a JID");
    let now = OffsetDateTime::now_utc();
    let command = KeysCommand::Import { file: file.path().to_owned() };
    let mut out = Vec::new();
    keys::run(command, store, &component, false, now, &mut out).await.expect("an import");
}

#[test]
fn an_import_of_an_export_has_every_row_of_every_table() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let postgres = Postgres::start();
    let shared = runtime.block_on(Store::open(&postgres.url(), 2, true)).expect("it opens");
    let is_first = std::cell::Cell::new(true);
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let run = runner.run(&(prop::collection::vec(op(), 1..40), any::<u8>()), |(ops, seed)| {
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let [from, to] =
                ["a.db", "b.db"].map(|name| format!("sqlite:{}", dir.path().join(name).display()));
            let store = Store::open(&from, 1, true).await.expect("it opens");
            let world = World { store: &store, case: seed.into() };
            for op in &ops {
                world.apply(op).await;
            }
            administer(&world, seed).await;
            let text = exported(&store).await;
            let other = Store::open(&to, 1, true).await.expect("it opens");
            for time in ["first", "second"] {
                import(&other, &text).await;
                prop_assert_eq!(tables(&to).await, tables(&from).await, "{} import", time);
            }
            prop_assert_eq!(&exported(&other).await, &text);
            if is_first.replace(false) {
                import(&shared, &text).await;
                import(&shared, &text).await;
                prop_assert_eq!(&exported(&shared).await, &text, "PostgreSQL");
            }
            other.close().await;
            store.close().await;
            Ok(())
        })
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

/// What an import changes back is in the audit log, by which a running component learns of it, also if the imported log
/// brings no new row.
#[tokio::test]
async fn an_import_that_changes_something_back_is_logged() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite:{}", dir.path().join("a.db").display());
    let store = Store::open(&url, 1, true).await.expect("it opens");
    let now = OffsetDateTime::now_utc();
    let romeo = BareJid::new("romeo@example.org").expect("a JID");
    let settings = |visibility| Settings { visibility, allowed: Vec::new() };
    let actor = Actor::User(romeo.clone());
    let set = async |visibility| {
        store.set_settings(&romeo, &settings(visibility), &actor, now).await.expect("set");
    };
    set(Visibility::Listed).await;
    store.block(&romeo, "spam", &Actor::Offline, now).await.expect("blocked");
    let text = exported(&store).await;
    set(Visibility::Everyone).await;
    store.unblock(&romeo, &Actor::Offline, now).await.expect("unblocked");
    let before = store.audit(None, 100).await.expect("a log").len();
    for more in [2, 2] {
        import(&store, &text).await;
        let log = store.audit(None, 100).await.expect("a log");
        assert_eq!(log.len(), before + more, "{log:?}");
        let last = |n: usize| &log[log.len() - n].event;
        assert_eq!((last(2), last(1)), (&AuditEvent::Settings, &AuditEvent::Blocked), "{log:?}");
    }
    store.close().await;
}

/// An import of prints that stay revoked, and of nothing else, leaves a row for each user whose state it changes.
#[tokio::test]
async fn an_import_of_revoked_prints_alone_is_logged() {
    let postgres = Postgres::start();
    let from = Store::open("sqlite::memory:", 1, true).await.expect("it opens");
    let now = OffsetDateTime::now_utc();
    let [romeo, juliet] = ["romeo", "juliet"]
        .map(|name| BareJid::new(&format!("{name}@example.org")).expect("a JID"));
    for (number, user) in [(1, &romeo), (2, &romeo), (3, &juliet)] {
        let new = NewKey::of_prints(Method::X509, vec![print(number)], "", Source::Self_);
        let (actor, id) = (Actor::User(user.clone()), KeyId::new(number.into()));
        from.add(user, &new.expect("a key"), 100, &actor, now, id).await.expect("it is added");
        from.revoke(id, &actor, "", now).await.expect("it is revoked");
    }
    for user in [&romeo, &juliet] {
        from.erase(user, "hash", &Actor::Offline, now).await.expect("it is erased");
    }
    let text = exported(&from).await;
    let is_meant =
        |line: &&str| ["{\"salt", "{\"revoked"].iter().any(|what| line.starts_with(what));
    let prints: Vec<&str> = text.lines().filter(is_meant).collect();
    assert_eq!(prints.len(), 4, "{text}");
    let prints = prints.join("\n");
    for url in ["sqlite::memory:", &postgres.url()] {
        let store = Store::open(url, 2, true).await.expect("it opens");
        // Romeo is known here; Juliet is not, and stays a hash.
        let settings = Settings { visibility: Visibility::Nobody, allowed: Vec::new() };
        let actor = Actor::User(romeo.clone());
        store.set_settings(&romeo, &settings, &actor, now).await.expect("they are set");
        let before = store.audit(None, 100).await.expect("a log").len();
        import(&store, &prints).await;
        let log = store.audit(None, 100).await.expect("a log");
        let rows = &log[before..];
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert!(rows.iter().all(|row| row.event == AuditEvent::Imported && row.key.is_none()));
        assert_eq!(rows[0].owner, Party::User(romeo.clone()));
        assert!(matches!(&rows[1].owner, Party::Erased(hash) if hash.starts_with("sha-256:")));
        import(&store, &prints).await;
        assert_eq!(store.audit(None, 100).await.expect("a log"), log, "nothing has changed");
        // The whole export tells why the prints are revoked.
        let whole = Store::open("sqlite::memory:", 1, true).await.expect("it opens");
        import(&whole, &text).await;
        assert_eq!(exported(&whole).await, text);
    }
}

/// A component is killed while a user adds and revokes keys. Acknowledged changes survive the restart, the request in
/// progress is either done or not, and nothing is half done.
fn survives_kills(database: Option<String>) {
    let server = Server::start(Kind::Prosody);
    let directory = tempfile::tempdir().expect("a directory");
    let database =
        database.or_else(|| Some(format!("sqlite:{}", directory.path().join("keys.db").display())));
    let more = "[limits]\nrequests_per_second = 100000\n[registry]\nkeys_per_user = 10000\n";
    let options = Options { database, more: more.to_owned(), ..Options::default() };
    let mut acknowledged = 0;
    for round in 0..3 {
        let mut component = Component::start(&server, &options);
        let mut work = Script::start("work.py", &server, json!({"round": round}));
        // At some point of the next step.
        work.wait_for(&format!("{{\"step\": {}}}", 11 + 7 * round));
        component.signal("KILL");
        component.wait(Duration::from_secs(5));
        std::fs::write(work.directory().join("killed"), "")
            .expect("the script's directory is there");
        let report = work.report();
        acknowledged += report["steps"].as_array().map_or(0, Vec::len);
        drop(component);

        let component = Component::start(&server, &options);
        let found = script("work.py", &server, json!({"check": report, "round": round}));
        assert_eq!(found["lost"], json!([]), "{found}\n{}", component.log());
        assert_eq!(found["half"], json!([]), "{found}");
        assert!(found["more"].as_array().is_some_and(|more| more.len() <= 1), "{found}");
    }
    assert!(acknowledged > 30, "only {acknowledged} changes: too few to be killed between");
}

#[test]
fn nothing_acknowledged_is_lost_in_a_crash_on_sqlite() {
    survives_kills(None);
}

#[test]
fn nothing_acknowledged_is_lost_in_a_crash_on_postgresql() {
    let postgres = Postgres::start();
    survives_kills(Some(postgres.url()));
}
