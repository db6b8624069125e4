//! The form of a proposal: that of the XSF, as far as these texts use it.
//!
//! `make xep-test XEPS=DIRECTORY` validates them with the XSF's own files, which are not part of this repository.

use std::collections::{BTreeMap, BTreeSet};

use minidom::{Element, Node};

use super::text::Step;

/// What may stand in a section.
const BLOCKS: &str = "p example code ul ol table";
/// What may stand in a text.
const INLINE: &str = "link note tt em strong cite span";
/// Elements with text: what else may stand in them, and their attributes.
const TEXTS: [(&str, &str, &str); 14] = [
    ("title", "", ""),
    ("abstract", "", ""),
    ("p", INLINE, ""),
    ("li", "p link note tt em strong cite span code ul ol", ""),
    ("td", "p link note tt em strong cite span code ul ol", ""),
    ("th", "", ""),
    ("link", "cite", "url"),
    ("tt", "link em strong", ""),
    ("em", "link tt strong span note", ""),
    ("strong", "link tt em span note", ""),
    ("cite", "", ""),
    ("span", "link tt dfn em strong", "class"),
    ("example", "", "caption"),
    ("code", "", "caption"),
];
/// Elements without text of their own.
const FRAMES: [(&str, &str, &str); 4] =
    [("ul", "li", ""), ("ol", "li", ""), ("table", "tr", "caption"), ("tr", "th td", "")];
/// The children of the header, in this order; those with a star may be repeated.
const HEADER: &str = "title abstract legal number status type sig approver dependencies supersedes \
                      supersededby shortname author* revision*";
/// The sections that every such text must have (XEP-0143), by their anchors.
const SECTIONS: [&str; 9] =
    ["intro", "reqs", "usecases", "access", "security", "privacy", "iana", "registrar", "schema"];

/// Checks the form of a proposal.
pub(super) fn check(text: &str) -> Result<(), String> {
    let root = parse(text)?;
    let mut parts = root.children();
    check_header(parts.next().filter(|head| head.name() == "header").ok_or("no header")?)?;
    let mut found = Found::default();
    for section in parts {
        check_section(section, 1, &mut found)?;
    }
    let missing: Vec<_> = SECTIONS.iter().filter(|name| !found.anchors.contains(**name)).collect();
    if !missing.is_empty() {
        return Err(format!("sections are missing: {missing:?}"));
    }
    let lost: Vec<_> = found.links.difference(&found.anchors).collect();
    if lost.is_empty() { Ok(()) } else { Err(format!("links lead nowhere: {lost:?}")) }
}

#[derive(Default)]
struct Found {
    anchors: BTreeSet<String>,
    links: BTreeSet<String>,
}

/// Parses a proposal. The XSF's entities become elements that may stand in their places.
fn parse(text: &str) -> Result<Element, String> {
    let (_, body) = text.split_once("]>").ok_or("no document type")?;
    let (_, body) = body.split_once("<xep>").ok_or("no xep")?;
    let mut whole = String::from("<xep xmlns='xep'>");
    let mut rest = body;
    while let Some(at) = ["<!--", "<![CDATA[", "&"].iter().filter_map(|mark| rest.find(mark)).min()
    {
        whole.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.split_once("-->").ok_or("a comment has no end")?.1;
        } else if rest.starts_with('<') {
            let end = rest.find("]]>").ok_or("CDATA has no end")? + "]]>".len();
            whole.push_str(&rest[..end]);
            rest = &rest[end..];
        } else {
            let (name, after) = rest[1..].split_once(';').ok_or("an entity has no end")?;
            match name {
                "amp" | "lt" | "gt" | "apos" | "quot" => whole.push_str(&format!("&{name};")),
                _ if name.starts_with('#') => whole.push_str(&format!("&{name};")),
                "LEGALNOTICE" => whole.push_str("<legal/>"),
                "IANA" | "REGISTRAR" => whole.push_str("<span/>"),
                _ if is_reference(name) => whole.push_str("<span/>"),
                _ => return Err(format!("unknown entity: {name}")),
            }
            rest = after;
        }
    }
    whole.push_str(rest);
    whole.parse().map_err(|error: minidom::Error| error.to_string())
}

fn is_reference(name: &str) -> bool {
    let number = name.strip_prefix("xep").or_else(|| name.strip_prefix("rfc"));
    number.is_some_and(|number| number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit()))
}

fn check_header(header: &Element) -> Result<(), String> {
    let mut children = header.children().map(Element::name).peekable();
    for name in HEADER.split_whitespace() {
        let name_of_one = name.trim_end_matches('*');
        if children.next() != Some(name_of_one) {
            return Err(format!("the header lacks {name_of_one}, or it is not in its place"));
        }
        while name.ends_with('*') && children.next_if_eq(&name_of_one).is_some() {}
    }
    match children.next() {
        None => Ok(()),
        Some(more) => Err(format!("{more} is too much in the header")),
    }
}

