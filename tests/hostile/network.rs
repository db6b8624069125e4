//! The network between server and component: it cuts the link at the worst moment.

use std::ffi::OsStr;

use support::{
    PATIENCE,
    programs::{Component, Options, Xtls},
    random_file,
    servers::{Kind, Server},
    tap::Tap,
};

/// A stream inside XMPP that the loss of the link has cut ends on both sides with a reason; the link is back at once,
/// and the next transfer works.
fn a_link_that_is_cut_ends_what_ran_over_it(kind: Kind) {
    let server = Server::start(kind);
    let address = server.component_address();
    let (_, port) = address.split_once(':').unwrap();
    let tap = Tap::start(port.parse().unwrap());
    let env = vec![("FINGERPOST_COMPONENT__SERVER", format!("127.0.0.1:{}", tap.port()))];
    let mut component = Component::start(&server, &Options { env, ..Options::default() });
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let file = alice.home().join("letter.bin");
    random_file(&file, 2 << 20);
    let send: [&OsStr; 5] = [
        "send".as_ref(),
        bob.jid().as_ref(),
        file.as_os_str(),
        "--transport".as_ref(),
        "ibb".as_ref(),
    ];

    let mut listener = bob.listen(&["--transport", "ibb"]);
    // About a third of the file: the component writes it once, in base64.
    tap.hold_after(1 << 20);
    let mut sender = alice.start(send);
    tap.wait_until_held(|| format!("{}\n{}", sender.log(), listener.log()));
    tap.cut();
    let status = sender.wait(PATIENCE);
    assert!(!status.success(), "{}", sender.log());
    assert!(sender.log().contains("error: "), "{}", sender.log());
    assert_ne!(listener.wait(PATIENCE), 0, "{}", listener.log());
    component.wait_for_links(2);
    let log = component.log();
    // A server that has not noticed yet refuses the next connections, for as long as the old one is there.
    let mut downs = log.lines().filter(|line| line.contains("link down"));
    assert!(downs.next().is_some_and(|cut| cut.contains("retry_ms=0")), "{log}");
    assert!(downs.all(|refused| refused.contains("reports conflict")), "{log}");

    let mut listener = bob.listen(&["--transport", "ibb"]);
    let sent = alice.run(send);
    assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", listener.log(), component.log());
    assert_eq!(listener.wait(PATIENCE), 0, "{}", listener.log());
}

#[test]
fn a_link_that_is_cut_ends_what_ran_over_it_at_prosody() {
    a_link_that_is_cut_ends_what_ran_over_it(Kind::Prosody);
}

#[test]
fn a_link_that_is_cut_ends_what_ran_over_it_at_ejabberd() {
    a_link_that_is_cut_ends_what_ran_over_it(Kind::Ejabberd);
}
