//! The `fingerpost` program: arguments, configuration, then the command. Its exit status shows the result.

use std::{io::stderr, process::ExitCode};

use fingerpost::{
    cli::{Cli, Failure},
    lifecycle,
    stdout::{self, Stdout},
    systemd::Inherited,
};

fn main() -> ExitCode {
    let cli = match stdout::arguments() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    match run(cli) {
        Ok(()) => stdout::exit_code(0),
        Err(failure) => {
            // Writing the last error may fail too; then it cannot be reported.
            let _ = failure.report(&mut stderr());
            stdout::exit_code(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    // It removes variables from the environment, so it must run while there is only one thread.
    let inherited = Inherited::take();
    let task = cli.prepare(&mut Stdout, &mut stderr())?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(lifecycle::run(
        task,
        inherited,
        &mut Stdout,
    ))
}