fn check_section(section: &Element, level: usize, found: &mut Found) -> Result<(), String> {
    let name = format!("section{level}");
    if section.name() != name {
        return Err(format!("expected {name}, found {}", section.name()));
    }
    let (topic, anchor) = (section.attr("topic"), section.attr("anchor"));
    let (Some(topic), Some(anchor)) = (topic, anchor) else {
        return Err(format!("a {name} lacks its topic or its anchor"));
    };
    if !found.anchors.insert(anchor.to_owned()) {
        return Err(format!("two sections have the anchor {anchor}"));
    }
    if section.attrs().len() > 2 || has_text(section) {
        return Err(format!("{topic}: text or attributes outside of an element"));
    }
    for child in section.children() {
        if child.name().starts_with("section") {
            check_section(child, level + 1, found)?;
        } else {
            check_allowed(child, BLOCKS).map_err(|error| format!("{topic}: {error}"))?;
            check_block(child, found).map_err(|error| format!("{topic}: {error}"))?;
        }
    }
    Ok(())
}

fn has_text(element: &Element) -> bool {
    element.nodes().filter_map(Node::as_text).any(|text| !text.trim().is_empty())
}

fn check_allowed(element: &Element, allowed: &str) -> Result<(), String> {
    match allowed.split_whitespace().any(|name| name == element.name()) {
        true => Ok(()),
        false => Err(format!("<{}/> stands in a wrong place", element.name())),
    }
}

fn check_block(element: &Element, found: &mut Found) -> Result<(), String> {
    let name = element.name();
    let rule = |rules: &[(&'static str, &'static str, &'static str)]| {
        rules.iter().find(|(known, ..)| *known == name).copied()
    };
    let (_, inside, attributes) = match (rule(&TEXTS), rule(&FRAMES)) {
        (Some(rule), _) => rule,
        (None, Some(rule)) if !has_text(element) => rule,
        _ => return Err(format!("<{name}/> is unknown, or has text")),
    };
    for ((_, attribute), _) in element.attrs() {
        if attribute.as_str() != attributes {
            return Err(format!("<{name}/> has the attribute {attribute}"));
        }
    }
    if let Some(anchor) = element.attr("url").and_then(|url| url.strip_prefix('#')) {
        found.links.insert(anchor.to_owned());
    }
    for child in element.children() {
        check_allowed(child, inside)?;
        check_block(child, found)?;
    }
    Ok(())
}

/// The names that a schema declares, by its namespace.
type Declared = BTreeMap<String, BTreeSet<String>>;

/// Checks that the schemas are well-formed, and declare every element and attribute in the examples that is in one of
/// their namespaces.
pub(super) fn check_schemas(text: &str, steps: &[Step]) -> Result<(), String> {
    let mut declared = Declared::new();
    for block in text.split("<code><![CDATA[").skip(1) {
        let (block, _) = block.split_once("]]>").ok_or("a block has no end")?;
        let Some((_, schema)) = block.trim().split_once("?>") else { continue };
        let schema: Element =
            schema.trim().parse().map_err(|error| format!("{error}: {schema}"))?;
        let namespace = schema.attr("targetNamespace").ok_or("a schema has no namespace")?;
        let names = declared.entry(namespace.to_owned()).or_default();
        declare(&schema, names);
    }
    if declared.is_empty() {
        return Err("no schema".to_owned());
    }
    let mut used = BTreeSet::new();
    for example in steps.iter().filter_map(Step::example) {
        for stanza in &example.stanzas {
            check_declared(stanza, &declared, &mut used)
                .map_err(|error| format!("line {}: {error}", example.line))?;
        }
    }
    let unused: Vec<_> = declared.keys().filter(|name| !used.contains(*name)).collect();
    if unused.is_empty() { Ok(()) } else { Err(format!("no example has {unused:?}")) }
}

fn declare(part: &Element, names: &mut BTreeSet<String>) {
    if let ("element" | "attribute", Some(name)) = (part.name(), part.attr("name")) {
        names.insert(name.to_owned());
    }
    part.children().for_each(|child| declare(child, names));
}

fn check_declared(
    element: &Element,
    declared: &Declared,
    used: &mut BTreeSet<String>,
) -> Result<(), String> {
    if let Some(names) = declared.get(&element.ns()) {
        used.insert(element.ns());
        let attributes = element.attrs().iter().map(|((_, name), _)| name.as_str());
        for name in attributes.chain([element.name()]) {
            if !names.contains(name) {
                return Err(format!("the schema of {} does not declare {name}", element.ns()));
            }
        }
    }
    element.children().try_for_each(|child| check_declared(child, declared, used))
}
