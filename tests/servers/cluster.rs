//! Several instances of one component with one PostgreSQL: one that is cut off, stands still, dies, leaves or loses its
//! link. On real servers.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;
use support::{
    COMPONENT, free_port,
    postgres::Postgres,
    process::{Process, read},
    programs::{Component, Options, Script, Xtls, page},
    random_file,
    raw::{Raw, attribute},
    servers::{Kind, Nodes, Server},
    switch::Switch,
    wait_for,
};

const BOUND: Duration = Duration::from_secs(60);
/// The time between two requests of a [`Witness`].
const SELDOM: Duration = Duration::from_millis(100);
/// The same where none is to be refused.
const OFTEN: Duration = Duration::from_millis(4);
/// How a request is refused that no instance may answer.
const REFUSED: &str = "remote-server-timeout";

/// A component that shares a database with others, and the port of its status server.
struct Instance {
    component: Component,
    page: u16,
}

impl Instance {
    fn start(server: &Server, servers: &str, database: String) -> Self {
        let page = free_port();
        let env = vec![
            ("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{page}")),
            ("FINGERPOST_COMPONENT__SERVER", servers.to_owned()),
            ("FINGERPOST_LIMITS__REQUESTS_PER_SECOND", "1000".to_owned()),
        ];
        let options = Options { env, database: Some(database), ..Options::default() };
        Self { component: Component::start(server, &options), page }
    }

    fn get(&self, path: &str) -> String {
        page(self.page, path).unwrap_or_default()
    }

    /// Waits until `/readyz` says this.
    fn wait_until(&self, says: &str) {
        let why = || format!("{}\n{}", self.get("/readyz"), self.component.log());
        wait_for(says, BOUND, why, || self.get("/readyz").contains(says));
    }

    /// Waits until it has come to lead so often, before it was started again, too.
    fn wait_for_lead(&self, times: usize) {
        let text = "this instance leads now";
        let count = || self.component.log().matches(text).count();
        wait_for(text, BOUND, || self.component.log(), || count() >= times);
    }

    /// The value of a metric, with its labels.
    fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(&format!("fingerpost_{name} ")));
        value.unwrap_or_else(|| panic!("{name}\n{page}")).parse().unwrap()
    }
}

/// What a user was told: the SOCKS5 port, which each instance has of its own, or the error.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Port(String),
    Error(String),
}

/// An answer with the times of its request and of its arrival.
#[derive(Clone, Debug)]
struct Told {
    asked: Instant,
    came: Instant,
    answer: Answer,
}

/// A user who asks the component for its SOCKS5 address all the time, and keeps who has answered.
struct Witness {
    answers: Arc<Mutex<Vec<Told>>>,
    stop: Arc<AtomicBool>,
    asking: Option<JoinHandle<()>>,
}

impl Witness {
    fn start(server: &Server, user: &str, pause: Duration) -> Self {
        let (mut send, mut read) = Raw::client(server, user, "witness", "").split();
        let (answers, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let requests = Arc::<Mutex<Vec<Instant>>>::default();
        let asking = thread::spawn({
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = requests.lock().unwrap().len();
                    let ask = format!(
                        "<iq type='get' to='{COMPONENT}' id='{number}'><query xmlns='http://jabber.org/protocol/bytestreams'/></iq>"
                    );
                    requests.lock().unwrap().push(Instant::now());
                    if send.write_all(ask.as_bytes()).is_err() {
                        return;
                    }
                    thread::sleep(pause);
                }
            }
        });
        thread::spawn({
            let answers = Arc::clone(&answers);
            move || {
                while let Ok(element) = read.read() {
                    let text = String::from_utf8_lossy(&element).into_owned();
                    // At the end of the test the server may send an error of the stream.
                    let Some(number) =
                        attribute(&text, "id").and_then(|id| id.parse::<usize>().ok())
                    else {
                        continue;
                    };
                    let host = text.find("<streamhost").map(|at| attribute(&text[at..], "port"));
                    let answer = match host {
                        Some(port) => Answer::Port(port.unwrap().to_owned()),
                        None => Answer::Error(text),
                    };
                    let asked = requests.lock().unwrap()[number];
                    answers.lock().unwrap().push(Told { asked, came: Instant::now(), answer });
                }
            }
        });
        Self { answers, stop, asking: Some(asking) }
    }

    fn answers(&self) -> Vec<Told> {
        self.answers.lock().unwrap().clone()
    }

    /// Waits until an answer that comes from now on is such a one.
    fn wait_for(&self, what: &str, is_it: impl Fn(&Answer) -> bool) {
        let before = self.answers().len();
        let why = || format!("{:?}", self.answers().last());
        wait_for(what, BOUND, why, || {
            self.answers()[before..].iter().any(|one| is_it(&one.answer))
        });
    }

    fn wait_for_answer_of(&self, instance: &Instance) {
        let port = Answer::Port(instance.component.socks5.to_string());
        self.wait_for("an answer of this instance", |answer| *answer == port);
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.asking.take().map(JoinHandle::join);
    }
}

