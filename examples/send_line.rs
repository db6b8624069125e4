//! Sends one line to another user's program, end to end encrypted, and prints the answer.
//!
//! ```text
//! XMPP_PASSWORD=… cargo run --example send_line -- alice@example.org xtls.example.org echo@example.org "Hello" \
//!     [SERVER:PORT [CA.pem]]
//! ```
//!
//! The other user's key must be known to the component's registry: that is the policy of an endpoint that is told
//! nothing else. What went wrong decides the exit status.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::process::ExitCode;

use fingerpost_endpoint::{Application, Endpoint, Error, Login, Reason};
use fingerpost_secure::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> ExitCode {
    let error = match run().await {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    eprintln!("error: {error}");
    ExitCode::from(match error.downcast_ref() {
        Some(Error::Unreachable(_)) => 3,
        Some(Error::Unverified(_)) => 4,
        Some(Error::Refused(_)) => 5,
        _ => 1,
    })
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [user, component, peer, line, more @ ..] = args.as_slice() else {
        return Err(
            "usage: send_line USER@DOMAIN COMPONENT PEER LINE [SERVER:PORT [CA.pem]]".into()
        );
    };
    let mut login = Login::new(user.parse()?, std::env::var("XMPP_PASSWORD")?);
    login.server = more.first().cloned();
    login.trust.ca_file = more.get(1).map(Into::into);

    let identity = Identity::generate(&login.jid)?;
    let (endpoint, _incoming) =
        Endpoint::builder(identity).via(component.parse()?).login(&login).await?;
    let secured = endpoint.initiate(&peer.parse()?, &Application::tls()).await;
    let (mut session, mut stream) = match secured {
        Ok(secured) => secured,
        Err(error) => {
            endpoint.close().await;
            return Err(error.into());
        }
    };

    let learned = stream.learned();
    eprintln!("{} holds the key {}", learned.peer, learned.print);
    eprintln!("{} over {}", learned.tls_version, learned.transport);
    // Only the two ends can compute this: it binds statements elsewhere to this stream (RFC 9266).
    let binding = stream.export_keying_material(b"EXPORTER-Channel-Binding", Some(b""), 32)?;
    assert_eq!(binding.len(), 32, "as many bytes as were asked for");

    stream.write_all(line.as_bytes()).await?;
    stream.write_all(b"\n").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    print!("{answer}");
    session.terminate(Reason::Success, "").await;
    endpoint.close().await;
    Ok(())
}
