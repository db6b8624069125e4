//! From configuration to exit status: logging, signals, and the commands that need the database or the server.

use std::io::Write;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::{
    cli::{BAD_CONFIG, Failure, SECRET_REFUSED, Task, backup, keys, online, reach, vars},
    clock::{Clock, SystemClock},
    config::{Config, Format, Loaded},
    control::Reload,
    http,
    logging::{self, LogLevel},
    mediator::plane::Plane,
    registry::store::OpenError,
    service::{self, Event, Service, StartError},
    systemd::{self, Inherited},
    xmpp::link::LinkError,
};

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let hint = match &error {
            StartError::Database { source, .. } => cure(source),
            StartError::Blocks(_) | StartError::Identity(_) => {
                "run fingerpost check to find out what is wrong with the database"
            }
            StartError::Listen { .. } => "stop what uses the port, or change [socks5] listen",
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

/// What to do about a database that cannot be opened.
fn cure(error: &OpenError) -> &'static str {
    match error {
        OpenError::Pooler => {
            "set [database] pooler = true, or give the address of PostgreSQL itself in [database] url"
        }
        OpenError::Connections { .. } => {
            "lower [database] max_connections, or raise the limit: ALTER ROLE … CONNECTION LIMIT, max_connections"
        }
        error if error.is_forbidden() => {
            "run `fingerpost migrate` once as a role that may create tables, or grant this one CREATE on the schema"
        }
        OpenError::Newer { .. } => {
            "install the newer fingerpost again, or restore a backup that was made before the upgrade \
             (Downgrade in OPERATING.md)"
        }
        OpenError::Behind { .. } => "run `fingerpost migrate`, or set [database] migrate = true",
        error if error.is_lasting() => {
            "another program or another build of fingerpost has made this schema: restore a backup"
        }
        _ => "check [database] url and the rights of the directory it is in",
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::new(error.to_string()).with_code(SECRET_REFUSED)
    }
}

/// Runs the part of a command that follows the reading of its configuration.
///
/// # Errors
/// The message for the user, with the exit status.
pub async fn run(task: Task, inherited: Inherited, out: &mut impl Write) -> Result<(), Failure> {
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
            backup::restore(&loaded.config, &file, SystemClock.now(), out).await
        }
        Task::Keys { loaded, command, json } => {
            let store = service::open(&loaded.config).await?;
            let component = &loaded.config.component.jid;
            let done = keys::run(command, &store, component, json, SystemClock.now(), out).await;
            store.close().await;
            done.map_err(|error| Failure::new(error.to_string()))
        }
    }
}

/// Open files besides those of SOCKS5 sessions: pipes, connections to the status server, the database, the link, the
/// log.
const OTHER_FILES: u64 = 256 + http::CONNECTIONS as u64 + 100;

/// Raises the limit of open files as far as the system allows: each SOCKS5 session needs two.
fn raise_descriptors(sessions: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let raised = setrlimit(Resource::Nofile, limit);
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let wanted = u64::try_from(sessions).unwrap_or(u64::MAX).saturating_mul(2);
    let wanted = wanted.saturating_add(OTHER_FILES);
    if raised.is_err() || most < wanted {
        tracing::warn!(
            open_files = most,
            wanted,
            "too few open files for limits.sessions: raise the limit (LimitNOFILE of the unit, ulimit -Hn)"
        );
    }
}

async fn serve(loaded: Loaded, inherited: Inherited) -> Result<(), Failure> {
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
                Event::Ended(ended) => {
                    ended?;
                    return Err(Failure::new("the link to the XMPP server ended unexpectedly"));
                }
                Event::Reload(Reload(answer)) => {
                    let _ = answer.send(reload(&loaded, &mut service).await);
                }
                Event::Link(up) => systemd::status(if up {
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

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(format!("cannot handle signals: {error}")))
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

async fn check(config: &Config, look_online: bool, out: &mut impl Write) -> Result<(), Failure> {
    let found = service::inspect(config).await?;
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
    online::run(config, found.store.as_ref(), out).await
}
