//! STUN as Tailscale's clients use it: one kind of request, one kind of answer (`derp.md` section 13).

mod fingerprint;
pub mod message;
