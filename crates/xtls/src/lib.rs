//! The program `xtls`: the user's commands around [`fingerpost_endpoint`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

pub mod account;
mod addresses;
mod args;
mod chat;
mod chunks;
mod client;
mod code;
mod credential;
mod discover;
mod display;
mod doctor;
mod fast;
mod file_offer;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod interrupt;
mod lan;
mod listen;
mod login;
pub mod output;
mod pace;
mod parts;
mod peers;
mod pipe;
mod registry;
mod rights;
mod secured;
mod send;
mod set;
mod setup;
mod stream;
pub mod trust;
mod wait;
mod watch;

use std::time::Duration;

use fingerpost_endpoint::{Application, RequestKind};
use fingerpost_wire::{ns, xml};
use jid::Jid;
use minidom::Element;

pub use self::args::Cli;
use self::{
    account::Account,
    args::{Command, Common},
    chat::Desk,
    client::{Client, Takes},
    interrupt::interrupted,
    lan::Lan,
    listen::{FileInbox, Kinds, Listen},
    output::{Output, XtlsError},
    pipe::{Ends, PipeSide},
};

/// How long queued stanzas may take to go out before the program ends.
const FLUSH: Duration = Duration::from_millis(150);

/// Runs a command; returns the exit status.
pub async fn run(cli: Cli) -> u8 {
    let piped = matches!(cli.command, Command::Pipe { .. });
    let listens =
        matches!(cli.command, Command::Listen { .. } | Command::Pipe { listen: true, .. });
    // A sender that waits for a receiver closes its connection first: nobody else must find it.
    let waits = matches!(&cli.command, Command::Send { code, .. } if !code.is_empty());
    let sends = matches!(cli.command, Command::Send { .. });
    // An interrupted chat closes itself.
    let chats = matches!(cli.command, Command::Chat { .. });
    let output = Output { json: cli.common.json, quiet: cli.common.quiet, piped };
    let done = tokio::select! {
        // This comes first, so that the signals are caught from the beginning.
        biased;
        () = interrupted(), if !listens && !chats && !waits => {
            let error = XtlsError::failed("interrupted");
            Err(if sends { error.hint("run the same command again: it goes on where it stopped") } else { error })
        }
        done = command(cli.common, cli.command, output) => done,
    };
    if done.is_err() {
        // A session that was left has queued its session-terminate.
        tokio::time::sleep(FLUSH).await;
    }
    match done {
        Ok(()) => 0,
        Err(error) => {
            output.error(&error);
            error.code
        }
    }
}

async fn command(common: Common, command: Command, output: Output) -> Result<(), XtlsError> {
    match command {
        Command::Setup { ref login, ref label } => {
            setup::setup(&common, login, label, output).await
        }
        Command::Doctor => doctor::doctor(&common, output).await,
        Command::Login(ref wanted) => login::login(&common, wanted, output).await,
        Command::Keygen { openpgp: false, algorithm, .. } => {
            login::keygen(&common, algorithm, output)
        }
        Command::Keygen { import, key_version, .. } => {
            login::keygen_openpgp(&common, import.as_deref(), key_version == "6", output)
        }
        Command::Prove => registry::prove(&common, output).await,
        Command::Trust { command } => trust::command::trust(&common, command, output),
        Command::Keys { jid } => {
            let mut keys = Element::bare("keys", ns::KEYS);
            if let Some(jid) = jid {
                xml::set(&mut keys, "jid", jid.as_str());
            }
            registry::registry(&common, RequestKind::Get, keys, output).await
        }
        Command::Register { label } => {
            let account = Account::load(common.account.as_ref())?;
            let own = registry::OwnKey::load(common.method, &account)?;
            let add = own.add_request(&label);
            registry::registry(&common, RequestKind::Set, add, output).await
        }
        Command::Revoke { id, reason } => {
            let revoke = xml::element("revoke", ns::KEYS, &[("id", &id), ("reason", &reason)]);
            registry::registry(&common, RequestKind::Set, revoke, output).await
        }
        Command::Listen {
            out,
            max_size,
            once,
            accept,
            accept_direct,
            available,
            chat,
            pipe,
            lan,
        } => {
            let inbox = FileInbox::new(out, max_size).prepare()?;
            if lan.lan {
                return Lan::load(&common, lan, output)?.listen(inbox, once, accept).await;
            }
            let client = Client::load(&common, output)?
                .accepting_direct(accept_direct)
                .available(available)?;
            let kinds = Kinds {
                files: Some(inbox),
                pipes: pipe.map(Ends::Command),
                chats: chat.then(|| Desk::new(output)),
            };
            listen::listen(Listen::new(client, kinds, once, accept)).await
        }
        Command::Pipe { listen: true, accept_direct, .. } => {
            let client = Client::load(&common, output)?.accepting_direct(accept_direct);
            let kinds = Kinds { pipes: Some(Ends::Standard), ..Kinds::default() };
            listen::listen(Listen::new(client, kinds, true, Vec::new())).await
        }
        Command::Pipe { jid: Some(jid), .. } => {
            let client = Client::load(&common, output)?.taking(Takes::PIPES);
            pipe_to(&client, &jid).await
        }
        Command::Pipe { .. } => Err(XtlsError::usage("expected a JID or --listen")),
        Command::Chat { jid: Some(jid), lan, .. } if lan.lan => {
            Lan::load(&common, lan, output)?.chat(&jid).await
        }
        Command::Chat { accept, lan, .. } if lan.lan => {
            Lan::load(&common, lan, output)?.wait_for_chat(&accept).await
        }
        Command::Chat { jid: Some(jid), .. } => {
            let client = Client::load(&common, output)?.taking(Takes::CHATS);
            client.check_peer(&jid)?;
            chat::call(&client, &jid).await
        }
        Command::Chat { accept, accept_direct, .. } => {
            let client =
                Client::load(&common, output)?.accepting_direct(accept_direct).taking(Takes::CHATS);
            chat::listen(client, &accept).await
        }
        Command::Receive { code, out, max_size } => {
            code::receive(&common, &code, (out, max_size), output).await
        }
        Command::Send { code, wait, .. } if !code.is_empty() => {
            code::send(&common, &code, wait, output).await
        }
        Command::Send { jid: Some(jid), files, lan, .. } if lan.lan => {
            Lan::load(&common, lan, output)?.send(&jid, files).await
        }
        Command::Send { jid: Some(jid), files, wait, .. } => {
            let client = Client::load(&common, output)?;
            client.check_peer(&jid)?;
            send::send(&client, &jid, files, wait).await
        }
        Command::Send { .. } => Err(XtlsError::usage("expected a JID or --code")),
    }
}

/// Connects standard input and output to a peer's.
async fn pipe_to(client: &Client, peer: &Jid) -> Result<(), XtlsError> {
    client.check_peer(peer)?;
    let (endpoint, _incoming) = client.connect().await?;
    endpoint.appear(-1).await;
    let done = async {
        let (mut session, stream) = endpoint.initiate(peer, &Application::pipe()).await?;
        client.secured(&mut session, &stream).await?;
        pipe::run(session, stream, PipeSide::Calls, &Ends::Standard, client.output).await
    }
    .await;
    endpoint.close().await;
    done
}
