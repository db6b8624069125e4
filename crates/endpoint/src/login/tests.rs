//! Login in one step against a server that the test plays.

use std::sync::Mutex;

use ::aws_lc_rs::hmac;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;

const HEADER: &str = "<stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'>";
const OWN: &str = "bob@example.test/xtls-1~x";
const AGENT: &str = "d4565fa7-4d72-4749-b3d3-740edbf87770";

/// The stored tokens in order; `None` where one was forgotten.
#[derive(Debug, Default)]
struct Memory(Mutex<Vec<Option<FastToken>>>);

impl FastStore for Memory {
    fn load(&self) -> Option<(String, Option<FastToken>)> {
        None
    }

    fn store(&self, token: &FastToken) {
        self.0.lock().unwrap().push(Some(token.clone()));
    }

    fn forget(&self, forgotten: &FastToken) {
        assert_eq!(*forgotten, token());
        self.0.lock().unwrap().push(None);
    }
}

fn features(inline: &str) -> Element {
    let text = format!(
        "<features xmlns='http://etherx.jabber.org/streams'><authentication xmlns='urn:xmpp:sasl:2'>\
         <mechanism>PLAIN</mechanism><inline>{inline}</inline></authentication></features>"
    );
    text.parse().unwrap()
}

const BIND: &str =
    "<bind xmlns='urn:xmpp:bind:0'><inline><feature var='urn:xmpp:sm:3'/></inline></bind>";
const TOKENS: &str = "<fast xmlns='urn:xmpp:fast:0'><mechanism>HT-SHA-256-NONE</mechanism></fast>";

/// Logs in with these features and this token, to a server that answers `answer`. Returns what the server was sent, the
/// result, and what was stored.
async fn run(
    inline: &str,
    token: Option<&FastToken>,
    resumed: Option<&Management>,
    answer: &str,
) -> (String, Result<Start, LoginFailure>, Vec<Option<FastToken>>) {
    let (ours, mut server) = duplex(1 << 16);
    let memory = Arc::new(Memory::default());
    let mut login = Login::new(BareJid::new("bob@example.test").unwrap(), "pass");
    login.fast = Some(Arc::clone(&memory) as Arc<dyn FastStore>);
    let wish = Wish {
        name: Name { tag: Some("xtls-1"), resource: "xtls-1~x" },
        resumed,
        managed: true,
        agent: Some(AGENT),
        by_token: false,
        token_for: None,
    };
    let (read, writer) = split(ours);
    let mut stream = Stream { reader: StanzaReader::with_rules(read, Rules::CLIENT), writer };
    let inline = Inline::read(&features(inline)).unwrap();
    let offer = inline.offer(None);
    let channel = Channel::default();
    let ours = async {
        let offered = (&inline, offer);
        let success =
            authenticate_at_once(&mut stream, &login, offered, &channel, &wish, token).await?;
        start_at_once(&mut stream, success, &wish, false).await
    };
    let theirs = async {
        server.write_all(HEADER.as_bytes()).await.unwrap();
        let sent = until(&mut server, "</authenticate>").await;
        server.write_all(answer.as_bytes()).await.unwrap();
        // A reader that waits for more finds the end.
        server.shutdown().await.unwrap();
        sent
    };
    let (sent, started) = tokio::join!(theirs, ours);
    drop(server);
    let stored = std::mem::take(&mut *memory.0.lock().unwrap());
    (sent, started, stored)
}

async fn until(server: &mut DuplexStream, end: &str) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains(end) {
        let count = server.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{text}");
        text += str::from_utf8(&buffer[..count]).unwrap();
    }
    text
}

fn success(more: &str) -> String {
    format!(
        "<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>{OWN}</authorization-identifier>{more}</success>"
    )
}

fn token() -> FastToken {
    FastToken::new("HT-SHA-256-NONE", "secret-token:1", "")
}

fn sign(role: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret-token:1");
    hmac::sign(&key, role).as_ref().to_vec()
}

#[tokio::test]
async fn one_request_logs_in_binds_and_brings_a_token() {
    let more = "<bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3' id='s1' resume='true'/></bound>\
        <token xmlns='urn:xmpp:fast:0' token='secret-token:1' expiry='2027-01-01T00:00:00Z'/>";
    let (sent, started, stored) =
        run(&(BIND.to_owned() + TOKENS), None, None, &success(more)).await;
    assert!(sent.contains("mechanism='PLAIN'") && sent.contains(AGENT), "{sent}");
    assert!(sent.contains("<request-token ") && !sent.contains("<fast"), "{sent}");
    let Ok(Start::Bound { jid, management, .. }) = started else { panic!("{sent}") };
    assert_eq!(jid.as_str(), OWN);
    assert!(management.unwrap().resumable().is_some());
    let expected = FastToken { expiry: "2027-01-01T00:00:00Z".to_owned(), ..token() };
    assert_eq!(stored, [Some(expected)]);
}

