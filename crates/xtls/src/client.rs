//! The user of `xtls` as sessions see it: account, credential and settings.

use std::{collections::BTreeSet, path::PathBuf, sync::Mutex, time::Duration};

use fingerpost_endpoint::{
    Builder, Contact, Credential, DirectPath, Endpoint, Incoming, Login, Ringer, TransportKind,
    loses_large_packets,
};
use fingerpost_secure::srp::Password;
use fingerpost_wire::{ns, print::Print};
use jid::{BareJid, Jid};
use serde_json::json;

use super::{
    account::{self, Account},
    addresses::AskUser,
    args::{AcceptNewDevice, Common, NO_STUN},
    credential,
    output::{Output, XtlsError},
    peers::Peers,
};

/// How long a stream may be silent until its end sends a sign of life: the component ends streams on which nothing
/// moves.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);

/// The kinds of peers' sessions that a command accepts and announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Takes {
    pub(super) files: bool,
    /// Raw TLS streams.
    pub(super) pipes: bool,
    /// XML streams.
    pub(super) chats: bool,
    /// Whether the session is for a code; only then is the password one.
    pub(super) code: Code,
}

/// The part of a program in sessions for a code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Code {
    #[default]
    None,
    /// It has the code of another.
    Knows,
    /// It waits for a peer that knows its code.
    Shows,
}

impl Takes {
    const NOTHING: Self = Self { files: false, pipes: false, chats: false, code: Code::None };
    pub(super) const FILES: Self = Self { files: true, ..Self::NOTHING };
    pub(super) const PIPES: Self = Self { pipes: true, ..Self::NOTHING };
    pub(super) const CHATS: Self = Self { chats: true, ..Self::NOTHING };
    pub(super) const CODES: Self = Self { code: Code::Shows, ..Self::NOTHING };
    pub(super) const A_CODE: Self = Self { code: Code::Knows, ..Self::NOTHING };
}

/// A user's settings for sessions.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) login: Login,
    pub(super) dir: PathBuf,
    pub(super) credential: Credential,
    pub(super) offered: Option<Print>,
    /// The broker, if sessions go through it.
    pub(super) via: Option<BareJid>,
    /// The component, even if it does not broker.
    pub(super) component: Option<BareJid>,
    pub(super) transport: Option<TransportKind>,
    pub(super) prefer: Option<TransportKind>,
    /// The announced kind of sessions: a session goes to the program that announces it.
    pub(super) takes: Takes,
    /// Whether peers' sessions may come without the broker.
    pub(super) accept_direct: bool,
    /// Whether a listener is available to the user's contacts.
    pub(super) available: bool,
    /// The most wrong guesses of the password, if they are limited.
    pub(super) guesses: Option<u32>,
    /// Asks the user to compare the short authentication string before each session.
    pub(super) confirm_sas: bool,
    /// The decision on further keys of known peers.
    pub(super) accept_new_device: AcceptNewDevice,
    /// Peers with a further key that the user did not accept: there is no second question about them.
    pub(super) declined: Mutex<BTreeSet<BareJid>>,
    /// With which peers sessions may leave the relay.
    pub(super) direct_path: DirectPath,
    /// The STUN servers to ask; empty for those that the XMPP server names.
    pub(super) stun: Vec<String>,
    pub(super) output: Output,
}

impl Client {
    pub(super) fn load(common: &Common, output: Output) -> Result<Self, XtlsError> {
        let account = Account::load(common.account.as_ref())?;
        if account.is_anonymous() {
            return Err(XtlsError::usage(format!(
                "{}: expected an account of a user, found an anonymous one, which has another address each time",
                account.jid
            ))
            .hint("`xtls send --code` and `xtls receive` work with it"));
        }
        let credential = credential::load(common, &account)?;
        Self::new(common, &account, credential, output)
    }

    /// Returns the client of a user without a key, for sessions by this password.
    pub(super) fn knowing(
        common: &Common,
        password: Password,
        output: Output,
    ) -> Result<Self, XtlsError> {
        let account = Account::load(common.account.as_ref())?;
        Self::new(common, &account, password.into(), output)
    }

    fn new(
        common: &Common,
        account: &Account,
        credential: Credential,
        output: Output,
    ) -> Result<Self, XtlsError> {
        let offered = common
            .offer_print
            .as_deref()
            .map(|text| Print::parse(text, None))
            .transpose()
            .map_err(|error| XtlsError::usage(error.to_string()))?;
        let component = common.via.clone().or_else(|| account.via.clone());
        Ok(Self {
            dir: account::directory(&account.jid)?,
            credential,
            accept_direct: false,
            available: false,
            guesses: None,
            confirm_sas: common.confirm_sas,
            accept_new_device: common.accept_new_device,
            declined: Mutex::default(),
            direct_path: common.direct_path.or(account.direct_path).unwrap_or_default().into(),
            stun: if common.stun.is_empty() { &account.stun } else { &common.stun }.clone(),
            offered,
            via: component.clone().filter(|_| !common.direct),
            component,
            transport: common.transport,
            prefer: common.prefer,
            takes: Takes::FILES,
            login: account.login(common)?,
            output,
        })
    }

    /// Returns the client for a listener that may accept sessions without the broker.
    pub(super) fn accepting_direct(self, accept_direct: bool) -> Self {
        Self { accept_direct, ..self }
    }

