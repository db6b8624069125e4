//! The fuzz targets of fuzz/src/lib.rs in a bounded loop: inputs of the committed corpora, as they are and changed at
//! random. `FINGERPOST_FUZZ_SECONDS` sets how long each target runs (`make fuzz SECONDS=60`), `FINGERPOST_TEST_SEED`
//! the number from which inputs are generated.

#![allow(clippy::print_stdout, reason = "the number of inputs is part of the output")]
#![allow(clippy::allow_attributes, reason = "a crate of its own elsewhere")]

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library of its own for libFuzzer")]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::grammar::Dice;

/// Long inputs find little that short ones do not, and take longer.
const LONGEST: usize = 8 * 1024;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no input", directory.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Pieces with a meaning for some target.
const PIECES: [&[u8]; 40] = [
    b"<",
    b">",
    b"</",
    b"/>",
    b"&",
    b"&amp;",
    b"&#13;",
    b"&#x1F600;",
    b"'",
    b"\"",
    b"=",
    b"<!--",
    b"-->",
    b"<![CDATA[",
    b"]]>",
    b"<?",
    b"?>",
    b" xmlns='urn:x'",
    b" xmlns:p='u'",
    b"p:",
    b"xml:",
    b"<x/>",
    b"<x xmlns=''>",
    b"</x>",
    b"</stream:stream>",
    b"\\40",
    b"\\5c",
    b"\\",
    b"@",
    b"/",
    b":",
    b".",
    b"\0",
    b"\r",
    b"\n",
    b"\xff\xff",
    b"\x16\x03\x01",
    b"\x05\x01\x00",
    b"PROXY ",
    b"-----BEGIN CERTIFICATE-----\n",
];

/// Changes an input in one to eight places.
fn changed(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(8) {
        let at = dice.below(input.len() + 1);
        let end = (at + 1 + dice.below(16)).min(input.len());
        match dice.below(9) {
            0 if at < input.len() => input[at] ^= 1 << dice.below(8),
            1 if at < input.len() => input[at] = u8::try_from(dice.below(256)).unwrap(),
            2 => input.insert(at, u8::try_from(dice.below(256)).unwrap()),
            3 => drop(input.drain(at..end)),
            4 => {
                let again = input[at..end].to_vec();
                let count = 1 + dice.below(4);
                input.splice(at..at, again.repeat(count));
            }
            5 => input.truncate(at),
            6 => {
                // The end of another input.
                let other = &corpus[dice.below(corpus.len())];
                input.truncate(at);
                input.extend_from_slice(&other[dice.below(other.len() + 1)..]);
            }
            7 => {
                let number = [0u16, 1, 0x7f, 0xff, 0x100, 0x7fff, 0xffff][dice.below(7)];
                input.splice(at..end.min(at + 2), number.to_be_bytes());
            }
            _ => {
                let piece = dice.pick(&PIECES);
                input.splice(at..at, piece.iter().copied());
            }
        }
        input.truncate(LONGEST);
    }
    input
}

fn seconds() -> Duration {
    let text = std::env::var("FINGERPOST_FUZZ_SECONDS").unwrap_or_else(|_| "3".to_owned());
    Duration::from_secs_f64(text.parse().unwrap())
}

fn run(name: &str) {
    let (_, target) = targets::TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let corpus = corpus(name);
    let seed = std::env::var("FINGERPOST_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    let (mut dice, begin, mut count) = (Dice::new(seed), Instant::now(), 0_u64);
    let check = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
            std::fs::create_dir_all(&directory).unwrap();
            let file = directory.join(name);
            std::fs::write(&file, input).unwrap();
            panic!("{name}: a promise does not hold for the input in {}", file.display());
        }
    };
    for input in &corpus {
        check(input);
    }
    // The first ones are tried however slow the machine is.
    while count < 200 || begin.elapsed() < seconds() {
        check(&changed(&mut dice, &corpus));
        count += 1;
    }
    println!("{name}: {count} inputs from {} seeds (seed {seed})", corpus.len());
}

macro_rules! fuzz {
    ($($name:ident),+ $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })+
    };
}

fuzz!(
    base64,
    chat_stream,
    client_hello,
    file_offer,
    hints,
    ibb,
    ice_agent,
    ice_transport,
    jid_escaping,
    mdns_message,
    mdns_name,
    offer,
    openpgp,
    openpgp_spki,
    print,
    proxy_header,
    set_manifest,
    signature,
    socks5,
    stanza,
    x509,
    xml_reader,
    xml_writer,
);

#[test]
fn every_target_runs_here_and_with_libfuzzer() {
    let all: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(NAMES, all);
    for name in all {
        let file = format!("fuzz/fuzz_targets/{name}.rs");
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file));
        assert!(
            text.is_ok_and(|text| text.contains(&format!("fingerpost_fuzz::{name}("))),
            "{file}"
        );
    }
}

/// Generates the seeds that are keys and certificates. They are committed, so that a run is the same on every machine.
#[test]
#[ignore = "writes new keys into fuzz/corpus"]
fn write_the_seeds_that_are_keys() {
    use fingerpost_secure::{identity::Identity, openpgp::OpenPgpKey};
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let put = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).unwrap();
    let user = jid::BareJid::new("juliet@example.test").unwrap();
    let identity = Identity::generate(&user).unwrap();
    put("x509/ours.der", &identity.certificate);
    put("signature/ours.sig", &identity.sign(b"signed").unwrap());
    for (version, version_6) in [("v4", false), ("v6", true)] {
        let key = OpenPgpKey::generate(&user, version_6).unwrap();
        put(&format!("openpgp/{version}.pgp"), key.certificate());
        put(&format!("openpgp_spki/{version}.pgp.seed"), key.certificate());
        put(&format!("signature/{version}.sig"), &key.sign(b"signed", "").unwrap());
        let vouched = key.unlock(zeroize::Zeroizing::default()).unwrap().certify().unwrap();
        put(&format!("openpgp_spki/{version}.der"), &vouched.certificate);
    }
}

/// A panic of a target is reported once: the reason is above.
#[test]
fn an_input_for_which_a_promise_does_not_hold_is_kept() {
    let mut dice = Dice::new(7);
    let inputs: Vec<_> = (0..1000).map(|_| changed(&mut dice, &[b"<x/>".to_vec()])).collect();
    assert!(
        inputs.iter().any(|input| input != b"<x/>") && inputs.iter().all(|i| i.len() <= LONGEST)
    );
}
