use super::*;

#[test]
fn an_anonymous_login_is_taken_only_where_it_is_offered() {
    let offer = |names: &[&str]| LoginOffer {
        mechanisms: names.iter().map(|name| (*name).to_owned()).collect(),
        bindings: None,
    };
    let exchange = Exchange::anonymous(&offer(&["PLAIN", "ANONYMOUS"])).unwrap();
    assert_eq!((exchange.mechanism(), exchange.initial()), ("ANONYMOUS", Vec::new()));
    assert_eq!(exchange.finish(b""), Ok(()));
    let refused = Exchange::anonymous(&offer(&["PLAIN", "SCRAM-SHA-1"])).unwrap_err();
    assert_eq!(refused, SaslError::NoMechanism("PLAIN, SCRAM-SHA-1".into()));
}

fn offer(mechanisms: &[&str], bindings: Option<&[&str]>) -> LoginOffer {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    LoginOffer { mechanisms: own(mechanisms), bindings: bindings.map(own) }
}

fn begin(offer: LoginOffer, channel: &Channel) -> Exchange {
    Exchange::new(offer, channel, "user", Secret::new("pencil"), &[1; 18]).unwrap()
}

/// Returns a SCRAM client that has sent this nonce, as the examples of the RFCs have it.
fn with_nonce(hash: Hash, nonce: &str) -> Exchange {
    let scram = Scram {
        hash,
        gs2: "n,,".to_owned(),
        binding: Vec::new(),
        nonce: nonce.to_owned(),
        bare: format!("n=user,r={nonce}"),
    };
    Exchange {
        mechanism: hash.mechanism().to_owned(),
        offer: LoginOffer::default(),
        password: Secret::new("pencil"),
        state: ScramState::First(scram),
    }
}

fn bound() -> Channel {
    Channel::new(Some([7; 32]), Some(vec![8; 32]))
}

