//! How a database's schema stands to the one that this program works on.

use std::sync::LazyLock;

use sqlx::{
    SqlStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::open::{OpenError, SchemaStanding};

/// Reads migrations when the program is compiled. The library's own macro for this would build the library and both
/// databases once more.
macro_rules! migrations {
    ($directory:literal: $($name:literal),+ $(,)?) => {
        LazyLock::new(|| migrator(&[$((
            $name,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/", $directory, "/", $name, ".sql")),
        )),+]))
    };
}

/// The migrations of SQLite.
pub(super) static SQLITE: LazyLock<Migrator> = migrations!("sqlite":
    "0001_keys",
    "0002_open_sessions",
    "0003_blocks",
    "0004_heartbeats",
    "0005_reachable",
    "0007_revoked_prints",
    "0008_renewable_sessions",
    "0009_watchers",
);

/// The migrations of PostgreSQL.
pub(super) static POSTGRES: LazyLock<Migrator> = migrations!("postgres":
    "0001_keys",
    "0002_open_sessions",
    "0003_blocks",
    "0004_heartbeats",
    "0005_reachable",
    "0006_instances",
    "0007_revoked_prints",
    "0008_renewable_sessions",
    "0009_watchers",
);

/// Makes migrations of the names of files, which begin with the version, and their contents.
fn migrator(files: &[(&str, &'static str)]) -> Migrator {
    let migration = |(name, sql): &(&str, &'static str)| {
        let (version, words) = name.split_once('_').expect("a name has a version and words");
        let version = version.parse().expect("a version is a number");
        let words = words.replace('_', " ").into();
        Migration::new(version, words, MigrationType::Simple, SqlStr::from_static(sql), false)
    };
    Migrator::with_migrations(files.iter().map(migration).collect())
}

/// One migration that a database has had.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) version: i64,
    pub(super) checksum: Vec<u8>,
    /// Whether it went to its end.
    pub(super) whole: bool,
}

/// Compares what a database has had with what the program knows.
///
/// # Errors
/// [`OpenError::Newer`] if the database has had more; [`OpenError::Migrate`] if it has had something else, or half of it.
pub(super) fn standing(applied: &[Applied], known: &Migrator) -> Result<SchemaStanding, OpenError> {
    let needed = known.iter().map(|migration| migration.version).max().unwrap_or_default();
    let found = applied.iter().map(|applied| applied.version).max().unwrap_or_default();
    if found > needed {
        return Err(OpenError::Newer { found, known: needed });
    }
    for Applied { version, checksum, whole } in applied {
        let Some(own) = known.iter().find(|own| own.version == *version) else {
            return Err(MigrateError::VersionMissing(*version).into());
        };
        if !whole {
            return Err(MigrateError::Dirty(*version).into());
        }
        if *own.checksum != **checksum {
            return Err(MigrateError::VersionMismatch(*version).into());
        }
    }
    let has = |version| applied.iter().any(|applied| applied.version == version);
    Ok(match known.iter().all(|own| has(own.version)) {
        true => SchemaStanding::Current,
        false => SchemaStanding::Behind { found, needed },
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::{SQLITE as KNOWN, *};

    #[test]
    fn every_file_is_a_migration() {
        for (database, known) in [("postgres", &POSTGRES), ("sqlite", &SQLITE)] {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(database);
            let files = fs::read_dir(directory).unwrap();
            let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            let name = |own: &Migration| {
                format!("{:04}_{}.sql", own.version, own.description.replace(' ', "_"))
            };
            let known: BTreeSet<_> = known.iter().map(name).collect();
            assert_eq!(known, files.collect(), "{database}");
        }
    }

    fn whole() -> Vec<Applied> {
        let of = |own: &sqlx::migrate::Migration| Applied {
            version: own.version,
            checksum: own.checksum.to_vec(),
            whole: true,
        };
        KNOWN.iter().map(of).collect()
    }

    #[test]
    fn only_the_own_schema_and_older_ones_are_taken() {
        let needed = KNOWN.iter().last().unwrap().version;
        assert_eq!(standing(&whole(), &KNOWN).unwrap(), SchemaStanding::Current);
        assert_eq!(standing(&[], &KNOWN).unwrap(), SchemaStanding::Behind { found: 0, needed });
        let mut older = whole();
        older.pop();
        let found = older.last().unwrap().version;
        assert_eq!(standing(&older, &KNOWN).unwrap(), SchemaStanding::Behind { found, needed });

        let mut newer = whole();
        newer.push(Applied { version: needed + 7, checksum: vec![1], whole: true });
        let text = standing(&newer, &KNOWN).unwrap_err().to_string();
        assert!(text.contains(&format!("version {}", needed + 7)), "{text}");
        assert!(text.contains(&format!("up to {needed}")), "{text}");

        let mut other = whole();
        other[0].checksum = vec![1];
        assert!(matches!(
            standing(&other, &KNOWN),
            Err(OpenError::Migrate(MigrateError::VersionMismatch(1)))
        ));
        let mut half = whole();
        half[1].whole = false;
        assert!(matches!(standing(&half, &KNOWN), Err(OpenError::Migrate(MigrateError::Dirty(2)))));
    }
}
