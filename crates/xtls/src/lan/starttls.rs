//! STARTTLS on a link-local stream (XEP-0174, 6 and 12.1; RFC 6120, 5; offers as in XEP-0250, 3.3).
//!
//! There are two streams in turn: the first carries only STARTTLS, the second begins inside TLS. The called side is the
//! TLS server; both show certificates. Nothing that came in clear is used after STARTTLS: neither the features, nor the
//! offer, nor the name unless the key of that name is known or stored.

use std::{io, time::Duration};

use fingerpost_carry::iq::random_id;
use fingerpost_secure::{
    identity::Identity,
    stream::{self as tls, Secured, TlsError},
    verify::Expected,
};
use fingerpost_wire::{ns, xml};
use jid::BareJid;
use minidom::Element;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsStream;

use crate::{
    display::shown,
    output::XtlsError,
    stream::{End, Event, Fault, Names, XmlStream},
};

/// How long a peer that was refused may go on sending.
const HANG_UP: Duration = Duration::from_secs(2);

/// A stream with its bytes.
struct Talk<S> {
    xml: XmlStream,
    io: S,
    input: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    fn new(xml: XmlStream, io: S) -> Self {
        Self { xml, io, input: Vec::new() }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let out = self.xml.take_output();
        self.io.write_all(&out).await?;
        self.io.flush().await
    }

    async fn next(&mut self) -> Result<Event, XtlsError> {
        loop {
            self.flush().await?;
            let mut rest = self.input.as_slice();
            let event = self.xml.next(&mut rest);
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
            if let Some(event) = event {
                self.flush().await?;
                return Ok(event);
            }
            let mut buffer = [0; 4096];
            let count = self.io.read(&mut buffer).await?;
            self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if count == 0 {
                return Ok(self.xml.handle_end().unwrap_or(Event::Ended(End::Broken)));
            }
        }
    }

    async fn element(&mut self) -> Result<Element, XtlsError> {
        match self.next().await? {
            Event::Element(element) => Ok(element),
            Event::Ended(end) => Err(ended(&end)),
            Event::Opened { .. } => Err(XtlsError::failed("the stream was opened twice")),
        }
    }

    /// Ends the stream because of what the peer has sent.
    async fn fail(mut self, fault: Fault) -> XtlsError {
        let _ = self.xml.fail(fault);
        self.hang_up().await;
        ended(&End::Fault(fault))
    }

    /// Tells the user of a program that does not secure the stream why nothing arrives, and what to use instead.
    fn explain(&mut self, own: &BareJid, peer: &BareJid, instead: &str) {
        let mut message = Element::bare("message", ns::CLIENT);
        for (name, value) in [("from", own.as_str()), ("to", peer.as_str()), ("type", "chat")] {
            xml::set(&mut message, name, value);
        }
        let mut body = Element::bare("body", ns::CLIENT);
        body.append_text(format!(
            "Your message was not delivered: {own} takes nothing that is not encrypted, and your program does not \
             encrypt on the local network. Use Fingerpost's program instead: {instead}"
        ));
        message.append_child(body);
        self.xml.send(&message);
    }

    /// Sends the rest and then reads for a moment: a close while the peer is sending is a reset, which may overtake our
    /// last message.
    async fn hang_up(mut self) {
        let _ = timeout(HANG_UP, async {
            self.flush().await?;
            self.io.shutdown().await?;
            let mut buffer = [0; 4096];
            while self.io.read(&mut buffer).await? > 0 {}
            io::Result::Ok(())
        })
        .await;
    }

    /// Returns the connection, if nothing has come after the last element: an attacker could have sent that in clear
    /// (CVE-2011-0411).
    fn into_io(self) -> Result<S, XtlsError> {
        if self.input.is_empty() {
            Ok(self.io)
        } else {
            Err(XtlsError::unverified(
                "the peer sent more in clear after STARTTLS: nothing was sent",
            ))
        }
    }
}

fn ended(end: &End) -> XtlsError {
    match end {
        End::Closed | End::Broken => {
            XtlsError::failed("the peer ended the stream before it was secured")
        }
        End::Error(condition, _) => {
            XtlsError::refused(format!("the peer refused the stream: {}", shown(condition, None)))
        }
        End::Fault(fault) => XtlsError::failed(format!("the peer's stream was ended: {fault}")),
    }
}

