//! A Causeway node as a library; `causewayd` is a thin binary on it.

pub mod forward;
