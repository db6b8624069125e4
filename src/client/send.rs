//! The command `send`: files, one session each.

use std::path::{Path, PathBuf};

use jid::Jid;
use minidom::Element;

use super::{
    Client,
    files::{self, FileOffer},
    output::XtlsError,
};
use crate::{
    endpoint::{Application, Endpoint},
    xmpp::ns,
};

/// Sends files to a peer, one after the other.
pub(super) async fn send(client: &Client, jid: &Jid, files: Vec<PathBuf>) -> Result<(), XtlsError> {
    let offers: Vec<_> = files
        .into_iter()
        .map(|path| FileOffer::of(&path).map(|offer| (path, offer)))
        .collect::<Result<_, _>>()?;
    let (endpoint, _incoming) = client.connect().await?;
    endpoint.appear(-1).await;
    let mut done = Ok(());
    for (path, offer) in &offers {
        done = send_one(client, &endpoint, jid, path, offer).await;
        if done.is_err() {
            break;
        }
    }
    endpoint.close().await;
    done
}

async fn send_one(
    client: &Client,
    endpoint: &Endpoint,
    peer: &Jid,
    path: &Path,
    offer: &FileOffer,
) -> Result<(), XtlsError> {
    let mut description = Element::bare("description", ns::FILE_TRANSFER);
    description.append_child(offer.to_element());
    let application = Application::described(description).from_initiator();
    let (mut session, mut stream) = endpoint.initiate(peer, &application).await?;
    client.secured(&mut session, &stream).await?;
    let sent = session.during(files::send(&mut stream, path, offer, client.output)).await;
    let done = match sent {
        Ok(done) => done,
        Err(error) => {
            session.terminate("failed-application", &error.text).await;
            return Err(error);
        }
    };
    // The peer says success when it has the whole file and its hash is right.
    session.terminated().await?;
    done.report(client.output, path);
    Ok(())
}
