//! The `fingerpost` program as an operator sees it: exit status, standard output, standard error.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fingerpost::config::DEFAULT_TEXT;
use support::own_program;
use support::process::{Output, run};
use support::programs::clean;

fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = clean(&own_program("fingerpost"));
    command.args(args).current_dir(directory);
    command
}

fn fingerpost(directory: &Path, args: &[&str]) -> Output {
    run(command(directory, args), Duration::from_secs(30))
}

/// Returns a directory with a good configuration, plus `more`.
fn directory(more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let port = support::free_port();
    let text = format!(
        "[component]\njid = \"xtls.example.org\"\nsecret = \"s\"\n{more}\n\
         [socks5]\nlisten = [\"127.0.0.1:{port}\"]\n[http]\nlisten = \"\"\n"
    );
    let file = directory.path().join("fingerpost.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    directory
}

#[test]
fn a_bad_configuration_ends_with_status_78_and_one_line() {
    let directory = directory("server = \"localhost\"");
    for args in [&["serve"][..], &["check"], &["attach", "prosody"], &["keys", "list"]] {
        let output = fingerpost(directory.path(), args);
        assert_eq!(output.code, 78, "{args:?}: {output:?}");
        assert_eq!(output.stdout, "", "{args:?}");
        assert_eq!(
            output.stderr,
            "error: fingerpost.toml: component.server: expected \"host:port\", found \"localhost\"\n",
        );
    }
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant() {
    let directory = directory("sever = \"localhost:1\"");
    let output = fingerpost(directory.path(), &["check"]);
    assert_eq!(output.code, 78, "{output:?}");
    assert_eq!(
        output.stderr,
        "error: fingerpost.toml: component.sever: unknown key in [component]; did you mean `server`?\n",
    );
}

#[test]
fn a_missing_configuration_comes_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let output = fingerpost(directory.path(), &["serve", "-c", "none.toml"]);
    assert_eq!(output.code, 78, "{output:?}");
    assert_eq!(
        output.stderr,
        "error: none.toml: cannot be read: no such file\n\
         hint: `fingerpost config` prints a configuration to start from\n",
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let directory = directory("");
    let mut command = command(directory.path(), &["check"]);
    command.env("FINGERPOST_COMPONENT__SERVER", "nowhere");
    let output = run(command, Duration::from_secs(30));
    assert_eq!(output.code, 78, "{output:?}");
    assert!(output.stderr.starts_with("error: FINGERPOST_COMPONENT__SERVER: "), "{output:?}");
}

#[test]
fn bad_usage_ends_with_status_2() {
    let directory = tempfile::tempdir().unwrap();
    for args in [&["dance"][..], &["serve", "--loud"], &["completions", "cobol"]] {
        assert_eq!(fingerpost(directory.path(), args).code, 2, "{args:?}");
    }
}

#[test]
fn the_default_configuration_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let output = fingerpost(directory.path(), &["config"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, DEFAULT_TEXT));
    assert_eq!(output.stderr, "");
}

#[test]
fn a_good_configuration_passes_the_check() {
    let directory = directory("");
    assert_eq!(fingerpost(directory.path(), &["migrate"]).code, 0);
    let output = fingerpost(directory.path(), &["check"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(output.stderr, "");
}

#[test]
fn a_port_that_is_taken_fails_the_check() {
    let directory = directory("");
    let config = std::fs::read_to_string(directory.path().join("fingerpost.toml")).unwrap();
    let port = config.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port.parse::<u16>().unwrap())).unwrap();
    let output = fingerpost(directory.path(), &["check"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.starts_with("error: socks5.listen: cannot listen on "), "{output:?}");
    assert_eq!(output.stderr.matches("cannot listen on").count(), 1, "{output:?}");
    let served = fingerpost(directory.path(), &["serve"]);
    assert!(served.stderr.ends_with(&served_end(&output.stderr)), "{served:?}");
}

/// Returns what `serve` reports where `check` has reported `checked`: the same without what only `check` needs.
fn served_end(checked: &str) -> String {
    checked.replace("; `check` needs a stopped service, without its socket unit", "")
}

#[test]
fn check_and_serve_report_the_same_faults_of_the_database() {
    for url in ["sqlite:/nowhere/fingerpost.db", "sqlite:fingerpost.toml", "mysql:x"] {
        let directory = directory(&format!("[database]\nurl = {url:?}"));
        let checked = fingerpost(directory.path(), &["check"]);
        let served = fingerpost(directory.path(), &["serve"]);
        assert_ne!(checked.code, 0, "{checked:?}");
        assert_eq!(checked.code, served.code, "{served:?}");
        assert!(checked.stderr.starts_with("error: "), "{checked:?}");
        assert!(served.stderr.ends_with(&checked.stderr), "{checked:?}\n{served:?}");
    }
}

#[test]
fn an_unreachable_server_fails_the_online_check() {
    let directory = directory(&format!("server = \"127.0.0.1:{}\"", support::free_port()));
    assert_eq!(fingerpost(directory.path(), &["migrate"]).code, 0);
    let output = fingerpost(directory.path(), &["check", "--online"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.starts_with("error: "), "{output:?}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = fingerpost(directory.path(), &["completions", shell]);
        assert_eq!(output.code, 0, "{shell}: {output:?}");
        assert!(output.stdout.contains("migrate"), "{shell}");
    }
    assert_eq!(fingerpost(directory.path(), &["man", "pages"]).code, 0);
    assert!(directory.path().join("pages/fingerpost-serve.1").exists());
}

#[test]
fn an_empty_registry_is_listed_as_json() {
    let directory = directory("");
    let output = fingerpost(directory.path(), &["keys", "list", "--json"]);
    assert_eq!(output.code, 0, "{output:?}");
    for line in output.stdout.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

/// The secret is created once, readable by its owner only, and found again without a setting.
#[test]
fn attach_prints_the_lines_for_the_server_and_makes_the_secret() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let config = "[component]\njid = \"xtls.example.org\"\n";
    std::fs::write(directory.path().join("fingerpost.toml"), config).unwrap();
    let prosody = fingerpost(directory.path(), &["attach", "prosody"]);
    assert_eq!(prosody.code, 0, "{prosody:?}");
    let secret = directory.path().join("secret");
    let mode = std::fs::metadata(&secret).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = std::fs::read_to_string(secret).unwrap().trim().to_owned();
    assert_eq!(secret.len(), 64, "{secret}");
    let lines = format!(
        "-- Fingerpost\nComponent \"xtls.example.org\"\n\tcomponent_secret = \"{secret}\"\n"
    );
    assert!(prosody.stdout.starts_with(&lines), "{prosody:?}");
    let rest = &prosody.stdout[lines.len()..];
    assert!(rest.contains("component_conflict_resolve = \"kick_old\""), "{rest}");
    assert!(rest.lines().all(|line| line.starts_with("\t-- ")), "only by choice: {rest}");
    assert!(prosody.stderr.contains("/etc/prosody/prosody.cfg.lua"), "{prosody:?}");
    let ejabberd = fingerpost(directory.path(), &["attach", "ejabberd"]);
    assert!(ejabberd.stdout.contains(&format!("password: \"{secret}\"")), "{ejabberd:?}");
    assert!(ejabberd.stdout.contains("A listener of its own"), "{ejabberd:?}");
    assert!(!ejabberd.stderr.contains("new secret"), "{ejabberd:?}");
    // A named file that does not exist is created.
    let named = format!("{config}secret_file = \"other\"\n");
    std::fs::write(directory.path().join("fingerpost.toml"), named).unwrap();
    assert_eq!(fingerpost(directory.path(), &["attach", "prosody"]).code, 0);
    assert!(directory.path().join("other").exists());
}

/// Returns the default database of a directory.
fn database(folder: &Path) -> String {
    format!("sqlite:{}", folder.join("fingerpost.db").display())
}

/// Runs statements in the database of a directory, as another program would.
fn execute(folder: &Path, statements: &'static str) {
    use sqlx::{Connection as _, Executor as _};
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut db = sqlx::SqliteConnection::connect(&database(folder)).await.unwrap();
        db.execute(statements).await.unwrap();
        db.close().await.unwrap();
    });
}

/// Returns all files of a directory: name, content, time of the last change and owner.
fn files(folder: &Path) -> Vec<(String, Vec<u8>, std::time::SystemTime, u32)> {
    use std::os::unix::fs::MetadataExt;
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let file = path.metadata().unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(&path).unwrap(), file.modified().unwrap(), file.uid())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn an_account_is_retired_with_all_that_is_held_about_it() {
    let folder = directory("");
    let run = |args: &[&str]| {
        let output = fingerpost(folder.path(), args);
        assert_eq!(output.code, 0, "{args:?}: {output:?}");
        output.stdout
    };
    let (print, juliet) = ("ab".repeat(32), "juliet@example.test");
    let add = ["keys", "add", juliet, "--method", "x509", "--print", &print];
    run(&add);
    assert!(run(&["keys", "list", juliet]).contains("x509"));
    let said = run(&["keys", "retire", juliet]);
    assert_eq!(
        said,
        format!("{juliet}: keys deleted: 1; users who no longer show it their keys: 0\n")
    );
    assert!(!run(&["keys", "list", juliet]).contains("x509"));
    // The next owner may have the same key, which is no longer the old one.
    assert!(run(&add).contains("asserted"));
    let said: serde_json::Value =
        serde_json::from_str(&run(&["keys", "retire", juliet, "--json"])).unwrap();
    assert_eq!(said, serde_json::json!({"jid": juliet, "keys": 1, "named_by": 0}));
}

#[test]
fn a_schema_newer_than_the_program_ends_every_command_with_status_78_and_both_versions() {
    let folder = directory("");
    assert_eq!(fingerpost(folder.path(), &["migrate"]).code, 0);
    execute(
        folder.path(),
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'of the future', TRUE, x'00', 0)",
    );
    let before = files(folder.path());
    for args in [&["serve"][..], &["check"], &["migrate"], &["keys", "list"], &["keys", "export"]] {
        let output = fingerpost(folder.path(), args);
        assert_eq!(output.code, 78, "{args:?}: {output:?}");
        let known = format!("fingerpost {} knows versions up to ", env!("CARGO_PKG_VERSION"));
        assert!(output.stderr.contains("its schema has version 9999"), "{args:?}: {output:?}");
        assert!(output.stderr.contains(&known), "{args:?}: {output:?}");
        assert!(output.stderr.contains("hint: install the newer fingerpost"), "{output:?}");
        assert_eq!(output.stdout, "", "{args:?}");
    }
    let names = |files: &[(String, Vec<u8>, _, _)]| -> Vec<(String, Vec<u8>)> {
        files.iter().map(|(name, content, ..)| (name.clone(), content.clone())).collect()
    };
    assert_eq!(names(&files(folder.path())), names(&before));
}

