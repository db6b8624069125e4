//! The proposals for XEPs in docs/xep: their form, and every example of them, replayed against the component.
//!
//! An example is replayed as written. A comment before it says its role, and comments between examples prepare what
//! they need ([`text`]). The test plays the XMPP server: it sends the stanzas of the users, and compares what the
//! component sends with the next examples ([`replay`]).

mod form;
mod replay;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the proposals with their texts.
fn proposals() -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/xep");
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|extension| extension == "xml")).collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        (file, text)
    };
    files.into_iter().map(read).collect()
}

#[test]
fn the_proposals_have_the_form_of_a_xep() {
    for (file, text) in proposals() {
        form::check(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

#[test]
fn what_the_examples_contain_is_in_the_schemas() {
    for (file, text) in proposals() {
        let examples = text::steps(&text);
        form::check_schemas(&text, &examples)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

#[test]
fn an_example_without_a_role_is_an_error() {
    let example = "<example caption='One'><![CDATA[\n<iq/>\n]]></example>";
    let with = |before: &str| {
        let text = format!("<!-- replay: start -->{before}{example}");
        std::panic::catch_unwind(|| text::steps(&text)).is_ok()
    };
    assert!(with("<!-- replay: sends -->"));
    assert!(!with(""));
    assert!(!with("<!-- replay: sends --><p>Text.</p>"));
    assert!(!with("<!-- a comment -->"));
    assert!(!with("<!-- replay: tells -->"));
}

fn replay(name: &str) {
    let (file, text) =
        proposals().into_iter().find(|(file, _)| file.ends_with(name)).expect("the file exists");
    let steps = text::steps(&text);
    assert_eq!(
        steps.iter().filter(|step| step.is_example()).count(),
        text.matches("<example").count(),
        "{}: an example is not replayed",
        file.display()
    );
    replay::run(&file, &steps);
}

#[test]
fn the_component_does_what_the_examples_of_end_to_end_tls_say() {
    replay("e2e-tls.xml");
}

#[test]
fn the_component_does_what_the_examples_of_the_registry_say() {
    replay("key-registry.xml");
}
