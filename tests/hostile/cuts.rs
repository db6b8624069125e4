//! A malicious broker that cuts a pipe, holds bytes back, and claims success in each user's name: neither end may
//! believe it. The unit tests of `crates/xtls/src/pipe.rs` try each record as the place of the cut; these tests use two
//! whole programs, both transports and both directions.

use std::time::Duration;

use serde_json::{Value, json};

use crate::session_peer::certificate_print;
use support::process::{Process, read};
use support::programs::{Script, Xtls};
use support::servers::{Kind, Server};
use support::{SECRET, random_file, sha256, wait_for};

const LONG: Duration = Duration::from_secs(120);
const SIZE: usize = 200_000;

/// Starts a pipe with this much input.
fn start(user: &Xtls, args: &[&str], size: usize) -> Process {
    let input = user.home().join("in");
    match size {
        0..100 => std::fs::write(input, vec![b'x'; size]).unwrap(),
        _ => random_file(&input, size),
    }
    let _old = std::fs::remove_file(user.home().join("pipe.log"));
    user.start_between(args, "in", "out")
}

/// Returns whether all of the first user's bytes have reached the second one.
fn arrived(from: &Xtls, to: &Xtls) -> bool {
    sha256(&from.home().join("in")) == sha256(&to.home().join("out"))
}

#[test]
fn a_broker_that_cuts_a_pipe_cannot_make_it_look_whole() {
    let server = Server::start(Kind::Prosody);
    let [alice, bob] = ["alice", "bob"].map(|user| {
        let user = Xtls::login(&server, user);
        assert_eq!(user.run(["keygen"]).code, 0);
        user
    });
    // The amounts that each side sends, whose bytes are cut and where, and whether the other side's are held.
    let cases = [
        ("s5b", [SIZE, 70_000], json!({"cuts": null})),
        ("ibb", [SIZE, 70_000], json!({"cuts": null})),
        ("s5b", [SIZE, 0], json!({"cuts": 0, "after": 50_000, "holds": true})),
        ("s5b", [0, SIZE], json!({"cuts": 1, "after": SIZE, "holds": true})),
        ("s5b", [SIZE, 12], json!({"cuts": 0, "after": SIZE, "holds": true})),
        ("ibb", [SIZE, 12], json!({"cuts": 0, "after": 50_000, "holds": true})),
        ("ibb", [0, SIZE], json!({"cuts": 1, "after": 50_000, "holds": false})),
    ];
    let sessions: Vec<Value> = cases
        .iter()
        .map(|(_, _, plan)| {
            let mut plan = plan.clone();
            plan["swap"] = "".into();
            plan
        })
        .collect();
    let address = server.component_address();
    let (host, port) = address.rsplit_once(':').unwrap();
    let settings = json!({
        "link": [host, port.parse::<u16>().unwrap()], "secret": SECRET, "vouch": true, "sessions": sessions,
        "prints": {alice.jid(): certificate_print(&alice), bob.jid(): certificate_print(&bob)},
    });
    let mut mallory = Script::start("cutter.py", &server, settings);
    mallory.wait_for("linked");
    for (transport, [says, answers], plan) in cases {
        let mut listening = start(&bob, &["pipe", "--listen", "--transport", transport], answers);
        wait_for(
            "listening",
            LONG,
            || listening.log(),
            || listening.log().contains("listening as"),
        );
        let mut calling = start(&alice, &["pipe", bob.jid(), "--transport", transport], says);
        let [caller, listener] = [&mut calling, &mut listening].map(|pipe| pipe.wait(LONG).code());
        let case = format!(
            "{transport}, {plan}: {caller:?}, {listener:?}\n{}\n{}\n{}",
            calling.log(),
            listening.log(),
            read(&mallory.directory().join("script.log"))
        );
        let whole = arrived(&alice, &bob) && arrived(&bob, &alice);
        // A failure that is not one of delivery has none of the statuses of a refusal either.
        let expected = if plan["cuts"].is_null() { Some(0) } else { Some(1) };
        assert_eq!(whole, plan["cuts"].is_null(), "{case}");
        assert_eq!((caller, listener), (expected, expected), "{case}");
    }
}
