//! Every dialect of an offer with every other, over every pair of legs, in both orders, on a real server; and the page
//! with the results.

use serde_json::json;
use support::programs::{Component, Options, script};
use support::root;
use support::servers::{Kind, Server};

const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- end of table -->";

/// With `FINGERPOST_WRITE_INTEROP` set, the table is written into the page; otherwise it must be there.
#[test]
fn every_dialect_meets_every_other_over_every_pair_of_legs_in_both_orders() {
    let server = Server::start(Kind::Prosody);
    let more = "[limits]\nrequests_per_second = 1000\nsessions_per_user = 500\nconnections_per_ip = 1000\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let report = script("interop.py", &server, json!({}));
    assert_eq!(report["failed"], json!([]), "{}", component.log());
    assert_eq!(report["sessions"], 133);

    let table = format!("{}\n", report["table"].as_str().unwrap());
    let path = root().join("docs/INTEROP.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let from = page.find(BEGIN).expect("the page has a table") + BEGIN.len();
    let to = page.find(END).expect("the table has an end");
    if std::env::var_os("FINGERPOST_WRITE_INTEROP").is_some() {
        let written = format!("{}{table}{}", &page[..from], &page[to..]);
        std::fs::write(path, written).unwrap();
    } else {
        assert_eq!(&page[from..to], table, "run `make interop` to rewrite the page");
    }
}