    /// Returns the client for a listener that is available to the user's contacts, if that is wanted.
    ///
    /// # Errors
    /// Exit status 2 if it accepts no session that could be proposed to it then.
    pub(super) fn available(self, available: bool) -> Result<Self, XtlsError> {
        if available && self.via.is_some() && !self.accept_direct {
            let what = "--available: all sessions come through the component, which finds this program without it";
            return Err(XtlsError::usage(what).hint("add --accept-direct, or leave it out"));
        }
        Ok(Self { available, ..self })
    }

    /// Returns the client for a program that peers find at this resource.
    pub(super) fn waiting_at(mut self, resource: String) -> Self {
        self.login.resource = Some(resource);
        self
    }

    /// Returns the client for a password of which no more wrong guesses are taken.
    pub(super) fn taking_guesses(self, most: u32) -> Self {
        Self { guesses: Some(most), ..self }
    }

    /// Returns the client for a listener that accepts these sessions.
    pub(super) fn taking(self, takes: Takes) -> Self {
        Self { takes, ..self }
    }

    /// Returns the error for an address that no session goes to.
    ///
    /// # Errors
    /// Exit status 2 if it is that of a server or of a component. The component would accept a session: it proves our
    /// key, and discards everything.
    pub(super) fn check_peer(&self, peer: &Jid) -> Result<(), XtlsError> {
        if peer.node().is_some() {
            return Ok(());
        }
        let domain = peer.domain();
        let what = match &self.component {
            Some(component) if component.domain() == domain => "the component itself",
            _ => "a server",
        };
        Err(XtlsError::usage(format!("{peer}: expected a user, found the address of {what}"))
            .hint(format!("name the person, such as bob@{}", self.login.jid.domain())))
    }

    /// Logs in for one session: resumes that with the server after a loss, and tells the user.
    pub(super) async fn connect(&self) -> Result<(Endpoint, Incoming), XtlsError> {
        let output = self.output;
        let builder = self.builder().resume(move |contact| tell(output, contact));
        let connected = builder.login(&self.login).await?;
        self.warn_of_the_path();
        Ok(connected)
    }

    /// Returns whether each login has an address of its own.
    pub(super) fn is_anonymous(&self) -> bool {
        self.login.jid.node().is_none()
    }

    /// Logs in to wait for peers: reconnects after a loss, and tells the user.
    pub(super) async fn connect_to_wait(&self) -> Result<(Endpoint, Incoming), XtlsError> {
        self.connect_and_keep(self.builder()).await
    }

    /// Does the same for a listener, which answers proposals of sessions if they come to it.
    pub(super) async fn connect_to_listen(
        &self,
        ringer: impl Ringer,
    ) -> Result<(Endpoint, Incoming), XtlsError> {
        if self.via.is_none() && !self.available {
            return self.connect_to_wait().await;
        }
        self.connect_and_keep(self.builder().available(self.available).ringer(ringer)).await
    }

    async fn connect_and_keep(&self, builder: Builder) -> Result<(Endpoint, Incoming), XtlsError> {
        let output = self.output;
        let builder = builder.reconnect(move |contact| tell(output, contact));
        let connected = builder.login(&self.login).await?;
        self.warn_of_the_path();
        Ok(connected)
    }

    fn warn_of_the_path(&self) {
        if loses_large_packets() {
            self.output.warn(
                "the network loses large packets: smaller ones are used (a router with a smaller MTU drops ICMP)",
            );
        }
    }

    fn builder(&self) -> Builder {
        let mut builder = Endpoint::builder(self.credential.clone())
            .policy(Peers {
                dir: self.dir.clone(),
                accept_new_device: self.accept_new_device,
                output: self.output,
            })
            .direct_path(self.direct_path)
            .consent(AskUser::new(self.dir.clone()))
            .raw_streams(self.takes.pipes)
            .accept_direct(self.accept_direct);
        if !self.stun.is_empty() {
            let servers = self.stun.iter().filter(|server| *server != NO_STUN);
            builder = builder.stun_servers(servers.cloned());
        }
        if self.takes.files {
            builder = builder.feature(ns::FILE_TRANSFER).feature(ns::HASHES).feature(ns::FILE_SET);
        }
        if self.takes.chats {
            builder = builder.feature(ns::XMLSTREAM);
        }
        if self.takes.code == Code::Shows {
            builder = builder.feature(ns::CODE);
        }
        if let Some(most) = self.guesses {
            builder = builder.guesses(most);
        }
        if let Some(prefer) = self.prefer {
            builder = builder.prefer(prefer);
        }
        if let Some(component) = &self.component {
            builder = builder.component(component.clone());
        }
        if let Some(via) = &self.via {
            builder = builder.via(via.clone());
        }
        if let Some(transport) = self.transport {
            builder = builder.transport(transport);
        }
        if let Some(print) = &self.offered {
            builder = builder.offer(print.clone());
        }
        builder
    }
}

/// Tells the user about a change of the connection to the server.
fn tell(output: Output, contact: &Contact) {
    match contact {
        Contact::Lost { reason } => output.event(
            &json!({"event": "disconnected", "reason": reason}),
            &format!("lost the connection to the XMPP server ({reason}); connecting again"),
        ),
        Contact::Back { jid, resumed } => output.event(
            &json!({"event": "connected", "jid": jid.as_str(), "resumed": resumed}),
            &format!("connected to the XMPP server again, as {jid}"),
        ),
        // Events of a later version of the library.
        _ => {}
    }
}