/// Returns the instances that answered these, in this order; one that answers several in a row is named once.
///
/// The links of two instances may overtake each other on the way to a user. So an answer of an earlier instance counts
/// only if its request was sent after the first answer of the present one had come.
fn leaders(witnesses: &[&Witness]) -> Vec<u16> {
    let mut answers: Vec<_> = witnesses.iter().flat_map(|witness| witness.answers()).collect();
    answers.sort_by_key(|told| told.came);
    let (mut ports, mut since): (Vec<u16>, Option<Instant>) = (Vec::new(), None);
    for Told { asked, came, answer } in answers {
        let Answer::Port(port) = answer else { continue };
        let port = port.parse().unwrap();
        let is_other = ports.last() != Some(&port);
        let is_late = ports.contains(&port) && since.is_some_and(|since| asked <= since);
        if is_other && !is_late {
            ports.push(port);
            since = Some(came);
        }
    }
    ports
}

/// The database's answers to one instance stop, and no connection ends. Then the process of the other one stands still,
/// and goes on. No two lead at any time: the first has stopped before the second begins.
#[test]
fn ejabberd_a_leader_that_is_cut_off_or_stands_still_leads_no_more() {
    let cluster = Nodes::start_in_clear();
    let postgres = Postgres::start();
    let switch = Switch::start(postgres.port());
    let [near, far] = [0, 1].map(|node: usize| cluster.nodes[node].component_address());
    let first = Instance::start(&cluster.nodes[0], &format!("{near},{far}"), switch.url());
    let second = Instance::start(&cluster.nodes[1], &format!("{far},{near}"), postgres.url());
    first.wait_until("2 instances that leads");
    second.wait_until("another one leads");
    let alice = Witness::start(&cluster.nodes[0], "alice", SELDOM);
    let carol = Witness::start(&cluster.nodes[1], "carol", SELDOM);
    let logs = || format!("{}\n{}", first.component.log(), second.component.log());
    for witness in [&alice, &carol] {
        witness.wait_for_answer_of(&first);
    }
    assert_eq!(first.metric("cluster_role{role=\"leads\"}"), 1.0);
    assert_eq!(second.metric("cluster_role{role=\"follows\"}"), 1.0);
    assert_eq!((first.metric("cluster_instances"), second.metric("cluster_instances")), (2.0, 2.0));
    assert!(second.metric("cluster_handovers_total{direction=\"sent\"}") > 0.0);
    assert!(first.metric("cluster_handovers_total{direction=\"received\"}") > 0.0);

    switch.cut();
    first.wait_until("apart: the database does not answer");
    let told = "this instance takes no new sessions";
    wait_for(told, BOUND, logs, || first.component.log().contains(told));
    assert_eq!(first.metric("cluster_role{role=\"apart\"}"), 1.0);
    assert!(first.metric("cluster_heartbeat_age_seconds") >= 4.0);
    second.wait_for_lead(1);
    assert_eq!(second.metric("cluster_evictions_total"), 1.0);
    assert_eq!(second.metric("cluster_lead_changes_total{change=\"taken\"}"), 1.0);
    carol.wait_for_answer_of(&second);
    alice.wait_for(
        "a refusal",
        |answer| matches!(answer, Answer::Error(text) if text.contains(REFUSED)),
    );
    switch.mend();
    first.wait_until("another one leads");
    alice.wait_for_answer_of(&second);

    second.component.signal("STOP");
    first.wait_for_lead(1);
    alice.wait_for_answer_of(&first);
    second.component.signal("CONT");
    second.wait_until("another one leads");
    carol.wait_for_answer_of(&first);
    let [one, two] = [&first, &second].map(|instance| instance.component.socks5);
    assert_eq!(leaders(&[&alice, &carol]), [one, two, one], "{}", logs());
    assert_eq!(second.metric("cluster_lead_changes_total{change=\"lost\"}"), 1.0);
    assert!(second.metric("cluster_heartbeat_age_seconds") < 60.0);
}

