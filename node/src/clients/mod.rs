//! The clients connected here: who holds which key, which of its connections is active and proven, who must hear that a peer is gone.

pub mod set;
