//! Writes the other files of a package, all generated from the programs: manual pages, shell completions and the
//! configuration. `deploy/deb/build.sh` runs it.

use std::{fs, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use fingerpost::{cli, config::DEFAULT_TEXT};

/// Writes them into a directory.
pub(crate) fn write(directory: &Path) {
    let programs: [(&str, Command); 2] =
        [("fingerpost", cli::FingerpostCli::command()), ("xtls", fingerpost_xtls::Cli::command())];
    for (name, command) in programs {
        let pages = directory.join("man");
        fs::create_dir_all(&pages).unwrap();
        clap_mangen::generate_to(command.clone(), &pages).unwrap();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let scripts = directory.join(shell.to_string());
            fs::create_dir_all(&scripts).unwrap();
            generate_to(shell, &mut command.clone(), name, &scripts).unwrap();
        }
    }
    fs::write(directory.join("config.toml"), configuration()).unwrap();
}

/// Returns the annotated default configuration, with the database in the directory where the package's unit may write.
fn configuration() -> String {
    let here = "\nurl = \"sqlite:fingerpost.db\"\n";
    let there = "\nurl = \"sqlite:/var/lib/fingerpost/fingerpost.db\"\n";
    assert_eq!(DEFAULT_TEXT.matches(here).count(), 1, "the default database");
    DEFAULT_TEXT.replace(here, there)
}
