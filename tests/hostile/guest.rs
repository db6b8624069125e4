//! A callee that may not use the service: within its session it may ask what a session needs, and nothing else.

use serde_json::{Value, json};

use support::{
    programs::{Component, Options, script},
    servers::{Kind, Server},
};

#[test]
fn a_callee_that_is_no_user_may_ask_what_its_session_needs_while_it_lasts() {
    let server = Server::start(Kind::Prosody);
    let more = "[access]\nusers = [\"alice@example.test\"]\n[limits]\nrequests_per_second = 1000\n";
    let component =
        Component::start(&server, &Options { more: more.to_owned(), ..Options::default() });
    let report = script("guest.py", &server, json!({}));
    let log = component.log();
    let answers = |may: &[&str]| -> Value {
        let answer = |name: &str| if may.contains(&name) { "result" } else { "forbidden" };
        json!({
            "component": {
                "ping": answer("ping"), "info": answer("info"), "offer": "forbidden",
                "streamhost": answer("streamhost"), "version": "forbidden", "keys": "forbidden",
            },
            "peer": {
                "ping": answer("ping"), "info": answer("info"), "offer": answer("offer"),
                "version": "forbidden",
            },
        })
    };
    assert_eq!(report["within"], answers(&["ping", "info", "offer", "streamhost"]), "{log}");
    for who in ["before", "stranger", "after"] {
        assert_eq!(report[who], answers(&[]), "{who}\n{log}");
    }
    assert_eq!(report["late"], "unknown-session", "{report}\n{log}");
    assert_eq!(report["stranger's"], "forbidden", "{report}\n{log}");
    assert_eq!(report["guessed"], "forbidden", "{report}\n{log}");
}
