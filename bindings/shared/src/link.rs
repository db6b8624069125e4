//! One session as two directions, which two tasks or threads can use at the same time.
//!
//! A task owns the Jingle session. It notices when the peer ends the session, and it ends the session itself when both
//! directions have ended, when the stream breaks, or when the last handle is dropped.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use fingerpost_endpoint::{Error, Known, Reason, SecureStream, Session};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::timeout,
};

use crate::fault::{Fault, Kind};

/// How long the initiator may take to end a session whose two directions have ended, and a peer to end its direction
/// of a stream that is being closed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many bytes of a direction that nobody reads are discarded at once.
const DISCARDED: usize = 1 << 16;

/// What was learned of the peer, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The user at the other end.
    pub peer: String,
    /// The address of the other end at the component.
    pub address: String,
    /// The SHA-256 fingerprint of the peer's certificate.
    pub fingerprint: String,
    /// The TLS method: `x509`.
    pub method: String,
    /// What the registry says of the peer's key: `match`, `unknown`, `none`, …
    pub verdict: &'static str,
    /// How sure the registry is of the key, if it vouches for it: `asserted`, `proven` or `attested`.
    pub assurance: Option<&'static str>,
    /// The name that the peer has given the key. It may contain any text.
    pub label: Option<String>,
    /// Whether the key was known before: `same` or `first`.
    pub known: &'static str,
    /// The TLS version, such as `TLSv1.3`.
    pub tls_version: String,
    /// The key exchange, such as `X25519MLKEM768`.
    pub key_exchange: String,
    /// The transport of this side: `s5b` or `ibb`.
    pub transport: &'static str,
    /// Whether this side has started the session.
    pub initiator: bool,
}

impl Info {
    fn of(stream: &SecureStream, initiator: bool) -> Self {
        let learned = stream.learned();
        Self {
            peer: learned.peer.to_string(),
            address: learned.address.to_string(),
            fingerprint: learned.print.to_string(),
            method: learned.method.to_string(),
            verdict: learned.standing.as_str(),
            assurance: learned.listed.as_ref().map(|listed| listed.assurance.as_str()),
            label: learned.listed.as_ref().map(|listed| listed.label.clone()),
            known: match learned.known {
                Known::Same => "same",
                Known::First => "first",
                Known::Further => "further",
            },
            tls_version: learned.tls_version.clone(),
            key_exchange: learned.key_exchange.clone(),
            transport: learned.transport.as_str(),
            initiator,
        }
    }
}

/// What the two directions tell the task of the session.
#[derive(Debug, Default)]
struct Signals {
    read_ended: bool,
    write_ended: bool,
    failed: Option<Error>,
    aborted: Option<Reason>,
}

impl Signals {
    fn is_over(&self) -> bool {
        self.failed.is_some() || self.aborted.is_some() || self.is_whole()
    }

    fn is_whole(&self) -> bool {
        self.read_ended && self.write_ended
    }
}

/// How the session has ended.
type End = Option<Result<(), Fault>>;

#[derive(Debug)]
struct Shared {
    stream: Mutex<SecureStream>,
    info: Info,
    signals: watch::Sender<Signals>,
    end: watch::Receiver<End>,
    reading: AtomicBool,
    writing: AtomicBool,
}

/// One session with a peer. Cheap to clone; dropping the last clone ends the session with `cancel`.
#[derive(Clone, Debug)]
pub struct Link {
    shared: Arc<Shared>,
}

