//! Operations: metrics, the status page, logs, the service manager, restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::net::UnixDatagram},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    PATIENCE, SECRET, free_port, own_program,
    postgres::Postgres,
    process::{Process, run},
    programs::{Component, Options, Script, Xtls, clean, script},
    random_file, root,
    servers::{Kind, Server},
    wait_for,
};

const ADMIN: &str = "[access]\nadmins = [\"carol@example.test\"]\n";

/// Returns a page's head and body; `None` without an answer.
fn get(address: &str, path: &str, more: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

fn with_pages(options: Options) -> (Options, String) {
    let http = format!("127.0.0.1:{}", free_port());
    let mut options = options;
    options.env.push(("FINGERPOST_HTTP__LISTEN", http.clone()));
    (options, http)
}

/// Returns the metrics of a page: type by name, and the value of every sample.
fn read_metrics(text: &str) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let types = types.filter_map(|line| line.split_once(' '));
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.filter_map(|line| line.rsplit_once(' '));
    let own = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
    (types.map(own).collect(), samples.map(own).collect())
}

/// Returns the labels of a sample that its row in docs/METRICS.md lacks, and the values if the row lists some:
/// "`label`: `value`, …".
fn undocumented(docs: &str, sample: &str) -> Vec<String> {
    let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
    let row = docs.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap_or("");
    let is_listed = |label: &str| {
        let mut rest = row.split_once(&format!("`{label}`"))?.1;
        // Several labels with the same values.
        while let Some(next) = rest.strip_prefix(", `") {
            rest = next.split_once('`')?.1;
        }
        Some(rest.starts_with(": `"))
    };
    let mut missing = Vec::new();
    for pair in labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty()) {
        let (label, value) = pair.split_once('=').unwrap();
        let value = value.trim_matches('"');
        match is_listed(label) {
            _ if label == "le" => {}
            None => missing.push(format!("{name} {label}")),
            Some(true) if !row.contains(&format!("`{value}`")) => {
                missing.push(format!("{name} {label} {value}"));
            }
            Some(_) => {}
        }
    }
    missing
}

#[test]
fn labels_and_values_that_a_row_lacks_are_found() {
    let docs = "| `m_total` | counter | `a`, `b`: `x`, `y` (odd); `c`; `d`: any word |";
    assert_eq!(undocumented(docs, "m_total{a=\"x\",b=\"y\",c=\"z\",d=\"z\"}"), [""; 0]);
    assert_eq!(undocumented(docs, "m_total{a=\"z\",e=\"x\"}"), ["m_total a z", "m_total e"]);
    assert_eq!(undocumented(docs, "m_total"), [""; 0]);
}

