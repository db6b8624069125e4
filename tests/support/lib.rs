//! The base of the end-to-end tests and the demo: real XMPP servers, our own programs and independent clients, each
//! started privately on free loopback ports with its own directory, and stopped when dropped.

#![allow(missing_debug_implementations, reason = "tests only")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

pub mod debian;
pub mod grammar;
pub mod internet;
pub mod netns;
pub mod network;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod raw;
pub mod report;
pub mod scenarios;
pub mod servers;
pub mod switch;
pub mod tap;

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The domain of the users.
pub const DOMAIN: &str = "example.test";
/// The component's address.
pub const COMPONENT: &str = "xtls.example.test";
/// The secret between server and component.
pub const SECRET: &str = "a-shared-secret-that-no-log-may-show";
/// The users and their passwords.
pub const USERS: [(&str, &str); 3] =
    [("alice", "alices-password"), ("bob", "bobs-password"), ("carol", "carols-password")];
/// A text inside transferred content that must not appear in a log.
pub const MARKER: &str = "MARKER-OF-THE-CONTENT-5d41402abc4b";

/// Returns the directory of the package.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Returns a free TCP port below the range that the system uses for outgoing connections.
///
/// The port belongs to this process until it ends. Parallel tests reserve their ports by locking a file for each, so
/// that none takes a port between this call and the moment when a server listens on it.
pub fn free_port() -> u16 {
    const FIRST: u32 = 11_000;
    const COUNT: u32 = 20_000;
    static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let directory = std::env::temp_dir().join("fingerpost-test-ports");
    std::fs::create_dir_all(&directory).unwrap();
    // Each process starts elsewhere, which avoids checking taken ports.
    let start = std::process::id().wrapping_mul(61) % COUNT;
    let mut reserved = RESERVED.lock().unwrap();
    for step in 0..COUNT {
        let port = u16::try_from(FIRST + (start + step) % COUNT).unwrap();
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(directory.join(port.to_string()));
        // A file of another user cannot be opened: the port may belong to that user.
        let Ok(file) = file else { continue };
        if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            reserved.push(file);
            return port;
        }
    }
    panic!("no TCP port from {FIRST} to {} is free", FIRST + COUNT - 1);
}

/// The time after which a test counts as hung. It does not measure speed: the machine may be busy with other work, and
/// no test passes or fails because of how long something takes.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Tries `ready` until it holds.
///
/// # Panics
/// After `limit`, but not before [`PATIENCE`], with `what` and the text of `why`.
pub fn wait_for(
    what: &str,
    limit: Duration,
    why: impl Fn() -> String,
    mut ready: impl FnMut() -> bool,
) {
    let limit = limit.max(PATIENCE);
    let end = Instant::now() + limit;
    while !ready() {
        assert!(Instant::now() < end, "{what} did not happen in {limit:?}\n{}", why());
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Creates `server.pem` (certificate) and `server.key` in `directory`, with the openssl program.
pub fn make_certificate(directory: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj"])
        .arg(format!("/CN={DOMAIN}"))
        .arg("-addext")
        .arg(format!(
            "subjectAltName=DNS:{DOMAIN},DNS:{COMPONENT},DNS:*.{DOMAIN},DNS:xn--bcher-kva.test,\
             DNS:localhost,IP:127.0.0.1"
        ))
        // A strict verifier requires this of a certificate that is its own authority and signs no others.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(directory.join("server.key"))
        .arg("-out")
        .arg(directory.join("server.pem"))
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Creates a file of `size` bytes that cannot be compressed and differs in each run, with [`MARKER`] at its start.
pub fn random_file(path: &Path, size: usize) {
    use std::io::{BufWriter, Read, Write};
    let mut out = BufWriter::new(std::fs::File::create(path).unwrap());
    out.write_all(MARKER.as_bytes()).unwrap();
    let random = std::fs::File::open("/dev/urandom").unwrap();
    let rest = u64::try_from(size - MARKER.len()).unwrap();
    std::io::copy(&mut random.take(rest), &mut out).unwrap();
    out.flush().unwrap();
}

/// Returns the SHA-256 of a file, in hex.
pub fn sha256(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path).unwrap();
    let mut block = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut block).unwrap() {
            0 => break,
            n => hash.update(&block[..n]),
        }
    }
    data_encoding::HEXLOWER.encode(&hash.finalize())
}

/// Returns the path of one of our own programs, where cargo puts it, or in the directory `FINGERPOST_TEST_PROGRAMS`.
pub fn own_program(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("FINGERPOST_TEST_PROGRAMS") {
        return root().join(directory).join(name);
    }
    let here = std::env::current_exe().unwrap();
    let directory = here.parent().unwrap();
    // Tests and examples are in a directory of their own beside the programs.
    let program = [directory, directory.parent().unwrap()].map(|place| place.join(name));
    program.into_iter().find(|path| path.exists()).unwrap_or_else(|| {
        panic!("{name} is not built; build it: `cargo build --workspace --bins`")
    })
}
