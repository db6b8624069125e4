//! A private PostgreSQL on loopback.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, read};
use super::{free_port, wait_for};

/// A running PostgreSQL with one database, `fingerpost`.
pub struct Postgres {
    // Dropped in this order: nothing writes into a directory that is being removed.
    process: Process,
    directory: TempDir,
    port: u16,
}

impl Postgres {
    /// Creates a cluster and starts it.
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-postgres-").tempdir().unwrap();
        if is_root() {
            // It refuses to run as root.
            let given =
                Command::new("chown").arg("postgres:").arg(directory.path()).status().unwrap();
            assert!(given.success());
        }
        let data = directory.path().join("data");
        let made = tool("initdb")
            .args(["--username", "fingerpost", "--auth", "trust", "--encoding", "UTF8"])
            .args(["--locale", "C", "--no-sync", "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let process = Self::launch(directory.path(), port);
        let this = Self { process, directory, port };
        this.wait();
        let done = tool("createdb")
            .args(["--host", "127.0.0.1", "--username", "fingerpost", "fingerpost", "--port"])
            .arg(port.to_string())
            .output()
            .unwrap();
        assert!(done.status.success(), "createdb: {}", String::from_utf8_lossy(&done.stderr));
        this
    }

    fn launch(directory: &Path, port: u16) -> Process {
        let mut command = tool("postgres");
        command.arg("-D").arg(directory.join("data")).arg("-p").arg(port.to_string()).args([
            "-c",
            "listen_addresses=127.0.0.1,::1",
            "-c",
            "unix_socket_directories=",
        ]);
        Process::start(command, &directory.join("postgres.log"))
    }

    fn wait(&self) {
        let log = self.directory.path().join("postgres.log");
        wait_for(
            "PostgreSQL",
            Duration::from_secs(30),
            || read(&log),
            || {
                tool("pg_isready")
                    .args(["--quiet", "--host", "127.0.0.1", "--port"])
                    .arg(self.port.to_string())
                    .status()
                    .is_ok_and(|status| status.success())
            },
        );
    }

    /// Returns the address of the database.
    pub fn url(&self) -> String {
        format!("postgres://fingerpost@127.0.0.1:{}/fingerpost", self.port)
    }

    /// Returns the address of the database for another role.
    pub fn url_of(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/fingerpost", self.port)
    }

    /// Creates a role with the rights that a running component needs.
    pub fn add_role(&self, role: &str, more: &str) {
        self.query(&format!("CREATE ROLE {role} LOGIN {more}"));
        self.query(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
        ));
        self.query(&format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"));
    }

    /// Changes a setting in the running server.
    pub fn set(&self, setting: &str, value: &str) {
        // A server that is read only takes this change all the same.
        self.query(&format!("ALTER SYSTEM SET {setting} = {value}"));
        self.query("SELECT pg_reload_conf()");
        let show = format!("SHOW {setting}");
        wait_for(
            setting,
            Duration::from_secs(30),
            || self.query(&show),
            || self.query(&show) == value,
        );
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the size of the database on the disk, in bytes.
    pub fn database_size(&self) -> u64 {
        self.query("SELECT pg_database_size('fingerpost')").parse().unwrap()
    }

    /// Returns the single value of a query.
    pub fn query(&self, text: &str) -> String {
        let answer = tool("psql")
            .args(["--host", "127.0.0.1", "--username", "fingerpost", "--port"])
            .arg(self.port.to_string())
            .args(["--tuples-only", "--no-align", "--command"])
            .arg(text)
            .arg("fingerpost")
            .output()
            .unwrap();
        assert!(answer.status.success(), "{text}: {}", String::from_utf8_lossy(&answer.stderr));
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    }

    /// Starts a standby that follows this one.
    pub fn standby(&self) -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-postgres-").tempdir().unwrap();
        if is_root() {
            let given =
                Command::new("chown").arg("postgres:").arg(directory.path()).status().unwrap();
            assert!(given.success());
        }
        let made = tool("pg_basebackup")
            .args(["--host", "127.0.0.1", "--username", "fingerpost", "--write-recovery-conf"])
            .args(["--checkpoint", "fast", "--no-sync", "--port", &self.port.to_string()])
            .arg("--pgdata")
            .arg(directory.path().join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let process = Self::launch(directory.path(), port);
        let this = Self { process, directory, port };
        this.wait();
        this
    }

    /// Waits until this standby has everything that its primary has.
    pub fn wait_for(&self, primary: &Self) {
        let written = primary.query("SELECT pg_current_wal_lsn()");
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        let why = || self.query("SELECT pg_last_wal_replay_lsn()");
        wait_for("the standby", Duration::from_secs(30), why, || self.query(&reached) == "t");
    }

    /// Makes this standby a primary.
    pub fn promote(&self) {
        assert_eq!(self.query("SELECT pg_promote()"), "t");
    }

    /// Stops it as an operator would.
    pub fn stop(&mut self) {
        // INT: a fast shutdown, which does not wait for clients.
        self.process.signal("INT");
        self.process.wait(Duration::from_secs(20));
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        self.process = Self::launch(self.directory.path(), self.port);
        self.wait();
    }
}

/// PgBouncer in front of a PostgreSQL, on loopback.
pub struct Pooler {
    // Dropped in this order, as above.
    _process: Process,
    _folder: TempDir,
    port: u16,
}

impl Pooler {
    /// Starts one that gives each transaction one of `connections` connections. `more`: lines of its configuration.
    pub fn start(to: u16, connections: usize, more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("fingerpost-pooler-").tempdir().unwrap();
        let port = free_port();
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\nfingerpost = host=127.0.0.1 port={to} dbname=fingerpost user=fingerpost\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {connections}\n{more}\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = as_postgres(Path::new("/usr/sbin/pgbouncer"));
        command.arg(&file);
        if is_root() {
            let given =
                Command::new("chown").arg("-R").arg("postgres:").arg(folder.path()).status();
            assert!(given.unwrap().success());
        }
        let log = folder.path().join("pgbouncer.log");
        let process = Process::start(command, &log);
        let why = || read(&log);
        let answers = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait_for("PgBouncer", Duration::from_secs(30), why, answers);
        Self { _process: process, _folder: folder, port }
    }

    /// Returns the address of the database behind it.
    pub fn url(&self) -> String {
        format!("postgres://fingerpost@127.0.0.1:{}/fingerpost", self.port)
    }
}

/// Where the latest programs of PostgreSQL and those of the system are, for `PATH`.
pub fn path() -> String {
    let program = latest("pg_dump");
    format!("{}:/usr/bin:/bin", program.parent().unwrap().display())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.starts_with(b"0\n")
}

/// Returns the path of a PostgreSQL program of the latest installed version.
fn latest(name: &str) -> PathBuf {
    let versions = Path::new("/usr/lib/postgresql");
    let mut found: Vec<PathBuf> = std::fs::read_dir(versions)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("{name} is not there: run make test"))
}

/// Returns a command for a PostgreSQL program of the latest installed version; it does not run as root.
fn tool(name: &str) -> Command {
    as_postgres(&latest(name))
}

/// Returns a program that refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    if is_root() {
        // setpriv replaces itself, so signals reach the program.
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command.current_dir("/");
        command
    } else {
        Command::new(program)
    }
}
