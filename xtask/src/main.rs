//! Tasks of the project's own: `cargo run -p xtask -- demo`, `docs` or `package DIRECTORY`.

#![allow(clippy::unwrap_used, reason = "a task that fails stops and says where")]

mod demo;
mod docs;
mod package;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// A task.
#[derive(Debug, Parser)]
enum XtaskCommand {
    /// Let two users on a real Prosody send a file end to end
    Demo,
    /// Write docs/CONFIGURATION.md
    Docs,
    /// Write the manual pages, completions and configuration of a package
    Package {
        /// Where to write them
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    match XtaskCommand::parse() {
        XtaskCommand::Demo => demo::run(),
        XtaskCommand::Docs => docs::write(),
        XtaskCommand::Package { directory } => package::write(&directory),
    }
    ExitCode::SUCCESS
}