#[test]
fn a_schema_that_another_build_has_made_ends_with_status_78() {
    for damage in [
        "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 2",
        "UPDATE _sqlx_migrations SET success = FALSE WHERE version = 2",
    ] {
        let folder = directory("");
        assert_eq!(fingerpost(folder.path(), &["migrate"]).code, 0);
        execute(folder.path(), damage);
        for args in [&["serve"][..], &["check"], &["keys", "list"]] {
            let output = fingerpost(folder.path(), args);
            assert_eq!(output.code, 78, "{damage} {args:?}: {output:?}");
        }
    }
}

#[test]
fn the_check_creates_and_changes_nothing_and_says_what_serve_will_do() {
    let folder = directory("");
    let before = files(folder.path());
    let output = fingerpost(folder.path(), &["check"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("`fingerpost serve` makes the database"), "{output:?}");
    assert_eq!(files(folder.path()), before, "before the first start");

    assert_eq!(fingerpost(folder.path(), &["migrate"]).code, 0);
    let before = files(folder.path());
    assert_eq!(fingerpost(folder.path(), &["check"]).code, 0);
    assert_eq!(files(folder.path()), before, "while nothing runs");

    execute(folder.path(), "DROP TABLE reachable; DELETE FROM _sqlx_migrations WHERE version > 4");
    let before = files(folder.path());
    let output = fingerpost(folder.path(), &["check"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("brings its schema from version 4 to "), "{output:?}");
    assert_eq!(files(folder.path()), before, "an older schema");
    let mut command = command(folder.path(), &["check"]);
    command.env("FINGERPOST_DATABASE__MIGRATE", "false");
    let output = run(command, Duration::from_secs(30));
    assert_eq!(output.code, 78, "serve would refuse it too: {output:?}");
    assert!(output.stderr.contains("hint: run `fingerpost migrate`"), "{output:?}");
}

#[test]
fn the_check_changes_nothing_of_a_database_in_use_or_left_by_a_crash() {
    use fingerpost::registry::store::Store;
    let folder = directory("");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(Store::open(&database(folder.path()), 1, true)).unwrap();
    let print = "AB".repeat(32);
    let add = ["keys", "add", "a@b.example", "--method", "x509", "--print", &print];
    assert_eq!(fingerpost(folder.path(), &add).code, 0);
    let before = files(folder.path());
    assert!(before.iter().any(|(name, log, ..)| name.ends_with("-wal") && !log.is_empty()));
    let output = fingerpost(folder.path(), &["check"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    assert_eq!(files(folder.path()), before, "in use");

    let crashed = self::directory("");
    for file in ["fingerpost.db", "fingerpost.db-wal"] {
        std::fs::copy(folder.path().join(file), crashed.path().join(file)).unwrap();
    }
    let before = files(crashed.path());
    assert_eq!(fingerpost(crashed.path(), &["check"]).code, 0);
    assert_eq!(files(crashed.path()), before, "left by a crash");
    runtime.block_on(store.close());
}

#[test]
fn the_check_says_what_keeps_serve_from_the_database() {
    let folder = directory("");
    let file = folder.path().join("fingerpost.db");
    for (url, word, cure) in [
        ("sqlite:nowhere/fingerpost.db", "nowhere", "the rights of the file and the directory"),
        ("sqlite:fingerpost.db", "not a database", "restore a backup"),
        ("postgres://fingerpost@127.0.0.1:1/fingerpost", "refused", "can be reached from here"),
    ] {
        std::fs::write(&file, "a text that is long enough to be taken for a header\n".repeat(40))
            .unwrap();
        let mut command = command(folder.path(), &["check"]);
        command.env("FINGERPOST_DATABASE__URL", url);
        let output = run(command, Duration::from_secs(30));
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(word), "{output:?}");
        let hint = output.stderr.lines().find(|line| line.starts_with("hint: "));
        assert!(hint.is_some_and(|hint| hint.contains(cure)), "{output:?}");
    }
}

/// Root's commands before the first start leave files that the service, which owns the directory, can use.
#[test]
fn what_root_creates_belongs_to_the_owner_of_the_directory() {
    use std::os::unix::fs::{MetadataExt, chown};
    let folder = directory("");
    let owner = folder.path().metadata().unwrap().uid();
    if owner == 0 {
        chown(folder.path(), Some(4321), Some(4321)).unwrap();
    }
    let owner = folder.path().metadata().unwrap().uid();
    assert_eq!(fingerpost(folder.path(), &["keys", "list"]).code, 0);
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("fingerpost.db") {
            assert_eq!(path.metadata().unwrap().uid(), owner, "{path:?}");
            assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600, "{path:?}");
        }
    }
    let database = folder.path().join("fingerpost.db");
    if owner == 4321 {
        chown(&database, Some(0), Some(0)).unwrap();
        let output = fingerpost(folder.path(), &["check"]);
        assert!(output.stdout.contains("warning: "), "{output:?}");
        assert!(output.stdout.contains("chown --reference="), "{output:?}");
    }
}

#[test]
fn a_backup_is_for_its_owner_alone_and_replaces_nothing() {
    let folder = directory("");
    let output = fingerpost(folder.path(), &["backup", "backup.db"]);
    assert_eq!(output.code, 1, "there is nothing yet: {output:?}");
    assert!(output.stderr.contains("fingerpost.db: "), "{output:?}");
    assert!(!folder.path().join("fingerpost.db").exists(), "and nothing is made");
    assert_eq!(fingerpost(folder.path(), &["migrate"]).code, 0);
    assert_eq!(fingerpost(folder.path(), &["backup", "backup.db"]).code, 0);
    let backup = folder.path().join("backup.db");
    assert_eq!(backup.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let again = fingerpost(folder.path(), &["backup", "backup.db"]);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(
        again.stderr,
        "error: backup.db: the file exists already\nhint: choose another name, or remove the file\n"
    );
    let mut names: Vec<_> = files(folder.path()).into_iter().map(|(name, ..)| name).collect();
    names.sort();
    assert_eq!(names, ["backup.db", "fingerpost.db", "fingerpost.toml"]);
}

#[test]
fn a_restore_keeps_owner_and_rights_and_refuses_what_is_no_good_backup() {
    use std::os::unix::fs::{MetadataExt, chown};
    let folder = directory("");
    let file = folder.path().join("fingerpost.db");
    assert_eq!(fingerpost(folder.path(), &["migrate"]).code, 0);
    assert_eq!(fingerpost(folder.path(), &["backup", "backup.db"]).code, 0);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    if file.metadata().unwrap().uid() == 0 {
        chown(&file, Some(4321), Some(4322)).unwrap();
    }
    let before = file.metadata().unwrap();

    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("text"), "no database\n".repeat(1000)).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    let mut cut = std::fs::read(path("backup.db")).unwrap();
    cut.truncate(cut.len() / 2);
    std::fs::write(path("cut"), cut).unwrap();
    std::fs::copy(path("backup.db"), path("newer")).unwrap();
    {
        use sqlx::{Connection as _, Executor as _};
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let url = format!("sqlite:{}", path("newer").display());
            let mut db = sqlx::SqliteConnection::connect(&url).await.unwrap();
            db.execute(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, '', TRUE, x'00', 0)",
            )
            .await
            .unwrap();
            db.close().await.unwrap();
        });
    }
    let whole = files(folder.path());
    for (name, code) in
        [("text", 1), ("empty", 1), ("cut", 1), ("none", 1), ("fingerpost.db", 1), ("newer", 78)]
    {
        let output = fingerpost(folder.path(), &["restore", name]);
        assert_eq!(output.code, code, "{name}: {output:?}");
        assert!(output.stderr.starts_with(&format!("error: {name}: ")), "{name}: {output:?}");
        assert!(output.stderr.contains("hint: "), "{name}: {output:?}");
        assert_eq!(files(folder.path()), whole, "{name}");
    }

    let output = fingerpost(folder.path(), &["restore", "backup.db"]);
    assert_eq!(output.code, 0, "{output:?}");
    let after = file.metadata().unwrap();
    assert_ne!(after.ino(), before.ino());
    assert_eq!(
        (after.uid(), after.gid(), after.mode()),
        (before.uid(), before.gid(), before.mode())
    );
    assert_eq!(fingerpost(folder.path(), &["check"]).code, 0);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(fingerpost(folder.path(), &["restore", "backup.db"]).code, 0, "nothing was there");
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn backup_and_restore_of_postgresql_name_its_own_programs() {
    let folder = directory("[database]\nurl = \"postgres://a:secret@127.0.0.1:1/b\"\n");
    for (name, program) in [("backup", "pg_dump "), ("restore", "pg_restore ")] {
        let output = fingerpost(folder.path(), &[name, "file"]);
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(program), "{output:?}");
        assert!(!output.stderr.contains("secret"), "{output:?}");
    }
}