/// Starts `xtls` with a standard input that the caller writes; returns it, that input, and the place of its output.
fn piped(user: &Xtls, args: &[&str], ready: &str) -> (Process, File, PathBuf) {
    let file = |kind: &str| user.home().join(format!("piped.{kind}"));
    let (input, output) = (file("in"), file("out"));
    assert!(Command::new("mkfifo").arg(&input).status().unwrap().success());
    let writer = OpenOptions::new().read(true).write(true).open(&input).unwrap();
    let program = Process::start_between(user.command(args), &input, &output, &file("log"));
    let told = || format!("{}{}", program.log(), read(&output));
    wait_for(ready, BOUND, told, || told().contains(ready));
    (program, writer, output)
}

/// One instance alone is cut off from the database. It cannot know of the one that starts then, so it takes no new sessions;
/// those that it has go on.
#[test]
fn ejabberd_one_alone_that_is_cut_off_keeps_its_sessions_and_takes_no_new_ones() {
    let cluster = Nodes::start_in_clear();
    let postgres = Postgres::start();
    let switch = Switch::start(postgres.port());
    let [near, far] = [0, 1].map(|node: usize| &cluster.nodes[node]);
    let first = Instance::start(near, &near.component_address(), switch.url());
    first.wait_until("ready\n");
    let alice = Witness::start(near, "alice", SELDOM);
    alice.wait_for_answer_of(&first);
    let proxy = json!(["127.0.0.1", first.component.socks5]);
    let mut stream = Script::start("survives.py", near, json!({ "proxy": proxy }));
    stream.wait_for("\"open\": true");
    let (caller, callee) = (Xtls::with_key(near, "alice"), Xtls::with_key(near, "bob"));
    let (_listens, _silent, heard) = piped(&callee, &["pipe", "--listen"], "listening as");
    let pipe = ["pipe", callee.jid(), "--transport", "ibb"];
    let (calls, mut says, _) = piped(&caller, &pipe, "secured with");

    switch.cut();
    first.wait_until("apart: the database does not answer");
    says.write_all(b"still here\n").unwrap();
    let logs = || format!("{}\n{}", calls.log(), first.component.log());
    wait_for("the in-band stream", BOUND, logs, || read(&heard).contains("still here"));
    std::fs::write(stream.directory().join("go"), "").unwrap();
    let report = stream.report();
    assert_eq!(report["received"], report["sent"], "{report}");

    let second = Instance::start(far, &far.component_address(), postgres.url());
    second.wait_for_lead(1);
    let carol = Witness::start(far, "carol", SELDOM);
    carol.wait_for_answer_of(&second);
    alice.wait_for(
        "a refusal",
        |answer| matches!(answer, Answer::Error(text) if text.contains(REFUSED)),
    );
    switch.mend();
    first.wait_until("another one leads");
    alice.wait_for_answer_of(&second);
    let ports = [&first, &second].map(|instance| instance.component.socks5);
    assert_eq!(leaders(&[&alice, &carol]), ports, "{}", logs());
}

fn sends(from: &Xtls, to: &Xtls, name: &str) -> support::process::Output {
    let file = from.home().join(name);
    random_file(&file, 20_000);
    from.run(["send", to.jid(), file.to_str().unwrap()])
}

