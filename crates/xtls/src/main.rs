//! The `xtls` program: arguments, log, then the command.

use std::process::ExitCode;

use fingerpost_xtls::Cli;
use tracing_subscriber::EnvFilter;

/// The XMPP library builds elements recursively; an element that a server lets through must not overflow the stack.
const STACK: usize = 256 << 20;

fn main() -> ExitCode {
    let cli: Cli = match fingerpost_terminal::arguments() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let filter = EnvFilter::new(cli.log_filter());
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let worker = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_stack_size(STACK)
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => {
                let status = runtime.block_on(fingerpost_xtls::run(cli));
                // Standard input may block its thread without end. The threads are left to the end of the process:
                // detaching one that is just ending sometimes crashes in glibc (its bug 19951).
                std::mem::forget(runtime);
                status
            }
            Err(_) => 1,
        }
    });
    fingerpost_terminal::exit_code(worker.ok().and_then(|worker| worker.join().ok()).unwrap_or(1))
}
