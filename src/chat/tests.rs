//! Which messages are answered, and how forms become questions.

use super::*;

fn message(attributes: &str, inside: &str) -> Option<Written> {
    let text = format!(
        "<message xmlns='jabber:client' to='xtls.example.test' {attributes}>{inside}</message>"
    );
    readable(&Stanza::parse_canonical(text.parse().unwrap()).unwrap())
}

#[test]
fn only_what_a_person_writes_now_is_answered() {
    let alice = "from='alice@example.test/a'";
    let body = "<body>help</body>";
    for type_ in ["", "type='chat'", "type='normal'"] {
        assert!(message(&format!("{alice} {type_}"), body).is_some(), "{type_}");
    }
    for type_ in ["error", "headline", "groupchat"] {
        assert_eq!(message(&format!("{alice} type='{type_}'"), body), None, "{type_}");
    }
    for other in ["other.example.test", "xtls.example.test", "example.test/x"] {
        assert_eq!(message(&format!("from='{other}' type='chat'"), body), None, "{other}");
    }
    for more in [
        "<delay xmlns='urn:xmpp:delay' stamp='2026-11-24T02:00:00Z'/>",
        "<x xmlns='jabber:x:delay'/>",
        "<received xmlns='urn:xmpp:carbons:2'/>",
        "<sent xmlns='urn:xmpp:carbons:2'/>",
        "<forwarded xmlns='urn:xmpp:forward:0'/>",
        "<x xmlns='http://jabber.org/protocol/muc#user'/>",
        "<x xmlns='jabber:x:conference' jid='a@b'/>",
    ] {
        assert_eq!(message(alice, &format!("{body}{more}")), None, "{more}");
    }
    for silent in [
        "",
        "<body/>",
        "<body> </body>",
        "<active xmlns='http://jabber.org/protocol/chatstates'/>",
        "<received xmlns='urn:xmpp:receipts' id='1'/>",
    ] {
        assert_eq!(message(alice, silent), None, "{silent}");
    }
    let text = "x".repeat(LONGEST + 1);
    assert_eq!(message(alice, &format!("<body>{text}</body>")), None);
}

#[test]
fn an_answer_has_the_type_the_thread_and_the_language_of_the_question() {
    let written = message(
        "from='alice@example.test/a' type='chat' xml:lang='de-AT'",
        "<body>hilfe</body><thread>t</thread>",
    );
    let component = BareJid::new("xtls.example.test").unwrap();
    let answer = written.unwrap().answer(&component, "i", "Hallo");
    assert_eq!(answer.attr("type"), Some("chat"));
    assert_eq!(answer.attr("to"), Some("alice@example.test/a"));
    assert_eq!(answer.attr_ns(rxml::Namespace::xml(), "lang"), Some("de"));
    assert_eq!(answer.get_child("thread", ns::CLIENT).unwrap().text(), "t");
    assert_eq!(answer.get_child("body", ns::CLIENT).unwrap().text(), "Hallo");
}

#[test]
fn each_language_says_everything() {
    let tags: BTreeSet<&str> = words::LANGUAGES.iter().map(|words| words.tag).collect();
    assert_eq!(tags.len(), words::LANGUAGES.len());
    for (tag, expected) in
        [("de", "de"), ("DE-ch", "de"), ("en-GB", "en"), ("", "en"), ("xx", "en")]
    {
        assert_eq!(in_language(tag).tag, expected, "{tag}");
    }
}

#[test]
fn a_command_is_found_by_its_words() {
    let after = |name, text| words::after(name, text);
    assert_eq!(after("lookup", "Lookup  a@b "), Some("a@b"));
    assert_eq!(after("keys", "keys"), Some(""));
    assert_eq!(after("keys", "keysmith"), None);
    assert_eq!(after("admin keys", "admin  keys a@b"), Some("a@b"));
    assert_eq!(after("admin keys", "admin"), None);
    let names: Vec<String> = words::names("settings").collect();
    assert_eq!(names, ["visibility", "settings"]);
}