/// Two instances at one server, which gives each stanza to either of them.
#[test]
fn ejabberd_the_lead_goes_from_one_to_the_other_in_good_order_or_in_none() {
    let server = Server::start_in_clear(Kind::Ejabberd);
    let postgres = Postgres::start();
    let component: u16 = server.component_address().rsplit_once(':').unwrap().1.parse().unwrap();
    let link = Switch::start(component);
    let through = format!("127.0.0.1:{}", link.port());
    let mut first = Instance::start(&server, &through, postgres.url());
    let mut second = Instance::start(&server, &server.component_address(), postgres.url());
    first.wait_until("2 instances that leads");
    second.wait_until("another one leads");
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let listener = bob.listen_on(&[]);
    let logs = || format!("{}\n{}\n{}", listener.log(), bob.jid(), alice.jid());
    let sent = sends(&alice, &bob, "before");
    assert_eq!(sent.code, 0, "{sent:?}\n{}", first.component.log());

    // An orderly stop: the other one leads at once, no request is refused meanwhile, and a user who has become
    // reachable shortly before stays reachable.
    let carol = Witness::start(&server, "carol", OFTEN);
    carol.wait_for_answer_of(&first);
    let newcomer = Xtls::with_key(&server, "carol");
    let newest = newcomer.listen_on(&[]);
    // A presence that is still on its way when its leader stops may be lost.
    let sent = sends(&alice, &newcomer, "first");
    assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", newest.log(), first.component.log());
    first.component.signal("TERM");
    second.wait_for_lead(1);
    assert_eq!(first.component.wait(BOUND), 0, "{}", first.component.log());
    second.wait_until("ready\n");
    carol.wait_for_answer_of(&second);
    let log = second.component.log();
    assert!(!log.contains("silent"), "{log}");
    let ports = [&first, &second].map(|instance| instance.component.socks5);
    assert_eq!(leaders(&[&carol]), ports, "{log}");
    let is_refused = |told: &Told| matches!(told.answer, Answer::Error(_));
    assert!(!carol.answers().iter().any(is_refused), "{:?}", carol.answers());
    drop(carol);
    let sent = sends(&alice, &newcomer, "newest");
    assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", newest.log(), second.component.log());

    // A revocation by way of one is in force at the other, which leads.
    first.component.start_again();
    first.wait_until("another one leads");
    let sent = sends(&alice, &bob, "both");
    assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", logs(), second.component.log());
    let keys = alice.run(["keys", "--json"]);
    let key: serde_json::Value = serde_json::from_str(keys.stdout.lines().next().unwrap()).unwrap();
    let revoked = first.component.command(["keys", "revoke", key["id"].as_str().unwrap()]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    let refused = sends(&alice, &bob, "revoked");
    assert!(refused.code != 0 && refused.stderr.contains("revoked"), "{refused:?}");

    // The one that leads dies: the users of its sessions are told, and those that were reachable are.
    let mut open = Script::start("terminated.py", &server, json!({}));
    open.wait_for("\"open\": true");
    second.component.signal("KILL");
    second.component.wait(BOUND);
    first.wait_for_lead(1);
    let report = open.report();
    for side in ["initiator", "responder"] {
        assert_eq!(report[side], "gone text: The service was restarted", "{report}");
    }
    let refused = sends(&alice, &bob, "again");
    assert!(refused.code != 0 && refused.stderr.contains("revoked"), "{refused:?}");

    // The one that leads loses its link: it yields, and its SOCKS5 streams go on.
    second.component.start_again();
    second.wait_until("another one leads");
    let proxy = json!(["127.0.0.1", first.component.socks5]);
    let mut stream = Script::start("survives.py", &server, json!({ "proxy": proxy }));
    stream.wait_for("\"open\": true");
    link.turn(free_port());
    second.wait_for_lead(2);
    assert_eq!(first.metric("cluster_lead_changes_total{change=\"yielded\"}"), 1.0);
    link.turn(component);
    first.wait_until("another one leads");
    std::fs::write(stream.directory().join("go"), "").unwrap();
    let report = stream.report();
    assert_eq!(report["received"], report["sent"], "{report}");
    assert_eq!(second.metric("cluster_lead_changes_total{change=\"taken\"}"), 1.0);
}
