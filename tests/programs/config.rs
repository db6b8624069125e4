//! Configuration files of operators: each valid one is read, and each invalid one gives the line in its header.

use std::fs;
use std::path::{Path, PathBuf};

use fingerpost::config::Config;

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(directory);
    let mut files: Vec<_> =
        fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn every_valid_file_is_read() {
    for file in files("valid") {
        if let Err(error) = Config::load(Some(&file), []) {
            panic!("{error}");
        }
    }
}

#[test]
fn every_invalid_file_gives_the_line_at_its_head() {
    for file in files("invalid") {
        let text = fs::read_to_string(&file).unwrap();
        let expected = text.lines().next().unwrap().strip_prefix("# ").unwrap();
        let line = match Config::load(Some(&file), []) {
            Ok(loaded) => panic!("{}: taken as {:?}", file.display(), loaded.config),
            Err(error) => error.to_string(),
        };
        let (name, said) = line.split_once(": ").unwrap();
        assert_eq!(name, file.display().to_string());
        // A header that ends with a colon and a space leaves the rest to the TOML reader.
        if expected.ends_with(": ") {
            assert!(said.starts_with(expected), "{}: {said}", file.display());
        } else {
            assert_eq!(said, expected, "{}", file.display());
        }
        assert!(!line.contains('\n'), "{line:?} is more than one line");
    }
}
