//! Writes docs/CONFIGURATION.md from the table of settings. `make docs` runs it.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use fingerpost::config::{DEFAULT_TEXT, SECTIONS, Setting};

const HEAD: &str = "# Configuration

`make docs` writes this page from `src/config/settings.rs`. Do not edit it. `fingerpost config` prints the same text as a file.
[INDEX.md](INDEX.md#words) explains the special words.
Precedence: environment, then file, then default. In the environment a list is written with commas. No setting has a flag:
`--config FILE` only names the file.
";

/// Writes the page.
pub(crate) fn write() {
    fs::write(path(), page()).unwrap();
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIGURATION.md")
}

fn page() -> String {
    let intro = DEFAULT_TEXT.split("\n\n").next().unwrap().replace("# ", "");
    let mut page = format!("{HEAD}\n{intro}\n");
    for (section, settings) in SECTIONS {
        let head = "| setting | default | environment | what |\n|---|---|---|---|";
        writeln!(page, "\n## [{section}]\n\n{head}").unwrap();
        for setting in *settings {
            writeln!(page, "{}", row(section, setting)).unwrap();
        }
    }
    page
}

fn row(section: &str, setting: &Setting) -> String {
    let Setting { key, shown, has_default, about } = setting;
    let such = if *has_default { "" } else { "none; such as " };
    let variable = format!("FINGERPOST_{section}__{key}").to_uppercase();
    let about: Vec<&str> = about.iter().map(|line| line.trim()).collect();
    let about = about.join(" ").replace('|', "\\|");
    let shown = shown.replace('|', "\\|");
    format!("| `{key}` | {such}`{shown}` | `{variable}` | {about} |")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_docs_is_made_from_the_settings_as_they_are() {
        let written = fs::read_to_string(path()).unwrap();
        assert!(written == page(), "docs/CONFIGURATION.md is stale: make docs");
    }
}
