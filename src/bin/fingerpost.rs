//! The `fingerpost` program: arguments, configuration, then the command; its exit status says how it went.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

use clap::Parser;
use fingerpost::{
    cli::{Cli, Failure},
    lifecycle,
    systemd::Inherited,
};

fn main() -> ExitCode {
    // Writing the last error may fail as well; there is nobody left to tell.
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = failure.report(&mut stderr());
            ExitCode::from(failure.code)
        }
    }
}

fn run() -> Result<(), Failure> {
    // It takes variables out of the environment: now, while there is but one thread.
    let inherited = Inherited::take();
    let task = Cli::parse().prepare(&mut stdout(), &mut stderr())?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(lifecycle::run(
        task,
        inherited,
        &mut stdout(),
    ))
}
