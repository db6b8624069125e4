//! The `xtls` program.
