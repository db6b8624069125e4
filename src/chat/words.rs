//! What is said in a chat, in each language. To add a language, add a [`Words`] to [`LANGUAGES`].

use crate::commands::catalogue::Language;

/// The texts of one language.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    /// The language (BCP 47, without region).
    pub(super) tag: &'static str,
    /// The language of the commands' forms.
    pub(super) language: Language,
    /// What the component is, before the list of commands.
    pub(super) help: &'static str,
    /// How to answer questions, after the list of commands.
    pub(super) how: &'static str,
    pub(super) unknown: &'static str,
    pub(super) encrypted: &'static str,
    pub(super) not_understood: &'static str,
    /// Before the reason of a refusal.
    pub(super) refused: &'static str,
    pub(super) busy: &'static str,
    pub(super) cancelled: &'static str,
    /// A result without any text.
    pub(super) nothing: &'static str,
    /// Before the present value of a field.
    pub(super) now: &'static str,
    /// How to answer fields of each kind.
    pub(super) number: &'static str,
    pub(super) numbers: &'static str,
    pub(super) yes_or_no: &'static str,
    pub(super) lines: &'static str,
    /// How to keep the present value, and how to leave a field empty.
    pub(super) keep: &'static str,
    pub(super) empty: &'static str,
    /// How to read the next part of a long result.
    pub(super) more: &'static str,
    /// How to confirm a page without questions.
    pub(super) go_on: &'static str,
}

/// All languages; the first is used if none fits.
pub(super) const LANGUAGES: [Words; 2] = [
    Words {
        tag: "en",
        language: Language::English,
        help: "I connect users for transfers that are encrypted from end to end, and I keep a registry of their public \
               keys. Write one of these words; most of them take an argument, as in \"lookup juliet@capulet.lit\":",
        how: "While I ask questions, \"cancel\" stops and \"back\" goes back.",
        unknown: "I do not know that word. Write \"help\" for a list.",
        encrypted: "I cannot read encrypted messages. Switch encryption off for this contact; never send a private key.",
        not_understood: "I did not understand that.",
        refused: "That was not done.",
        busy: "I cannot keep another conversation now. Try again later.",
        cancelled: "Cancelled.",
        nothing: "There is nothing to show.",
        now: "Now:",
        number: "Answer with a number.",
        numbers: "Answer with one or more numbers.",
        yes_or_no: "Answer with yes or no.",
        lines: "Send all lines in one message.",
        keep: "Write - to keep it.",
        empty: "Write - to leave it empty.",
        more: "Write \"more\" to go on.",
        go_on: "Write \"yes\" to go on.",
    },
    Words {
        tag: "de",
        language: Language::German,
        help: "Ich verbinde Benutzer f\u{fc}r \u{dc}bertragungen, die von Ende zu Ende verschl\u{fc}sselt sind, und f\u{fc}hre ein \
               Verzeichnis ihrer \u{f6}ffentlichen Schl\u{fc}ssel. Schreibe eines dieser W\u{f6}rter; die meisten nehmen ein \
               Argument, wie in \u{201e}lookup juliet@capulet.lit\u{201c}:",
        how: "W\u{e4}hrend ich frage, bricht \u{201e}abbrechen\u{201c} ab, und \u{201e}zur\u{fc}ck\u{201c} geht zur\u{fc}ck.",
        unknown: "Dieses Wort kenne ich nicht. \u{201e}hilfe\u{201c} zeigt eine Liste.",
        encrypted: "Verschl\u{fc}sselte Nachrichten kann ich nicht lesen. Schalte die Verschl\u{fc}sselung f\u{fc}r diesen Kontakt \
                    aus; schicke nie einen privaten Schl\u{fc}ssel.",
        not_understood: "Das habe ich nicht verstanden.",
        refused: "Das wurde nicht ausgef\u{fc}hrt.",
        busy: "Ich kann gerade kein weiteres Gespr\u{e4}ch f\u{fc}hren. Versuche es sp\u{e4}ter.",
        cancelled: "Abgebrochen.",
        nothing: "Es gibt nichts zu zeigen.",
        now: "Jetzt:",
        number: "Antworte mit einer Nummer.",
        numbers: "Antworte mit einer oder mehreren Nummern.",
        yes_or_no: "Antworte mit ja oder nein.",
        lines: "Schicke alle Zeilen in einer Nachricht.",
        keep: "Mit - bleibt es so.",
        empty: "Mit - bleibt es leer.",
        more: "\u{201e}mehr\u{201c} zeigt die Fortsetzung.",
        go_on: "Mit \u{201e}ja\u{201c} geht es weiter.",
    },
];

/// The words that control a chat, in all languages.
pub(super) const HELP: &[&str] = &["help", "hilfe", "?"];
pub(super) const CANCEL: &[&str] = &["cancel", "abbrechen", "stop"];
pub(super) const BACK: &[&str] = &["back", "zur\u{fc}ck"];
pub(super) const MORE: &[&str] = &["more", "mehr", "next", "weiter"];
pub(super) const YES: &[&str] = &["yes", "y", "ja", "j", "1", "true"];
pub(super) const NO: &[&str] = &["no", "n", "nein", "0", "false"];

/// Returns the texts for a language tag.
pub(super) fn in_language(tag: &str) -> &'static Words {
    let wanted = Language::named(tag);
    LANGUAGES.iter().find(|words| words.language == wanted).unwrap_or(&LANGUAGES[0])
}

/// Returns whether a text is one of these words.
pub(super) fn is(words: &[&str], text: &str) -> bool {
    let text = text.trim().to_lowercase();
    words.contains(&text.as_str())
}

/// Returns what a command is called in a chat; the first is the usual one.
pub(super) fn names(command: &str) -> impl Iterator<Item = String> {
    let alias = (command == "settings").then(|| "visibility".to_owned());
    alias.into_iter().chain([command.replace(':', " ")])
}

/// Returns what follows a command's name in a text; `None` if the text has another first word.
pub(super) fn after<'a>(name: &str, text: &'a str) -> Option<&'a str> {
    let mut rest = text;
    for word in name.split(' ') {
        rest = rest.trim_start();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        if rest[..end].to_lowercase() != word {
            return None;
        }
        rest = &rest[end..];
    }
    Some(rest.trim())
}
