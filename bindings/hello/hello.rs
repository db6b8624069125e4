//! The lines of docs/LIBRARY.md as a program: hello SERVER CA

#![allow(clippy::print_stdout, reason = "it is a program")]

use fingerpost_endpoint::{Application, Endpoint, Login};
use fingerpost_secure::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut login = Login::new("alice@example.org".parse()?, std::env::var("XMPP_PASSWORD")?);
    login.server = std::env::args().nth(1);
    login.trust.ca_file = std::env::args().nth(2).map(Into::into);
    let identity = Identity::generate(&login.jid)?;
    let mut answer = String::new();
    let (component, bob) = ("xtls.example.org".parse()?, "bob@example.org".parse()?);
    // begin
    let (alice, _incoming) = Endpoint::builder(identity).via(component).login(&login).await?;
    let (_session, mut stream) = alice.initiate(&bob, &Application::tls()).await?;
    stream.write_all(b"Hello, Bob\n").await?;
    stream.shutdown().await?;
    stream.read_to_string(&mut answer).await?;
    // end
    print!("{answer}");
    Ok(())
}
