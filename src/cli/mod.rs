//! The `fingerpost` program: its arguments, and all of its commands that need neither server nor database.
//!
//! Data goes to standard output. Failures go to standard error as a line `error: …`, followed by a line `hint: …` if
//! there is a cure.

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use self::failure::{BAD_CONFIG, CommandFailure, FAILED};
use self::keys::KeysCommand;
use crate::config::{Config, DEFAULT_TEXT, Loaded};

pub mod attach;
pub(crate) mod backup;
mod failure;
pub mod keys;
pub(crate) mod online;
pub(crate) mod reach;
pub(crate) mod top;

/// Exit status: wrong arguments.
pub const USAGE: u8 = 2;
/// Exit status: the XMPP server refused the secret.
pub const SECRET_REFUSED: u8 = 77;

/// End-to-end TLS between XMPP users: broker, key registry and relay in one XEP-0114 component.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "fingerpost",
    version,
    after_help = "Exit status: 0 ok, 1 failed at run time, 2 bad usage, 77 the XMPP server refused the secret, \
                  78 bad configuration or database."
)]
pub struct FingerpostCli {
    /// The configuration file [default: ./fingerpost.toml, then /etc/fingerpost/config.toml]
    #[arg(short, long = "config", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// The command.
    #[command(subcommand)]
    pub command: ProgramCommand,
}

/// The commands of `fingerpost`.
#[derive(Clone, Debug, Subcommand)]
pub enum ProgramCommand {
    /// Run the component in the foreground; SIGTERM stops it in order, SIGHUP reloads the configuration
    Serve,
    /// Validate configuration, database and ports
    Check {
        /// Also log in to the XMPP server, and check that clients will find the component and reach it
        #[arg(long)]
        online: bool,
    },
    /// Print the lines about this component for the XMPP server's configuration; creates the secret if it is missing
    Attach {
        /// The XMPP server
        server: attach::Server,
    },
    /// Update the database schema
    Migrate,
    /// Write all that is in a SQLite database into one file, also while the component runs
    Backup {
        /// The file; it must not exist
        file: PathBuf,
    },
    /// Put a backup in the place of a SQLite database; the component must be stopped
    Restore {
        /// The file that `fingerpost backup` has written
        file: PathBuf,
    },
    /// Print the annotated default configuration
    Config,
    /// Administer the registry of keys, also while the component runs
    Keys {
        /// The command on the keys.
        #[command(subcommand)]
        command: KeysCommand,
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
    },
    /// Show the sessions, throughput, limits and refusals of the running component, in a terminal
    Top {
        /// The time between two updates
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = top::interval)]
        every: Duration,
        /// Print the state once, as text; the default where standard output is no terminal
        #[arg(long)]
        once: bool,
        /// Print the state once, as JSON
        #[arg(long, conflicts_with = "once")]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory; created if it does not exist
        dir: PathBuf,
    },
}

/// The work that remains once the arguments and the configuration are read.
#[derive(Clone, Debug)]
pub enum Task {
    /// Nothing: the command has done its work.
    Done,
    /// Run the component.
    Serve(Loaded),
    /// Check the ports and the database and, with `online`, log in. The configuration is valid.
    Check {
        /// The configuration.
        loaded: Loaded,
        /// Whether to log in to the XMPP server.
        online: bool,
    },
    /// Update the schema.
    Migrate(Loaded),
    /// Back the database up.
    Backup {
        /// The configuration.
        loaded: Loaded,
        /// Where to.
        file: PathBuf,
    },
    /// Restore the database.
    Restore {
        /// The configuration.
        loaded: Loaded,
        /// From what.
        file: PathBuf,
    },
    /// Show the state of the running component.
    Top {
        /// The configuration.
        loaded: Loaded,
        /// How.
        shown: top::Shown,
    },
    /// Administer keys.
    Keys {
        /// The configuration.
        loaded: Loaded,
        /// The command.
        command: KeysCommand,
        /// Whether to print JSON.
        json: bool,
    },
}

