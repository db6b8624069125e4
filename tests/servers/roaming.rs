//! Streams of users whose machines change the network.

use std::time::Instant;

use support::{
    internet::Internet,
    netns::{Nat, Place},
    process::Process,
    programs::Options,
    servers::{Kind, Server},
};

/// Gives a host another address in place of the one that it has, as another Wi-Fi does.
fn roam(internet: &Internet, host: Place, side: u8, [old, new]: [u8; 2]) {
    for args in [
        format!("addr del 198.18.1{side}.{old}/24 dev eth0"),
        format!("addr add 198.18.1{side}.{new}/24 dev eth0"),
        format!("route add default via 198.18.1{side}.1"),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        internet.networks.run_in(host, "ip", &args);
    }
}

/// Keeps the hosts from each other, or no longer.
fn part(internet: &Internet, parted: bool) {
    let rules = match parted {
        true => {
            "table ip part {
                chain on {
                    type filter hook forward priority 0;
                    iifname side1 oifname side2 drop
                    iifname side2 oifname side1 drop
                }
            }"
        }
        false => "delete table ip part",
    };
    internet.networks.nft(Place::Public, rules);
}

/// Each side changes its network once on a direct path, and once on the relay alone. No program is told.
#[expect(clippy::print_stdout, reason = "its figures")]
fn a_stream_goes_on_when_a_side_changes_its_network(kind: Kind) {
    let internet = Internet::start(
        [Nat::None; 2],
        Place::Public,
        |address| Server::start_at(kind, address).with_stream_management(),
        |_, _| Options::default(),
    );
    let mut last = [2, 2];
    let mut times = Vec::new();
    for is_direct in [true, false] {
        if !is_direct {
            part(&internet, true);
        }
        for side in [0, 1] {
            let mut pipe = internet.pipe(&["--direct-path", "always"], [&[], &[]]);
            pipe.exchange(["before, from alice\n", "before, from bob\n"]);
            if is_direct {
                pipe.wait_until_direct(|| internet.logs(&pipe));
            }
            let new = last[side] + 1;
            let host = [Place::HostA, Place::HostB][side];
            roam(&internet, host, [1, 2][side], [last[side], new]);
            last[side] = new;
            let begin = Instant::now();
            pipe.exchange(["after, from alice\n", "after, from bob\n"]);
            times.push(begin.elapsed());
            let ends = pipe.finish();
            let log = ends[side].log();
            assert!(log.contains("\"resumed\":true"), "{log}");
            assert!(!ends[1 - side].log().contains("disconnected"), "{}", ends[1 - side].log());
            assert!(ends.iter().all(|end| !Process::log(end).contains("\"error\"")), "{log}");
        }
    }
    println!("the first bytes after the change came after {times:?}");
}

#[test]
fn prosody_a_stream_goes_on_when_a_side_changes_its_network() {
    a_stream_goes_on_when_a_side_changes_its_network(Kind::Prosody);
}

#[test]
fn ejabberd_a_stream_goes_on_when_a_side_changes_its_network() {
    a_stream_goes_on_when_a_side_changes_its_network(Kind::Ejabberd);
}
