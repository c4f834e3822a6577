//! The demo: [`bring_up`] a fleet by Terraform or by the code of `causeway dev`, and take a [`tour`] of it with [`guests`], real DERP clients.

pub mod bring_up;
pub mod guests;
pub mod terraform;
pub mod tour;
