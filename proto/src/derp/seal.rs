//! NaCl `crypto_box` (X25519, XSalsa20-Poly1305) in the form DERP uses: nonce 24, then the box (`derp.md` section 1).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use crypto_box::aead::{AeadInPlace, Nonce, Tag};
use crypto_box::{PublicKey, SalsaBox, SecretKey};
use rand::RngCore;

use crate::key::{NodePrivate, NodePublic};
use crate::limits::SEALED_OVERHEAD;

const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
const _: () = assert!(NONCE_LEN + TAG_LEN == SEALED_OVERHEAD);

/// Nonce of a box.
pub type BoxNonce = [u8; NONCE_LEN];

/// The box does not open: it was not sealed by the other key for ours, or was altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed box does not open")]
pub struct OpenError;

/// Seals and opens between our private and the peer's public key. Making one costs a scalar multiplication.
pub struct BoxKey(SalsaBox);

impl fmt::Debug for BoxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxKey(redacted)")
    }
}

impl BoxKey {
    /// The key that `private` and `peer` share.
    #[must_use]
    pub fn new(private: &NodePrivate, peer: &NodePublic) -> Self {
        Self(SalsaBox::new(&PublicKey::from_bytes(*peer.as_bytes()), &SecretKey::from_bytes(*private.expose_bytes())))
    }

    /// Seals under a random nonce.
    #[must_use]
    pub fn seal(&self, plain: &[u8]) -> Bytes {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        self.seal_with_nonce(plain, &nonce)
    }

    /// Seals under a nonce that must never be used twice with this key pair.
    #[must_use]
    pub fn seal_with_nonce(&self, plain: &[u8], nonce: &BoxNonce) -> Bytes {
        let mut out = BytesMut::with_capacity(SEALED_OVERHEAD + plain.len());
        out.put_slice(nonce);
        out.put_bytes(0, TAG_LEN);
        out.put_slice(plain);
        let tag = self
            .0
            .encrypt_in_place_detached(Nonce::<SalsaBox>::from_slice(nonce), &[], &mut out[SEALED_OVERHEAD..])
            .expect("XSalsa20 takes any length that fits in memory");
        out[NONCE_LEN..SEALED_OVERHEAD].copy_from_slice(&tag);
        out.freeze()
    }

    /// Opens nonce and box.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or(OpenError)?;
        let (tag, cipher) = rest.split_at_checked(TAG_LEN).ok_or(OpenError)?;
        let mut plain = cipher.to_vec();
        self.0
            .decrypt_in_place_detached(Nonce::<SalsaBox>::from_slice(nonce), &[], &mut plain, Tag::<SalsaBox>::from_slice(tag))
            .map_err(|_| OpenError)?;
        Ok(plain)
    }
}

/// The nonce of a sealed box, for replay checks.
#[must_use]
pub fn nonce_of(sealed: &[u8]) -> Option<BoxNonce> {
    sealed.first_chunk::<NONCE_LEN>().copied()
}
