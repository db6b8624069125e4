//! One end of the measurement of `make bindings-bench`, with the Rust library alone. stream.c and stream.py do the same.
//!
//! ```text
//! stream receive USER COMPONENT SERVER CA IDENTITY
//! stream send USER COMPONENT SERVER CA IDENTITY PEER BYTES
//! ```

#![allow(clippy::print_stdout, reason = "it is a program")]

use std::{error::Error, path::Path, time::Instant};

use fingerpost_endpoint::{Application, Endpoint, FirstUse, Login, Reason};
use fingerpost_secure::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BLOCK: usize = 1 << 18;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [role, user, component, server, ca, identity, rest @ ..] = args.as_slice() else {
        return Err("usage: stream ROLE USER COMPONENT SERVER CA IDENTITY [PEER BYTES]".into());
    };
    let mut login = Login::new(user.parse()?, std::env::var("XMPP_PASSWORD")?);
    login.server = Some(server.clone());
    login.trust.ca_file = Some(ca.into());
    let directory = Path::new(identity);
    let identity = match Identity::load(directory)? {
        Some(identity) => identity,
        None => {
            std::fs::create_dir_all(directory)?;
            let identity = Identity::generate(&login.jid)?;
            identity.store(directory)?;
            identity
        }
    };
    let (endpoint, mut incoming) = Endpoint::builder(identity)
        .via(component.parse()?)
        .policy(FirstUse::default())
        .login(&login)
        .await?;
    let mut block = vec![7; BLOCK];
    if role == "receive" {
        endpoint.appear(0).await;
        println!("ready");
        while let Some(request) = incoming.next().await {
            let (mut session, mut stream) = request.accept().await?;
            let mut total = 0;
            loop {
                match stream.read(&mut block).await? {
                    0 => break,
                    read => total += read,
                }
            }
            stream.write_all(total.to_string().as_bytes()).await?;
            stream.shutdown().await?;
            session.terminated().await?;
        }
        return Ok(());
    }
    let [peer, bytes] = rest else { return Err("the sender needs PEER and BYTES".into()) };
    let bytes: usize = bytes.parse()?;
    let (mut session, mut stream) = endpoint.initiate(&peer.parse()?, &Application::tls()).await?;
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let size = left.min(BLOCK);
        stream.write_all(&block[..size]).await?;
        left -= size;
    }
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(answer, bytes.to_string(), "the peer has another number of bytes");
    println!("{seconds}");
    session.terminate(Reason::Success, "").await;
    endpoint.close().await;
    Ok(())
}