impl FingerpostCli {
    /// Reads the configuration and does the work that needs neither server nor database. Returns the work that remains.
    ///
    /// Data goes to `out`, warnings about the configuration to `err`.
    ///
    /// # Errors
    /// A bad configuration, a directory that cannot be written.
    pub fn prepare(
        self,
        out: &mut impl Write,
        err: &mut impl Write,
    ) -> Result<Task, CommandFailure> {
        let file = self.config.as_deref();
        match self.command {
            // Its warnings belong in the log, in the log's format.
            ProgramCommand::Serve => Ok(Task::Serve(Config::load(file, vars())?)),
            ProgramCommand::Check { online } => {
                Ok(Task::Check { loaded: load(file, err)?, online })
            }
            ProgramCommand::Attach { server } => {
                let load = || Config::load(file, vars()).map(|loaded| loaded.config);
                attach::run(server, load, out, err)?;
                Ok(Task::Done)
            }
            ProgramCommand::Migrate => Ok(Task::Migrate(load(file, err)?)),
            ProgramCommand::Backup { file: target } => {
                Ok(Task::Backup { loaded: load(file, err)?, file: target })
            }
            ProgramCommand::Restore { file: source } => {
                Ok(Task::Restore { loaded: load(file, err)?, file: source })
            }
            ProgramCommand::Keys { command, json } => {
                Ok(Task::Keys { loaded: load(file, err)?, command, json })
            }
            ProgramCommand::Top { every, once, json } => {
                let shown = match (json, once || !io::stdout().is_terminal()) {
                    (true, _) => top::Shown::Json,
                    (false, true) => top::Shown::Text,
                    (false, false) => top::Shown::Live(every),
                };
                Ok(Task::Top { loaded: load(file, err)?, shown })
            }
            ProgramCommand::Config => {
                out.write_all(DEFAULT_TEXT.as_bytes())?;
                Ok(Task::Done)
            }
            ProgramCommand::Completions { shell } => {
                // Into memory first: the generator panics if it cannot write.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "fingerpost", &mut script);
                out.write_all(&script)?;
                Ok(Task::Done)
            }
            ProgramCommand::Man { dir } => {
                write_man(&dir).map_err(|error| {
                    CommandFailure::new(format!("{}: cannot be written: {error}", dir.display()))
                })?;
                Ok(Task::Done)
            }
        }
    }
}

fn load(file: Option<&Path>, err: &mut impl Write) -> Result<Loaded, CommandFailure> {
    let loaded = Config::load(file, vars())?;
    for warning in &loaded.warnings {
        writeln!(err, "warning: {warning}")?;
    }
    Ok(loaded)
}

/// Returns the environment. Variables that are not valid UTF-8 are skipped: their values would fail as settings anyway.
pub(crate) fn vars() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn write_man(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(FingerpostCli::command(), dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        FingerpostCli::command().debug_assert();
    }

    #[test]
    fn a_failure_is_one_line_and_a_cure() {
        let mut text = Vec::new();
        CommandFailure::new("no").with_hint("yes").report(&mut text).unwrap();
        assert_eq!(text, b"error: no\nhint: yes\n");
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        let cli = FingerpostCli::parse_from(["fingerpost", "man", dir.path().to_str().unwrap()]);
        assert!(matches!(cli.prepare(&mut io::sink(), &mut io::sink()), Ok(Task::Done)));
        let page = std::fs::read_to_string(dir.path().join("fingerpost-serve.1")).unwrap();
        assert!(page.contains("SIGHUP"));
    }

    #[test]
    fn the_configuration_may_be_named_after_the_subcommand() {
        let cli =
            FingerpostCli::parse_from(["fingerpost", "keys", "list", "--json", "-c", "x.toml"]);
        let ProgramCommand::Keys { json, .. } = cli.command else { panic!() };
        assert_eq!(cli.config.as_deref(), Some(Path::new("x.toml")));
        assert!(json);
    }
}
