//! From configuration to exit status: logging, signals, and the commands that need the database or the server.

use std::io::Write;

use time::OffsetDateTime;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::{info, warn};

use crate::{
    cli::{
        BAD_CONFIG, CommandFailure, SECRET_REFUSED, Task, backup, keys, online, reach, top, vars,
    },
    config::{Config, Format, Loaded},
    control::Reload,
    http,
    link::LinkError,
    logging::{self, LogLevel},
    registry::store::open::OpenError,
    relay::{listener::open_all, plane::Plane},
    service::{self, Service, ServiceEvent, StartError},
    systemd::{self, Inherited},
};

impl From<StartError> for CommandFailure {
    fn from(error: StartError) -> Self {
        let hint = match &error {
            StartError::Database { source, url } => cure(source, url),
            StartError::Blocks(_) | StartError::Identity(_) => {
                "run fingerpost check to find out what is wrong with the database"
            }
            StartError::Listen(_) => "stop what uses the port, or change [socks5] listen",
            StartError::Http { .. } => "stop what uses the port, or change [http] listen",
        };
        let failure = Self::new(error.to_string()).with_hint(hint);
        match &error {
            // Trying again would not help.
            StartError::Database { source, .. } if source.is_lasting() => {
                failure.with_code(BAD_CONFIG)
            }
            _ => failure,
        }
    }
}

/// Returns what to do about a database that cannot be opened.
fn cure(error: &OpenError, url: &str) -> &'static str {
    use sqlx::migrate::MigrateError::{
        Dirty, Execute, ExecuteMigration, VersionMismatch, VersionMissing,
    };
    match error {
        OpenError::Kind => "set [database] url to sqlite:FILE or postgres://USER@HOST/DATABASE",
        OpenError::Address(_) => "correct the address in [database] url",
        OpenError::Pooler => {
            "set [database] pooler = true, or give the address of PostgreSQL itself in [database] url"
        }
        OpenError::Connections { .. } => {
            "lower [database] max_connections, or raise the limit: ALTER ROLE … CONNECTION LIMIT, max_connections"
        }
        OpenError::MayNotCreate => MAY_NOT_CREATE,
        error if error.is_forbidden() => MAY_NOT_CREATE,
        OpenError::Closed(_) => {
            "grant the role SELECT, INSERT, UPDATE and DELETE on all tables of fingerpost"
        }
        OpenError::Newer { .. } => {
            "install the newer fingerpost again, or restore a backup that was made before the upgrade \
             (Downgrade in OPERATING.md)"
        }
        OpenError::Behind { .. } => "run `fingerpost migrate`, or set [database] migrate = true",
        OpenError::Migrate(Dirty(_)) => {
            "a migration was interrupted: restore a backup that was made before it"
        }
        OpenError::Migrate(VersionMismatch(_) | VersionMissing(_)) => {
            "another program or another build of fingerpost has made this schema: restore a backup"
        }
        OpenError::Open(error)
        | OpenError::Migrate(Execute(error) | ExecuteMigration(error, _)) => match error {
            sqlx::Error::Configuration(_) => "correct the address in [database] url",
            error if url.starts_with("postgres") => cure_of_postgres(error),
            error => cure_of_sqlite(error),
        },
        OpenError::Damaged(_) => DAMAGED,
        OpenError::File(_) => FILE,
        OpenError::Replaced => "run the command again when no restore is in progress",
        _ => "run fingerpost check to find out what is wrong with the database",
    }
}

const MAY_NOT_CREATE: &str = "run `fingerpost migrate` once as a role that may create tables, or grant this one CREATE on the schema";
const FILE: &str = "check [database] url and the rights of the file and the directory it is in";
const DAMAGED: &str = "correct [database] url if this is another file, or restore a backup: `fingerpost restore FILE`";

