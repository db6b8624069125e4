//! Reads the examples of a proposal, and what the comments say about them.
//!
//! | comment `<!-- replay: … -->` | meaning |
//! |---|---|
//! | `start SECTION.KEY=VALUE…` | the next examples have a new component with these settings |
//! | `key OWNER FINGERPRINT` or `key OWNER certificate`, perhaps with `revoked` | OWNER has registered this key |
//! | `client JID FEATURE…` | this client is reachable and announces these features when it is asked |
//! | `connect JID STREAM` | JID connects to the component by SOCKS5 for this stream |
//! | `sign` | the signature in the next example is made of what was last to be signed |
//! | `again` | the next stanza is sent until its answer is a result |
//! | `chosen TEXT` | the component chooses the value that is TEXT in the next examples |
//! | `unshown WORD…` | the component also sends such stanzas, which no example shows |
//! | `sends` | the next example is what users send |
//! | `gets` | the next example is what the component sends |

use minidom::Element;

/// One step of a replay.
#[derive(Debug)]
pub(super) enum Step {
    Start { line: usize, settings: Vec<String> },
    Key { owner: String, key: String, is_revoked: bool },
    Client { jid: String, features: Vec<String> },
    Connect { stream: String },
    Sign,
    Again,
    Chosen(String),
    Unshown(Vec<String>),
    Sends(Example),
    Gets(Example),
}

impl Step {
    pub(super) fn is_example(&self) -> bool {
        self.example().is_some()
    }

    pub(super) fn example(&self) -> Option<&Example> {
        match self {
            Self::Sends(example) | Self::Gets(example) => Some(example),
            _ => None,
        }
    }
}

/// An example.
#[derive(Debug)]
pub(super) struct Example {
    /// Where it begins, for messages.
    pub(super) line: usize,
    pub(super) caption: String,
    /// The text as it stands there.
    pub(super) raw: String,
    pub(super) stanzas: Vec<Element>,
}

/// Returns the stanzas in a text. They have no declaration of their namespace.
pub(super) fn stanzas(raw: &str) -> Result<Vec<Element>, String> {
    let wrapped = format!("<r xmlns='jabber:component:accept'>{raw}</r>");
    let root: Element = wrapped.parse().map_err(|error| format!("{error}: {raw}"))?;
    Ok(root.children().cloned().collect())
}

/// Reads all steps.
///
/// # Panics
/// If an example has no role, or a role has no example.
pub(super) fn steps(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut role: Option<&str> = None;
    let mut rest = text;
    let line_of = |rest: &str| text[..text.len() - rest.len()].lines().count();
    while let Some(at) = [rest.find("<!--"), rest.find("<example")].into_iter().flatten().min() {
        let between = &rest[..at];
        rest = &rest[at..];
        let line = line_of(rest);
        if role.is_some() {
            assert_eq!(between.trim(), "", "line {line}: text between a role and its example");
        }
        if let Some(comment) = rest.strip_prefix("<!--") {
            assert_eq!(role, None, "line {line}: the role before has no example");
            let (comment, after) = comment.split_once("-->").unwrap();
            rest = after;
            let Some(words) = comment.trim().strip_prefix("replay: ") else { continue };
            let words: Vec<&str> = words.split_whitespace().collect();
            let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            match words.as_slice() {
                [only @ ("sends" | "gets")] => role = Some(only),
                ["start", settings @ ..] => {
                    steps.push(Step::Start { line, settings: owned(settings) });
                }
                ["sign"] => steps.push(Step::Sign),
                ["again"] => steps.push(Step::Again),
                ["key", owner, key, more @ ..] => {
                    let (owner, key) = ((*owner).to_owned(), (*key).to_owned());
                    let is_revoked = more.contains(&"revoked");
                    steps.push(Step::Key { owner, key, is_revoked });
                }
                ["client", jid, features @ ..] => {
                    let (jid, features) = ((*jid).to_owned(), owned(features));
                    steps.push(Step::Client { jid, features });
                }
                ["connect", _, stream] => {
                    steps.push(Step::Connect { stream: (*stream).to_owned() });
                }
                ["chosen", text] => steps.push(Step::Chosen((*text).to_owned())),
                ["unshown", words @ ..] => steps.push(Step::Unshown(owned(words))),
                _ => panic!("line {line}: unknown: {comment}"),
            }
            continue;
        }
        let (head, after) = rest.split_once("<![CDATA[").unwrap();
        let (raw, after) = after.split_once("]]></example>").unwrap();
        rest = after;
        let caption = head
            .strip_prefix("<example caption='")
            .and_then(|head| head.strip_suffix("'>"))
            .unwrap_or_else(|| panic!("line {line}: not an example with a caption: {head}"))
            .to_owned();
        let stanzas =
            stanzas(raw).unwrap_or_else(|error| panic!("line {line}, {caption}: {error}"));
        assert!(!stanzas.is_empty(), "line {line}, {caption}: no stanza");
        let example = Example { line, caption, raw: raw.to_owned(), stanzas };
        steps.push(match role.take() {
            Some("sends") => Step::Sends(example),
            Some(_) => Step::Gets(example),
            None => panic!("line {line}, {}: no comment says its role", example.caption),
        });
    }
    assert_eq!(role, None, "the last role has no example");
    steps
}
