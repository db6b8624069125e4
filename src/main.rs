//! The `fingerpost` program: arguments, configuration, then the command. Its exit status shows the result.

use std::{io::stderr, process::ExitCode};

use fingerpost::{
    cli::{CommandFailure, FingerpostCli},
    lifecycle,
    systemd::Inherited,
};
use fingerpost_terminal::Stdout;

fn main() -> ExitCode {
    let cli = match fingerpost_terminal::arguments() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    match run(cli) {
        Ok(()) => fingerpost_terminal::exit_code(0),
        Err(failure) => {
            // Writing the last error may fail too; then it cannot be reported.
            let _ = failure.report(&mut stderr());
            fingerpost_terminal::exit_code(failure.code)
        }
    }
}

fn run(cli: FingerpostCli) -> Result<(), CommandFailure> {
    // It removes variables from the environment, so it must run while there is only one thread.
    let inherited = Inherited::take();
    let task = cli.prepare(&mut Stdout, &mut stderr())?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(lifecycle::run(
        task,
        inherited,
        &mut Stdout,
    ))
}
