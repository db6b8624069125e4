//! The meaning of the lines that a person types in a chat.

/// An action of the user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// Sends this.
    Line(String),
    /// Asks for help.
    Help,
    /// Uses an unknown command.
    Unknown(String),
    /// Leaves the chat.
    Quit,
    /// Standard input has ended.
    End,
}

/// Returns the meaning of a typed line. `//` begins a line that begins with `/`.
pub(super) fn command(line: &str) -> Option<Typed> {
    let line = line.trim_end();
    match line.strip_prefix('/') {
        _ if line.is_empty() => None,
        None => Some(Typed::Line(line.to_owned())),
        Some(rest) if rest.starts_with('/') => Some(Typed::Line(rest.to_owned())),
        Some("quit" | "q") => Some(Typed::Quit),
        Some("help" | "?") => Some(Typed::Help),
        Some(other) => Some(Typed::Unknown(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_begins_a_command_and_two_a_line() {
        let line = |text: &str| Some(Typed::Line(text.to_owned()));
        assert_eq!(command("hello "), line("hello"));
        assert_eq!(command("//etc"), line("/etc"));
        assert_eq!(command("/quit"), Some(Typed::Quit));
        assert_eq!(command("/help"), Some(Typed::Help));
        assert_eq!(command("/etc/passwd"), Some(Typed::Unknown("etc/passwd".to_owned())));
        assert_eq!(command("  "), None);
    }
}
