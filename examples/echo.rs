//! A service that sends back whatever it is sent, to users whose keys it checks.
//!
//! ```text
//! XMPP_PASSWORD=… cargo run --example echo -- echo@example.org xtls.example.org [SERVER:PORT [CA.pem]]
//! ```
//!
//! It makes a key, registers it at the component, and waits. A user's first key is kept, another one is refused.
//! Talk to it by `examples/send_line.rs`, or by `xtls pipe echo@example.org`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::error::Error;

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_endpoint::{Endpoint, FirstUse, Login, Request, RequestKind};
use fingerpost_secure::identity::Identity;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(user), Some(component)) = (args.next(), args.next()) else {
        return Err("usage: echo USER@DOMAIN COMPONENT [SERVER:PORT [CA.pem]]".into());
    };
    let mut login = Login::new(user.parse()?, std::env::var("XMPP_PASSWORD")?);
    login.server = args.next();
    login.trust.ca_file = args.next().map(Into::into);

    // A real service would keep its key: Identity::load and Identity::store.
    let identity = Identity::generate(&login.jid)?;
    let material = STANDARD.encode(&identity.certificate);
    let (endpoint, mut incoming) = Endpoint::builder(identity)
        .via(component.parse()?)
        .policy(FirstUse::default())
        .login(&login)
        .await?;

    // Users that trust the component's registry know this key from now on.
    let add = format!(
        "<add xmlns='urn:fingerpost:keys:0'><key method='x509' label='echo'>\
         <material>{material}</material></key></add>"
    );
    endpoint.request(RequestKind::Set, &component.parse()?, add.parse()?).await?;

    // From here on, users may start sessions to the bare JID.
    endpoint.appear(0).await;
    println!("ready as {}", endpoint.jid());
    while let Some(request) = incoming.next().await {
        tokio::spawn(async move {
            let peer = request.peer().clone();
            match echo(request).await {
                Ok(bytes) => println!("{peer}: {bytes} bytes"),
                Err(error) => eprintln!("{peer}: {error}"),
            }
        });
    }
    Err("the connection to the XMPP server is lost".into())
}

/// Accepts a session and sends back its bytes until the peer has ended its direction.
async fn echo(request: Request) -> Result<u64, Box<dyn Error + Send + Sync>> {
    if request.application().description().is_some() {
        request.decline("only raw TLS streams are echoed").await;
        return Err("wanted something else than a raw stream".into());
    }
    let (mut session, stream) = request.accept().await?;
    let (mut read, mut write) = tokio::io::split(stream);
    let copied = tokio::io::copy(&mut read, &mut write).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut write).await?;
    // The peer ends the session when it has read everything.
    session.terminated().await?;
    Ok(copied)
}
