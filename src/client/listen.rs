//! The command `listen`: sessions of others, and their files.

use std::path::Path;

use jid::BareJid;
use serde_json::json;

use super::{
    Client,
    files::{self, FileOffer},
    output::XtlsError,
    pipe::pipe,
};
use crate::{endpoint::Request, xmpp::ns};

/// Waits for sessions: files into `out`, or without it one pipe.
pub(super) async fn listen(
    client: &Client,
    out: Option<&Path>,
    once: bool,
    accept: &[BareJid],
) -> Result<(), XtlsError> {
    let (endpoint, mut incoming) = client.connect().await?;
    endpoint.appear(1).await;
    client.output.event(
        &json!({"event": "listening", "jid": endpoint.jid().as_str()}),
        &format!("listening as {}", endpoint.jid()),
    );
    let mut done = Ok(());
    loop {
        let request = tokio::select! {
            request = incoming.next() => request,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(request) = request else {
            done = Err(XtlsError::failed("the connection to the XMPP server is lost"));
            break;
        };
        let session = serve(client, request, out, accept).await;
        if once {
            done = session;
            break;
        }
        if let Err(error) = session {
            client.output.error(&error);
        }
    }
    endpoint.disappear().await;
    endpoint.close().await;
    done
}

/// Takes one session.
async fn serve(
    client: &Client,
    request: Request,
    out: Option<&Path>,
    accept: &[BareJid],
) -> Result<(), XtlsError> {
    let admitted = admit(&request, out, accept);
    let offer = match admitted {
        Ok(offer) => offer,
        Err(error) => {
            request.decline(&error.text).await;
            return Err(error);
        }
    };
    let (mut session, mut stream) = request.accept().await?;
    client.secured(&mut session, &stream).await?;
    let done = match (out, offer) {
        (Some(dir), Some(offer)) => session
            .during(files::receive(&mut stream, dir, &offer, client.output))
            .await
            .map(|(done, path)| done.report(client.output, &path)),
        _ => session.during(pipe(stream)).await,
    };
    let reason = if done.is_ok() { "success" } else { "media-error" };
    session.terminate(reason, done.as_ref().err().map_or("", |error| error.text.as_str())).await;
    done
}

/// Whether a session is wanted here: the file that it brings, or none for a pipe.
fn admit(
    request: &Request,
    out: Option<&Path>,
    accept: &[BareJid],
) -> Result<Option<FileOffer>, XtlsError> {
    let user = request.peer();
    if !accept.is_empty() && !accept.contains(user) {
        return Err(XtlsError::refused(format!("{user} is not among those to accept")));
    }
    let application = request.application();
    let file = application
        .description()
        .filter(|description| description.has_ns(ns::FILE_TRANSFER))
        .and_then(|description| description.get_child("file", ns::FILE_TRANSFER));
    match (out, application.description(), file) {
        (Some(_), _, Some(file)) => FileOffer::parse(file).map(Some),
        (None, None, None) => Ok(None),
        (Some(_), None, None) => {
            Err(XtlsError::refused(format!("{user} wants a pipe: run xtls pipe --listen for that")))
        }
        (None, _, Some(_)) => Err(XtlsError::refused(format!(
            "{user} wants to send a file: run xtls listen for that"
        ))),
        _ => Err(XtlsError::refused(format!("{user} wants something that is not known here"))),
    }
}
