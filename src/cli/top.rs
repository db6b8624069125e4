//! `fingerpost top`: the state of the running component, from its status server.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use axum::http::{Request, StatusCode, header::HOST};
use fingerpost_top::{StatusDocument, watch};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::CommandFailure;
use crate::config::Config;

/// How long the status server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest document, in bytes: each of its sessions has two addresses of up to 3 KiB.
const LONGEST: usize = 4 << 20;

/// How the state is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// In a terminal, until the user ends it, with this time between two looks.
    Live(Duration),
    /// Once, as text.
    Text,
    /// Once, as JSON.
    Json,
}

/// Reads the time between two looks.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let range = Duration::from_millis(200)..=Duration::from_secs(3600);
    if range.contains(&every) { Ok(every) } else { Err("from 200ms to 1h".to_owned()) }
}

/// Shows the state of the component that runs with this configuration.
///
/// # Errors
/// If its status server is switched off or does not answer.
pub(crate) async fn run(
    config: &Config,
    shown: Shown,
    out: &mut impl Write,
) -> Result<(), CommandFailure> {
    let Some(address) = config.http.listen.as_deref() else {
        return Err(CommandFailure::new("the status server is switched off")
            .with_hint("set [http] listen, for example to 127.0.0.1:7626"));
    };
    let fetch = || async move { fetch(address).await };
    match shown {
        Shown::Live(every) => watch(every, fetch).await?,
        Shown::Text => out.write_all(fetch().await.map_err(failure)?.to_text().as_bytes())?,
        Shown::Json => {
            let document = fetch().await.map_err(failure)?;
            let text = serde_json::to_string(&document).map_err(|e| failure(e.to_string()))?;
            writeln!(out, "{text}")?;
        }
    }
    Ok(())
}

fn failure(why: String) -> CommandFailure {
    CommandFailure::new(why)
        .with_hint("start the component with the same configuration; its log says why it has ended")
}

/// Asks the status server for its state, or says in a sentence why there is none.
async fn fetch(address: &str) -> Result<StatusDocument, String> {
    let no = |why: &dyn std::fmt::Display| format!("the status server at {address}: {why}");
    match timeout(PATIENCE, ask(address)).await {
        Ok(answer) => answer.map_err(|error| no(&error)),
        Err(_) => Err(no(&format_args!("no answer for {} s", PATIENCE.as_secs()))),
    }
}

async fn ask(address: &str) -> Result<StatusDocument, Box<dyn std::error::Error + Send + Sync>> {
    let mut last = "the address has no number".into();
    for found in lookup_host(address).await? {
        let found = reachable(found);
        match TcpStream::connect(found).await {
            Ok(stream) => return ask_on(stream, found).await,
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Returns the address at which a listener on this machine is reached.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, bound.port())
}

async fn ask_on(
    stream: TcpStream,
    to: SocketAddr,
) -> Result<StatusDocument, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/status.json").header(HOST, to.to_string());
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                return Err("it has no /status.json: is it an older fingerpost?".into());
            }
            status => return Err(format!("it answers {status}").into()),
        }
        let body = Limited::new(response.into_body(), LONGEST).collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    };
    tokio::pin!(answer);
    // The connection needs to be driven beside the request.
    tokio::select! {
        document = &mut answer => document,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::net::TcpListener;

    use super::*;

    async fn serving(answer: impl Into<String>) -> String {
        let answer = answer.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let pages = Router::new().route("/status.json", get(|| async { answer }));
        tokio::spawn(async move { axum_serve(listener, pages).await });
        address
    }

    /// Serves one connection.
    async fn axum_serve(listener: TcpListener, pages: Router) {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(pages);
        let _ended = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    #[tokio::test]
    async fn a_document_of_another_version_is_read() {
        let address = serving(r#"{"component":"xtls.example.org","new":[1],"link":true}"#).await;
        let document = fetch(&address).await.unwrap();
        assert!(document.link && document.component == "xtls.example.org");
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_or_says_something_else_is_a_sentence() {
        let address = serving("words").await;
        let why = fetch(&address).await.unwrap_err();
        assert!(why.starts_with(&format!("the status server at {address}: ")), "{why}");
        let why = fetch(&serving("x".repeat(LONGEST + 1)).await).await.unwrap_err();
        assert!(why.contains("length limit exceeded"), "{why}");
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let why = fetch(&free.to_string()).await.unwrap_err();
        assert!(why.contains("onnection refused"), "{why}");
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:7626"), "127.0.0.1:7626");
        assert_eq!(reached("[::]:7626"), "[::1]:7626");
        assert_eq!(reached("192.0.2.1:7626"), "192.0.2.1:7626");
    }

    #[test]
    fn the_time_between_two_looks_has_bounds() {
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert!(interval("1ms").is_err() && interval("2h").is_err() && interval("x").is_err());
    }
}
