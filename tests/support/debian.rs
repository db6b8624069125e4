//! Programs of another Debian, in a directory that deploy/ci/trixie.sh creates.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::root;

/// Returns the root directory of the Debian whose servers are started, if it is not this machine's: `FINGERPOST_TEST_DEBIAN=trixie`.
pub fn of_servers() -> Option<PathBuf> {
    chosen("FINGERPOST_TEST_DEBIAN", "target/trixie", "usr/bin/prosody")
}

/// Returns the root directory of the Debian whose clients are started, if it is not this machine's: `FINGERPOST_TEST_CLIENTS=trixie`.
pub fn of_clients() -> Option<PathBuf> {
    chosen("FINGERPOST_TEST_CLIENTS", "target/trixie-clients", "usr/bin/profanity")
}

fn chosen(variable: &str, directory: &str, program: &str) -> Option<PathBuf> {
    let name = std::env::var(variable).ok().filter(|name| !name.is_empty())?;
    assert_eq!(name, "trixie", "{variable}: expected trixie or nothing");
    let root = root().join(directory);
    let made = root.join(program).exists();
    assert!(made, "{} is not there: deploy/ci/trixie.sh creates it", root.display());
    // A program that has another root directory finds it from any directory.
    Some(root.canonicalize().unwrap())
}

/// Returns a command that starts a program of a Debian, with this machine's directory for temporary files.
pub fn program(debian: Option<&Path>, name: &str) -> Command {
    let mut words = words(debian);
    if words.is_empty() {
        return Command::new(name);
    }
    let mut command = Command::new(words.remove(0));
    command.args(words).arg(name);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Returns the words before the command of a program of a Debian. Only that program sees the mounts, and they end with it. All
/// programs replace themselves, so signals reach the last.
pub fn words(debian: Option<&Path>) -> Vec<String> {
    let Some(debian) = debian else { return Vec::new() };
    let mut words = vec!["unshare"];
    if !rustix::process::geteuid().is_root() {
        words.push("--map-root-user");
    }
    words.extend(["--mount", "--propagation", "private", "sh", "-euc"]);
    words.push(
        "mkdir -p \"$0$1\"; for directory in /dev /proc \"$1\"; do \
         mount --rbind \"$directory\" \"$0$directory\"; done; \
         root=$0; shift; exec chroot \"$root\" \"$@\"",
    );
    let temporary = std::env::temp_dir();
    words.extend([debian.to_str().unwrap(), temporary.to_str().unwrap()]);
    words.into_iter().map(str::to_owned).collect()
}

/// Returns the version of a package of a Debian, such as `0.12.3-1+deb12u1`.
///
/// # Panics
/// If it is not installed.
pub fn version(debian: Option<&Path>, package: &str) -> String {
    let mut query = program(debian, "dpkg-query");
    let output = query.args(["--show", "--showformat", "${Version}", package]).output();
    let output = output.expect("dpkg is there");
    assert!(output.status.success(), "{package} is not installed: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
