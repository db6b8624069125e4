//! Compares Fingerpost's relay with others: speed and processor time.
//!
//! `cargo bench --bench relay` (or `make bench`) prints the tables and writes them into docs/BENCHMARKS.md. The same
//! load drives all relays, one after the other in each round, so that a change of the machine's speed affects all of
//! them. `-- ROUNDS PART…` sets another number of rounds, or only some parts (`throughput`, `trips`, `idle`,
//! `exchange`, `inband`, `sessions`). It runs in a network namespace of its own, with cubic or reno congestion control, if it may
//! create one.

#![allow(clippy::print_stdout, reason = "the output is the purpose")]
#![allow(clippy::unwrap_used, reason = "a benchmark that fails stops and says where")]

mod exchange;
mod idle;
mod inband;
mod link;
mod load;
mod relays;
mod sessions;

use std::os::unix::process::CommandExt;
use std::process::Command;

use relays::Relay;
use support::servers::Kind;

/// The number of pairs, and the goal as a part of direct throughput.
const THROUGHPUT: [(usize, f64); 3] = [(1, 0.85), (8, 0.85), (64, 0.75)];
/// The goal for the processor time per GB, as a part of HAProxy's.
const COST: f64 = 0.5;
/// The goal for the time added to a direct round trip, in µs: median, 99th percentile.
const TRIP: (f64, f64) = (5.5, 7.0);
/// The number of idle pairs, and the goals for each: bytes of the process, descriptors.
const IDLE: [usize; 2] = [1_000, 5_000];
const IDLE_GOAL: (f64, f64) = (256.0, 2.0);
/// The goals for pairs set up per second, the processor time of each in µs, and requests answered per second.
const SETUPS: (f64, f64) = (17_000.0, 45.0);
const QUESTIONS: f64 = 250_000.0;
/// The sizes of in-band blocks, each with the goal for processor seconds per GB.
const BLOCKS: [(usize, f64); 2] = [(4_096, 1.0), (65_535, 0.4)];
/// The numbers of brokered sessions, and the goal for the bytes of each.
const SESSIONS: [usize; 2] = [1_000, 10_000];
const SESSION_GOAL: f64 = 8192.0;
/// How much more one of many may cost than one of few.
const FLAT: f64 = 1.2;
/// The goal for brokered in-band throughput, as a part of a direct stream through the same server.
const INBAND: f64 = 0.5;

fn main() {
    enter_namespace();
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();

    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let rounds: usize = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let parts: Vec<&String> = args.iter().filter(|arg| arg.parse::<usize>().is_err()).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| *wanted == part);

    let relays = [
        Relay::direct(),
        Relay::fingerpost(),
        Relay::haproxy("HAProxy, splice", 0),
        Relay::haproxy("HAProxy, splice, 1 MiB pipes", 1 << 20),
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
    let tail =
        format!("{} {} *Short of* marks what has not reached its goal.\n", network(), peers());
    let write = |part: &str, title: &str, how: &str, text: String| {
        println!("\n{title}\n{text}");
        support::report::write(part, title, &format!("{how} {tail}{text}"));
    };
    if wanted("throughput") {
        write("throughput", "Throughput", &repeated, throughput(&relays, rounds));
    }
    if wanted("trips") {
        write("trips", "Round trips", &repeated, trips(&relays, rounds));
    }
    if wanted("idle") {
        write("idle", "Idle pairs", once, idle_pairs(&relays));
    }
    if wanted("exchange") {
        write("exchange", "Exchanges", &repeated, exchanges(&relays, rounds));
    }
    if wanted("inband") {
        write("inband", "In-band bytestreams", &repeated, in_band(&relays[1], rounds));
    }
    if wanted("sessions") {
        write("sessions", "Brokered sessions", once, brokered(&relays[1]));
    }
}