/// The place of the one call of a direction.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(taken: &'a AtomicBool, what: &str) -> Result<Self, Fault> {
        if taken.swap(true, Ordering::Acquire) {
            return Err(Fault::state(format!("another call is {what} this stream")));
        }
        Ok(Self(taken))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Link {
    pub(crate) fn start(session: Session, stream: SecureStream, initiator: bool) -> Self {
        let info = Info::of(&stream, initiator);
        let (signals, signalled) = watch::channel(Signals::default());
        let (ends, end) = watch::channel(None);
        tokio::spawn(keep(session, initiator, signalled, ends));
        Self {
            shared: Arc::new(Shared {
                stream: Mutex::new(stream),
                info,
                signals,
                end,
                reading: AtomicBool::new(false),
                writing: AtomicBool::new(false),
            }),
        }
    }

    /// Returns what was learned of the peer.
    pub fn info(&self) -> &Info {
        &self.shared.info
    }

    /// Returns the twelve digits that both users compare.
    ///
    /// # Errors
    /// [`Kind::Failed`]
    pub async fn short_authentication_string(&self) -> Result<String, Fault> {
        let digits = self.stream().short_authentication_string();
        Ok(digits.await?)
    }

    /// Reads at least one byte, and what else is there already; 0 after the peer's `close_notify`, and for an empty buffer.
    ///
    /// # Errors
    /// The same after each call once the stream is broken or the session was ended; [`Kind::Cut`] if the stream ended
    /// without `close_notify`.
    ///
    /// # Cancel safety
    /// No byte is lost.
    pub async fn read(&self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let _turn = Turn::take(&self.shared.reading, "reading")?;
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(buffer);
            let mut stream = self.stream();
            loop {
                let before = buffer.filled().len();
                // One poll gives one TLS record at most. The end of the stream, in either way, stays for the next call.
                match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                    Poll::Pending if before == 0 => return Poll::Pending,
                    Poll::Ready(Err(error)) if before == 0 => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(()))
                        if buffer.filled().len() > before && buffer.remaining() > 0 => {}
                    _ => return Poll::Ready(Ok(buffer.filled().len())),
                }
            }
        });
        let read = self.unless_ended(read).await?;
        if read == 0 {
            self.signal(|signals| signals.read_ended = true);
        }
        Ok(read)
    }

    /// Writes all bytes. They may stay in a buffer until [`flush`](Self::flush).
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Kind::State`] after [`end`](Self::end).
    ///
    /// # Cancel safety
    /// A part of the bytes may have been written.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Fault> {
        let _turn = self.write_turn()?;
        while !bytes.is_empty() {
            let write = poll_fn(|cx| {
                let mut stream = self.stream();
                Pin::new(&mut *stream).poll_write(cx, bytes)
            });
            let written = self.unless_ended(write).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Waits until the network has taken all bytes.
    ///
    /// # Errors
    /// As [`write_all`](Self::write_all).
    pub async fn flush(&self) -> Result<(), Fault> {
        let _turn = self.write_turn()?;
        let flush = poll_fn(|cx| {
            let mut stream = self.stream();
            Pin::new(&mut *stream).poll_flush(cx)
        });
        self.unless_ended(flush).await
    }

    /// Ends this side's direction; the peer reads the end after the last byte. The other direction continues.
    ///
    /// # Errors
    /// As [`read`](Self::read). A direction that has ended already is no error.
    pub async fn end(&self) -> Result<(), Fault> {
        let _turn = Turn::take(&self.shared.writing, "writing to")?;
        if self.shared.signals.borrow().write_ended {
            return Ok(());
        }
        let shutdown = poll_fn(|cx| {
            let mut stream = self.stream();
            Pin::new(&mut *stream).poll_shutdown(cx)
        });
        self.unless_ended(shutdown).await?;
        self.signal(|signals| signals.write_ended = true);
        Ok(())
    }

    /// Ends this side's direction, discards what the peer still sends, and waits until the session has ended.
    ///
    /// # Errors
    /// As [`read`](Self::read): then the peer may not have everything. [`Kind::Failed`] if the peer does not end its
    /// direction within 30 seconds. [`Kind::State`] while another call reads or writes.
    pub async fn close(&self) -> Result<(), Fault> {
        self.end().await?;
        let discarding = async {
            let mut discarded = vec![0; DISCARDED];
            while self.read(&mut discarded).await? > 0 {}
            Ok::<_, Fault>(())
        };
        match timeout(PATIENCE, discarding).await {
            Ok(discarded) => discarded?,
            Err(_) => {
                self.signal(|signals| signals.aborted = Some(Reason::Timeout));
                self.ended().await?;
            }
        }
        self.ended().await
    }

    /// Ends the session at once, with `cancel`; the peer's stream is cut.
    pub fn abort(&self) {
        self.signal(|signals| signals.aborted = Some(Reason::Cancel));
    }

    /// Returns whether the session has ended.
    pub fn is_over(&self) -> bool {
        self.shared.end.borrow().is_some()
    }

    /// Waits until the session has ended.
    ///
    /// # Errors
    /// The reason, unless both directions have ended before.
    pub async fn ended(&self) -> Result<(), Fault> {
        let mut end = self.shared.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ok(())),
            Err(_) => Err(Fault::new(Kind::Disconnected, "the endpoint was closed")),
        }
    }

    fn write_turn(&self) -> Result<Turn<'_>, Fault> {
        let turn = Turn::take(&self.shared.writing, "writing to")?;
        if self.shared.signals.borrow().write_ended {
            return Err(Fault::state("the stream was ended for writing"));
        }
        Ok(turn)
    }

    fn stream(&self) -> MutexGuard<'_, SecureStream> {
        self.shared.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, change: impl FnOnce(&mut Signals)) {
        self.shared.signals.send_modify(change);
    }

    /// Does one step of a direction until the session ends badly. A failure of the step ends the session.
    async fn unless_ended<T>(
        &self,
        step: impl Future<Output = std::io::Result<T>>,
    ) -> Result<T, Fault> {
        let failed = async {
            match self.ended().await {
                Ok(()) => std::future::pending().await,
                Err(fault) => fault,
            }
        };
        let done = tokio::select! {
            biased;
            done = step => done,
            fault = failed => return Err(fault),
        };
        match done {
            Ok(done) => Ok(done),
            Err(error) => {
                let error = Error::from(error);
                self.signal(|signals| {
                    signals.failed.get_or_insert(error.clone());
                });
                // The session's own reason tells more.
                Err(self.ended().await.err().unwrap_or_else(|| error.into()))
            }
        }
    }
}

/// Owns the session until it has ended.
async fn keep(
    mut session: Session,
    initiator: bool,
    mut signals: watch::Receiver<Signals>,
    ends: watch::Sender<End>,
) {
    let over = session
        .during(async {
            let Ok(signals) = signals.wait_for(Signals::is_over).await else {
                return Ok(Some(Reason::Cancel));
            };
            match (&signals.failed, signals.aborted) {
                (Some(error), _) => Err(error.clone()),
                (None, aborted) => Ok(aborted),
            }
        })
        .await;
    match over {
        Ok(None) => {
            if !initiator {
                // The initiator ends it when it has read everything; before that, bytes may be on their way.
                let aborted = signals.wait_for(|signals| signals.aborted.is_some());
                tokio::select! {
                    _ = timeout(PATIENCE, session.terminated()) => {}
                    _ = aborted => {}
                }
            }
            session.terminate(Reason::Success, "").await;
            ends.send_replace(Some(Ok(())));
        }
        Ok(Some(reason)) => {
            let text = match reason {
                Reason::Timeout => "the peer did not end its direction within 30 seconds",
                _ => "the stream was aborted on this side",
            };
            let kind = if reason == Reason::Timeout { Kind::Failed } else { Kind::State };
            ends.send_replace(Some(Err(Fault::new(kind, text))));
            session.terminate(reason, "").await;
        }
        Err(error) => {
            ends.send_replace(Some(Err(error.into())));
            session.terminate(Reason::ConnectivityError, "").await;
        }
    }
}
