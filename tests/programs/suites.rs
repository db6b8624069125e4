//! The suites themselves: the list of test programs that start servers is complete. And what the pages say about the
//! source: crates, their arrows and the paths of files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the names of the test programs, which are directories.
fn programs() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        assert_ne!(
            path.extension(),
            Some("rs".as_ref()),
            "{path:?}: each program links everything"
        );
        if path.join("main.rs").exists() {
            found.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}

/// Returns all sources in a directory, with their names.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension() == Some("rs".as_ref()) {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

#[test]
fn the_fast_suite_starts_no_server_and_the_group_of_servers_has_all_others() {
    let config: toml::Table = read(".config/nextest.toml").parse().unwrap();
    let fast = config["profile"]["fast"]["default-filter"].as_str().unwrap();
    let overrides = config["profile"]["default"]["overrides"].as_array().unwrap();
    let group = overrides
        .iter()
        .find(|one| one["test-group"].as_str() == Some("servers"))
        .and_then(|one| one["filter"].as_str())
        .unwrap();
    assert_eq!(fast, format!("not {group}"), "one list, twice");

    let listed: BTreeSet<String> = group
        .strip_prefix("binary(/^(")
        .and_then(|rest| rest.strip_suffix(")$/)"))
        .map(|names| names.split('|').map(str::to_owned).collect())
        .unwrap();
    let programs = programs();
    assert!(listed.is_subset(&programs), "{listed:?} are not all test programs");
    for name in programs.difference(&listed) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
        for (path, text) in sources(&directory) {
            let starts =
                ["Server::", "Postgres::", "Component::", "Cable::", "Network::", "scenarios!"]
                    .iter()
                    .any(|start| text.contains(start));
            // A name in a string does not count, as here.
            assert!(
                !starts || path.ends_with(file!()),
                "{}: starts servers, and is among the fast ones",
                path.display()
            );
        }
    }
}

/// The files of state machines: their decisions depend on their inputs, and the time and random ids are inputs.
#[test]
fn the_machines_of_sessions_read_no_clock_and_do_no_io() {
    let machines = [
        "features.rs",
        "hints.rs",
        "legs.rs",
        "message_initiation.rs",
        "own.rs",
        "peer_error.rs",
        "presence.rs",
        "session/answers.rs",
        "session/contents.rs",
        "session/dino.rs",
        "session/direct.rs",
        "session/ending.rs",
        "session/mod.rs",
        "session/offers.rs",
        "session/renewal.rs",
        "session/timers.rs",
        "session/transports.rs",
        "si/mod.rs",
        "side.rs",
    ];
    let effects = [
        "Instant::now",
        "SystemTime",
        "now_utc",
        "random_id",
        "rand::",
        "async ",
        "spawn",
        "std::net",
        "tokio::net",
        "std::fs",
    ];
    for file in machines {
        let text = read(&format!("src/sessions/{file}"));
        let code = text.split("#[cfg(test)]").next().unwrap();
        for effect in effects {
            assert!(!code.contains(effect), "{file} uses {effect}: let its driver do that");
        }
    }
    // The path layer of users' programs: its bytes are decided on without I/O too.
    for file in ["incoming.rs", "machine.rs", "outgoing.rs", "records.rs"] {
        let text = read(&format!("crates/endpoint/src/paths/{file}"));
        let code = text.split("#[cfg(test)]").next().unwrap();
        for effect in effects {
            assert!(!code.contains(effect), "{file} uses {effect}: let carriers.rs do that");
        }
    }
    // And so it is decided which connection ICE uses. Addresses are values there.
    for file in ["agent.rs", "frames.rs", "message.rs"] {
        let text = read(&format!("crates/endpoint/src/ice/{file}"));
        let code = text.split("#[cfg(test)]").next().unwrap();
        for effect in effects.iter().filter(|effect| **effect != "std::net") {
            assert!(!code.contains(effect), "{file} uses {effect}: let attempt.rs do that");
        }
    }
    // A part of the session's machine is one too.
    let parts = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sessions/session");
    for (path, _) in sources(&parts) {
        let part = path.strip_prefix(&parts).unwrap();
        let listed = machines.iter().any(|file| Path::new(file) == Path::new("session").join(part));
        assert!(listed || part.starts_with("tests"), "{}: list it as a machine", path.display());
    }
}

/// Code that reads an address which others have written uses `canonical`.
#[test]
fn addresses_are_read_in_one_way_where_they_come_in() {
    // Exceptions: the component's own address in the configuration and host names, which are not compared, and the
    // target of a SOCKS5 stream, whose hash uses the spelling as written.
    let others = [("config/values.rs", 2), ("front/component.rs", 1)];
    for file in [
        "access.rs",
        "cli/keys.rs",
        "cli/lines.rs",
        "commands/admin.rs",
        "commands/mod.rs",
        "commands/user.rs",
        "config/mod.rs",
        "config/values.rs",
        "control.rs",
        "limits.rs",
        "registry/adapters.rs",
        "registry/pep.rs",
        "registry/requests.rs",
        "registry/store/mod.rs",
        "front/choice.rs",
        "front/component.rs",
        "front/message.rs",
        "front/mod.rs",
        "front/plain.rs",
        "front/presence.rs",
        "front/requests.rs",
    ] {
        let text = read(&format!("src/{file}"));
        let code = text.split("#[cfg(test)]").next().unwrap();
        let allowed = others.iter().find(|(name, _)| *name == file).map_or(0, |(_, n)| *n);
        assert_eq!(code.matches("Jid::new(").count(), allowed, "{file}: read it by `canonical`");
    }
}

