//! Negotiates a new leg of the relay when the old one is lost, within the same Jingle session.
//!
//! The TLS client is the session's initiator. It sends a transport-replace (XEP-0260, XEP-0261), and both set the new
//! transport up as they do the first one. The TLS server tells the client of a loss that the client may not see.

use std::time::Duration;

use fingerpost_wire::{jingle::Action, ns, transport_kind::TransportKind, xml};
use minidom::Element;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    leg::{Paths, taken},
    machine::Need,
    quota::Quota,
};
use crate::{
    application::{first_content, transport_of},
    error::Error,
    session::Session,
    transport::TcpLeg,
};

/// The pauses before attempts, and how long the other side may take to acknowledge each, in seconds. A component that is
/// killed takes the request with it, and nobody answers. While a stream stands still, its age decides as well.
const ATTEMPTS: [(u64, u64); 7] = [(0, 4), (1, 8), (2, 20), (4, 20), (8, 20), (15, 20), (30, 20)];
/// How long an attempt may take, for the client and for the server.
const ATTEMPT: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(15);
/// How many refusals the client takes for the end of the session: a few seconds pass between the first and the last.
const REFUSALS: u8 = 3;
/// How many legs are made at once, and after which time one more. Each may cost dials and look-ups of names.
const OFFERS: u32 = 16;
const ONE_MORE: Duration = Duration::from_secs(5);
/// How often the server tells the client of a loss that has stopped the stream.
const AGAIN: Duration = Duration::from_secs(5);

impl Session {
    /// Negotiates new legs of the relay for the stream of this session, whenever it lacks one.
    pub(crate) fn renew_relay(&self, paths: Paths) {
        let Some(session) = self.aside() else { return };
        paths.renew();
        tokio::spawn(async move {
            let over = paths.over().clone();
            let mut renewer = Renewer { session, paths };
            let work = async {
                if renewer.session.initiator {
                    renewer.choose().await;
                } else {
                    renewer.follow().await;
                }
            };
            tokio::select! {
                () = over.cancelled() => {}
                () = work => {}
            }
            renewer.paths.give_up();
        });
    }
}

/// What negotiates the legs of one stream.
#[derive(Debug)]
struct Renewer {
    /// The part of the session that is about the transport.
    session: Session,
    paths: Paths,
}

impl Renewer {
    /// The TLS client's part. Returns when the session is gone, or a stream that stands still gets no new leg.
    async fn choose(&mut self) {
        let mut need = self.paths.need();
        let mut quota = Quota::new(OFFERS, ONE_MORE, Instant::now());
        loop {
            tokio::select! {
                lacks = need.wait_for(|need| *need != Need::Nothing) => if lacks.is_err() { return },
                news = self.session.next() => {
                    match news {
                        Ok((_, jingle)) => self.heed(&jingle),
                        Err(_) => return,
                    }
                    continue;
                }
            }
            // The peer can lose one leg after the other, or say so.
            sleep_until(quota.take(Instant::now())).await;
            if *need.borrow() == Need::Nothing {
                continue;
            }
            if self.renew().await {
                continue;
            }
            need.mark_unchanged();
            // Another path carries the stream, or the old leg may work again. When that changes, another try is useful.
            if !self.paths.has_path() || need.changed().await.is_err() {
                return;
            }
        }
    }

    /// Handles a report that a leg is lost, from the peer or from a component that has been started again. The component does not
    /// know the number.
    fn heed(&self, jingle: &Element) {
        let Some(lost) = jingle.get_child("lost", ns::PATHS) else { return };
        let number = match lost.attr("number") {
            Some(number) => number.parse().ok(),
            None => Some(self.paths.leg()),
        };
        match (number, lost.attr("suspect")) {
            (Some(number), Some("true" | "1")) => self.paths.told_doubt(number),
            (Some(number), _) => self.paths.told_lost(number),
            (None, _) => {}
        }
    }