fn throughput(relays: &[Relay], rounds: usize) -> String {
    let mut measured = vec![vec![Vec::<load::Figure>::new(); THROUGHPUT.len()]; relays.len()];
    for round in 1..=rounds {
        for (n, (pairs, _)) in THROUGHPUT.into_iter().enumerate() {
            for (relay, figures) in relays.iter().zip(&mut measured) {
                figures[n].push(load::run(relay, pairs));
            }
        }
        println!("throughput: round {round} of {rounds}");
    }
    let mut text = format!(
        "\nThroughput in one direction, all pairs together, divided by that of direct connections in the same round; \
         {} s per measurement. Processor seconds per GB are those of the relay, user and system.\n\n| relay |",
        load::TIME.as_secs()
    );
    for (pairs, _) in THROUGHPUT {
        let plural = if pairs == 1 { "" } else { "s" };
        text.push_str(&format!(" {pairs} pair{plural} | s/GB |"));
    }
    text.push_str(&format!("\n|---|{}\n", "---|---|".repeat(THROUGHPUT.len())));
    let cost =
        |figures: &[load::Figure]| spread(figures.iter().map(|figure| figure.seconds_per_gb)).1;
    let haproxy = relays.iter().position(|relay| relay.name == "HAProxy, splice").unwrap();
    for (relay, figures) in relays.iter().zip(&measured).skip(1) {
        text.push_str(&format!("| {} |", relay.name));
        for (n, (_, goal)) in THROUGHPUT.into_iter().enumerate() {
            let ratios = figures[n].iter().zip(&measured[0][n]);
            let (low, median, high) = spread(
                ratios.map(|(figure, direct)| figure.bytes_per_second / direct.bytes_per_second),
            );
            let short = at_least(relay, median, goal);
            let (spent, most) = (cost(&figures[n]), cost(&measured[haproxy][n]) * COST);
            let costly = at_most(relay, spent, most);
            text.push_str(&format!(
                " {median:.2} ({low:.2} to {high:.2}){short} | {spent:.3}{costly} |"
            ));
        }
        text.push('\n');
    }
    let direct = THROUGHPUT.iter().zip(&measured[0]).map(|((pairs, _), figures)| {
        let rate = spread(figures.iter().map(|figure| figure.bytes_per_second / 1e9)).1;
        format!("{rate:.2} GB/s with {pairs}")
    });
    text.push_str(&format!("\nDirect: {}.\n", direct.collect::<Vec<_>>().join(", ")));
    text
}