/// docs/METRICS.md names exactly the printed metrics, with their labels, and each of them moves.
#[test]
fn every_metric_is_in_the_docs_and_moves() {
    let mut postgres = Postgres::start();
    let mut server = Server::start(Kind::Prosody);
    let (options, http) = with_pages(Options {
        more: format!(
            "{ADMIN}[limits]\nactivation_timeout = \"10s\"\nrequests_per_second = 100\n\
             [broker]\nplain = \"mark\"\n"
        ),
        database: Some(postgres.url()),
        ..Options::default()
    });
    let mut component = Component::start(&server, &options);
    let pages: Arc<Mutex<Vec<String>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let looking = thread::spawn({
        let (pages, stop, http) = (Arc::clone(&pages), Arc::clone(&stop), http.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                if let Some((_, page)) = get(&http, "/metrics", "") {
                    pages.lock().unwrap().push(page);
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let report = script(
        "admin.py",
        &server,
        json!({
            "proxy": ["127.0.0.1", component.socks5],
            "http": http,
            "parts": ["outsiders", "keys", "sessions", "stall", "undrained"],
        }),
    );
    assert_eq!(report["stall"], 16 << 20, "{report}");
    script("direct_paths.py", &server, json!({}));
    script("plain_file.py", &server, json!({"size": 1000, "protection": ""}));
    // The other thread may have missed the moment that the script waited for.
    for page in report["undrained"].as_array().unwrap() {
        pages.lock().unwrap().push(page.as_str().unwrap().to_owned());
    }
    let limit = Command::new("prlimit")
        .args(["--pid", &component.id().to_string(), "--nofile=5000:5000"])
        .status();
    assert!(limit.unwrap().success());
    // Waits for a page, and keeps it.
    let seen = |wanted: &dyn Fn(&str) -> bool| {
        let page = get(&http, "/metrics", "").map(|(_, page)| page).filter(|page| wanted(page));
        page.map(|page| pages.lock().unwrap().push(page)).is_some()
    };
    // A session without a transport ends while there is no link: its stanzas are dropped. If the machine is so busy
    // that the session has ended before the link was down, another one is started.
    let dropped = |page: &str| {
        let mut lines = page.lines().filter(|line| line.contains("reason=\"link\""));
        lines.any(|line| {
            line.starts_with("fingerpost_stanzas_dropped_total") && !line.ends_with(" 0")
        })
    };
    let mut links = 1;
    while !seen(&dropped) {
        assert!(links < 6, "no stanza is dropped while the link is down\n{}", component.log());
        let mut open = Script::start("terminated.py", &server, json!({}));
        open.wait_for("\"open\": true");
        server.stop();
        let ended = |page: &str| page.lines().any(|line| line == "fingerpost_broker_sessions 0");
        wait_for("the end of the session", PATIENCE, || component.log(), || seen(&ended));
        server.up();
        links += 1;
        component.wait_for_links(links);
    }
    postgres.stop();
    let down = || {
        seen(&|page: &str| {
            page.contains("database_up 0") && !page.contains("registry_notices_lost_total 0")
        })
    };
    wait_for("the loss of the database", PATIENCE, || component.log(), down);
    stop.store(true, Ordering::Relaxed);
    looking.join().unwrap();

    let docs = std::fs::read_to_string(root().join("docs/METRICS.md")).unwrap();
    let documented: BTreeMap<String, String> = docs
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), cells.next()?.to_owned()))
        })
        .collect();
    let mut pages = pages.lock().unwrap().clone();
    pages.dedup();
    let mut printed = BTreeMap::new();
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for page in pages.iter() {
        let (types, samples) = read_metrics(page);
        printed.extend(types);
        for (sample, value) in samples {
            assert!(sample.starts_with("fingerpost_") && !sample.contains('@'), "{sample}");
            values.entry(sample).or_default().insert(value);
        }
    }
    assert_eq!(documented, printed);
    let unknown: BTreeSet<String> =
        values.keys().flat_map(|sample| undocumented(&docs, sample)).collect();
    assert!(unknown.is_empty(), "docs/METRICS.md lacks {unknown:?}");
    let moved = |name: &str| {
        let of = |sample: &str| {
            let sample = sample.split('{').next().unwrap_or_default();
            let suffix = sample.strip_prefix(name);
            suffix.is_some_and(|suffix| matches!(suffix, "" | "_sum" | "_count" | "_bucket"))
        };
        // A sample that appeared later has moved from nothing.
        let samples: Vec<_> = values.iter().filter(|(sample, _)| of(sample)).collect();
        let late = samples.iter().any(|(sample, _)| !pages[0].contains(&format!("{sample} ")));
        late || samples.iter().any(|(_, values)| values.len() > 1)
    };
    // The tests of `cluster` move those of a cluster. These sessions have no in-band stream.
    let is_single = |name: &&String| {
        !name.starts_with("fingerpost_cluster_") && !name.starts_with("fingerpost_ibb_memory_")
    };
    let still: Vec<&String> =
        printed.keys().filter(is_single).filter(|name| !moved(name)).collect();
    assert!(still.is_empty(), "these did not move: {still:?}\n{}", pages[pages.len() - 1]);
}

