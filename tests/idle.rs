//! Five minutes without a stanza, on both servers at one time.

mod support;

use std::thread;
use std::time::Duration;

use support::programs::{Component, Options};
use support::scenarios::assert_answers;
use support::servers::{Kind, Server};

const IDLE: Duration = Duration::from_secs(305);

#[test]
fn five_idle_minutes_do_not_end_the_link() {
    let mut running: Vec<_> = [Kind::Prosody, Kind::Ejabberd]
        .map(|kind| {
            let server = Server::start(kind);
            let component = Component::start(&server, &Options::default());
            (server, component)
        })
        .into();
    thread::sleep(IDLE);
    for (server, component) in &mut running {
        assert_answers(server);
        assert!(component.runs());
        let log = component.log();
        assert_eq!(log.matches("link up").count(), 1, "{:?}: {log}", server.kind());
    }
}
