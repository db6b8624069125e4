//! The checked-in header is the one that the source gives.

use std::{env, fs, path::Path};

#[test]
fn the_header_is_up_to_date() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_root_or_default(directory);
    let mut made = Vec::new();
    cbindgen::generate_with_config(directory, config).unwrap().write(&mut made);
    let (made, path) = (String::from_utf8(made).unwrap(), directory.join("include/fingerpost.h"));
    if env::var_os("FINGERPOST_WRITE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "{}: not up to date: run make bindings-header", path.display());
}
