//! What waits to be handed over, each for a short time.

use std::{collections::VecDeque, pin::pin, time::Duration};

use fingerpost_carry::{outbound::Outbound, reader::StanzaReader, shares::Permit};
use fingerpost_wire::{
    ns,
    stanza::Stanza,
    xml::{self, Received},
};
use minidom::Element;
use tokio::{sync::mpsc, time::sleep};

use super::{
    instance::{Cluster, Event, Outgoing},
    member::Role,
    refusal::ClusterRefusal,
};
use crate::{metrics, refuse::Refuse as _, registry::store::records::Parcel};

/// How long a stanza waits for a leader, or for the database.
const HOLD: Duration = Duration::from_secs(5);
/// The time between two looks at what has waited for too long.
const LOOK: Duration = Duration::from_millis(200);
/// Stanzas that are sent in one transaction.
const BATCH: usize = 256;

/// Takes what is to be handed over, and refuses what has waited for too long.
#[derive(Debug)]
pub(super) struct HandoverDesk {
    cluster: Cluster,
    queue: mpsc::Receiver<Outgoing>,
    waiting: VecDeque<Outgoing>,
}

/// What is on its way to other instances.
#[derive(Debug)]
pub(super) struct Packed {
    /// To whom, and what.
    parcels: Vec<(String, Parcel)>,
    /// The stanzas among it, with their places.
    stanzas: Vec<(Box<Stanza>, Permit)>,
}

impl Packed {
    pub(super) fn parcels(&self) -> &[(String, Parcel)] {
        &self.parcels
    }

    /// Refuses it unless it was sent. Whether it has arrived after an error is not known: nothing is sent twice.
    pub(super) async fn sent(self, is_sent: bool, outbound: &Outbound) {
        for (stanza, _permit) in self.stanzas {
            match is_sent {
                true => metrics::CLUSTER_HANDOVERS.count(&["sent"]),
                false => refuse(&stanza, ClusterRefusal::NoLeader, outbound).await,
            }
        }
    }
}

impl HandoverDesk {
    pub(super) fn new(cluster: Cluster, queue: mpsc::Receiver<Outgoing>) -> Self {
        Self { cluster, queue, waiting: VecDeque::new() }
    }

    /// Waits for something to hand over, as long as there is room.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub(super) async fn fill(&mut self) {
        if self.waiting.len() >= BATCH {
            return std::future::pending().await;
        }
        match self.queue.recv().await {
            Some(item) => self.waiting.push_back(item),
            None => return std::future::pending().await,
        }
        self.fill_now();
    }

    /// Takes what there is to hand over, as long as there is room.
    pub(super) fn fill_now(&mut self) {
        while self.waiting.len() < BATCH
            && let Ok(item) = self.queue.try_recv()
        {
            self.waiting.push_back(item);
        }
    }

    /// Does some work, and refuses meanwhile what has waited for too long.
    pub(super) async fn meanwhile<T>(
        &mut self,
        outbound: &Outbound,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.fill() => {}
                () = sleep(LOOK) => {}
            }
            self.cluster.tell_standing();
            self.expire(outbound).await;
        }
    }

    /// Packs what waits, if its receiver is known; what belongs to this instance is given to it.
    pub(super) async fn pack(
        &mut self,
        events: &mpsc::Sender<Event>,
        outbound: &Outbound,
    ) -> Option<Packed> {
        if self.waiting.is_empty() {
            return None;
        }
        let leader = match self.cluster.role() {
            Role::Leads => None,
            Role::Follows(Some(leader)) => Some(leader),
            Role::Follows(None) => return None,
        };
        let others: Vec<String> =
            self.cluster.lock().others.iter().map(|other| other.id.clone()).collect();
        let mut packed = Packed { parcels: Vec::new(), stanzas: Vec::new() };
        for item in std::mem::take(&mut self.waiting) {
            match (item, &leader) {
                (Outgoing::Echo { id, .. }, _) => {
                    let to_each = others.iter().map(|to| (to.clone(), Parcel::Echo(id.clone())));
                    packed.parcels.extend(to_each);
                }
                // This instance has come to lead since.
                (Outgoing::Stanza { stanza, .. }, None) => {
                    let _ = events.send(Event::Stanza(stanza.element)).await;
                }
                (Outgoing::Stanza { stanza, permit, .. }, Some(leader)) => {
                    match write(&stanza.element) {
                        Some(text) => {
                            packed.parcels.push((leader.clone(), Parcel::Stanza(text)));
                            packed.stanzas.push((stanza, permit));
                        }
                        None => {
                            refuse(&stanza, ClusterRefusal::Unwritable, outbound).await;
                        }
                    }
                }
            }
        }
        (!packed.parcels.is_empty()).then_some(packed)
    }

    /// Refuses what has waited for too long.
    pub(super) async fn expire(&mut self, outbound: &Outbound) {
        let is_late = |item: &Outgoing| match item {
            Outgoing::Stanza { since, .. } | Outgoing::Echo { since, .. } => {
                since.elapsed() >= HOLD
            }
        };
        while self.waiting.front().is_some_and(is_late) {
            if let Some(Outgoing::Stanza { stanza, .. }) = self.waiting.pop_front() {
                refuse(&stanza, ClusterRefusal::NoLeader, outbound).await;
            }
        }
    }
}

/// Refuses a request; whatever else is counted.
async fn refuse(stanza: &Stanza, refusal: ClusterRefusal, outbound: &Outbound) {
    if stanza.is_request() {
        let _ = outbound.send(stanza.refuse(refusal).into()).await;
    } else {
        metrics::STANZAS_DROPPED.count(&["cluster"]);
    }
}

/// A stanza as XML; `None` for one that no XML can carry.
fn write(element: &Element) -> Option<String> {
    let mut bytes = Vec::new();
    xml::write(element, &mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

/// Reads a stanza that another instance has written.
pub(super) async fn read(text: &str) -> Option<Element> {
    let stream = format!(
        "<stream:stream xmlns='{}' xmlns:stream='{}' id='1'>{text}",
        ns::COMPONENT,
        ns::STREAM
    );
    let mut reader = StanzaReader::new(stream.as_bytes());
    let Ok(Received::Header(_)) = reader.read().await else { return None };
    match reader.read().await {
        Ok(Received::Element(element)) => Some(element),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stanza_is_read_as_it_was_written() {
        for text in [
            "<iq xmlns='jabber:client' type='set' id='&gt;&#13;\"' from='a@b/c' to='x.example'>\
             <data xmlns='http://jabber.org/protocol/ibb' seq='1' sid='s'>AAAA</data></iq>",
            "<message xmlns='jabber:client' from='a@b'><body>&lt;&amp;\u{1F600}</body><x xmlns='' a='b'/></message>",
            "<presence xmlns='jabber:client' from='a@b/c'/>",
        ] {
            let element: Element = text.parse().unwrap();
            assert_eq!(read(&write(&element).unwrap()).await, Some(element));
        }
        assert_eq!(read("<iq>").await, None);
        assert_eq!(read("").await, None);
    }
}