/// The page in a real browser of a phone's size, which forbids scripts; docs/status-page.png is such a picture.
#[test]
fn the_status_page_shows_itself_on_a_phone_and_names_nobody_to_strangers() {
    let server = Server::start(Kind::Prosody);
    let (options, http) = with_pages(Options::default());
    let component = Component::start(&server, &options);
    let proxy = json!(["127.0.0.1", component.socks5]);
    let mut stream = Script::start("survives.py", &server, json!({"proxy": proxy}));
    stream.wait_for("\"open\": true");

    let (head, page) = get(&http, "/", "").unwrap();
    for header in [
        "content-security-policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "content-type: text/html; charset=utf-8",
        "cache-control: no-store",
    ] {
        assert!(head.lines().any(|line| line == header), "{header} in\n{head}");
    }
    assert!(page.contains("alice@example.test → bob@example.test"), "{page}");
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("The link to the XMPP server is up"), "{page}");
    let (_, german) = get(&http, "/", "Accept-Language: de-DE,de;q=0.9,en;q=0.5\r\n").unwrap();
    assert!(german.contains("lang=\"de\"") && german.contains("Letzte Ereignisse"), "{german}");
    let (_, far) = get(&http, "/", "X-Forwarded-For: 192.0.2.1\r\n").unwrap();
    assert!(far.contains("…@example.test → …@example.test") && !far.contains("alice"), "{far}");
    for path in ["/healthz", "/metrics", "/readyz"] {
        let (head, _) = get(&http, path, "").unwrap();
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
    }

    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("status-page.png");
    let mut browser = Command::new("chromium");
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
        .args(["--window-size=412,915", "--virtual-time-budget=2000"])
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("http://{http}/"))
        .env("HOME", directory.path());
    let output = run(browser, Duration::from_secs(90));
    let bytes = std::fs::read(&picture).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let (width, height) = (&bytes[16..20], &bytes[20..24]);
    assert_eq!((width, height), (&412_u32.to_be_bytes()[..], &915_u32.to_be_bytes()[..]));
    // An empty page is one colour and a few hundred bytes.
    assert!(bytes.len() > 15_000, "{} bytes", bytes.len());
    if let Some(kept) = std::env::var_os("FINGERPOST_TEST_PICTURE") {
        std::fs::copy(&picture, kept).unwrap();
    }
    std::fs::write(stream.directory().join("go"), "").unwrap();
    stream.report();
}

