//! Compares Fingerpost's relay with others: speed and processor time.
//!
//! `cargo bench --bench relay` (or `make bench`) prints the tables and writes them into docs/BENCHMARKS.md. The same
//! load drives all relays, one after the other in each round, so that a change of the machine's speed affects all of
//! them. `-- ROUNDS PART…` sets another number of rounds, or only some parts (`throughput`, `trips`, `idle`,
//! `exchange`, `scale`, `inband`, `sessions`). It runs in a network namespace of its own, if it may create one. There it measures
//! throughput with cubic and with reno congestion control, and everything else with cubic; `-- cubic` and `-- reno`
//! choose one of them.

#![allow(clippy::print_stdout, reason = "the output is the purpose")]
#![allow(clippy::unwrap_used, reason = "a benchmark that fails stops and says where")]

mod bound;
mod exchange;
mod idle;
mod inband;
mod link;
mod load;
mod relays;
mod scale;
mod sessions;

use std::os::unix::process::CommandExt;
use std::process::Command;

use bound::Work;
use relays::Relay;
use support::servers::Kind;

/// The numbers of pairs.
const THROUGHPUT: [usize; 3] = [1, 8, 64];
/// The goals for throughput, as a part of HAProxy's with 1 MiB pipes, and for the processor time per GB, as a part of
/// HAProxy's with its default pipes.
const FASTER: f64 = 1.05;
const COST: f64 = 0.45;
/// The goal for the time added to a round trip, as a part of what HAProxy adds.
const TRIP: f64 = 0.6;
/// The number of idle pairs, and the goals for each: bytes of the process, descriptors.
const IDLE: [usize; 2] = [1_000, 5_000];
const IDLE_GOAL: (f64, f64) = (256.0, 2.0);
/// The goals for pairs set up per second, as a part of direct connections, and for the processor time of each in µs.
const SETUPS: (f64, f64) = (0.6, 45.0);
/// The goal for requests answered per second, as a part of what a constant answer allows.
const QUESTIONS: f64 = 0.9;
/// The goal for the cost of one of many, as a part of the least cost of one of fewer.
const FLAT: f64 = 1.2;
/// The sizes of in-band blocks, each with the goal for processor seconds per GB.
const BLOCKS: [(usize, f64); 2] = [(4_096, 1.0), (65_535, 0.4)];
/// The numbers of brokered sessions, and the goal for the bytes of each.
const SESSIONS: [usize; 2] = [1_000, 10_000];
const SESSION_GOAL: f64 = 8192.0;
/// The goal for brokered in-band throughput, as a part of a direct stream through the same server.
const INBAND: f64 = 0.5;
/// Relays that are compared with each other.
const OURS: &str = "Fingerpost";
const HAPROXY: &str = "HAProxy, splice";
/// What is out of reach, for throughput, round trips, pairs set up and in-band bytestreams.
const BOUND: &str = "*System calls alone*";
/// The same for in-band bytestreams, with the blocks read and written.
const BOUND_BASE64: &str = "*System calls and base64*";
/// The name of the program that does the least with several in-band blocks at a time.
const BOUND_BATCH: &str = "*System calls alone, after 0.2 ms*";
const HAPROXY_LARGE: &str = "HAProxy, splice, 1 MiB pipes";

