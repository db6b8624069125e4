//! Offline administration of the registry.

/// What can be done to the registry offline.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum KeysCommand {
    /// List keys
    List,
}