/// Returns what to do about an error of a SQLite database, by the primary result code.
fn cure_of_sqlite(error: &sqlx::Error) -> &'static str {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    match code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
        // Busy and locked.
        Some(5 | 6) => "stop the program that keeps the database locked",
        // An error of input or output, and a full disk.
        Some(10 | 13) => "check the room and the health of the disk",
        // Corrupt, and not a database.
        Some(11 | 26) => DAMAGED,
        _ => FILE,
    }
}

/// Returns what to do about an error of PostgreSQL, by the SQLSTATE.
fn cure_of_postgres(error: &sqlx::Error) -> &'static str {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    match code.as_deref().unwrap_or_default() {
        "3D000" => "create the database (createdb), or correct its name in [database] url",
        "42501" => "grant the role CONNECT on the database and USAGE on the schema",
        "53300" => "lower [database] max_connections, or raise max_connections of PostgreSQL",
        code if code.starts_with("28") => {
            "check the user and the password in [database] url, and pg_hba.conf of PostgreSQL"
        }
        code if code.starts_with("53") => "check the room and the memory of the server",
        _ if matches!(error, sqlx::Error::Tls(_)) => {
            "check sslmode and sslrootcert in [database] url, and the certificate of PostgreSQL"
        }
        _ => {
            "check that a server in [database] url is running, can be reached from here and accepts changes"
        }
    }
}

impl From<LinkError> for CommandFailure {
    fn from(error: LinkError) -> Self {
        Self::new(error.to_string()).with_code(SECRET_REFUSED)
    }
}

/// Runs the part of a command that follows the reading of its configuration.
///
/// # Errors
/// The message for the user, with the exit status.
pub async fn run(
    task: Task,
    inherited: Inherited,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    match task {
        Task::Done => Ok(()),
        Task::Serve(loaded) => {
            let served = serve(loaded, inherited).await;
            logging::flush().await;
            served
        }
        Task::Check { loaded, online } => check(&loaded.config, online, out).await,
        Task::Migrate(mut loaded) => {
            loaded.config.database.migrate = true;
            service::open(&loaded.config).await?.close().await;
            writeln!(out, "the database is up to date")?;
            Ok(())
        }
        Task::Backup { loaded, file } => backup::back_up(&loaded.config, &file, out).await,
        Task::Restore { loaded, file } => {
            backup::restore(&loaded.config, &file, OffsetDateTime::now_utc(), out).await
        }
        Task::Top { loaded, shown } => top::run(&loaded.config, shown, out).await,
        Task::Keys { loaded, command, json } => {
            let store = service::open(&loaded.config).await?;
            let component = &loaded.config.component.jid;
            let done =
                keys::run(command, &store, component, json, OffsetDateTime::now_utc(), out).await;
            store.close().await;
            done.map_err(|error| CommandFailure::new(error.to_string()))
        }
    }
}

/// Open files besides those of SOCKS5 sessions: pipes, connections to the status server, the database, the link, the
/// log.
const OTHER_FILES: u64 = 256 + http::CONNECTIONS as u64 + 100;

/// Raises the limit of open files as far as the system allows: each SOCKS5 session needs two. Logs how many sessions it covers
/// if these are fewer than `sessions`: as a warning if more than a tenth lacks.
fn raise_descriptors(sessions: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let raised = setrlimit(Resource::Nofile, limit);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let sessions = u64::try_from(sessions).unwrap_or(u64::MAX);
    let wanted = sessions.saturating_mul(2).saturating_add(OTHER_FILES);
    if raised.is_ok() && most >= wanted {
        return;
    }
    let covered = most.saturating_sub(OTHER_FILES) / 2;
    if covered >= sessions - sessions / 10 {
        info!(open_files = most, covered, "the limit of open files covers almost limits.sessions");
    } else {
        warn!(
            open_files = most,
            covered,
            "the limit of open files covers fewer sessions than limits.sessions: set LimitNOFILE={wanted} in the unit, \
             or `ulimit -Hn {wanted}`"
        );
    }
}

