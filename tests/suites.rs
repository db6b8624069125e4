//! The suites themselves: the list of tests that start servers is written once, and is complete.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the names of the test programs.
fn programs() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs")
            || path.join("main.rs").exists()
        {
            found.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}

/// Returns all sources of a test program, without the shared ones.
fn sources(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    let mut text = fs::read_to_string(directory.with_extension("rs")).unwrap_or_default();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
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
    assert_eq!(group, format!("not ({fast})"), "one list, twice");

    let listed: BTreeSet<String> = fast
        .split_once("binary(/^(")
        .and_then(|(_, rest)| rest.split_once(")$/)"))
        .map(|(names, _)| names.split('|').map(str::to_owned).collect())
        .unwrap();
    let programs = programs();
    assert!(listed.is_subset(&programs), "{listed:?} are not all test programs");
    for name in &programs {
        let text = sources(name);
        let starts =
            ["Server::", "Postgres::", "Component::", "Cable::", "Network::", "scenarios!"]
                .iter()
                .any(|start| text.contains(start));
        // A name in a string does not count, as here.
        let starts = starts && name != "suites";
        assert!(
            !(starts && listed.contains(name)),
            "tests/{name}: starts servers, and is among the fast ones"
        );
    }
}

/// Code that reads an address which others have written uses `canonical`.
#[test]
fn addresses_are_read_in_one_way_where_they_come_in() {
    // Exceptions: the component's own address in the configuration and host names, which are not compared, and the
    // target of a SOCKS5 stream, whose hash uses the spelling as written.
    let others = [("config/mod.rs", 2), ("front/mod.rs", 1)];
    for file in [
        "access.rs",
        "cli/keys.rs",
        "cli/lines.rs",
        "commands/admin.rs",
        "commands/mod.rs",
        "commands/user.rs",
        "config/mod.rs",
        "control.rs",
        "limits.rs",
        "registry/adapters.rs",
        "registry/pep.rs",
        "registry/requests.rs",
        "registry/store.rs",
        "front/mod.rs",
        "front/plain.rs",
    ] {
        let text = read(&format!("src/{file}"));
        let code = text.split("#[cfg(test)]").next().unwrap();
        let allowed = others.iter().find(|(name, _)| *name == file).map_or(0, |(_, n)| *n);
        assert_eq!(code.matches("Jid::new(").count(), allowed, "{file}: read it by `canonical`");
    }
}
