//! The command `chat`: an XML stream over TLS between two users, stanzas end to end (XEP-0247).

mod conversation;
mod desk;
mod terminal;
mod typed;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fingerpost_carry::{iq::random_id, writer::forward};
use fingerpost_endpoint::{
    Application, Learned, ProposalAnswer, Proposed, Reason, Request, Ringer, SecureStream, Session,
};
use fingerpost_wire::{jid::proxied, ns};
use jid::{BareJid, Jid};
use minidom::Element;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

pub(crate) use self::desk::{Desk, Seat};
use self::{
    conversation::{Conversation, News},
    terminal::Terminal,
    typed::Typed,
};
use super::{
    client::{Client, KEEPALIVE},
    display::shown,
    interrupt::interrupted,
    output::{Output, XtlsError},
    stream::{End, Names, Role},
    watch,
};

/// How long the last stanzas may take to go out.
const FLUSH: Duration = Duration::from_secs(5);
/// With this many bytes on their way no more lines are taken.
const FULL: usize = 64 << 10;
/// With this many bytes on their way, to a peer that writes and does not read, the peer is not read either.
const STUCK: usize = 256 << 10;

/// Calls a user.
pub(super) async fn call(client: &Client, peer: &Jid) -> Result<(), XtlsError> {
    let (endpoint, _incoming) = client.connect().await?;
    endpoint.appear(-1).await;
    let application = Application::described(Element::bare("description", ns::XMLSTREAM));
    let done = async {
        let securing = async {
            let (mut session, stream) = endpoint.initiate(peer, &application).await?;
            client.secured(&mut session, &stream).await?;
            Ok::<_, XtlsError>((session, stream))
        };
        let (mut session, stream) = tokio::select! {
            secured = securing => secured?,
            () = interrupted() => return Err(XtlsError::failed("interrupted")),
        };
        let learned = stream.learned().clone();
        let chat = Chat {
            role: Role::Initiator,
            names: names(client, &learned),
            peer: learned.peer.as_str(),
            output: client.output,
            seat: None,
        };
        let done = session.during(chat.run(stream)).await;
        session.terminate(reason(&done), "").await;
        done
    }
    .await;
    endpoint.close().await;
    done
}

/// Waits for one chat. Declines users that are not accepted, and sessions other than chats.
pub(super) async fn listen(client: Client, accept: &[BareJid]) -> Result<(), XtlsError> {
    let client = Arc::new(client);
    let callee = Arc::new(Callee { accept: accept.to_vec(), is_taken: AtomicBool::new(false) });
    let (endpoint, mut incoming) = client.connect_to_listen(Arc::clone(&callee)).await?;
    endpoint.appear(1).await;
    client.output.event(
        &json!({"event": "listening", "jid": endpoint.jid().as_str()}),
        &format!("listening as {}, for a chat", endpoint.jid()),
    );
    let mut stop = Box::pin(interrupted());
    let mut watching = Box::pin(watch::component(&endpoint, client.output));
    // In parallel: a peer that is slow to show its key does not make others wait.
    let mut securing = JoinSet::new();
    let done = loop {
        let secured = tokio::select! {
            request = incoming.next() => {
                let Some(request) = request else {
                    break Err(endpoint.why_disconnected().into());
                };
                if let Err(error) = callee.admit(&request) {
                    request.decline(&error.text).await;
                    client.output.error(&error);
                } else {
                    let client = Arc::clone(&client);
                    securing.spawn(async move {
                        let (mut session, stream) = request.accept().await?;
                        let admitted = client.admit(&mut session, &stream).await?;
                        Ok::<_, XtlsError>((session, stream, admitted))
                    });
                }
                continue;
            }
            () = &mut watching => continue,
            Some(secured) = securing.join_next() => secured,
            () = &mut stop => break match securing.is_empty() {
                true => Ok(()),
                false => Err(XtlsError::failed("interrupted")),
            },
        };
        let (mut session, stream, admitted) = match secured {
            Ok(Ok(secured)) => secured,
            Ok(Err(error)) => {
                client.output.error(&error);
                continue;
            }
            Err(error) => break Err(XtlsError::failed(error.to_string())),
        };
        let settled = tokio::select! {
            settled = client.settle(&mut session, &stream, admitted) => settled,
            () = &mut stop => break Err(XtlsError::failed("interrupted")),
        };
        if let Err(error) = settled {
            client.output.error(&error);
            continue;
        }
        callee.is_taken.store(true, Ordering::SeqCst);
        // The others are told that the wait is over.
        securing.shutdown().await;
        break serve(&client, session, stream, None).await;
    };
    endpoint.disappear().await;
    endpoint.close().await;
    done
}

