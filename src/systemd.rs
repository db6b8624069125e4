//! The interface to the service manager: inherited sockets, readiness, the watchdog.
//!
//! Without a service manager nothing here does anything. Spec: sd_listen_fds(3), sd_notify(3).

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tracing::debug;

/// Listening sockets that were open before this program started, and stay open when it ends. Connections that arrive
/// between two runs wait in them.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Takes the sockets in `LISTEN_FDS`. Call it before the program has threads: it removes the variable from the
    /// environment.
    pub fn take() -> Self {
        let mut given = ListenFd::from_env();
        let sockets = (0..given.len())
            .filter_map(|index| given.take_tcp_listener(index).ok().flatten())
            .filter_map(|socket| Some((socket.local_addr().ok()?, socket)))
            .collect();
        Self(sockets)
    }

    /// Returns whether no socket is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes those that listen on the port of `address`, written `host:port`.
    pub fn of_port(&mut self, address: &str) -> Vec<TcpListener> {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let (taken, left) =
            std::mem::take(&mut self.0).into_iter().partition(|(at, _)| Some(at.port()) == port);
        self.0 = left;
        let taken: Vec<(SocketAddr, TcpListener)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    /// Takes all remaining sockets.
    pub fn rest(&mut self) -> Vec<TcpListener> {
        std::mem::take(&mut self.0).into_iter().map(|(_, socket)| socket).collect()
    }
}

/// Reports that the service is ready: its sockets listen and its database is open.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Reports one line for `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Reports a reload, which [`ready`] ends.
pub fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    tell(&std::iter::once(NotifyState::Reloading).chain(now).collect::<Vec<_>>());
}

/// Reports that the service is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Returns the interval for [`alive`], half that of the watchdog; `None` without a watchdog.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|every| every / 2).filter(|every| !every.is_zero())
}

/// Reports that the program works.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "could not notify the service manager");
    }
}
