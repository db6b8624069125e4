//! Measures lookups in a registry with a million keys, on both databases.
//!
//! `cargo bench --bench registry` (or `make bench`) prints a table and writes it into docs/BENCHMARKS.md. `-- KEYS`
//! sets another number of keys.

#![allow(clippy::print_stdout, reason = "the output is the purpose")]
#![allow(clippy::unwrap_used, reason = "a benchmark that fails stops and says where")]

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use fingerpost::registry::store::Store;
use fingerpost_wire::print::HashKind;
use jid::BareJid;
use sqlx::Connection;
use support::postgres::Postgres;

/// Keys of one user: as many as people have devices.
const PER_USER: u64 = 2;
const LOOKUPS: u64 = 20_000;

fn main() {
    let keys = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1_000_000);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.db");
    let postgres = Postgres::start();
    let mut table = format!(
        "{keys} keys of {} users; {LOOKUPS} lookups of all keys of a random user, one after the other, past the cache.\n\n\
         | database | lookup p50 | p99 | max | bytes per key |\n|---|---|---|---|---|\n",
        keys / PER_USER
    );
    for (name, url) in
        [("SQLite", format!("sqlite:{}", file.display())), ("PostgreSQL", postgres.url())]
    {
        let row = runtime.block_on(async {
            let store = Store::open(&url, 4, true).await.unwrap();
            fill(&url, keys).await;
            let mut times = Vec::new();
            for _ in 0..LOOKUPS {
                let user = user(rand::random::<u64>() % (keys / PER_USER));
                let start = Instant::now();
                let found = store.profile(&user).await.unwrap();
                times.push(start.elapsed());
                assert_eq!(found.keys.len() as u64, PER_USER);
            }
            times.sort();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
            let size = if name == "SQLite" { size(&file) } else { postgres.database_size() };
            format!(
                "| {name} | {} | {} | {} | {} |\n",
                ms(at(0.5)),
                ms(at(0.99)),
                ms(at(1.0)),
                size / keys
            )
        });
        print!("{row}");
        table.push_str(&row);
    }
    println!("\n{table}");
    support::report::write("registry", "Registry", &table);
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// Returns the size of a SQLite database with its log.
fn size(file: &Path) -> u64 {
    ["", "-wal"]
        .iter()
        .filter_map(|end| {
            let mut name = file.as_os_str().to_owned();
            name.push(end);
            std::fs::metadata(name).ok()
        })
        .map(|file| file.len())
        .sum()
}

fn user(number: u64) -> BareJid {
    let mut name = String::new();
    let _ = write!(name, "user{number:07}@example.org");
    BareJid::new(&name).unwrap()
}

/// Puts keys of three prints each into a database by its own SQL: a million requests would take an hour.
async fn fill(url: &str, keys: u64) {
    let users = keys / PER_USER;
    let (series, name, id, random): (_, _, _, fn(usize) -> String) = if url.starts_with("sqlite:") {
        (
            format!(
                "(WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {users} - 1)
                  SELECT i FROM n)"
            ),
            "printf('user%07d@example.org', i)",
            "lower(hex(randomblob(16)))",
            |bytes| format!("randomblob({bytes})"),
        )
    } else {
        (
            format!("generate_series(0, {users} - 1) AS n(i)"),
            "'user' || lpad(i::text, 7, '0') || '@example.org'",
            "md5(random()::text)",
            |bytes| {
                format!(
                    "substring(decode(md5(random()::text) || md5(random()::text), 'hex') for {bytes})"
                )
            },
        )
    };
    let copies = (1..=PER_USER).map(|n| format!("SELECT {n} AS n")).collect::<Vec<_>>();
    let mut script = vec![
        format!("INSERT INTO parties (jid) SELECT {name} FROM {series}"),
        format!(
            "INSERT INTO keys (id, owner, method, label, state, assurance, source, created, changed)
             SELECT {id}, parties.id, 'x509', 'laptop', 'active', 'proven', 'self', 0, 0
             FROM parties, ({}) AS copies",
            copies.join(" UNION ALL ")
        ),
        "INSERT INTO audit (at, event, key_id, owner, actor_kind, actor)
         SELECT 0, 'added', id, owner, 'user', owner FROM keys"
            .to_owned(),
    ];
    for (position, hash) in
        [HashKind::Sha1, HashKind::Sha256, HashKind::SpkiSha256].into_iter().enumerate()
    {
        script.push(format!(
            "INSERT INTO prints (key_id, position, hash, bytes)
             SELECT id, {position}, '{}', {} FROM keys",
            hash.as_str(),
            random(hash.len())
        ));
    }
    script.push(if url.starts_with("sqlite:") { "ANALYZE" } else { "VACUUM ANALYZE" }.to_owned());
    for statement in script {
        let statement = sqlx::AssertSqlSafe(statement);
        if url.starts_with("sqlite:") {
            let mut db = sqlx::SqliteConnection::connect(url).await.unwrap();
            sqlx::raw_sql(statement).execute(&mut db).await.unwrap();
            db.close().await.unwrap();
        } else {
            let mut db = sqlx::PgConnection::connect(url).await.unwrap();
            sqlx::raw_sql(statement).execute(&mut db).await.unwrap();
            db.close().await.unwrap();
        }
    }
}