/// Chats with a peer that has called, over a secured stream: at the seat, or else with all of standard input.
///
/// # Errors
/// If the stream did not end as it should, or a line may not have arrived.
pub(super) async fn serve(
    client: &Client,
    mut session: Session,
    stream: SecureStream,
    seat: Option<Seat>,
) -> Result<(), XtlsError> {
    let learned = stream.learned().clone();
    let chat = Chat {
        role: Role::Responder,
        names: names(client, &learned),
        peer: learned.peer.as_str(),
        output: client.output,
        seat,
    };
    let done = session.during(chat.run(stream)).await;
    session.terminate(reason(&done), "").await;
    done
}

/// Waits for one chat.
#[derive(Debug)]
struct Callee {
    /// The users that may call; everybody if there are none.
    accept: Vec<BareJid>,
    /// Whether the chat has come.
    is_taken: AtomicBool,
}

impl Callee {
    fn accepts(&self, user: &BareJid) -> bool {
        self.accept.is_empty() || self.accept.contains(user)
    }

    fn admit(&self, request: &Request) -> Result<(), XtlsError> {
        let user = request.peer();
        if !self.accepts(user) {
            return Err(XtlsError::refused(format!("{user} is not among those to accept")));
        }
        if !request.application().is(ns::XMLSTREAM) {
            let what = format!("{user} wants no chat: run xtls listen for files");
            return Err(XtlsError::refused(what));
        }
        Ok(())
    }
}

impl Ringer for Callee {
    fn expects(&self, peer: &BareJid) -> bool {
        self.accept.contains(peer)
    }

    fn answer(&self, proposed: &Proposed) -> ProposalAnswer {
        let is_chat = |description: &Element| description.is("description", ns::XMLSTREAM);
        let is_wanted = self.accepts(proposed.peer())
            && proposed.descriptions().iter().all(is_chat)
            && !self.is_taken.load(Ordering::SeqCst);
        if is_wanted { ProposalAnswer::Proceed } else { ProposalAnswer::Silence }
    }
}

/// Returns the names that may appear in the stream: the users, and their addresses at the component.
fn names(client: &Client, learned: &Learned) -> Names {
    let own = client.login.jid.clone();
    let component = client.component.as_ref();
    let stand_in = component.and_then(|component| proxied(&Jid::from(own.clone()), component));
    Names {
        own: [Some(own), stand_in.map(|jid| jid.to_bare())].into_iter().flatten().collect(),
        peer: vec![learned.peer.clone(), learned.address.to_bare()],
    }
}

fn reason(done: &Result<(), XtlsError>) -> Reason {
    if done.is_ok() { Reason::Success } else { Reason::FailedApplication }
}

/// The options of one side of a chat.
#[derive(Debug)]
pub(crate) struct Chat<'a> {
    pub role: Role,
    pub names: Names,
    /// The peer's name on the screen.
    pub peer: &'a str,
    pub output: Output,
    /// The part of standard input that is this chat's; all of it without one.
    pub seat: Option<Seat>,
}

