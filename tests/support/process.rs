//! A child process whose output goes to a file, and which does not outlive its owner.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A running child process.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts `command` with no input and with standard output and error going to the file `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let out = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}; `make test` installs it"));
        Self { child, log: log.to_owned(), name }
    }

    /// Starts `command` between two files; its messages go to the file `log`.
    pub fn start_between(command: Command, input: &Path, output: &Path, log: &Path) -> Self {
        Self::start_reading(command, File::open(input).unwrap(), output, log)
    }

    /// The same with an input that is open.
    pub fn start_reading(mut command: Command, input: File, output: &Path, log: &Path) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        command
            .stdin(input)
            .stdout(File::create(output).unwrap())
            .stderr(File::options().create(true).append(true).open(log).unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child, log: log.to_owned(), name }
    }

    /// Returns everything that it has printed so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends it a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{name} {}", self.child.id()))
            .status()
            .unwrap();
        assert!(sent.success(), "{} is not there to get SIG{name}", self.name);
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// After `limit`, but not before [`PATIENCE`], with its output.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let (name, log) = (&self.name, &self.log);
        end_of(&mut self.child, limit, || format!("{name}\n{}", read(log)))
    }

    /// Asks it to end and waits; kills it after `patience`.
    pub fn stop(&mut self, patience: Duration) {
        if self.ended().is_some() {
            return;
        }
        let id = self.child.id();
        let _gone = Command::new("sh").arg("-c").arg(format!("kill -TERM {id}")).status();
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if self.ended().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(3));
    }
}

/// Waits until a child process ends.
///
/// # Panics
/// After `limit`, but not before [`PATIENCE`], with the text of `why`.
pub fn end_of(child: &mut Child, limit: Duration, why: impl Fn() -> String) -> ExitStatus {
    let limit = limit.max(PATIENCE);
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "it did not end in {limit:?}\n{}", why());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns a file's text, with replacements for bytes that are not valid UTF-8.
pub fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        file.read_to_end(&mut bytes).unwrap();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A finished command.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end, with no input.
///
/// # Panics
/// After `limit`, but not before [`PATIENCE`], with its output.
pub fn run(mut command: Command, limit: Duration) -> Output {
    let limit = limit.max(PATIENCE);
    let name = command.get_program().to_string_lossy().into_owned();
    let directory = tempfile::tempdir().unwrap();
    let (out, err) = (directory.path().join("out"), directory.path().join("err"));
    command
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            let _gone = child.kill();
            let _status = child.wait();
            panic!("{name} did not end in {limit:?}\n{}\n{}", read(&out), read(&err));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Output { code: status.code().unwrap_or(-1), stdout: read(&out), stderr: read(&err) }
}
