//! The link to real servers: the choice among several, other components with the same name, and refusals of the server.

use std::time::Duration;

use support::postgres::Postgres;
use support::programs::{Component, Options, Xtls, clean, page};
use support::raw::Raw;
use support::scenarios::assert_answers;
use support::servers::{Kind, Nodes, Server};
use support::{COMPONENT, DOMAIN, SECRET, free_port, own_program, random_file, sha256, wait_for};

const BOUND: Duration = Duration::from_secs(60);

/// Returns a component with a status server, and that server's port.
fn with_page(server: &Server, env: &[(&'static str, String)]) -> (Component, u16) {
    let page = free_port();
    let mut env = env.to_vec();
    env.push(("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{page}")));
    (Component::start(server, &Options { env, ..Options::default() }), page)
}

/// Returns the answer of `/readyz`, with its status line.
fn readyz(port: u16) -> String {
    page(port, "/readyz").unwrap()
}

/// Waits until `fingerpost check --online` prints these lines, beside a running component: its ports are taken. It does
/// not wait for later lines, which take long if answers are lost.
fn check(component: &Component, servers: &str, says: &[&str]) {
    let check = || {
        let mut command = clean(&own_program("fingerpost"));
        command
            .args(["check", "--online", "-c"])
            .arg(component.config())
            .env("FINGERPOST_COMPONENT__SERVER", servers)
            .env("FINGERPOST_SOCKS5__LISTEN", format!("127.0.0.1:{}", free_port()));
        let done = command.output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
    };
    // An instance that was killed counts for some seconds.
    let said = || {
        let log = check();
        says.iter().all(|text| log.contains(text))
    };
    wait_for("the check", BOUND, check, said);
}

fn wait_until_ready(what: &str, page: u16, component: &Component, ready: bool) {
    let is_so = || readyz(page).contains(" 200 ") == ready;
    wait_for(what, BOUND, || readyz(page) + &component.log(), is_so);
}

/// The answer to disco#info exceeds the server's limit. The server ends the stream without a reason.
#[test]
fn prosody_a_stanza_above_its_limit_is_named() {
    let mut server = Server::start_in_clear(Kind::Prosody);
    server.reconfigure(true, |text| format!("component_stanza_size_limit = 40000\n{text}"));
    let contact = (0..60).map(|n| format!("mailto:{n}{}@example.test", "a".repeat(800)));
    let contact = contact.collect::<Vec<_>>().join(",");
    let env = vec![("FINGERPOST_COMPONENT__CONTACT", contact)];
    let mut component = Component::start(&server, &Options { env, ..Options::default() });
    let mut alice = Raw::client(&server, "alice", "raw", "");
    let ask = |type_: &str, payload: &str| {
        format!("<iq type='{type_}' to='{COMPONENT}' id='a'>{payload}</iq>")
    };
    // Answered as bytes, then as a tree.
    for (links, query) in [
        (2, "<query xmlns='http://jabber.org/protocol/disco#info'/>"),
        (3, "<query xmlns='http://jabber.org/protocol/disco#info'> </query>"),
    ] {
        alice.send(&ask("get", query));
        component.wait_for_links(links);
        let log = component.log();
        // The server may refuse the next connection while it still ends this one.
        let down = |line: &&str| line.contains("link down") && !line.contains("reports conflict");
        let why = log.lines().rfind(down).unwrap();
        assert!(why.contains("component_stanza_size_limit"), "{log}");
        let large = "large_stanza=iq of 5";
        assert!(why.contains(large) && why.contains("query (http://jabber.org"), "{log}");
    }
}

/// ejabberd accepts a second connection with the same name, and gives each stanza to either of them. If one listener
/// has two names, each connection gets the stanzas of both.
#[test]
fn ejabberd_another_connection_that_gets_our_stanzas_is_found() {
    let mut server = Server::start(Kind::Ejabberd);
    // The first of the two does not exist.
    let servers = format!("127.0.0.1:{},{}", free_port(), server.component_address());
    let env = [("FINGERPOST_COMPONENT__SERVER", servers.clone())];
    let (first, first_page) = with_page(&server, &env);
    wait_until_ready("alone", first_page, &first, true);
    assert_answers(&server);
    check(&first, &servers, &["warning: nothing listens at 127.0.0.1", "accepted the secret"]);

    let (mut second, second_page) = with_page(&server, &[]);
    for (what, component, page) in [("first", &first, first_page), ("second", &second, second_page)]
    {
        wait_until_ready(what, page, component, false);
        let told = || {
            let log = component.log();
            ["are lost", "are shared"].iter().any(|text| log.contains(text))
        };
        wait_for(what, BOUND, || component.log(), told);
        assert!(component.log().contains("stop the other component"), "{}", component.log());
        assert!(readyz(page).contains("another connection"), "{}", readyz(page));
    }
    let shared = format!("warning: the server gives stanzas for {COMPONENT} to another connection");
    check(&first, &servers, &[&shared]);
    second.signal("TERM");
    second.wait(BOUND);

    // A configuration of an operator that already has a gateway.
    server.reconfigure(true, |text| {
        let ours = format!("      \"{COMPONENT}\":\n        password: \"{SECRET}\"\n");
        let gateway = ours.replace(COMPONENT, &format!("gateway.{DOMAIN}"));
        assert!(text.contains(&ours), "{text}");
        let text = text.replace("    global_routes: false\n", "");
        text.replace(&ours, &format!("{ours}{gateway}"))
    });
    // A login begins without earlier findings.
    wait_until_ready("alone in the listener", first_page, &first, true);
    let _gateway = Raw::component_of(&server, &format!("gateway.{DOMAIN}"));
    wait_until_ready("a gateway in the same listener", first_page, &first, false);
    wait_for("the cause", BOUND, || first.log(), || first.log().matches("are lost").count() > 0);
    assert!(first.log().contains("give each component of ejabberd a listener of its own"));
    let attach = first.command(["attach", "ejabberd"]);
    assert!(attach.stdout.contains("A listener of its own"), "{attach:?}");
    assert_eq!(attach.stdout.matches("password:").count(), 1, "{attach:?}");
}

/// Returns a component that shares a database, and the port of its status server.
fn sharing(server: &Server, servers: &str, postgres: &Postgres) -> (Component, u16) {
    let page = free_port();
    let env = vec![
        ("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{page}")),
        ("FINGERPOST_COMPONENT__SERVER", servers.to_owned()),
    ];
    let options = Options { env, database: Some(postgres.url()), ..Options::default() };
    (Component::start(server, &options), page)
}

