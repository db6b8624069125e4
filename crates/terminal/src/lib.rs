//! Standard output of both programs. A failed write is an error; a reader that has gone away is not.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

use std::{
    io::{self, ErrorKind, Write},
    process::ExitCode,
    sync::Mutex,
};

/// The first failure of this process.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// Standard output.
///
/// Writing to a reader that has gone (`| head -1`) succeeds, so that the command ends as it would have otherwise. Any
/// other failure, such as a full disk, is an error here and is kept for [`exit_code`], because not every caller can
/// pass it on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        checked(io::stdout().write(buf), buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        checked(io::stdout().flush(), ())
    }
}

/// Records a failure; `done` is the result if the reader has gone.
pub fn checked<T>(written: io::Result<T>, done: T) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(done),
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        Err(error) => {
            let text = format!("standard output: cannot be written: {error}");
            let mut failure = FAILURE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            failure.get_or_insert_with(|| text.clone());
            Err(io::Error::new(error.kind(), text))
        }
        written => written,
    }
}

/// Returns the exit status of a program that ends with `status`: a success is one only if all output was written.
pub fn exit_code(status: u8) -> ExitCode {
    let flushed = Stdout.flush();
    let failure = FAILURE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    match (status, failure.or_else(|| flushed.err().map(|error| error.to_string()))) {
        (0, Some(text)) => {
            // The reader of standard error may be gone too.
            let _ = writeln!(io::stderr(), "error: {text}");
            ExitCode::from(1)
        }
        _ => ExitCode::from(status),
    }
}

/// Returns the arguments, or the exit status if there are none to go on with: after `--help`, `--version` or bad usage.
///
/// # Errors
/// The exit status.
pub fn arguments<T: clap::Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        if error.use_stderr() {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        // An error of `print` is an error of standard output here.
        let _ = checked(error.print(), ());
        exit_code(0)
    })
}