/// Every line about a session has its id; no address is in full at the level info.
#[test]
fn the_log_as_json_has_the_session_on_each_line_and_no_full_address() {
    let server = Server::start(Kind::Prosody);
    let options = Options { more: "[log]\nformat = \"json\"\n".to_owned(), ..Options::default() };
    let component = Component::start(&server, &options);
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let file = alice.home().join("letter.bin");
    random_file(&file, 100_000);
    let mut listener = bob.listen(&[]);
    let sent = alice.run(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);
    assert_eq!(sent.code, 0, "{sent:?}");
    assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
    wait_for(
        "the end of the session",
        Duration::from_secs(10),
        || component.log(),
        || component.log().contains("session terminated"),
    );
    let mut sessions = BTreeSet::new();
    for line in component.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        let text = line.to_string();
        for user in ["alice@example.test/", "bob@example.test/", "example.test@"] {
            assert!(!text.contains(user), "{text}");
        }
        let target = line["target"].as_str().unwrap();
        if target.starts_with("fingerpost::sessions::session")
            || target == "fingerpost::sessions::driver"
        {
            assert_eq!(line["span"]["name"], "session", "{text}");
            sessions.insert(line["span"]["id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(sessions.len(), 1, "{}", component.log());
}

/// The service manager is told of readiness, the link, a reload, life and the end.
#[test]
fn the_service_manager_is_told() {
    let server = Server::start(Kind::Prosody);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let options = Options {
        env: vec![
            ("NOTIFY_SOCKET", path.display().to_string()),
            ("WATCHDOG_USEC", "400000".to_owned()),
        ],
        ..Options::default()
    };
    let mut component = Component::start(&server, &options);
    let told = |text: &str| {
        let mut buffer = [0; 1024];
        loop {
            let n = socket.recv(&mut buffer).unwrap_or_else(|_| panic!("{text} was not told"));
            let message = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if message.lines().any(|line| line.starts_with(text)) {
                return message;
            }
        }
    };
    told("READY=1");
    told("STATUS=linked");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    component.signal("HUP");
    assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
    told("READY=1");
    component.signal("TERM");
    told("STOPPING=1");
    assert_eq!(component.wait(Duration::from_secs(20)), 0);
}

/// The listening socket outlives the process. Connections between two processes are served, a running stream continues
/// to its end in the old one, and streams inside XMPP end with a reason.
#[test]
fn a_restart_with_an_inherited_socket_loses_no_connection_and_no_stream() {
    let server = Server::start(Kind::Prosody);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let options = Options {
        socks5: Some(port),
        env: vec![
            ("LISTEN_FDS", "1".to_owned()),
            ("LISTEN_FDS_FIRST_FD", socket.as_raw_fd().to_string()),
        ],
        ..Options::default()
    };
    let mut component = Component::start(&server, &options);
    let proxy = json!({"proxy": ["127.0.0.1", port]});
    let mut stream = Script::start("survives.py", &server, proxy.clone());
    stream.wait_for("\"open\": true");
    let mut session = Script::start("terminated.py", &server, json!({}));
    session.wait_for("\"open\": true");

    component.signal("TERM");
    wait_for(
        "the end of the link",
        Duration::from_secs(20),
        || component.log(),
        || component.log().contains("link closed; running streams continue"),
    );
    let report = session.report();
    for side in ["initiator", "responder"] {
        let reason = report[side].as_str().unwrap();
        assert!(reason.starts_with("gone text: The service is being restarted"), "{report}");
    }
    // Nothing accepts now.
    let mut between = Script::start("between.py", &server, proxy);
    between.wait_for("\"connected\": true");
    let mut old = component.succeed();
    component.wait_for_links(2);
    assert_eq!(old.ended(), None, "the old one has a stream");
    std::fs::write(between.directory().join("go"), "").unwrap();
    let report = between.report();
    assert_eq!(report, json!({"replies": [0, 0], "activated": "result", "received": "ping"}));
    std::fs::write(stream.directory().join("go"), "").unwrap();
    let report = stream.report();
    assert_eq!(report["received"], report["sent"], "{report}");
    assert!(old.wait(Duration::from_secs(20)).success(), "{}", component.log());
    assert!(component.runs());
}

#[test]
fn what_attach_prints_makes_prosody_know_the_component() {
    let cut = |text: String| {
        let start = text.find("Component \"xtls.example.test\"").unwrap();
        let end = start + text[start..].find("\n\n").unwrap();
        format!("{}{}", &text[..start], &text[end..])
    };
    attach(Kind::Prosody, true, cut, |text, lines| format!("{text}\n{lines}"));
}

#[test]
fn what_attach_prints_makes_ejabberd_know_the_component() {
    let cut = |text: String| {
        let module = text.find("    module: ejabberd_service").unwrap();
        let start = text[..module].rfind("  - port:").unwrap();
        let end = text.find("modules:\n").unwrap();
        format!("{}{}", &text[..start], &text[end..])
    };
    attach(Kind::Ejabberd, false, cut, |text, lines| {
        text.replacen("listen:\n", &format!("listen:\n{lines}"), 1)
    });
}

/// A server with a lower limit than the component's setting is detected, with its limit; with that setting everything
/// works.
#[test]
fn the_check_measures_the_longest_stanza_that_prosody_accepts() {
    measured(Kind::Prosody, |text| format!("component_stanza_size_limit = 100000\n{text}"));
}

#[test]
fn the_check_measures_the_longest_stanza_that_ejabberd_accepts() {
    let module = "module: ejabberd_service\n";
    measured(Kind::Ejabberd, |text| {
        text.replacen(module, &format!("{module}    max_stanza_size: 100000\n"), 1)
    });
}

/// Runs `check --online` against a component port, with more settings of `[component]`; returns what it says.
fn check_online(address: &str, more: &str, log: impl Fn() -> String) -> String {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[component]\njid = \"xtls.example.test\"\nserver = \"{address}\"\nsecret = \"{SECRET}\"\n{more}\n\
         [socks5]\nlisten = []\n[database]\nurl = \"sqlite::memory:\"\n[http]\nlisten = \"\"\n"
    );
    std::fs::write(directory.path().join("fingerpost.toml"), text).unwrap();
    loop {
        let mut command = clean(&own_program("fingerpost"));
        command.args(["check", "--online"]).current_dir(directory.path());
        let output = run(command, Duration::from_secs(120));
        // A server on a busy machine may take longer to answer than a check waits.
        if !output.stderr.contains("no answer from") {
            assert_eq!(output.code, 0, "{output:?}\n{}", log());
            return output.stdout;
        }
    }
}

fn measured(kind: Kind, limit: impl FnOnce(String) -> String) {
    let mut server = Server::start(kind);
    let check = |server: &Server, more: &str| {
        check_online(&server.component_address(), more, || server.log())
    };
    let told = check(&server, "");
    assert!(told.contains("accepts stanzas of 500000 bytes"), "{told}");
    server.reconfigure(true, limit);
    let told = check(&server, "");
    let accepted: usize = told
        .split_once("max_stanza_bytes = ")
        .and_then(|(_, rest)| rest.split(',').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{told}"));
    assert!((98_000..=100_000).contains(&accepted), "{told}");
    let told = check(&server, &format!("max_stanza_bytes = {accepted}"));
    assert!(told.contains(&format!("accepts stanzas of {accepted} bytes")), "{told}");
}

/// A link that carries 50 kB/s to the server, as a slow network does. The servers themselves limit no component (Prosody
/// 0.12, ejabberd 23.01).
#[test]
fn prosody_a_slow_link_is_measured() {
    let server = Server::start(Kind::Prosody);
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = slow.local_addr().unwrap().to_string();
    let far = server.component_address();
    thread::spawn(move || {
        // Ends with the test, whose program closes its connections.
        for near in slow.incoming().map_while(Result::ok) {
            let far = TcpStream::connect(&far).unwrap();
            let (mut from, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            thread::spawn(move || forward_slowly(near, far));
        }
    });
    let check = |address: &str| check_online(address, "max_stanza_bytes = 20000", || server.log());
    let told = check(&server.component_address());
    assert!(told.contains("accepts stanzas of 20000 bytes"), "{told}");
    // Last: the end of a link takes its time too, and the server refuses another one until then.
    let told = check(&address);
    let rate: u64 = told
        .split_once("takes about ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{told}"));
    assert!(rate <= 60, "{told}");
}

/// Copies at most 50,000 bytes per second.
fn forward_slowly(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 1000];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        thread::sleep(Duration::from_millis(20));
        if to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    // The other end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// Follows a new operator: a configuration without a secret, `attach`, its lines pasted; and the results of `check
/// --online` on the way, including faults at the server's side.
fn attach(
    kind: Kind,
    has_port: bool,
    cut: impl Fn(String) -> String,
    paste: impl Fn(String, &str) -> String,
) {
    let mut server = Server::start_to_measure(kind);
    server.reconfigure(has_port, cut);
    let directory = tempfile::tempdir().unwrap();
    let address = server.component_address();
    let write = |name: &str, told: u16, more: &str| {
        let port = free_port();
        let told = if told == 0 { port } else { told };
        let text = format!(
            "[component]\njid = \"xtls.example.test\"\nserver = \"{}\"\n{more}\n\
             [socks5]\nlisten = [\"127.0.0.1:{port}\"]\nadvertise = [\"127.0.0.1:{told}\"]\n\
             [database]\nurl = \"sqlite::memory:\"\n[http]\nlisten = \"\"\n",
            address
        );
        std::fs::write(directory.path().join(name), text).unwrap();
    };
    let fingerpost = |args: &[&str]| {
        let mut command = clean(&own_program("fingerpost"));
        command.args(args).current_dir(directory.path());
        run(command, Duration::from_secs(60))
    };
    let check = |name: &str| fingerpost(&["check", "--online", "-c", name]);
    write("good.toml", 0, "");
    let name = if kind == Kind::Prosody { "prosody" } else { "ejabberd" };
    let lines = fingerpost(&["attach", name, "-c", "good.toml"]);
    assert_eq!(lines.code, 0, "{lines:?}");

    let before = check("good.toml");
    assert_eq!(before.code, 1, "{before:?}");
    let why =
        if has_port { "knows of no component xtls.example.test" } else { "nothing listens at 127" };
    assert!(before.stderr.contains(why) && before.stderr.contains("hint: "), "{before:?}");

    server.reconfigure(true, |text| paste(text, &lines.stdout));
    let good = check("good.toml");
    assert_eq!((good.code, good.stderr.as_str()), (0, ""), "{good:?}\n{}", server.log());
    for line in [
        "accepted the secret",
        "clients of example.test find xtls.example.test among its services",
        "which clients are told, leads here",
        "warning: proxy.example.test is a SOCKS5 proxy too",
    ] {
        assert!(good.stdout.contains(line), "{line}: {good:?}");
    }

    write("secret.toml", 0, "secret = \"another\"");
    let refused = check("secret.toml");
    assert_eq!(refused.code, 77, "{refused:?}");
    assert!(refused.stderr.contains("refused the secret for xtls.example.test"), "{refused:?}");
    write("far.toml", free_port(), "");
    let far = check("far.toml");
    assert_eq!(far.code, 0, "{far:?}");
    assert!(far.stdout.contains("which clients are told, cannot be reached from here"), "{far:?}");

    if kind == Kind::Prosody {
        // ejabberd divides the stanzas among all connections, so there it is no conflict.
        write("other.toml", 0, "");
        let mut serve = clean(&own_program("fingerpost"));
        serve.args(["serve", "-c", "other.toml"]).current_dir(directory.path());
        let mut running = Process::start(serve, &directory.path().join("log"));
        wait_for(
            "the link",
            Duration::from_secs(20),
            || running.log(),
            || running.log().contains("link up"),
        );
        let taken = check("good.toml");
        assert_eq!(taken.code, 1, "{taken:?}");
        assert!(taken.stderr.contains("xtls.example.test is connected already"), "{taken:?}");
        running.stop(Duration::from_secs(20));
        server.reconfigure(true, |text| format!("{text}\tdisco_hidden = true\n"));
        let hidden = check("good.toml");
        let text = "xtls.example.test is not among the services of example.test";
        assert!(hidden.stdout.contains(text), "{hidden:?}");
    }
}

#[test]
fn while_running_sessions_keep_it_from_stopping_it_is_not_ready() {
    let server = Server::start(Kind::Prosody);
    let more = "[limits]\ndrain_timeout = \"1h\"\n".to_owned();
    let (options, http) = with_pages(Options { more, ..Options::default() });
    let mut component = Component::start(&server, &options);
    let ready = || get(&http, "/readyz", "");
    let log = || component.log();
    wait_for("readiness", PATIENCE, log, || ready().is_some_and(|(_, text)| text == "ready\n"));
    let mut session = Script::start("guest.py", &server, json!({"hold": true}));
    session.wait_for("initiated");
    component.signal("TERM");
    let mut page = None;
    wait_for("the drain", PATIENCE, log, || {
        page = ready().filter(|(head, _)| !head.starts_with("HTTP/1.1 200"));
        page.is_some()
    });
    let (head, text) = page.unwrap();
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(text, "draining: new sessions are refused\n");
    component.signal("TERM");
    session.report();
    assert_eq!(component.wait(PATIENCE), 0, "{}", component.log());
}
