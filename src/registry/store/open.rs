//! How a database is opened, and why it cannot be.

/// Which database is opened, and how.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions<'a> {
    /// `sqlite:FILE`, `sqlite::memory:` or `postgres://…`.
    pub url: &'a str,
    /// How many connections may be open; on PostgreSQL up to two more.
    pub max_connections: u32,
    /// Whether the schema is brought up to date.
    pub migrate: bool,
    /// Whether a pooler in front of PostgreSQL gives each transaction another connection.
    pub pooler: bool,
}

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address has an unknown kind.
    #[error("expected an address that starts with sqlite: or postgres:")]
    Kind,
    /// The address cannot be read.
    #[error("{0}")]
    Address(String),
    /// The database cannot be opened.
    #[error("{0}")]
    Open(sqlx::Error),
    /// A pooler is between, and nobody has said so.
    #[error(
        "a connection pooler such as PgBouncer gives each transaction another connection to PostgreSQL"
    )]
    Pooler,
    /// The server has too few connections for us.
    #[error("the server lets this role have {most} connections, and up to {needed} are needed")]
    Connections {
        /// How many it has.
        most: u32,
        /// How many are needed.
        needed: u32,
    },
    /// The schema cannot be brought up to date.
    #[error("the schema cannot be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A newer program has used the database.
    #[error(
        "its schema has version {found}, and fingerpost {} knows versions up to {known}",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The version of the schema.
        found: i64,
        /// The last version that this program knows.
        known: i64,
    },
    /// The schema is to be brought up to date by hand.
    #[error(
        "its schema has version {found}, and fingerpost {} needs version {needed}",
        env!("CARGO_PKG_VERSION")
    )]
    Behind {
        /// The version of the schema; 0 if there is none.
        found: i64,
        /// The version that this program needs.
        needed: i64,
    },
    /// Another file took the place of the database while it was opened.
    #[error("the file was replaced while it was opened: try again")]
    Replaced,
    /// SQLite finds the content of the file wrong.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The rights of the file or its directory are too few.
    #[error("{0}")]
    File(String),
    /// The role of PostgreSQL may not create tables that are missing.
    #[error("its role may not create the tables: it lacks CREATE on the schema")]
    MayNotCreate,
    /// The role of PostgreSQL may not use tables.
    #[error("its role may not read and write these tables: {0}")]
    Closed(String),
}

impl OpenError {
    /// Whether it stays the same until somebody changes the configuration, the database or the program.
    pub fn is_lasting(&self) -> bool {
        use sqlx::migrate::MigrateError::{Dirty, VersionMismatch, VersionMissing};
        match self {
            Self::Kind
            | Self::Address(_)
            | Self::Pooler
            | Self::Connections { .. }
            | Self::Newer { .. }
            | Self::Behind { .. } => true,
            Self::Migrate(error) => {
                matches!(error, Dirty(_) | VersionMismatch(_) | VersionMissing(_))
            }
            Self::Open(_)
            | Self::Replaced
            | Self::Damaged(_)
            | Self::File(_)
            | Self::MayNotCreate
            | Self::Closed(_) => false,
        }
    }

    /// Returns whether the role lacks a right that updating the schema takes.
    pub fn is_forbidden(&self) -> bool {
        use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
        matches!(self, Self::Migrate(Execute(sqlx::Error::Database(error))
            | ExecuteMigration(sqlx::Error::Database(error), _)) if error.code().is_some_and(|code| code == "42501"))
    }
}

/// What was found of a database without a change to it.
#[derive(Clone, Debug, Default)]
pub struct Inspected {
    /// What `serve` does before it uses the database, if anything.
    pub to_do: Option<String>,
    /// What may keep `serve` from using it.
    pub warnings: Vec<String>,
}

/// A schema that this program can use, at once or after a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SchemaStanding {
    /// It is the program's own.
    Current,
    /// It is older; 0 if there is none.
    Behind {
        /// Its version.
        found: i64,
        /// The program's.
        needed: i64,
    },
}

impl Inspected {
    /// Takes over how the schema stands.
    ///
    /// # Errors
    /// [`OpenError::Behind`] if it must be brought up to date by hand.
    pub(super) fn with_schema(
        mut self,
        standing: SchemaStanding,
        migrate: bool,
    ) -> Result<Self, OpenError> {
        match standing {
            SchemaStanding::Current => {}
            SchemaStanding::Behind { found, needed } if migrate => {
                self.to_do = Some(match found {
                    0 => "`fingerpost serve` makes its tables".to_owned(),
                    _ => format!(
                        "`fingerpost serve` brings its schema from version {found} to {needed}"
                    ),
                });
            }
            SchemaStanding::Behind { found, needed } => {
                return Err(OpenError::Behind { found, needed });
            }
        }
        Ok(self)
    }
}
