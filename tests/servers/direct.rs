//! Direct paths, as far as the component has to do with them.

use serde_json::{Value, json};
use support::{
    PATIENCE,
    programs::{Component, Options, page, script},
    servers::{Kind, Server},
    wait_for,
};

/// Checks what does not depend on the configuration: nobody learns the address of another user.
fn assert_tells_nobody_else(report: &Value) {
    let unknown = json!(["item-not-found", "There is no such bytestream"]);
    for part in ["not theirs", "unknown", "after the end"] {
        for told in report[part].as_array().unwrap() {
            assert_eq!(*told, unknown, "{part}: {report}");
        }
    }
    assert_eq!(report["path"], json!(["direct", "1000"]), "{report}");
}

#[test]
fn the_operator_decides_about_direct_paths_and_each_user_learns_only_its_own_address() {
    let server = Server::start(Kind::Prosody);
    let (options, port) = Options::default().with_pages();
    let component = Component::start(&server, &options);
    let counted = || {
        let page = page(port, "/metrics").unwrap();
        ["sessions_direct_total", "direct_bytes_total"].map(|name| {
            let name = format!("fingerpost_{name} ");
            page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
        })
    };
    assert_eq!(counted(), ["0", "0"]);
    let report = script("direct_paths.py", &server, json!({}));
    assert_eq!(report["asked"], json!([true, true]), "{report}");
    assert_eq!(report["announced"], true, "{report}");
    for user in ["alice", "bob"] {
        assert_eq!(report[user][1], true, "its own end of the connection: {report}");
        assert_eq!(report[user][0][0], true, "{report}");
    }
    assert_tells_nobody_else(&report);
    assert_eq!(counted(), ["1", "1000"]);

    let config = std::fs::read_to_string(component.config()).unwrap();
    std::fs::write(component.config(), format!("{config}\n[broker]\ndirect = \"deny\"\n")).unwrap();
    component.signal("HUP");
    let reloaded = || component.log().contains("configuration reloaded");
    wait_for("the reload", PATIENCE, || component.log(), reloaded);
    let report = script("direct_paths.py", &server, json!({}));
    assert_eq!(report["asked"], json!([false, false]), "{report}");
    assert_eq!(report["announced"], false, "{report}");
    for user in ["alice", "bob"] {
        assert_eq!(report[user][0][0], "item-not-found", "{report}");
    }
    assert_tells_nobody_else(&report);
    assert_eq!(counted(), ["1", "1000"]);
}

#[test]
fn behind_a_load_balancer_the_observed_address_is_the_clients() {
    let server = Server::start(Kind::Prosody);
    let env = vec![("FINGERPOST_SOCKS5__PROXY_PROTOCOL", "true".to_owned())];
    let _component = Component::start(&server, &Options { env, ..Options::default() });
    let header = "PROXY TCP4 192.0.2.7 198.51.100.1 4711 7625\r\n";
    let report = script("direct_paths.py", &server, json!({ "header": header }));
    for user in ["alice", "bob"] {
        assert_eq!(report[user][0], json!([true, "192.0.2.7", 4711]), "{report}");
    }
    // The balancer does not tell: its own address is nobody's.
    let report = script("direct_paths.py", &server, json!({ "header": "PROXY UNKNOWN\r\n" }));
    for user in ["alice", "bob"] {
        assert_eq!(report[user][0][0], "item-not-found", "{report}");
    }
}