impl Chat<'_> {
    /// Chats over a secured stream until either side ends it.
    ///
    /// In a terminal the chat ends with /quit, Ctrl-D or Ctrl-C. Otherwise the lines of standard input are sent. Its
    /// end ends the chat for the caller; the called side stays until the caller leaves.
    ///
    /// # Errors
    /// If the stream did not end in order, or a line may not have arrived.
    pub(crate) async fn run(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> Result<(), XtlsError> {
        let Self { role, names, peer, output, mut seat } = self;
        let (mut read, mut write) = split(stream);
        let mut chat = Conversation::new(role, names, random_id());
        let mut terminal: Option<Terminal> = None;
        let mut buffer = vec![0; 16 << 10];
        let mut pending = Vec::new();
        let mut unflushed = false;
        let mut input_ended = false;
        let mut end = None;
        let mut stop = Box::pin(interrupted());
        let mut patience = chat.patience();
        let mut since = Instant::now();
        let mut wrote = Instant::now();
        while !chat.is_over() {
            pending.append(&mut chat.take_output());
            let typed = async {
                match &mut terminal {
                    Some(terminal) => terminal.next().await,
                    None => std::future::pending().await,
                }
            };
            let room = chat.is_open() && !input_ended && pending.len() < FULL && chat.has_room();
            tokio::select! {
                written = forward(&mut write, &pending), if !pending.is_empty() || unflushed => match written {
                    Ok(count) => {
                        wrote = Instant::now();
                        unflushed = !pending.is_empty();
                        pending.drain(..count);
                    }
                    Err(_) => chat.handle_end(),
                },
                got = read.read(&mut buffer), if pending.len() < STUCK => match got {
                    Ok(count @ 1..) => chat.handle_bytes(buffer.get(..count).unwrap_or_default()),
                    _ => chat.handle_end(),
                },
                typed = typed, if room => match typed {
                    Typed::End if role == Role::Responder => input_ended = true,
                    Typed::End | Typed::Quit => chat.close(),
                    Typed::Line(line) => say(&mut chat, terminal.as_mut(), &line),
                    Typed::Help => remark(
                        terminal.as_mut(),
                        "a line is sent when you press Enter; /quit, Ctrl-D or Ctrl-C ends the chat; // begins a \
                         line that begins with /",
                    ),
                    Typed::Unknown(name) => remark(
                        terminal.as_mut(),
                        &format!("unknown command /{}: /help lists the commands", shown(&name, None)),
                    ),
                },
                () = &mut stop => {
                    stop = Box::pin(interrupted());
                    if !chat.is_open() {
                        chat.handle_end();
                    }
                    chat.close();
                }
                () = sleep_until(since + patience.unwrap_or_default()), if patience.is_some() => chat.handle_timeout(),
                () = sleep_until(wrote + KEEPALIVE), if chat.is_open() && pending.is_empty() => chat.keep_alive(),
            }
            let news: Vec<News> = std::iter::from_fn(|| chat.poll_news()).collect();
            for news in &news {
                match news {
                    News::Started { .. } if terminal.is_none() => {
                        terminal = Some(Terminal::start(output, peer, seat.take())?);
                    }
                    News::Ended { end: how, lost } => end = Some((how.clone(), lost.len())),
                    _ => {}
                }
            }
            if let Some(terminal) = &mut terminal {
                terminal.tell(&news);
            }
            if patience != chat.patience() {
                (patience, since) = (chat.patience(), Instant::now());
            }
        }
        pending.append(&mut chat.take_output());
        let _ = timeout(FLUSH, async {
            write.write_all(&pending).await?;
            write.shutdown().await
        })
        .await;
        let (end, lost) = end.unwrap_or((End::Broken, 0));
        outcome(&end, lost, peer)
    }
}

fn say(chat: &mut Conversation, terminal: Option<&mut Terminal>, line: &str) {
    match (chat.say(line), terminal) {
        (Ok(line), Some(terminal)) => terminal.sent(line),
        (Err(error), terminal) => remark(terminal, &format!("not sent: {error}")),
        (Ok(_), None) => {}
    }
}

fn remark(terminal: Option<&mut Terminal>, text: &str) {
    if let Some(terminal) = terminal {
        terminal.remark(text);
    }
}

fn outcome(end: &End, lost: usize, peer: &str) -> Result<(), XtlsError> {
    let peer = shown(peer, None);
    let lost = match lost {
        0 => String::new(),
        1 => "; the last line may not have arrived".to_owned(),
        lost => format!("; the last {lost} lines may not have arrived"),
    };
    match end {
        End::Closed if lost.is_empty() => Ok(()),
        End::Closed => Err(XtlsError::failed(format!("{peer} has left{lost}"))),
        End::Broken => Err(XtlsError::failed(format!("the stream with {peer} broke off{lost}"))),
        End::Fault(fault) => {
            Err(XtlsError::failed(format!("{peer}'s stream was ended: {fault}{lost}")))
        }
        End::Error(condition, text) => Err(XtlsError::refused(format!(
            "{peer} ended the stream: {}{}{lost}",
            shown(condition, None),
            if text.is_empty() {
                String::new()
            } else {
                format!(" ({})", shown(text.get(..300).unwrap_or(text), None))
            },
        ))),
    }
}