/// Returns the rows of the table after `heading`, up to the next heading, as cells.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cells = |line: &str| {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    // The head of the table and the line below it are not rows.
    section.lines().filter(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

/// Returns what stands between backquotes.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Runs cargo without a network, and returns what it writes.
fn cargo(args: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO"))
        .args(args)
        .args(["--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_library_has_no_server_and_no_database_and_what_is_pure_has_no_io() {
    for (package, others) in [
        ("fingerpost-endpoint", &["axum", "clap", "maud", "sqlx"][..]),
        ("fingerpost-wire", &["getrandom", "mio", "rand", "socket2", "sqlx", "tokio"]),
    ] {
        let tree = cargo(&["tree", "-p", package, "-e", "normal", "--prefix", "none"]);
        let uses: BTreeSet<&str> =
            tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert!(uses.contains(package) && uses.len() > 20, "{uses:?}");
        for other in others {
            assert!(!uses.contains(other), "{package} uses {other}");
        }
    }
}

/// Clippy reads the nearest clippy.toml only.
#[test]
fn the_lints_of_what_is_pure_are_those_of_the_workspace_and_more() {
    let pure: toml::Table = read("crates/wire/clippy.toml").parse().unwrap();
    for (setting, value) in read("clippy.toml").parse::<toml::Table>().unwrap() {
        assert_eq!(pure.get(&setting), Some(&value), "{setting}");
    }
    assert!(pure.contains_key("disallowed-methods") && pure.contains_key("disallowed-types"));
}

/// The table of crates in docs/ARCHITECTURE.md has each crate of the workspace, where it is, and which others it uses;
/// the picture above it has the same arrows.
#[test]
fn the_architecture_page_has_the_crates_and_arrows_that_cargo_has() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let mut cargo = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let directory = manifest.parent().unwrap().strip_prefix(root).unwrap().to_str().unwrap();
        let directory = if directory.is_empty() { "." } else { directory };
        // A dependency of the tests and benchmarks only, of kind `dev`, is not an arrow.
        let uses: BTreeSet<String> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["kind"].is_null() && one["path"].is_string())
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect();
        let name = package["name"].as_str().unwrap().to_owned();
        cargo.insert(name, (directory.to_owned(), uses));
    }

    let page = read("docs/ARCHITECTURE.md");
    let mut listed = BTreeMap::new();
    for row in table(&page, "The crates") {
        let [name, directory, uses, _holds] = &row[..] else { panic!("{row:?}: not four cells") };
        let name = name.trim_matches('`').to_owned();
        let directory = directory.trim_matches('`').to_owned();
        assert!(listed.insert(name, (directory, quoted(uses))).is_none(), "{row:?}: twice");
    }
    assert_eq!(listed, cargo, "left: docs/ARCHITECTURE.md, right: Cargo");

    let picture = page.split("\n## The crates\n").nth(1).unwrap();
    let picture = picture.split("```mermaid").nth(1).unwrap().split("```").next().unwrap();
    let nodes: BTreeMap<&str, &str> = picture
        .lines()
        .filter_map(|line| line.trim().split_once("[\""))
        .map(|(node, text)| (node, text.split(['<', '"']).next().unwrap()))
        .collect();
    let drawn: BTreeSet<(String, String)> = picture
        .lines()
        .filter_map(|line| line.trim().split_once(" --> "))
        .map(|(from, to)| (nodes[from].to_owned(), nodes[to].to_owned()))
        .collect();
    let arrows: BTreeSet<(String, String)> = cargo
        .iter()
        .flat_map(|(name, (_, uses))| uses.iter().map(|other| (name.clone(), other.clone())))
        .collect();
    assert_eq!(drawn, arrows, "left: the picture, right: Cargo");
}

/// Each file and directory of the source that a page names exists, and "Where to look" names one for each question.
#[test]
fn the_source_files_that_the_pages_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_source =
        |path: &str| ["src/", "crates/", "bindings/"].iter().any(|top| path.starts_with(top));
    let rows = table(&read("docs/ARCHITECTURE.md"), "Where to look");
    assert!(rows.len() > 40, "{rows:?}: read too few");
    for row in rows {
        let [question, answer] = &row[..] else { panic!("{row:?}: not two cells") };
        assert!(answer.contains('`'), "{question}: names no file");
        for path in quoted(answer) {
            assert!(is_source(&path), "{question}: {path}: not a path from the repository's root");
        }
    }

    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    for page in pages {
        let text = read(&page);
        for path in text.lines().flat_map(quoted).filter(|path| is_source(path)) {
            assert!(root.join(&path).exists(), "{page}: {path} does not exist");
        }
    }
}
