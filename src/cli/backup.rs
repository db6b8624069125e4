//! `fingerpost backup` and `fingerpost restore`.

use std::{io::Write, path::Path};

use time::OffsetDateTime;

use super::failure::{BAD_CONFIG, CommandFailure};
use crate::{
    config::Config,
    registry::store::backup::{self, BackupError},
};

/// Backs the database up, also while the component runs.
///
/// # Errors
/// Why there is no backup.
pub(crate) async fn back_up(
    config: &Config,
    file: &Path,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    let done = backup::back_up(&config.database.url, file).await;
    done.map_err(|error| failure(&error, &dump(file)))?;
    writeln!(out, "the database is backed up in {}", file.display())?;
    Ok(())
}

/// Puts a backup in place of the database.
///
/// # Errors
/// Why nothing was restored.
pub(crate) async fn restore(
    config: &Config,
    file: &Path,
    now: OffsetDateTime,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    let done = backup::restore(&config.database.url, file, now).await;
    let kept = done.map_err(|error| failure(&error, &undump(file)))?;
    writeln!(out, "the database is restored from {}", file.display())?;
    if let Some(kept) = kept {
        writeln!(out, "the one that was there before is {}", kept.display())?;
    }
    Ok(())
}

fn dump(file: &Path) -> String {
    format!("pg_dump --format=custom --file={} DATABASE-URL", file.display())
}

fn undump(file: &Path) -> String {
    format!(
        "stop fingerpost, then: pg_restore --clean --if-exists --single-transaction --dbname=DATABASE-URL {}",
        file.display()
    )
}

fn failure(error: &BackupError, postgres: &str) -> CommandFailure {
    let failure = CommandFailure::new(error.to_string());
    match error {
        BackupError::Postgres => failure.with_hint(postgres),
        BackupError::InMemory => failure.with_hint("set [database] url to a file"),
        BackupError::InUse(_) => failure.with_hint(
            "stop fingerpost (systemctl stop fingerpost), and whatever else has the file open",
        ),
        BackupError::Exists(_) => failure.with_hint("choose another name, or remove the file"),
        BackupError::Schema { source, .. } if source.is_lasting() => failure
            .with_code(BAD_CONFIG)
            .with_hint("use the fingerpost that has made this database, or a newer one"),
        BackupError::Content { .. } | BackupError::Schema { .. } => {
            failure.with_hint("take another backup: this command changes nothing if it fails")
        }
        BackupError::File { .. } => failure
            .with_hint("look at the path, the rights of the directory and the room on the disk"),
    }
}