fn main() {
    bound::run_if_asked();
    enter_namespace();
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();

    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let rounds: usize = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let parts: Vec<&String> = args.iter().filter(|arg| arg.parse::<usize>().is_err()).collect();
    let is_control = |part: &str| CONTROLS.contains(&part);
    let (controls, parts): (Vec<&String>, Vec<&String>) =
        parts.into_iter().partition(|part| is_control(part));
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| *wanted == part);
    let chosen = |control: &str| controls.is_empty() || controls.iter().any(|one| *one == control);
    let controls: Vec<&str> = CONTROLS.into_iter().filter(|control| chosen(control)).collect();
    use_control(controls[0]);

    let relays = [
        Relay::direct(),
        Relay::fingerpost(),
        Relay::haproxy(HAPROXY, 0),
        Relay::haproxy(HAPROXY_LARGE, 1 << 20),
        Relay::socat(),
        Relay::mod_proxy65("Prosody mod_proxy65", Kind::Prosody),
        Relay::mod_proxy65("ejabberd mod_proxy65", Kind::Ejabberd),
    ];
    let repeated = match rounds {
        1 => "Measured in one round, so the ranges in parentheses say nothing.".to_owned(),
        _ => format!(
            "Medians (lowest to highest) of {rounds} rounds. Each round measures every relay in turn."
        ),
    };
    let once =
        "This table is measured once, because the allocator does not always return freed memory.";
    let once_each = "Each figure is measured once.";
    let peers = peers();
    let write = |part: &str, title: &str, how: String, text: String| {
        println!("\n{title}\n{text}");
        let tail = format!("{peers} *Short of* marks what has not reached its goal.\n");
        support::report::write(part, title, &format!("{how} {tail}{text}"));
    };
    if wanted("throughput") {
        let bound = Relay::splice_bound();
        let with_bound: Vec<&Relay> = relays.iter().chain([&bound]).collect();
        let mut text = String::new();
        for control in &controls {
            use_control(control);
            text.push_str(&throughput(&with_bound, rounds));
        }
        use_control(controls[0]);
        write("throughput", "Throughput", repeated.clone(), text);
    }
    let write = |part: &str, title: &str, how: &str, text: String| {
        write(part, title, format!("{how} TCP congestion control: {}.", control()), text);
    };
    let bound = Relay::bound();
    let with_bound: Vec<&Relay> = relays.iter().chain([&bound]).collect();
    if wanted("trips") {
        write("trips", "Round trips", &repeated, trips(&with_bound, rounds));
    }
    if wanted("idle") {
        write("idle", "Idle pairs", once, idle_pairs(&relays));
    }
    if wanted("exchange") {
        write("exchange", "Exchanges", &repeated, exchanges(&with_bound, rounds));
    }
    if wanted("scale") {
        write("scale", "Scale", once_each, scale_tables(&relays));
    }
    if wanted("inband") {
        write("inband", "In-band bytestreams", &repeated, in_band(&relays[1], rounds));
    }
    if wanted("sessions") {
        write("sessions", "Brokered sessions", once, brokered(&relays[1]));
    }
}

fn throughput(relays: &[&Relay], rounds: usize) -> String {
    let mut measured = vec![vec![Vec::<load::Figure>::new(); THROUGHPUT.len()]; relays.len()];
    for round in 1..=rounds {
        for (n, pairs) in THROUGHPUT.into_iter().enumerate() {
            for (relay, figures) in relays.iter().zip(&mut measured) {
                figures[n].push(load::run(relay, pairs));
            }
        }
        println!("throughput: round {round} of {rounds}");
    }
    let mut text = format!(
        "\n### {}\n\nThroughput in one direction, all pairs together, divided by that of direct connections in the same \
         round; {} s per measurement. Processor seconds per GB are those of the relay, user and system. \
         The last relay makes only the system calls that each relay with splice(2) needs.\n\n| relay |",
        control(),
        load::TIME.as_secs()
    );
    for pairs in THROUGHPUT {
        let plural = if pairs == 1 { "" } else { "s" };
        text.push_str(&format!(" {pairs} pair{plural} | s/GB |"));
    }
    text.push_str(&format!("\n|---|{}\n", "---|---|".repeat(THROUGHPUT.len())));
    let ratios = |of: &[load::Figure], by: &[load::Figure], what: fn(&load::Figure) -> f64| {
        spread(of.iter().zip(by).map(|(of, by)| what(of) / what(by)))
    };
    let rate = |figure: &load::Figure| figure.bytes_per_second;
    let cost = |figure: &load::Figure| figure.seconds_per_gb;
    for (relay, figures) in relays.iter().zip(&measured).skip(1) {
        text.push_str(&format!("| {} |", relay.name));
        for (figures, direct) in figures.iter().zip(&measured[0]) {
            let (low, median, high) = ratios(figures, direct, rate);
            let spent = spread(figures.iter().map(cost)).1;
            text.push_str(&format!(" {median:.2} ({low:.2} to {high:.2}) | {spent:.3} |"));
        }
        text.push('\n');
    }
    let direct = THROUGHPUT.iter().zip(&measured[0]).map(|(pairs, figures)| {
        let rate = spread(figures.iter().map(|figure| figure.bytes_per_second / 1e9)).1;
        format!("{rate:.2} GB/s with {pairs}")
    });
    text.push_str(&format!(
        "\nDirect: {}.\n\nFingerpost as a part of HAProxy, in each round:\n\n\
         | pairs | throughput, by 1 MiB pipes | the same of system calls alone | s/GB, by default pipes |\n|---|---|---|---|\n",
        direct.collect::<Vec<_>>().join(", ")
    ));
    let of = |name| &measured[number(relays, name)];
    let (ours, small, large, bound) = (of(OURS), of(HAPROXY), of(HAPROXY_LARGE), of(BOUND));
    for (n, pairs) in THROUGHPUT.into_iter().enumerate() {
        let (slow, faster, fast) = ratios(&ours[n], &large[n], rate);
        let (least, spent, most) = ratios(&ours[n], &small[n], cost);
        let (lower, bound, upper) = ratios(&bound[n], &large[n], rate);
        text.push_str(&format!(
            "| {pairs} | {faster:.2} ({slow:.2} to {fast:.2}){} | {bound:.2} ({lower:.2} to {upper:.2}) | {spent:.2} ({least:.2} to {most:.2}){} |\n",
            at_least(relays[1], faster, FASTER),
            at_most(relays[1], spent, COST),
        ));
    }
    text
}

