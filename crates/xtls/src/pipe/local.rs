//! The local end of a pipe.

/// The local input and output of a pipe.
pub(super) struct Local<I, O, E> {
    pub(super) input: I,
    /// Whether a person sits at the input.
    pub(super) terminal: bool,
    pub(super) output: O,
    /// Whether these belong to a command.
    pub(super) is_command: bool,
    /// Completes when the program behind the ends has done its work. Polled after the end of `input`.
    pub(super) ended: E,
}