fn trips(relays: &[Relay], rounds: usize) -> String {
    let mut measured = vec![Vec::new(); relays.len()];
    for round in 1..=rounds {
        for (relay, figures) in relays.iter().zip(&mut measured) {
            figures.push(load::trips(relay));
        }
        println!("trips: round {round} of {rounds}");
    }
    let mut text =
        "\nOne byte there and back, one pair, all on one core: what the relay adds to a \
                    direct trip of the same round, µs.\n\n| relay | p50 | p99 |\n|---|---|---|\n"
            .to_owned();
    for (relay, figures) in relays.iter().zip(&measured).skip(1) {
        let added = || figures.iter().zip(&measured[0]);
        let p50 = spread(added().map(|(figure, direct)| figure.0 - direct.0));
        let p99 = spread(added().map(|(figure, direct)| figure.1 - direct.1));
        text.push_str(&format!(
            "| {} | {:.1} ({:.1} to {:.1}){} | {:.1} ({:.1} to {:.1}){} |\n",
            relay.name,
            p50.1,
            p50.0,
            p50.2,
            at_most(relay, p50.1, TRIP.0),
            p99.1,
            p99.0,
            p99.2,
            at_most(relay, p99.1, TRIP.1),
        ));
    }
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

fn exchanges(relays: &[Relay], rounds: usize) -> String {
    let proxies: Vec<&Relay> = relays.iter().filter(|relay| relay.link().is_some()).collect();
    let mut measured = vec![(Vec::new(), Vec::new()); proxies.len()];
    for round in 1..=rounds {
        for (relay, figures) in proxies.iter().zip(&mut measured) {
            figures.0.push(exchange::pairs(relay));
            figures.1.push(exchange::questions(relay));
        }
        println!("exchange: round {round} of {rounds}");
    }
    let mut text = "\nPairs set up (two connections, their SOCKS5 handshakes, activation) and disco#info \
                    answered, with the relay's processor time for each. The load generator talks to Fingerpost \
                    directly. It reaches mod_proxy65 through the XMPP server, so those figures include the server's \
                    work.\n\n\
                    | relay | pairs/s | µs | disco#info/s | µs |\n|---|---|---|---|---|\n"
        .to_owned();
    for (relay, (pairs, questions)) in proxies.iter().zip(&measured) {
        let rate =
            |figures: &[exchange::Figure]| spread(figures.iter().map(|figure| figure.per_second));
        let micros =
            |figures: &[exchange::Figure]| spread(figures.iter().map(|figure| figure.micros)).1;
        let (low, median, high) = rate(pairs);
        let (least, middle, most) = rate(questions);
        text.push_str(&format!(
            "| {} | {median:.0} ({low:.0} to {high:.0}){} | {:.0}{} | {middle:.0} ({least:.0} to {most:.0}){} | {:.1} |\n",
            relay.name,
            at_least(relay, median, SETUPS.0),
            micros(pairs),
            at_most(relay, micros(pairs), SETUPS.1),
            at_least(relay, middle, QUESTIONS),
            micros(questions),
        ));
    }
    text
}

fn in_band(alone: &Relay, rounds: usize) -> String {
    let servers = [
        Relay::fingerpost_at("Fingerpost at Prosody", Kind::Prosody),
        Relay::fingerpost_at("Fingerpost at ejabberd", Kind::Ejabberd),
    ];
    let mut text = "\nOne stream with up to 80 KiB in flight. *Of straight* is the speed through the component, divided \
                    by that of a stream from user to user through the same server. Processor seconds are the \
                    component's.\n\n\
                    | | block | MB/s | of straight | s/GB |\n|---|---|---|---|---|\n"
        .to_owned();
    for (block, goal) in BLOCKS {
        let mut figures = vec![Vec::new(); 1 + servers.len()];
        let mut ratios = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            figures[0].push(inband::run(alone, block, true));
            for (n, server) in servers.iter().enumerate() {
                let straight = inband::run(server, block, false);
                let brokered = inband::run(server, block, true);
                ratios[n].push(brokered.bytes_per_second / straight.bytes_per_second);
                figures[n + 1].push(brokered);
            }
        }
        println!("inband: blocks of {block}");
        for (n, relay) in std::iter::once(alone).chain(&servers).enumerate() {
            let (low, rate, high) =
                spread(figures[n].iter().map(|figure| figure.bytes_per_second / 1e6));
            let cost = spread(figures[n].iter().map(|figure| figure.seconds_per_gb)).1;
            let part = match n.checked_sub(1).map(|n| spread(ratios[n].iter().copied())) {
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

/// Returns a mark if ours falls short of a goal.
fn at_least(relay: &Relay, value: f64, goal: f64) -> String {
    if relay.is_ours() && value < goal { format!(", short of {goal}") } else { String::new() }
}

/// Returns a mark if ours exceeds a goal.
fn at_most(relay: &Relay, value: f64, goal: f64) -> String {
    if relay.is_ours() && value > goal {
        let places = if goal < 1.0 { 3 } else { 1 };
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

/// Restarts this program in a network namespace of its own, if that is permitted.
fn enter_namespace() {
    const INSIDE: &str = "FINGERPOST_BENCH_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        let _up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        // The first available one that a loss-free loopback does not slow down.
        let set =
            |name: &str| std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name).is_ok();
        let _set = ["cubic", "reno"].into_iter().find(|name| set(name));
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

/// Returns the versions of the other relays.
fn peers() -> String {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version}, ", "haproxy", "socat", "prosody", "ejabberd"])
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    format!("Others: {}.", text.unwrap_or_default().trim_end_matches(", "))
}

fn network() -> String {
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    format!("TCP congestion control: {}.", control.unwrap_or_default().trim())
}