fn trips(relays: &[&Relay], rounds: usize) -> String {
    let mut measured = vec![Vec::new(); relays.len()];
    for round in 1..=rounds {
        for (relay, figures) in relays.iter().zip(&mut measured) {
            figures.push(load::trips(relay));
        }
        println!("trips: round {round} of {rounds}");
    }
    let mut text =
        "\nOne byte there and back, one pair, all on one core: what the relay adds to a \
                    direct trip of the same round, µs. The last relay makes only the system calls that each relay on epoll(7) \
                    needs: epoll_wait(2), recv(2), send(2).\n\n| relay | p50 | p99 |\n|---|---|---|\n"
            .to_owned();
    for (relay, figures) in relays.iter().zip(&measured).skip(1) {
        let added = || figures.iter().zip(&measured[0]);
        let p50 = spread(added().map(|(figure, direct)| figure.0 - direct.0));
        let p99 = spread(added().map(|(figure, direct)| figure.1 - direct.1));
        text.push_str(&format!(
            "| {} | {:.1} ({:.1} to {:.1}) | {:.1} ({:.1} to {:.1}) |\n",
            relay.name, p50.1, p50.0, p50.2, p99.1, p99.0, p99.2,
        ));
    }
    let (ours, theirs) = (&measured[number(relays, OURS)], &measured[number(relays, HAPROXY)]);
    let part = |what: fn(&(f64, f64)) -> f64| {
        let rounds = ours.iter().zip(theirs).zip(&measured[0]);
        let (low, median, high) = spread(rounds.map(|((ours, theirs), direct)| {
            (what(ours) - what(direct)) / (what(theirs) - what(direct))
        }));
        let mark = at_most(relays[1], median, TRIP);
        format!("{median:.2} ({low:.2} to {high:.2}){mark}")
    };
    text.push_str(&format!(
        "| *Fingerpost as a part of HAProxy, splice, in each round* | {} | {} |\n",
        part(|trip| trip.0),
        part(|trip| trip.1)
    ));
    let direct =
        (spread(measured[0].iter().map(|d| d.0)).1, spread(measured[0].iter().map(|d| d.1)).1);
    text.push_str(&format!("\nDirect: {:.1} and {:.1} µs.\n", direct.0, direct.1));
    text
}

fn idle_pairs(relays: &[Relay]) -> String {
    let mut text =
        "\nBytes for each pair that is connected and does nothing: resident memory of the \
                    relay, and the kernel's slabs beyond those of a direct pair.\n\n\
                    | relay | pairs | process | kernel | descriptors |\n|---|---|---|---|---|\n"
            .to_owned();
    for pairs in IDLE {
        let direct = idle::run(&relays[0], pairs);
        // A process for each connection is not the subject of this measurement.
        for relay in relays.iter().skip(1).filter(|relay| relay.name != "socat") {
            let figure = idle::run(relay, pairs);
            text.push_str(&format!(
                "| {} | {pairs} | {:.0}{} | {:.0} | {:.1}{} |\n",
                relay.name,
                figure.user,
                at_most(relay, figure.user, IDLE_GOAL.0),
                figure.kernel - direct.kernel,
                figure.descriptors,
                at_most(relay, figure.descriptors, IDLE_GOAL.1 + 0.05),
            ));
        }
        println!("idle: {pairs} pairs");
    }
    text
}