#[tokio::test]
async fn a_token_takes_the_passwords_place_and_a_new_one_its_own() {
    let data = BASE64.encode(sign(b"Responder"));
    let more = format!(
        "<additional-data>{data}</additional-data><bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3'/></bound>\
         <token xmlns='urn:xmpp:fast:0' token='secret-token:2'/>"
    );
    let inline = BIND.to_owned() + TOKENS;
    let (sent, started, stored) = run(&inline, Some(&token()), None, &success(&more)).await;
    assert!(started.is_ok(), "{sent}");
    let initial = BASE64.encode([b"bob\0".as_slice(), &sign(b"Initiator")].concat());
    assert!(sent.contains(&initial) && sent.contains("<fast "), "{sent}");
    assert!(!sent.contains("<request-token"), "{sent}");
    let new = FastToken::new("HT-SHA-256-NONE", "secret-token:2", "");
    assert_eq!(stored, [Some(new)]);
    // If the server offers no tokens, an existing one stays unused.
    let (sent, ..) = run(BIND, Some(&token()), None, &success("")).await;
    assert!(sent.contains("mechanism='PLAIN'") && !sent.contains("<fast "), "{sent}");
}

#[tokio::test]
async fn a_refused_token_is_forgotten_and_a_server_without_proof_is_not_believed() {
    let refused = |condition: &str| {
        format!(
            "<failure xmlns='urn:xmpp:sasl:2'><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/></failure>"
        )
    };
    for (condition, is_forgotten) in
        [("not-authorized", true), ("credentials-expired", true), ("temporary-auth-failure", false)]
    {
        let (_, started, stored) = run(TOKENS, Some(&token()), None, &refused(condition)).await;
        let failure = started.err().unwrap();
        assert!(failure.of_token, "the password is tried then: {condition}");
        assert_eq!(stored, if is_forgotten { vec![None] } else { vec![] }, "{condition}");
        // Without a token the result is the same as without SASL2.
        let (_, started, stored) = run(TOKENS, None, None, &refused(condition)).await;
        let failure = started.err().unwrap();
        assert_eq!((failure.of_token, failure.is_final), (false, is_forgotten), "{condition}");
        assert_eq!(stored, []);
    }
    for more in
        ["", "<additional-data>=</additional-data>", "<additional-data>AAAA</additional-data>"]
    {
        let more = format!("{more}<token xmlns='urn:xmpp:fast:0' token='evil'/>");
        let (_, started, stored) = run(TOKENS, Some(&token()), None, &success(&more)).await;
        let failure = started.err().unwrap();
        assert!(!failure.of_token && failure.error.to_string().contains("did not prove"));
        assert_eq!(stored, []);
    }
}

#[tokio::test]
async fn what_the_one_step_did_not_bring_is_asked_for_after_it() {
    // Bound, with stream management among the features.
    let bound = success("<bound xmlns='urn:xmpp:bind:0'/>");
    let after = "<message from='a@b.c' id='early'/><stream:features><sm xmlns='urn:xmpp:sm:3'/></stream:features>\
        <enabled xmlns='urn:xmpp:sm:3' id='s1' resume='true'/>";
    let bind = "<bind xmlns='urn:xmpp:bind:0'/>";
    let (_, started, _) = run(bind, None, None, &(bound + after)).await;
    let Ok(Start::Bound { management, early, .. }) = started else { panic!() };
    assert!(management.is_some());
    assert_eq!(early.len(), 1);

    let enabled = xml::element("enabled", ns::SM, &[("resume", "true"), ("id", "s0")]);
    let kept = Management::new(&enabled);
    // Resumed at once.
    let inline = format!("<sm xmlns='urn:xmpp:sm:3'/>{BIND}");
    let resumed = success("<resumed xmlns='urn:xmpp:sm:3' previd='s0' h='0'/>");
    let (sent, started, _) = run(&inline, None, Some(&kept), &resumed).await;
    assert!(sent.contains("previd='s0'"), "{sent}");
    assert!(matches!(started, Ok(Start::Resumed(_))));
    // Not resumed, and a new session at once.
    let failed = success(
        "<failed xmlns='urn:xmpp:sm:3'/><bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3'/></bound>",
    );
    let (_, started, _) = run(&inline, None, Some(&kept), &failed).await;
    assert!(matches!(started, Ok(Start::Bound { management: Some(_), .. })));
    // This was not requested.
    let (_, started, _) = run(BIND, None, None, &resumed).await;
    assert!(!matches!(started, Ok(Start::Resumed(_))));
    // Only after the login: as usual, and no new session before it.
    let after = "<stream:features><sm xmlns='urn:xmpp:sm:3'/></stream:features>\
        <resumed xmlns='urn:xmpp:sm:3' previd='s0' h='0'/>";
    let (sent, started, _) = run(BIND, None, Some(&kept), &(success("") + after)).await;
    assert!(!sent.contains("<bind "), "{sent}");
    assert!(matches!(started, Ok(Start::Resumed(_))));
}