#[test]
fn arguments_that_cannot_name_a_key_are_bad_usage() {
    let directory = directory("");
    let add = ["keys", "add", "bob@example.test", "--method", "srp", "--print", "AB"];
    for (args, expected) in [
        (&["keys", "show", "nope"][..], "expected a key id: 32 hexadecimal digits"),
        (&["keys", "attest", "nope"], "expected a key id: 32 hexadecimal digits"),
        (&["keys", "revoke", "nope"], "expected a key id: 32 hexadecimal digits"),
        (&add, "expected x509 or openpgp"),
    ] {
        let output = fingerpost(directory.path(), args);
        assert_eq!(output.code, 2, "{args:?}: {output:?}");
        assert!(output.stderr.contains(expected), "{args:?}: {output:?}");
    }
}

#[test]
fn too_few_open_files_are_logged_once_with_the_number_to_set() {
    for (limit, told) in [
        (1000, "set LimitNOFILE=20612 in the unit, or `ulimit -Hn 20612`"),
        (19_000, "the limit of open files covers almost limits.sessions"),
    ] {
        let directory = directory("[database]\nurl = \"sqlite:/nowhere/fingerpost.db\"");
        let mut shell = clean(Path::new("sh"));
        shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" serve")]);
        shell.arg(own_program("fingerpost")).current_dir(directory.path());
        let output = run(shell, Duration::from_secs(30));
        assert_eq!(output.stderr.matches("open files").count(), 1, "{output:?}");
        assert!(output.stderr.contains(told), "{output:?}");
    }
}