fn exchanges(relays: &[&Relay], rounds: usize) -> String {
    // A process for each connection is not the subject of this measurement.
    let relays: Vec<&Relay> =
        relays.iter().copied().filter(|relay| relay.name != "socat").collect();
    let constant = relays[number(&relays, OURS)].to_constant();
    let mut pairs = vec![Vec::new(); relays.len()];
    let mut questions = vec![Vec::new(); relays.len()];
    let mut constants = Vec::new();
    for round in 1..=rounds {
        constants.push(exchange::questions(&constant));
        for (n, relay) in relays.iter().enumerate() {
            pairs[n].push(exchange::pairs(relay));
            if relay.link().is_some() {
                questions[n].push(exchange::questions(relay));
            }
        }
        println!("exchange: round {round} of {rounds}");
    }
    let mut text =
        "\nPairs set up (two connections, their SOCKS5 handshakes, activation), with the relay's processor time for each. \
         HAProxy has no handshakes and no activation, and the last relay has nothing but accept(2), connect(2), \
         epoll_ctl(2) and close(2). *Of direct* is the rate, divided by that of as many direct \
         connections (two for a pair) in the same round: connected, accepted and closed, and no byte sent. \
         The load generator talks to Fingerpost directly. It reaches mod_proxy65 through the XMPP server, so those figures \
         include the server's work.\n\n| relay | pairs/s | of direct | µs |\n|---|---|---|---|\n"
        .to_owned();
    let rate = |figure: &exchange::Figure| figure.per_second;
    let micros =
        |figures: &[exchange::Figure]| spread(figures.iter().map(|figure| figure.micros)).1;
    let parts = |of: &[exchange::Figure], by: &[exchange::Figure]| {
        spread(of.iter().zip(by).map(|(of, by)| rate(of) / rate(by)))
    };
    for (relay, figures) in relays.iter().zip(&pairs).skip(1) {
        let (slow, median, fast) = spread(figures.iter().map(rate));
        let (low, part, high) = parts(figures, &pairs[0]);
        text.push_str(&format!(
            "| {} | {median:.0} ({slow:.0} to {fast:.0}) | {part:.2} ({low:.2} to {high:.2}){} | {:.0}{} |\n",
            relay.name,
            at_least(relay, part, SETUPS.0),
            micros(figures),
            at_most(relay, micros(figures), SETUPS.1),
        ));
    }
    text.push_str(&format!(
        "\nDirect: {:.0} pairs of connections per second.\n\n\
         disco#info answered. *Of constant* is the rate, divided by that of a program in the same round that reads as many \
         bytes as a request has, and writes the answer of Fingerpost as one constant.\n\n\
         | relay | disco#info/s | of constant | µs |\n|---|---|---|---|\n",
        spread(pairs[0].iter().map(rate)).1
    ));
    for (relay, figures) in relays.iter().zip(&questions).filter(|(_, all)| !all.is_empty()) {
        let (slow, median, fast) = spread(figures.iter().map(rate));
        let (low, part, high) = parts(figures, &constants);
        text.push_str(&format!(
            "| {} | {median:.0} ({slow:.0} to {fast:.0}) | {part:.2} ({low:.2} to {high:.2}){} | {:.2} |\n",
            relay.name,
            at_least(relay, part, QUESTIONS),
            micros(figures),
        ));
    }
    text.push_str(&format!(
        "\nConstant: {:.0} per second.\n",
        spread(constants.iter().map(rate)).1
    ));
    text
}