/// A page of a form with one field of each kind that needs reading.
fn page() -> Page {
    let option = |label, value| format!("<option label='{label}'><value>{value}</value></option>");
    let text = format!(
        "<command xmlns='http://jabber.org/protocol/commands' status='executing' sessionid='s'>\
         <actions execute='next'><prev/><next/></actions><note type='error'>Wrong</note>\
         <x xmlns='jabber:x:data' type='form'><title>T</title>\
         <field type='hidden' var='h'><value>1</value></field>\
         <field type='text-multi' var='note' label='Read'><value>this</value></field>\
         <field type='list-single' var='l' label='List'><required/>{}{}</field>\
         <field type='boolean' var='b' label='Sure'><value>0</value></field>\
         <field type='jid-multi' var='j' label='Who'><value>a@b</value></field>\
         <field type='text-multi' var='m' label='Text'/></x></command>",
        option("First", "abcdef"),
        option("Second", "abcxyz"),
    );
    Page::read(&text.parse().unwrap(), in_language("en"))
}

#[test]
fn a_form_is_asked_field_by_field() {
    let (mut page, words) = (page(), in_language("en"));
    let question = page.question(words);
    let expected =
        "Wrong\nT\nRead: this\n\nList (1/4)\n  1. First\n  2. Second\nAnswer with a number.";
    assert_eq!(question, expected);
    for wrong in ["3", "abc", "abcd?", "-", ""] {
        assert_eq!(page.take(wrong), Answer::NotUnderstood, "{wrong}");
    }
    assert_eq!(page.take("abcd"), Answer::Ask);
    assert_eq!(page.question(words), "Sure (2/4)\nAnswer with yes or no.");
    assert_eq!(page.take("perhaps"), Answer::NotUnderstood);
    assert_eq!(page.take("Ja"), Answer::Ask);
    page.step_back();
    assert_eq!(page.question(words), "Sure (2/4)\nAnswer with yes or no. Now: yes.");
    assert_eq!(page.take("-"), Answer::Ask);
    let question = page.question(words);
    assert!(question.ends_with("Now: a@b. Write - to keep it."), "{question}");
    assert_eq!(page.take("-"), Answer::Ask);
    assert_eq!(page.take("one\ntwo"), Answer::Done("next"));
    let request = page.request("s", "next");
    let form = request.get_child("x", ns::DATA).unwrap();
    let values: Vec<(String, Vec<String>)> = form
        .children()
        .map(|field| {
            let var = field.attr("var").unwrap().to_owned();
            (var, field.children().map(Element::text).collect())
        })
        .collect();
    let of = |var: &str, values: &[&str]| {
        (var.to_owned(), values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>())
    };
    let expected =
        [of("l", &["abcdef"]), of("b", &["1"]), of("j", &["a@b"]), of("m", &["one", "two"])];
    assert_eq!(values, expected);
    assert!(!page.request("s", "prev").has_child("x", ns::DATA));
}

#[test]
fn a_result_is_read_as_lines() {
    let table = "<command xmlns='http://jabber.org/protocol/commands' status='completed'>\
        <note type='info'>Two.</note><x xmlns='jabber:x:data' type='result'><title>Keys</title>\
        <field var='result' label='Result'><value>Two.</value></field>\
        <field var='n' label='Name'><value>a</value></field><field var='e' label='E'><value/></field>\
        <field type='hidden' var='h'><value>b</value></field>\
        <field type='text-multi' label='All'><value>1</value><value>2</value></field></x></command>";
    let page = Page::read(&table.parse().unwrap(), in_language("en"));
    assert!(page.is_over);
    let expected = "Two.\nKeys\nName: a\nAll:\n  1\n  2";
    assert_eq!(page.text(in_language("en")), expected);
    let nothing = "<command xmlns='http://jabber.org/protocol/commands' status='completed'/>";
    let page = Page::read(&nothing.parse().unwrap(), in_language("de"));
    assert_eq!(page.text(in_language("de")), "Es gibt nichts zu zeigen.");
    assert_eq!(form::cut("\u{fc}\u{fc}\u{fc}\u{fc}", 6), "\u{fc}\u{2026}");
}