async fn serve(loaded: Loaded, inherited: Inherited) -> Result<(), CommandFailure> {
    let log = &loaded.config.log;
    let log = LogLevel::start(&log.level, log.format == Format::Json);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    raise_descriptors(loaded.config.limits.sessions);
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    // Beyond RLIMIT_FSIZE a write shall fail as an error of the database. The signal would end the program.
    let _file_size = listen(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let mut service = Service::start(&loaded.config, inherited, log).await?;
    systemd::ready();
    let mut watchdog = systemd::watchdog().map(tokio::time::interval);
    info!(version = env!("CARGO_PKG_VERSION"), socks5 = ?service.addresses(), "serving");
    loop {
        tokio::select! {
            event = service.event() => match event {
                ServiceEvent::Ended(ended) => {
                    ended?;
                    return Err(CommandFailure::new("the link to the XMPP server ended unexpectedly"));
                }
                ServiceEvent::Reload(Reload(answer)) => {
                    let _ = answer.send(reload(&loaded, &mut service).await);
                }
                ServiceEvent::Link(up) => systemd::status(if up {
                    "linked to the XMPP server"
                } else {
                    "no link to the XMPP server"
                }),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let _logged = reload(&loaded, &mut service).await;
            }
            () = tick(&mut watchdog) => systemd::alive(),
        }
    }
    systemd::stopping();
    info!("stopping: waiting for running streams; a second signal stops at once");
    service
        .shutdown(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    Ok(())
}

async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn listen(kind: SignalKind) -> Result<Signal, CommandFailure> {
    signal(kind).map_err(|error| CommandFailure::new(format!("cannot handle signals: {error}")))
}

/// Applies a valid file; keeps the old configuration if the file is not valid. Returns the changed settings that need a
/// restart, or what is wrong.
async fn reload(loaded: &Loaded, service: &mut Service) -> Result<Vec<String>, String> {
    systemd::reloading();
    let done = match Config::load(Some(&loaded.path), vars()) {
        Ok(new) => {
            let restart = service.reload(&new.config);
            info!(file = %loaded.path.display(), "configuration reloaded");
            if !restart.is_empty() {
                warn!(settings = restart.join(", "), "these settings take effect after a restart");
            }
            Ok(restart)
        }
        Err(error) => {
            warn!(%error, "could not reload the configuration; the old one stays in force");
            Err(error.to_string())
        }
    };
    systemd::ready();
    done
}

async fn check(
    config: &Config,
    look_online: bool,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    check_ports(config).await?;
    let (found, store) = service::inspect(config).await?;
    for warning in &found.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    writeln!(out, "configuration, database and ports are valid")?;
    if let Some(to_do) = &found.to_do {
        writeln!(out, "{to_do}")?;
    }
    reach::literals(config, out)?;
    for missing in Plane::new(0).probe() {
        writeln!(out, "warning: {missing}")?;
    }
    if !look_online {
        return Ok(());
    }
    online::run(config, store.as_ref(), out).await
}

/// Listens at every address of the configuration, as `serve` does, and stops at once.
async fn check_ports(config: &Config) -> Result<(), CommandFailure> {
    let socks5 = &config.socks5;
    let bound = async {
        open_all(&socks5.listen, socks5.max_segment).await.map_err(StartError::Listen)?;
        if let Some(address) = &config.http.listen {
            let bound = TcpListener::bind(address).await;
            bound.map_err(|source| StartError::Http { address: address.clone(), source })?;
        }
        Ok(())
    };
    bound.await.map_err(|error: StartError| {
        let mut failure = CommandFailure::from(error);
        if let Some(hint) = &mut failure.hint {
            hint.push_str("; `check` needs a stopped service, without its socket unit");
        }
        failure
    })
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, error::Error as StdError, fmt, io};

    use sqlx::{
        error::{DatabaseError, ErrorKind},
        migrate::MigrateError,
    };

    use super::*;

    /// What a database says, by its code.
    #[derive(Debug)]
    struct Said(&'static str);

    impl fmt::Display for Said {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Said {}

    impl DatabaseError for Said {
        fn message(&self) -> &str {
            self.0
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[test]
    fn each_error_of_a_database_has_the_hint_that_cures_it() {
        use MigrateError::{Dirty, Execute, ExecuteMigration, VersionMismatch, VersionMissing};
        const SQLITE: &str = "sqlite:fingerpost.db";
        const POSTGRES: &str = "postgres://fingerpost@127.0.0.1/fingerpost";
        let said = |code| sqlx::Error::Database(Box::new(Said(code)));
        let io = |kind| sqlx::Error::Io(io::Error::from(kind));
        let text = str::to_owned;
        for (url, error, lasting, word) in [
            ("mysql:x", OpenError::Kind, true, "to sqlite:FILE or postgres://"),
            (POSTGRES, OpenError::Address(text("x")), true, "correct the address"),
            (POSTGRES, OpenError::Pooler, true, "pooler = true"),
            (POSTGRES, OpenError::Connections { most: 1, needed: 2 }, true, "max_connections"),
            (SQLITE, OpenError::Newer { found: 9, known: 7 }, true, "install the newer"),
            (SQLITE, OpenError::Behind { found: 6, needed: 7 }, true, "`fingerpost migrate`"),
            (SQLITE, OpenError::Migrate(Dirty(2)), true, "interrupted: restore"),
            (SQLITE, OpenError::Migrate(VersionMismatch(2)), true, "another build"),
            (SQLITE, OpenError::Migrate(VersionMissing(2)), true, "another build"),
            (POSTGRES, OpenError::Migrate(Execute(said("42501"))), false, "create tables"),
            (
                POSTGRES,
                OpenError::Migrate(ExecuteMigration(said("42501"), 1)),
                false,
                "create tables",
            ),
            (SQLITE, OpenError::Migrate(ExecuteMigration(said("13"), 1)), false, "room"),
            (SQLITE, OpenError::Open(said("14")), false, "rights of the file"),
            (SQLITE, OpenError::Open(said("1032")), false, "rights of the file"),
            (SQLITE, OpenError::Open(io(io::ErrorKind::NotFound)), false, "rights of the file"),
            (SQLITE, OpenError::Open(said("5")), false, "locked"),
            (SQLITE, OpenError::Open(said("778")), false, "the disk"),
            (SQLITE, OpenError::Open(said("11")), false, "restore a backup"),
            (SQLITE, OpenError::Open(said("26")), false, "restore a backup"),
            (SQLITE, OpenError::Damaged(text("x")), false, "restore a backup"),
            (SQLITE, OpenError::File(text("x")), false, "rights of the file"),
            (SQLITE, OpenError::Replaced, false, "run the command again"),
            (
                SQLITE,
                OpenError::Open(sqlx::Error::Configuration("x".into())),
                false,
                "correct the address",
            ),
            (POSTGRES, OpenError::Open(said("28P01")), false, "the user and the password"),
            (POSTGRES, OpenError::Open(said("28000")), false, "pg_hba.conf"),
            (POSTGRES, OpenError::Open(said("3D000")), false, "createdb"),
            (POSTGRES, OpenError::Open(said("42501")), false, "CONNECT"),
            (POSTGRES, OpenError::Open(said("53300")), false, "max_connections"),
            (POSTGRES, OpenError::Open(said("53100")), false, "room"),
            (POSTGRES, OpenError::Open(said("57P03")), false, "is running"),
            (
                POSTGRES,
                OpenError::Open(io(io::ErrorKind::ConnectionRefused)),
                false,
                "can be reached",
            ),
            (POSTGRES, OpenError::Open(sqlx::Error::Tls("x".into())), false, "sslmode"),
            (POSTGRES, OpenError::MayNotCreate, false, "create tables"),
            (POSTGRES, OpenError::Closed(text("x")), false, "grant the role SELECT"),
        ] {
            let shown = format!("{error:?}");
            let failure =
                CommandFailure::from(StartError::Database { url: url.to_owned(), source: error });
            let hint = failure.hint.unwrap();
            assert!(hint.contains(word), "{shown}: {hint}");
            assert_eq!(failure.code == BAD_CONFIG, lasting, "{shown}");
        }
    }
}