    /// Tries a few times to get a new leg; returns whether the stream has one.
    async fn renew(&mut self) -> bool {
        let mut refusals = 0;
        for (pause, patience) in ATTEMPTS {
            let hub = self.session.endpoint.hub();
            if hub.is_lost() {
                hub.found().await;
                if *self.paths.need().borrow() == Need::Nothing {
                    // The old leg works again.
                    return true;
                }
            } else {
                sleep(Duration::from_secs(pause)).await;
            }
            match timeout(ATTEMPT, self.offer(Duration::from_secs(patience))).await {
                Ok(Ok((leg, sid))) => return self.paths.replace(leg, sid),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no new leg of the relay");
                    // A component that has just been started may not know its sessions yet.
                    refusals += u8::from(matches!(error, Error::Refused(_)));
                    if refusals == REFUSALS {
                        return false;
                    }
                }
                Err(_) => tracing::debug!("no new leg of the relay in time"),
            }
        }
        false
    }

    /// Offers another transport; returns the leg, and the id of its bytestream if that is a SOCKS5 one.
    async fn offer(&mut self, patience: Duration) -> Result<(TcpLeg, Option<String>), Error> {
        let session = &mut self.session;
        let kind = session.endpoint.transport().unwrap_or_else(|| self.paths.relay_kind());
        let (offered, transport) = session.offer_transport(kind).await;
        let sid = offered.sid().to_owned();
        let replace = session.jingle(Action::TransportReplace, None, vec![transport]);
        let acknowledged = timeout(patience, session.ask(replace)).await;
        acknowledged.map_err(|_| Error::failed("the request was not acknowledged in time"))??;
        let Some(content) = session.answered(&sid, ATTEMPT).await? else {
            return Err(Error::refused("the peer takes no other transport"));
        };
        let leg = session.initiator_leg(&content, offered).await?;
        session.check_demand(&leg)?;
        let sid = Some(sid).filter(|_| leg.transport_kind() == TransportKind::S5b);
        Ok((leg, sid))
    }

    /// The TLS server's part. Returns when the session is gone.
    async fn follow(&mut self) {
        let mut need = self.paths.need();
        let mut tell = Instant::now();
        let mut was_refused = false;
        let mut quota = Quota::new(OFFERS, ONE_MORE, Instant::now());
        loop {
            let is_stranded = matches!(*need.borrow_and_update(), Need::Better | Need::Path);
            let hub = self.session.endpoint.hub().clone();
            let is_lost = hub.is_lost();
            tokio::select! {
                // The client's offers come before reports to it.
                biased;
                news = self.session.next() => match news {
                    Ok((action, jingle)) if action == Action::TransportReplace => {
                        sleep_until(quota.take(Instant::now())).await;
                        match timeout(ANSWER, self.answer(&jingle)).await {
                            Ok(Ok(())) => was_refused = false,
                            Ok(Err(error)) => tracing::debug!(%error, "no new leg of the relay"),
                            Err(_) => tracing::debug!("no new leg of the relay in time"),
                        }
                        tell = Instant::now() + AGAIN;
                    }
                    Ok(_) => {}
                    Err(_) => return,
                },
                changed = need.changed() => if changed.is_err() { return },
                () = hub.found(), if is_stranded && is_lost => tell = Instant::now(),
                () = sleep_until(tell), if is_stranded && !is_lost => {
                    tell = Instant::now() + AGAIN;
                    let told = timeout(AGAIN, self.tell_lost()).await;
                    match told {
                        Ok(Ok(())) => was_refused = false,
                        // A component that has just been started may not know its sessions yet.
                        Ok(Err(Error::Refused(_))) if was_refused => return,
                        Ok(Err(Error::Refused(_))) => was_refused = true,
                        _ => {}
                    }
                }
            }
        }
    }

    /// Tells the client that the relay's leg is lost, or may be. No path can carry this report.
    async fn tell_lost(&mut self) -> Result<(), Error> {
        let mut info = self.session.info();
        let number = self.paths.leg().to_string();
        let mut lost = xml::element("lost", ns::PATHS, &[("number", &number)]);
        if self.paths.has_path() {
            xml::set(&mut lost, "suspect", "true");
        }
        info.append_child(lost);
        self.session.ask(info).await
    }

    /// Answers the client's offer of another transport, and waits until it takes the leg.
    async fn answer(&mut self, jingle: &Element) -> Result<(), Error> {
        let content = first_content(jingle)?;
        let transport = transport_of(&content).ok_or_else(|| Error::failed("no transport"))?;
        if ![ns::JINGLE_S5B, ns::JINGLE_IBB].iter().any(|known| transport.has_ns(*known)) {
            return self.session.tell_transport(Action::TransportReject, transport.clone()).await;
        }
        let accept = Action::TransportAccept;
        let mut leg = self.session.accepted_leg(accept, &content, Vec::new()).await?;
        self.session.check_demand(&leg)?;
        let number = taken(&mut leg).await.map_err(|error| Error::failed(error.to_string()))?;
        let sid = transport
            .attr("sid")
            .filter(|_| leg.transport_kind() == TransportKind::S5b)
            .map(str::to_owned);
        if !number.is_some_and(|number| self.paths.follow_leg(number, leg, sid)) {
            return Err(Error::failed("the leg was given up before it was used"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
