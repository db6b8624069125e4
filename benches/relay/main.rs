//! Fingerpost's relay beside others that do the same: how fast, and at what cost of the processor.
//!
//! `cargo bench --bench relay` (or `make bench`) prints a table and writes it into docs/BENCHMARKS.md. All relays are
//! driven by the same load, one after the other in each round, so that a change of the machine's mood meets all of them;
//! `-- ROUNDS` takes another number of rounds. It runs in a network namespace of its own, with cubic or reno congestion
//! control, where it may make one.

#![allow(clippy::print_stdout, reason = "it is there to be read")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops and says where")]

#[path = "../../tests/support/mod.rs"]
mod support;

mod load;
mod relays;

use std::os::unix::process::CommandExt;
use std::process::Command;

use load::Figure;
use relays::Relay;

/// Pairs at one time.
const PAIRS: [usize; 3] = [1, 8, 64];
/// What is to be reached of direct throughput, for each number of pairs.
const GOAL: [f64; 3] = [0.85, 0.85, 0.75];

fn main() {
    enter_namespace();
    let rounds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(5);
    let relays = [
        Relay::direct(),
        Relay::fingerpost(),
        Relay::haproxy("HAProxy, splice", 0),
        Relay::haproxy("HAProxy, splice, 1 MiB pipes", 1 << 20),
        Relay::socat(),
    ];
    let mut measured = vec![vec![Vec::<Figure>::new(); PAIRS.len()]; relays.len()];
    for round in 1..=rounds {
        for (n, pairs) in PAIRS.into_iter().enumerate() {
            for (relay, figures) in relays.iter().zip(&mut measured) {
                figures[n].push(load::run(relay, pairs));
            }
        }
        println!("round {round} of {rounds}");
    }

    let mut table = format!(
        "One-way throughput as a part of a direct connection's in the same round: median (lowest to highest) of {rounds} \
         rounds of {} s. Processor seconds per GB are those of the relay, user and system.\n\n\
         {}\n\n| relay |",
        load::TIME.as_secs(),
        network()
    );
    for pairs in PAIRS {
        let plural = if pairs == 1 { "" } else { "s" };
        table.push_str(&format!(" {pairs} pair{plural} | s/GB |"));
    }
    table.push_str(&format!("\n|---|{}\n", "---|---|".repeat(PAIRS.len())));
    for (relay, figures) in relays.iter().zip(&measured) {
        table.push_str(&format!("| {} |", relay.name));
        for n in 0..PAIRS.len() {
            let ratios: Vec<f64> = figures[n]
                .iter()
                .zip(&measured[0][n])
                .map(|(figure, direct)| figure.bytes_per_second / direct.bytes_per_second)
                .collect();
            let costs: Vec<f64> = figures[n].iter().map(|figure| figure.seconds_per_gb).collect();
            let (low, median, high) = spread(ratios);
            if std::ptr::eq(relay, &relays[0]) {
                table.push_str(" 1 |");
            } else {
                let short = relay.is_ours() && median < GOAL[n];
                let mark = if short { format!(", short of {}", GOAL[n]) } else { String::new() };
                table.push_str(&format!(" {median:.2} ({low:.2} to {high:.2}{mark}) |"));
            }
            table.push_str(&format!(" {:.3} |", spread(costs).1));
        }
        table.push('\n');
    }
    let direct: Vec<String> = (0..PAIRS.len())
        .map(|n| {
            let rates = measured[0][n].iter().map(|figure| figure.bytes_per_second / 1e9).collect();
            format!("{:.2} GB/s with {}", spread(rates).1, PAIRS[n])
        })
        .collect();
    table.push_str(&format!("\nDirect: {}. ", direct.join(", ")));
    table.push_str("mod_proxy65 of Prosody and ejabberd, latency, setup rates and memory are not measured yet.\n");
    println!("\n{table}");
    support::report::write("relay", "Relay", &table);
}

/// The lowest, the median and the highest.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}

/// Starts this program again in a network namespace of its own, if that may be.
fn enter_namespace() {
    const INSIDE: &str = "FINGERPOST_BENCH_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        let _up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        // One that a loss-free loopback does not slow down; the first that may be had.
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

fn network() -> String {
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    format!("TCP congestion control: {}.", control.unwrap_or_default().trim())
}
