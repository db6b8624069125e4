//! Every page of every command in the clients that people have: `make clients-test`. They are those of this machine, or, with
//! `FINGERPOST_TEST_CLIENTS=trixie`, those of the Debian 13 that deploy/ci/trixie.sh creates in target/trixie-clients.

mod files;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::programs::{Component, Options, script};
use support::servers::{Kind, Server};
use support::{SECRET, debian, root};
use tempfile::TempDir;

/// The screenshots that the documentation has.
const SCREENSHOTS: [(&str, &str, &str); 3] = [
    ("gajim", "keys-1", "docs/keys-in-gajim.png"),
    ("poezio", "keys-1", "docs/keys-in-poezio.txt"),
    ("profanity", "keys-1", "docs/keys-in-profanity.txt"),
];

/// A server with two components, and a directory with all pages of the first one. The second one shows them again.
struct Collected {
    // Dropped in this order.
    _component: Component,
    server: Server,
    directory: TempDir,
}

fn collected(language: &str) -> Collected {
    let mut server = Server::start(Kind::Prosody);
    server.reconfigure(true, |text| {
        format!("{text}\nComponent \"replay.example.test\"\n\tcomponent_secret = \"{SECRET}\"\n")
    });
    let more =
        "[access]\nadmins = [\"carol@example.test\"]\n[limits]\nrequests_per_second = 1000\n";
    let component =
        Component::start(&server, &Options { more: more.to_owned(), ..Options::default() });
    let settings = json!({"proxy": ["127.0.0.1", component.socks5], "language": language});
    let pages = script("../clients/collect.py", &server, settings);
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("pages.json"), pages.to_string()).unwrap();
    Collected { _component: component, server, directory }
}

/// Returns the files for a client's screenshots, by the name of the page. Those of the documentation are English and of this
/// machine's clients.
fn screenshots(client: &str, language: &str, directory: &Path) -> Value {
    let chosen = SCREENSHOTS.iter().filter(|(of, ..)| *of == client && language == "en");
    let written = writes_screenshots();
    let place = |path: &str| match written {
        true => root().join(path),
        false => directory.join(Path::new(path).file_name().unwrap()),
    };
    chosen.map(|(_, page, path)| ((*page).to_owned(), json!(place(path)))).collect()
}

fn writes_screenshots() -> bool {
    let is_wanted = std::env::var_os("FINGERPOST_WRITE_SCREENSHOTS").is_some();
    is_wanted && debian::of_clients().is_none()
}

/// Returns the version of a client's package.
fn version(package: &str) -> String {
    debian::version(debian::of_clients().as_deref(), package)
}

/// Checks what a client has shown, and says so.
#[expect(clippy::print_stdout, reason = "the report of `make clients-test`")]
fn check(client: &str, language: &str, directory: &Path, report: &Value) {
    assert_eq!(report["lost"], json!({}), "{client}, {language}: {report}");
    let pages = fs::read_to_string(directory.join("pages.json")).unwrap();
    let pages: Value = serde_json::from_str(&pages).unwrap();
    assert_eq!(report["pages"], pages.as_array().unwrap().len(), "{client}, {language}");
    println!("{client} {}: {} pages in {language}", version(client), report["pages"]);
}

fn in_a_terminal(client: &str, language: &str) {
    let Collected { server, directory, .. } = &collected(language);
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();
    // poezio runs as another user.
    Command::new("chmod").arg("755").args([directory.path(), &home]).status().unwrap();
    let settings = json!({
        "client": client,
        "prefix": debian::words(debian::of_clients().as_deref()),
        "pages": directory.path().join("pages.json"),
        "secret": SECRET,
        "component_address": server.component_address(),
        "home": home,
        // The client's own language is English.
        "adds": language == "en",
        "screenshots": screenshots(client, language, directory.path()),
    });
    let report = script("../clients/in_terminal.py", server, settings);
    check(client, language, directory.path(), &report);
}

/// The layout is checked while the pages are collected.
#[test]
fn every_page_of_every_command_is_laid_out_for_every_client_in_every_language() {
    for language in ["en", "de"] {
        let Collected { server, directory, .. } = &collected(language);
        let file = directory.path().join("pages.json");
        let pages: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let names = pages.as_array().unwrap().iter().map(|page| page["name"].as_str().unwrap());
        let names: BTreeSet<&str> = names.map(|name| name.rsplit_once('-').unwrap().0).collect();
        assert_eq!(names.len(), 21, "{names:?}");
        let lost = script("nbxmpp_pages.py", server, json!({"pages": file}));
        assert_eq!(lost, json!({}), "{language}");
    }
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn profanity_shows_every_page() {
    for language in ["en", "de"] {
        in_a_terminal("profanity", language);
    }
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn poezio_shows_every_page() {
    for language in ["en", "de"] {
        in_a_terminal("poezio", language);
    }
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn gajim_shows_every_page() {
    for language in ["en", "de"] {
        in_gajim(language);
    }
}

fn in_gajim(language: &str) {
    let Collected { directory, .. } = &collected(language);
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();
    let settings = json!({
        "pages": directory.path().join("pages.json"),
        "home": home,
        "screenshots": screenshots("gajim", language, directory.path()),
    });
    // Another Debian has no other directory of this machine than that for temporary files.
    for script in ["common.py", "gajim2_window.py", "gajim_pages.py", "gajim_window.py"] {
        fs::copy(root().join("tests/clients").join(script), directory.path().join(script)).unwrap();
    }
    let debian = debian::of_clients();
    let script = if debian.is_some() { "gajim2_window.py" } else { "gajim_window.py" };
    let output = Command::new("xvfb-run")
        .args(["-a", "dbus-run-session", "--"])
        .args(debian::words(debian.as_deref()))
        .arg("/usr/bin/python3")
        .arg(directory.path().join(script))
        .arg(settings.to_string())
        .output()
        .expect("xvfb-run is there");
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.lines().find_map(|line| line.strip_prefix("report: "));
    let report = report.unwrap_or_else(|| panic!("{language}: {output:?}"));
    check("gajim", language, directory.path(), &serde_json::from_str(report).unwrap());
}
