//! End to end on a real prosody, with slixmpp and OpenSSL on the other side.

use std::time::Duration;

use support::{
    programs::{Component, Options, Xtls},
    random_file,
    servers::{FAR_DOMAIN, Federation, Kind},
    sha256,
};

support::scenarios!(Kind::Prosody);

/// Two users of two servers, and one component at one of them: each stanza crosses from server to server.
#[test]
fn users_of_two_servers_send_each_other_files_through_one_component() {
    let servers = Federation::start();
    let more = format!("[access]\nusers = [\"example.test\", \"{FAR_DOMAIN}\"]\n");
    let _component = Component::start(&servers.near, &Options { more, ..Options::default() });
    let alice = Xtls::with_key(&servers.near, "alice");
    let bob = Xtls::login_as(&servers.far, &format!("bob@{FAR_DOMAIN}")).and_key();
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        for transport in ["s5b", "ibb"] {
            let file = from.home().join(format!("{transport}.bin"));
            random_file(&file, 300_000);
            let mut listener = to.listen(&["--transport", transport]);
            let sent = from.run([
                "send".as_ref(),
                to.jid().as_ref(),
                file.as_os_str(),
                "--transport".as_ref(),
                transport.as_ref(),
            ]);
            assert_eq!(sent.code, 0, "{transport}: {sent:?}\n{}", listener.log());
            assert_eq!(listener.wait(Duration::from_secs(60)), 0, "{}", listener.log());
            let arrived = listener.files();
            let arrived = arrived.iter().find(|path| path.file_name() == file.file_name());
            assert_eq!(sha256(arrived.unwrap()), sha256(&file), "{transport}");
        }
    }
    for server in [&servers.near, &servers.far] {
        let crossed = server
            .log()
            .lines()
            .any(|line| line.contains("s2s connection") && line.contains("complete"));
        assert!(crossed, "{}", server.log());
    }
}
