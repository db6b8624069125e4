//! End to end on a real prosody, with slixmpp and OpenSSL on the other side.

use std::time::Duration;

use support::{
    programs::{Component, Options, Xtls},
    random_file,
    servers::{FAR_DOMAIN, Federation, Kind},
    sha256,
};

support::scenarios!(
    Kind::Prosody,
    slixmpp_transfers_64_mib_through_the_proxy,
    other_clients_transfer_through_the_proxy_both_ways,
    the_proxy_keeps_its_rules,
    a_socks5_stream_survives_a_restart_of_the_server,
    first_stanza_of_the_mail_in_the_order_of_xtls,
    first_stanza_of_the_mail_in_the_order_of_the_mail,
    second_stanza_of_the_mail_in_the_order_of_xtls,
    second_stanza_of_the_mail_in_the_order_of_the_mail,
    xtls_sends_over_socks5_and_the_wire_shows_tls_only,
    xtls_sends_in_band,
    xtls_sends_in_band_within_the_servers_default_limits,
    xtls_sends_over_legs_of_two_kinds,
    xtls_sends_without_a_broker,
    a_pipe_joins_two_programs,
    a_sender_that_leaves_leaves_nothing_behind,
    a_wrong_key_is_refused_and_nothing_is_written,
    a_stream_that_is_not_tls_leaks_no_byte,
    nonsense_does_not_end_the_link,
    the_component_is_discovered,
    users_run_commands,
    gajims_library_runs_commands,
    published_openpgp_keys_are_taken_over,
    only_users_may_use_it,
    what_cannot_be_brokered_is_refused,
    a_restart_of_the_server_is_survived,
    a_sighup_is_survived,
    a_sigterm_tells_open_sessions,
    a_wrong_secret_ends_with_status_77,
);

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
