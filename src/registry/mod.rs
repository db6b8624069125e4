//! The registry: keys.