#[test]
fn the_example_of_rfc_5802() {
    let mut exchange = with_nonce(Hash::Sha1, "fyko+d2lbbFgONRv9qkxdawL");
    assert_eq!(exchange.initial(), b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL");
    let first =
        b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096".as_slice();
    let last = exchange.respond(first).unwrap();
    assert_eq!(
        str::from_utf8(&last).unwrap(),
        "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
    );
    assert_eq!(exchange.finish(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ="), Ok(()));
}

#[test]
fn the_example_of_rfc_7677() {
    let mut exchange = with_nonce(Hash::Sha256, "rOprNGfwEbeRWgbNEkqO");
    let first =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    let last = exchange.respond(first).unwrap();
    assert!(last.ends_with(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="));
    let signature = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    // The same holds if the server sends it as a challenge and nothing with its success.
    assert_eq!(exchange.respond(signature), Ok(Vec::new()));
    assert_eq!(exchange.finish(b""), Ok(()));
}

#[test]
fn the_hash_of_an_offer_is_that_of_xep_0474() {
    let offer = offer(
        &["SCRAM-SHA-1-PLUS", "SCRAM-SHA-1"],
        Some(&["tls-server-end-point", "tls-exporter"]),
    );
    assert_eq!(fingerprint(&offer, Hash::Sha1), "G6k/rBLDqgOhRRaCuuatSDFkJ08=");
}

#[test]
fn a_changed_offer_ends_it_before_a_proof_is_sent() {
    let sent = offer(&["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"], Some(&["tls-exporter"]));
    let seen = offer(&["SCRAM-SHA-256"], None);
    let promise = fingerprint(&sent, Hash::Sha256);
    let first = |exchange: &Exchange| {
        let initial = String::from_utf8(exchange.initial()).unwrap();
        let nonce = initial.split("r=").nth(1).unwrap().to_owned();
        format!("r={nonce}server,s=QSXCR+Q6sek8bf92,i=4096,h={promise}")
    };
    let mut deceived = begin(seen, &bound());
    let challenge = first(&deceived);
    assert_eq!(deceived.respond(challenge.as_bytes()), Err(SaslError::Downgrade));
    let mut honest = begin(sent, &bound());
    let challenge = first(&honest);
    assert!(honest.respond(challenge.as_bytes()).is_ok());
}

#[test]
fn which_mechanism_and_which_flag() {
    let both = Some(["tls-server-end-point", "tls-exporter"].as_slice());
    let none = Channel::default();
    let end_point = Channel::new(None, Some(vec![8; 32]));
    for (mechanisms, bindings, channel, mechanism, start) in [
        // The offers of Prosody 13 and ejabberd 24.12.
        (
            &["PLAIN", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1"][..],
            Some(&["tls-exporter"][..]),
            &bound(),
            "SCRAM-SHA-1-PLUS",
            "p=tls-exporter,,n=",
        ),
        (
            &["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-512", "SCRAM-SHA-512-PLUS"][..],
            both,
            &bound(),
            "SCRAM-SHA-512-PLUS",
            "p=tls-exporter,,n=",
        ),
        (
            &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"][..],
            both,
            &end_point,
            "SCRAM-SHA-256-PLUS",
            "p=tls-server-end-point,,n=",
        ),
        // ejabberd 23.01: -PLUS without a named type.
        (&["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"][..], None, &bound(), "SCRAM-SHA-1", "n,,n="),
        (
            &["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"][..],
            Some(&["tls-unique"][..]),
            &bound(),
            "SCRAM-SHA-1",
            "n,,n=",
        ),
        (&["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"][..], both, &none, "SCRAM-SHA-1", "n,,n="),
        // Prosody 0.12 over TLS 1.3; Prosody 13 and ejabberd 24.12 without their -PLUS mechanisms, which refuse `y`.
        (&["SCRAM-SHA-1", "SCRAM-SHA-256"][..], None, &bound(), "SCRAM-SHA-256", "n,,n="),
        (&["SCRAM-SHA-1"][..], both, &bound(), "SCRAM-SHA-1", "n,,n="),
        (&["SCRAM-SHA-1"][..], None, &none, "SCRAM-SHA-1", "n,,n="),
        // A -PLUS mechanism that we do not support counts too.
        (&["SCRAM-SHA-1", "SCRAM-SHA3-512-PLUS"][..], both, &bound(), "SCRAM-SHA-1", "n,,n="),
        (&["PLAIN", "X-OAUTH2"][..], None, &bound(), "PLAIN", "\0user\0pencil"),
    ] {
        let exchange = begin(offer(mechanisms, bindings), channel);
        let initial = String::from_utf8(exchange.initial()).unwrap();
        assert_eq!(exchange.mechanism(), mechanism, "{mechanisms:?} {bindings:?}");
        assert!(initial.starts_with(start), "{mechanisms:?} {bindings:?}: {initial}");
    }
    let refused = Exchange::new(
        offer(&["ANONYMOUS", "EXTERNAL"], None),
        &bound(),
        "user",
        Secret::new("pencil"),
        &[1; 18],
    );
    let error = refused.unwrap_err();
    assert_eq!(error, SaslError::NoMechanism("ANONYMOUS, EXTERNAL".to_owned()));
}

#[test]
fn the_binding_is_part_of_what_is_proved() {
    let offered = offer(&["SCRAM-SHA-1-PLUS"], Some(&["tls-exporter"]));
    let mut exchange = begin(offered, &bound());
    let nonce = String::from_utf8(exchange.initial()).unwrap();
    let nonce = nonce.split("r=").nth(1).unwrap();
    let last =
        exchange.respond(format!("r={nonce}x,s=QSXCR+Q6sek8bf92,i=4096").as_bytes()).unwrap();
    let last = String::from_utf8(last).unwrap();
    let bound = last.strip_prefix("c=").unwrap().split(',').next().unwrap();
    let expected = [b"p=tls-exporter,,".as_slice(), &[7; 32]].concat();
    assert_eq!(BASE64.decode(bound).unwrap(), expected);
}

#[test]
fn names_are_escaped_and_passwords_prepared() {
    let exchange = Exchange::new(
        offer(&["SCRAM-SHA-1"], None),
        &Channel::default(),
        "a=b,c",
        Secret::new("x"),
        &[1; 18],
    )
    .unwrap();
    assert!(exchange.initial().starts_with(b"n,,n=a=3Db=2Cc,r="));
    // RFC 4013, section 3, and common input.
    for (typed, prepared) in [
        ("I\u{ad}X", "IX"),
        ("user", "user"),
        ("\u{aa}", "a"),
        ("\u{2168}", "IX"),
        ("x\u{b2}", "x2"),
        ("\u{b5}", "\u{3bc}"),
        ("a\u{a0}b", "a b"),
        ("e\u{301}", "\u{e9}"),
        // Not in Unicode 3.2, so the profile does not allow it: kept as typed.
        ("\u{1f511}", "\u{1f511}"),
    ] {
        assert_eq!(prepare(typed), prepared);
    }
}

#[test]
fn a_bad_message_of_the_server_gets_no_proof() {
    let nonce = BASE64.encode([1; 18]);
    for (challenge, expected) in [
        (b"\xff".to_vec(), SaslError::Malformed("not UTF-8")),
        (b"".to_vec(), SaslError::Malformed("expected r=, s= and i=")),
        (b"m=x,r=1,s=1,i=1".to_vec(), SaslError::Malformed("expected r=, s= and i=")),
        (b"e=other-error".to_vec(), SaslError::Malformed("expected r=, s= and i=")),
        (
            b"r=another,s=QSXCR+Q6sek8bf92,i=4096".to_vec(),
            SaslError::Malformed("its nonce does not begin with ours"),
        ),
        (
            format!("r={nonce},s=QSXCR+Q6sek8bf92,i=4096").into_bytes(),
            SaslError::Malformed("its nonce does not begin with ours"),
        ),
        (
            format!("r={nonce}x,s=!,i=4096").into_bytes(),
            SaslError::Malformed("its salt is not base64"),
        ),
        (format!("r={nonce}x,s=QQ==,i=x").into_bytes(), SaslError::Malformed("i= is not a number")),
        (format!("r={nonce}x,s=QQ==,i=1").into_bytes(), SaslError::Iterations(1)),
        (
            format!("r={nonce}x,s=QQ==,i=4000000000").into_bytes(),
            SaslError::Iterations(4_000_000_000),
        ),
    ] {
        let mut exchange = begin(offer(&["SCRAM-SHA-1"], None), &Channel::default());
        assert_eq!(exchange.respond(&challenge), Err(expected.clone()), "{challenge:?}");
        // No second attempt.
        assert!(exchange.respond(&challenge).is_err());
    }
}

#[test]
fn a_server_that_does_not_know_the_password_is_refused() {
    let first = b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096";
    for last in [
        b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAA=".as_slice(),
        b"v=",
        b"",
        b"e=invalid-proof",
        b"rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ] {
        let mut exchange = with_nonce(Hash::Sha1, "fyko+d2lbbFgONRv9qkxdawL");
        exchange.respond(first).unwrap();
        assert_eq!(exchange.finish(last), Err(SaslError::Server), "{last:?}");
    }
    // A success right after the first message proves nothing.
    let early = with_nonce(Hash::Sha1, "fyko+d2lbbFgONRv9qkxdawL");
    assert_eq!(early.finish(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ="), Err(SaslError::Server));
}

#[test]
fn a_certificate_is_hashed_by_its_own_hash_function() {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    };
    for (algorithm, length) in [
        (&PKCS_ECDSA_P256_SHA256, Some(32)),
        (&PKCS_ECDSA_P384_SHA384, Some(48)),
        (&PKCS_ED25519, None),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = CertificateParams::new(vec!["example.test".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        assert_eq!(binding::end_point(certificate.der()).map(|hash| hash.len()), length);
    }
    assert_eq!(binding::end_point(b"not a certificate"), None);
}

#[test]
fn a_token_proves_both_sides_and_needs_its_channel_binding() {
    let token = FastToken::new("HT-SHA-256-EXPR", "secret-token:x", "");
    let exchange = Exchange::by_token(&token, &bound(), "user").unwrap();
    let message = exchange.initial();
    let proof = message.strip_prefix(b"user\0").unwrap();
    let sign = |role: &[u8]| Hash::Sha256.sign(b"secret-token:x", &[role, &[7; 32]].concat());
    assert_eq!(proof, sign(b"Initiator"));
    assert_eq!(exchange.finish(&sign(b"Responder")), Ok(()));
    for wrong in [&b""[..], b"x", &sign(b"Initiator")] {
        let exchange = Exchange::by_token(&token, &bound(), "user").unwrap();
        assert_eq!(exchange.finish(wrong), Err(SaslError::Server));
    }
    // A connection without the exporter cannot use it, and a file cannot bring in another kind of mechanism.
    assert!(Exchange::by_token(&token, &Channel::new(None, Some(vec![8; 32])), "user").is_none());
    for mechanism in ["HT-SHA-256-UNIQ", "PLAIN", "X-NONE"] {
        let token = FastToken::new(mechanism, "secret-token:x", "");
        assert!(Exchange::by_token(&token, &bound(), "user").is_none(), "{mechanism}");
    }
}

#[test]
fn the_best_mechanism_for_tokens_is_asked_for() {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let all = own(&["HT-SHA-256-NONE", "HT-SHA-256-UNIQ", "HT-SHA-256-ENDP", "HT-SHA-256-EXPR"]);
    assert_eq!(token_mechanism(&all, &bound()), Some("HT-SHA-256-EXPR"));
    assert_eq!(token_mechanism(&all, &Channel::default()), Some("HT-SHA-256-NONE"));
    assert_eq!(token_mechanism(&own(&["HT-SHA-256-UNIQ"]), &bound()), None);
}