/// Checks that a file arrives over this transport.
fn transfer(what: &str, from: &Xtls, to: &Xtls, transport: &str, log: impl Fn() -> String) {
    let file = from.home().join("small.bin");
    if !file.exists() {
        random_file(&file, 65_536);
    }
    let _old = std::fs::remove_dir_all(to.home().join("received"));
    let mut listener = to.listen(&["--transport", transport]);
    let sent = from.run(["send", to.jid(), file.to_str().unwrap(), "--transport", transport]);
    assert_eq!(sent.code, 0, "{what}: {sent:?}\n{}\n{}", listener.log(), log());
    assert_eq!(listener.wait(BOUND), 0, "{what}: {}", listener.log());
    assert_eq!(listener.files().iter().map(|f| sha256(f)).collect::<Vec<_>>(), [sha256(&file)]);
}

/// Two components with one database, at a server that gives each stanza to either of them: one leads, and gets the
/// stanzas of the other.
#[test]
fn ejabberd_two_instances_with_one_database_are_one_component() {
    let server = Server::start(Kind::Ejabberd);
    let mut postgres = Postgres::start();
    let (mut first, first_page) = sharing(&server, &server.component_address(), &postgres);
    let (second, second_page) = sharing(&server, &server.component_address(), &postgres);
    assert!(second.log().contains("another instance leads"), "{}", second.log());
    wait_until_ready("the first", first_page, &first, true);
    wait_until_ready("the second", second_page, &second, true);
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let logs = |first: &Component| format!("{}\n{}", first.log(), second.log());
    for number in 0..3 {
        transfer(&format!("{number}"), &alice, &bob, "s5b", || logs(&first));
        transfer(&format!("{number} back"), &bob, &alice, "s5b", || logs(&first));
    }
    // After the database is back, one of them leads.
    postgres.stop();
    let gone = || second.log().contains("lost the connection to the other instances");
    wait_for("the loss of the database", BOUND, || logs(&first), gone);
    postgres.start_again();
    for (component, page) in [(&first, first_page), (&second, second_page)] {
        wait_until_ready("the database is back", page, component, true);
    }
    transfer("the database is back", &alice, &bob, "s5b", || logs(&first));
    for log in [first.log(), second.log()] {
        assert!(!log.contains("are shared") && !log.contains("are lost"), "{log}");
    }
    // One dies, and the other leads.
    first.signal("KILL");
    first.wait(BOUND);
    let leads = || !readyz(second_page).contains("another one leads");
    wait_for("the lead", BOUND, || logs(&first), leads);
    wait_until_ready("the second alone", second_page, &second, true);
    transfer("the second alone", &alice, &bob, "s5b", || logs(&first));
    // It comes back, and follows.
    first.start_again();
    wait_until_ready("the first again", first_page, &first, true);
    transfer("both again", &bob, &alice, "s5b", || logs(&first));
    assert_eq!(postgres.query("SELECT count(*) FROM handovers"), "0");
    // At the end: stanzas that ejabberd gives to a connection that only checks are lost.
    let both = "2 instances of this component share the database";
    check(&second, &server.component_address(), &[both]);
}