fn scale_tables(relays: &[Relay]) -> String {
    let of = |name| &relays[number(relays, name)];
    let mut text = format!(
        "\nThe relay's processor time for each of many: the goal is that none costs more than {FLAT} times what one of fewer \
         costs.\n"
    );
    let all = [of(OURS), of(HAPROXY), of(HAPROXY_LARGE)];
    text.push_str("\n| busy pairs |");
    all.iter().for_each(|relay| text.push_str(&format!(" {}, µs |", relay.name)));
    text.push_str("\n|---|---|---|---|\n");
    let busy: Vec<Vec<f64>> = all.iter().map(|relay| scale::busy(relay)).collect();
    for (n, pairs) in scale::BUSY.iter().enumerate() {
        text.push_str(&format!("| {pairs} |"));
        for (relay, figures) in all.iter().zip(&busy) {
            text.push_str(&format!(" {:.2}{} |", figures[n], steep(relay, figures, n)));
        }
        text.push('\n');
    }
    println!("scale: busy pairs");
    let (idle, figure) = scale::beside_idle(of(OURS));
    text.push_str(&format!(
        "\nA message of {} bytes crosses one pair after the other, {} pairs at once. Beside {idle} idle pairs, a message of \
         Fingerpost takes {figure:.2} µs.\n",
        scale::MESSAGE,
        scale::AT_ONCE,
    ));
    text.push_str(
        "\n| users reachable | kept | first presence, µs | presence, µs | ping, µs | lookup, µs |\n|---|---|---|---|---|---|\n",
    );
    let users = scale::users(of(OURS));
    for (n, row) in users.iter().enumerate() {
        // Of a few users, the clock of processor time shows nothing.
        let first = if row.users < 1_000 { String::new() } else { format!("{:.1}", row.first) };
        text.push_str(&format!("| {} | {} | {first} |", row.users, row.kept));
        for column in 0..row.micros.len() {
            let figures: Vec<f64> = users.iter().map(|row| row.micros[column]).collect();
            text.push_str(&format!(" {:.1}{} |", figures[n], steep(of(OURS), &figures, n)));
        }
        text.push('\n');
    }
    println!("scale: users");
    text.push_str(
        "\nEach stanza is from or for another user. The first presence of a user is written to the database, with others, \
         a second later. A presence repeats that its user is reachable, a ping is for the component, and a lookup is a disco#info request to a bare proxied address: two requests to the resource, and three \
         answers. *Kept* is limited by the memory for reachable users, 50 MiB.\n",
    );
    text
}

/// Returns a mark if one of our figures is not flat.
fn steep(relay: &Relay, figures: &[f64], n: usize) -> String {
    let least = figures[..=n].iter().copied().fold(f64::INFINITY, f64::min);
    at_most(relay, figures[n], FLAT * least)
}

fn in_band(alone: &Relay, rounds: usize) -> String {
    let servers = [
        Relay::fingerpost_at("Fingerpost at Prosody", Kind::Prosody),
        Relay::fingerpost_at("Fingerpost at ejabberd", Kind::Ejabberd),
    ];
    let bounds = [
        Relay::in_band_bound(BOUND_BASE64, Work::Base64),
        Relay::in_band_bound(BOUND, Work::Copy),
        Relay::in_band_bound(BOUND_BATCH, Work::CopyLater),
    ];
    let mut text = "\nOne stream with up to 80 KiB in flight. *Of straight* is the speed through the component, divided \
                    by that of a stream from user to user through the same server. Processor seconds are the \
                    component's. The last three programs only read stanzas and write them again, many in one system call, \
                    either with the blocks decoded and encoded or as they are. The last one waits for 0.2 ms before each \
                    read, so that several blocks have come.\n\n\
                    | | block | MB/s | of straight | s/GB |\n|---|---|---|---|---|\n"
        .to_owned();
    for (block, goal) in BLOCKS {
        let mut figures = vec![Vec::new(); 1 + servers.len() + bounds.len()];
        let mut ratios = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            figures[0].push(inband::run(alone, block, true));
            for (n, bound) in bounds.iter().enumerate() {
                figures[1 + servers.len() + n].push(inband::run(bound, block, false));
            }
            for (n, server) in servers.iter().enumerate() {
                let straight = inband::run(server, block, false);
                let brokered = inband::run(server, block, true);
                ratios[n].push(brokered.bytes_per_second / straight.bytes_per_second);
                figures[n + 1].push(brokered);
            }
        }
        println!("inband: blocks of {block}");
        for (n, relay) in std::iter::once(alone).chain(&servers).chain(&bounds).enumerate() {
            let (low, rate, high) =
                spread(figures[n].iter().map(|figure| figure.bytes_per_second / 1e6));
            let cost = spread(figures[n].iter().map(|figure| figure.seconds_per_gb)).1;
            let part = match n
                .checked_sub(1)
                .and_then(|n| ratios.get(n))
                .map(|of| spread(of.iter().copied()))
            {
                None => "".to_owned(),
                Some((low, median, high)) => {
                    format!(
                        "{median:.2} ({low:.2} to {high:.2}){}",
                        at_least(relay, median, INBAND)
                    )
                }
            };
            let costly = if n == 0 { at_most(relay, cost, goal) } else { String::new() };
            text.push_str(&format!(
                "| {} | {block} | {rate:.1} ({low:.1} to {high:.1}) | {part} | {cost:.2}{costly} |\n",
                relay.name
            ));
        }
    }
    text
}

