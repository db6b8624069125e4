//! Directories and many files in one session.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use support::programs::{Component, Options, Script, Xtls, event};
use support::servers::{Kind, Server};
use support::{random_file, sha256, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

struct Scene {
    // Dropped before the server.
    component: Component,
    alice: Xtls,
    bob: Xtls,
    server: Server,
}

impl Scene {
    fn start(options: &Options) -> Self {
        let server = Server::start(Kind::Prosody);
        let component = Component::start(&server, options);
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { component, alice, bob, server }
    }

    /// Makes alice's directory `notes`: two large files, small ones in two directories, and a program.
    fn notes(&self) -> PathBuf {
        let notes = self.alice.home().join("notes");
        fs::create_dir_all(notes.join(".git/hooks")).unwrap();
        for n in 0..40 {
            random_file(&notes.join(format!("{n:02}.txt")), 100 * n + 100);
            random_file(&notes.join(format!(".git/{n:02}")), 100);
        }
        random_file(&notes.join("large.bin"), 5_000_000);
        random_file(&notes.join("last.bin"), 3 << 20);
        fs::write(notes.join(".git/hooks/run.sh"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(notes.join(".git/hooks/run.sh"), PermissionsExt::from_mode(0o750))
            .unwrap();
        notes
    }
}

/// Returns the content, the mode and the date of everything below a directory.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (Option<String>, u32, i64)> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let content = metadata.is_file().then(|| sha256(&path));
            let name = path.strip_prefix(dir).unwrap().to_owned();
            found.insert(name, (content, metadata.mode() & 0o777, metadata.mtime()));
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    found
}

#[test]
fn a_directory_keeps_its_tree_its_dates_and_its_modes() {
    let scene = Scene::start(&Options::default());
    let notes = scene.notes();
    for transport in ["s5b", "ibb"] {
        let mut listener = scene.bob.listen(&["--transport", transport]);
        let sent = scene.alice.run(["send", "--json", scene.bob.jid(), notes.to_str().unwrap()]);
        assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
        assert_eq!(listener.wait(LIMIT), 0, "{}", listener.log());
        let summary = event(&sent.stdout, "summary").unwrap();
        assert_eq!((&summary["files"], &summary["sent"]), (&83.into(), &83.into()), "{summary}");
        assert_eq!(event(&listener.log(), "received").unwrap()["stored"], 83);
        assert_eq!(listener.events("secured").len(), 1, "one session: {}", listener.log());
        let landed = scene.bob.home().join("received/notes");
        assert_eq!(everything(&landed), everything(&notes));
        assert_eq!(listener.parts().len(), 0);
        fs::remove_dir_all(landed).unwrap();
    }
}

/// The component dies in the middle: the next run sends only what is missing.
#[test]
fn a_broken_set_goes_on_where_it_stopped() {
    let scene = Scene::start(&Options { tap: true, ..Options::default() });
    let notes = scene.notes();
    let tap = scene.component.tap.as_ref().unwrap();
    let listener = scene.bob.listen_on(&["--transport", "s5b"]);
    tap.hold_after(3_000_000);
    let mut sending = scene.alice.start(["send", scene.bob.jid(), notes.to_str().unwrap()]);
    wait_for(
        "a part",
        LIMIT,
        || listener.log(),
        || {
            listener
                .parts()
                .iter()
                .any(|part| fs::metadata(part).is_ok_and(|it| it.len() >= 1 << 20))
        },
    );
    sending.signal("INT");
    assert_ne!(sending.wait(LIMIT).code(), Some(0));
    tap.open();
    wait_for("the end", LIMIT, || listener.log(), || listener.event("error").is_some());

    let sent = scene.alice.run(["send", "--json", scene.bob.jid(), notes.to_str().unwrap()]);
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    let done = listener.event("received").unwrap();
    let there = done["there"].as_u64().unwrap();
    assert!(there > 0 && done["stored"].as_u64().unwrap() == 83 - there, "{done}");
    let resumed = sent.stdout.lines().filter_map(|line| event(line, "done"));
    let resumed: Vec<Value> = resumed.filter(|done| done["bytes"] == 5_000_000).collect();
    assert!(resumed[0]["resumed"].as_u64().unwrap() >= 1 << 20, "{resumed:?}");
    assert_eq!(everything(&scene.bob.home().join("received/notes")), everything(&notes));
    assert_eq!(listener.parts().len(), 0);
}

/// A program that knows nothing of sets repeats what was offered. It gets the files in sessions of their own.
#[test]
fn a_program_without_sets_gets_a_session_for_each_file() {
    let scene = Scene::start(&Options::default());
    let notes = scene.bob.home().join("notes");
    fs::create_dir(&notes).unwrap();
    random_file(&notes.join("letter"), 100_000);
    let settings = json!({
        "role": "receiver", "does": "whole", "transport": "s5b", "bytes": 100_000,
    });
    let mut peer = Script::start("hostile_peer.py", &scene.server, settings);
    peer.wait_for("listening");
    let sent = scene.bob.run(["send", scene.alice.jid(), notes.to_str().unwrap()]);
    assert_eq!(sent.code, 0, "{sent:?}");
    assert!(sent.stderr.contains("takes no directories: each file is sent by itself"), "{sent:?}");
    assert_eq!(peer.report()["sha256"], sha256(&notes.join("letter")));
}