/// A cluster of two nodes with a component at each: any user reaches any user.
#[test]
fn ejabberd_users_of_two_nodes_reach_each_other() {
    let mut cluster = Nodes::start();
    let postgres = Postgres::start();
    let [one, two] = [0, 1].map(|number: usize| {
        let near = cluster.nodes[number].component_address();
        let far = cluster.nodes[1 - number].component_address();
        sharing(&cluster.nodes[number], &format!("{near},{far}"), &postgres)
    });
    let ((mut first, first_page), (second, second_page)) = (one, two);
    wait_until_ready("the first", first_page, &first, true);
    wait_until_ready("the second", second_page, &second, true);
    let alice = Xtls::with_key(&cluster.nodes[0], "alice");
    let bob = Xtls::with_key(&cluster.nodes[1], "bob");
    let carol = Xtls::with_key(&cluster.nodes[1], "carol");
    let logs = |first: &Component| format!("{}\n{}", first.log(), second.log());
    for (what, from, to) in
        [("1 to 2", &alice, &bob), ("2 to 1", &bob, &alice), ("2 to 2", &bob, &carol)]
    {
        for transport in ["s5b", "ibb"] {
            transfer(&format!("{what}, {transport}"), from, to, transport, || logs(&first));
        }
    }
    // Blocks are longer than a notification; none of them stays in the database.
    assert_eq!(postgres.query("SELECT count(*) FROM handovers"), "0");
    let written = || postgres.query("SELECT last_value > 1 FROM handovers_id_seq") == "t";
    // On a busy machine it was once not so after the transfers above; why is not known.
    for number in 0..10 {
        if written() {
            break;
        }
        transfer(&format!("again {number}"), &bob, &alice, "ibb", || logs(&first));
    }
    assert!(written(), "{}", logs(&first));
    // The leader dies: the other one serves both nodes.
    first.signal("KILL");
    first.wait(BOUND);
    wait_for(
        "the lead",
        BOUND,
        || logs(&first),
        || second.log().contains("this instance leads now"),
    );
    transfer("the second alone", &alice, &bob, "s5b", || logs(&first));
    first.start_again();
    wait_until_ready("the first again", first_page, &first, true);
    // A node dies: its component goes to the other node, and its users are served.
    cluster.nodes[0].kill();
    first.wait_for_links(3);
    wait_until_ready("both at one node", first_page, &first, true);
    transfer("one node", &bob, &carol, "s5b", || logs(&first));
}