fn brokered(relay: &Relay) -> String {
    let mut text = "\nSessions whose two legs are in-band, open and idle, each with two users of its own, in a process of \
                    their own: resident memory of each, and the processor time that set it up.\n\n\
                    | sessions | bytes | µs |\n|---|---|---|\n"
        .to_owned();
    let figures = SESSIONS.map(sessions::run);
    for (sessions, figure) in SESSIONS.into_iter().zip(figures) {
        text.push_str(&format!(
            "| {sessions} | {:.0}{} | {:.0}{} |\n",
            figure.bytes,
            at_most(relay, figure.bytes, SESSION_GOAL.min(figures[0].bytes * FLAT)),
            figure.micros,
            at_most(relay, figure.micros, figures[0].micros * FLAT),
        ));
    }
    text
}

/// Returns the place of a relay in a list.
fn number(relays: &[impl std::borrow::Borrow<Relay>], name: &str) -> usize {
    relays.iter().position(|relay| relay.borrow().name == name).unwrap()
}

/// Returns a mark if ours falls short of a goal.
fn at_least(relay: &Relay, value: f64, goal: f64) -> String {
    if relay.is_ours() && value < goal { format!(", short of {goal}") } else { String::new() }
}

/// Returns a mark if ours exceeds a goal.
fn at_most(relay: &Relay, value: f64, goal: f64) -> String {
    if relay.is_ours() && value > goal {
        let places = if goal < 1.0 { 2 } else { 1 };
        format!(", short of {goal:.places$}")
    } else {
        String::new()
    }
}

/// Returns the lowest, the median and the highest.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}

/// Set in the process that runs in a network namespace of its own.
const INSIDE: &str = "FINGERPOST_BENCH_NAMESPACE";
/// The algorithms of TCP congestion control that a loss-free loopback does not slow down.
const CONTROLS: [&str; 2] = ["cubic", "reno"];

/// Restarts this program in a network namespace of its own, if that is permitted.
fn enter_namespace() {
    if std::env::var_os(INSIDE).is_some() {
        let _up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        return;
    }
    if Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|done| done.success()) {
        let error = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(std::env::args().skip(1))
            .env(INSIDE, "1")
            .exec();
        panic!("unshare: {error}");
    }
}

/// Sets the congestion control of connections that begin from now on. A route may have one that a namespace may not
/// make its default.
fn use_control(control: &str) {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    for to in ["127.0.0.0/8", "127.0.0.1"] {
        let mut route = Command::new("ip");
        route.args(["route", "replace", "local", to, "dev", "lo", "table", "local"]);
        route.args(["proto", "kernel", "scope", "host", "src", "127.0.0.1", "congctl", control]);
        assert!(route.status().unwrap().success(), "{control}");
    }
}

/// Returns the congestion control of a new connection.
fn control() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let name = socket2::SockRef::from(&stream).tcp_congestion().unwrap();
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
}

/// Returns the versions of the other relays.
fn peers() -> String {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version}, ", "haproxy", "socat", "prosody", "ejabberd"])
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    format!("Others: {}.", text.unwrap_or_default().trim_end_matches(", "))
}