/// Calls: returns the TLS stream and the key that the peer has shown, which is not checked yet.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    names: Names,
    identity: &Identity,
) -> Result<(TlsStream<S>, Secured), XtlsError> {
    let mut talk = Talk::new(XmlStream::initiate(names), io);
    let features = match talk.next().await? {
        Event::Opened { features, .. } => features,
        Event::Ended(end) => return Err(ended(&end)),
        Event::Element(_) => None,
    };
    if !features.is_some_and(|features| features.has_child("starttls", ns::STARTTLS)) {
        talk.xml.close();
        talk.flush().await?;
        return Err(XtlsError::unverified(
            "the peer offers no STARTTLS, and nothing goes out in clear: nothing was sent",
        ));
    }
    let mut starttls = Element::bare("starttls", ns::STARTTLS);
    starttls.append_child(offer(identity));
    talk.xml.send(&starttls);
    let answer = talk.element().await?;
    if !answer.is("proceed", ns::STARTTLS) {
        return Err(XtlsError::refused("the peer refused STARTTLS"));
    }
    let io = talk.into_io()?;
    tls::connect(io, identity, Expected::Anyone).await.map_err(failed)
}

/// Is called: gives the name that the peer claims too. `instead` is the command that reaches us.
///
/// Other programs of local networks, such as Pidgin, know no STARTTLS there: they say so by their header, or send their
/// message all the same. Their user takes it for sent unless we say that it is not.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    own: &BareJid,
    identity: &Identity,
    instead: &str,
) -> Result<(TlsStream<S>, Secured, BareJid), XtlsError> {
    let names = Names { own: vec![own.clone()], peer: Vec::new() };
    let mut feature = Element::bare("starttls", ns::STARTTLS);
    feature.append_child(Element::bare("required", ns::STARTTLS));
    feature.append_child(offer(identity));
    let mut talk = Talk::new(XmlStream::respond(names, vec![feature], random_id()), io);
    let peer = match talk.next().await? {
        Event::Opened { from: Some(from), .. } => from,
        Event::Ended(end) => return Err(ended(&end)),
        _ => return Err(talk.fail(Fault::ImproperAddressing).await),
    };
    if !talk.xml.is_modern() {
        talk.explain(own, &peer, instead);
        talk.xml.close();
        talk.hang_up().await;
        return Err(XtlsError::refused(format!(
            "{peer} uses a program that cannot encrypt on the local network: it was told so, and nothing was taken"
        )));
    }
    let request = talk.element().await?;
    if !request.is("starttls", ns::STARTTLS) {
        talk.explain(own, &peer, instead);
        return Err(talk.fail(Fault::NotSecured).await);
    }
    if !talk.input.is_empty() {
        return Err(talk.fail(Fault::NotSecured).await);
    }
    talk.xml.send(&Element::bare("proceed", ns::STARTTLS));
    talk.flush().await?;
    let io = talk.into_io()?;
    let (tls, secured) = tls::accept(io, identity, Expected::Anyone).await.map_err(failed)?;
    Ok((tls, secured, peer))
}

/// Ends a secured stream whose peer's key is not the known one, with the reason.
pub(super) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(tls: TlsStream<S>, own: &BareJid) {
    let names = Names { own: vec![own.clone()], peer: Vec::new() };
    let talk = Talk::new(XmlStream::respond(names, Vec::new(), random_id()), tls);
    talk.fail(Fault::NotAuthorized).await;
}

/// Returns the offer of our certificate (XEP-0250, 3.1): its SHA-256 print in hexadecimal.
fn offer(identity: &Identity) -> Element {
    let mut name = Element::bare("name", ns::TMP_PUBKEY);
    name.append_text(identity.print().to_string().replace(':', "").to_lowercase());
    let mut keyinfo = Element::bare("keyinfo", ns::TMP_PUBKEY);
    keyinfo.append_child(name);
    let mut offer = Element::bare("offer", ns::C2CTLS);
    offer.append_child(keyinfo);
    offer
}

fn failed(error: TlsError) -> XtlsError {
    match error {
        TlsError::Refused(_) => XtlsError::refused(error.to_string()),
        _ => XtlsError::failed(error.to_string()),
    }
}
