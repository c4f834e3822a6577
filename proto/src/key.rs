//! Curve25519 keys of clients and DERP servers, and the mesh key: wire and text forms (`derp.md` section 1).

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use rand::RngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Length of every key here.
pub const KEY_LEN: usize = 32;

const PUBLIC_PREFIX: &str = "nodekey:";
const PRIVATE_PREFIX: &str = "privkey:";

/// A key's text is malformed. Never echoes the text: it could be a private key typed into the wrong field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// The prefix is missing or another one.
    #[error("the key does not start with `{0}`")]
    Prefix(&'static str),
    /// Not exactly 64 hex digits.
    #[error("the key is not exactly 64 hex digits")]
    Hex,
    /// All zero, which stands for "no key".
    #[error("the key is all zero")]
    Zero,
}

fn parse_hex(text: &str) -> Result<[u8; KEY_LEN], ParseKeyError> {
    if text.len() != 2 * KEY_LEN {
        return Err(ParseKeyError::Hex);
    }
    let mut key = [0; KEY_LEN];
    HEXLOWER_PERMISSIVE.decode_mut(text.as_bytes(), &mut key).map_err(|_| ParseKeyError::Hex)?;
    Ok(key)
}

/// Public half of a client's or DERP server's Curve25519 key.
///
/// Text form `nodekey:` and 64 hex digits; `Display` gives the short form for logs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodePublic([u8; KEY_LEN]);

impl NodePublic {
    /// From the 32 bytes on the wire.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether this is the all-zero key, which nobody can hold.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; KEY_LEN]
    }

    /// Whether the shared secret with this key is known to everybody: a point of low order
    /// (the all-zero key included). Such a key proves nothing and must be refused at login.
    #[must_use]
    pub fn is_low_order(&self) -> bool {
        // Any clamped scalar maps a point of low order to zero.
        let probe = StaticSecret::from([0x55; KEY_LEN]);
        !probe.diffie_hellman(&PublicKey::from(self.0)).was_contributory()
    }

    /// 64 lower-case hex digits without prefix, as in the HTTP upgrade header and the MetaCert.
    #[must_use]
    pub fn to_untyped_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// Parses 64 hex digits without prefix.
    ///
    /// # Errors
    /// [`ParseKeyError::Hex`].
    pub fn from_untyped_hex(text: &str) -> Result<Self, ParseKeyError> {
        parse_hex(text).map(Self)
    }

    /// `nodekey:` and 64 hex digits.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{PUBLIC_PREFIX}{}", self.to_untyped_hex())
    }
}

impl fmt::Display for NodePublic {
    /// The short form for logs: `[` first five characters of base64 `]`, empty for the all-zero key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return Ok(());
        }
        write!(f, "[{}]", &BASE64.encode(&self.0)[..5])
    }
}

impl fmt::Debug for NodePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodePublic {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix(PUBLIC_PREFIX).ok_or(ParseKeyError::Prefix(PUBLIC_PREFIX))?;
        parse_hex(hex).map(Self)
    }
}

impl Serialize for NodePublic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for NodePublic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Private half of a Curve25519 key. Zeroed on drop; `Debug` is redacted.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NodePrivate([u8; KEY_LEN]);

impl NodePrivate {
    /// A fresh key, clamped as stock software does.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; KEY_LEN];
        rand::rng().fill_bytes(&mut bytes);
        Self::from_bytes(bytes)
    }

    /// From 32 bytes; clamps them.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        bytes[0] &= 248;
        bytes[31] &= 127;
        bytes[31] |= 64;
        Self(bytes)
    }

    /// The key's bytes. Do not log or store them elsewhere.
    #[must_use]
    pub const fn expose_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> NodePublic {
        NodePublic(*PublicKey::from(&StaticSecret::from(self.0)).as_bytes())
    }

    /// `privkey:` and 64 hex digits, for key files.
    #[must_use]
    pub fn expose_text(&self) -> String {
        format!("{PRIVATE_PREFIX}{}", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for NodePrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodePrivate(redacted)")
    }
}

impl FromStr for NodePrivate {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix(PRIVATE_PREFIX).ok_or(ParseKeyError::Prefix(PRIVATE_PREFIX))?;
        parse_hex(hex).map(Self::from_bytes)
    }
}

/// A secret shared by nodes: the fleet's mesh key, or the separate one for meshing with stock derpers.
///
/// Zeroed on drop, compared in constant time, `Debug` is redacted; there is no `Display` and no `Serialize`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MeshKey([u8; KEY_LEN]);

impl MeshKey {
    /// A fresh random key.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; KEY_LEN];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The key's bytes. Do not log or store them elsewhere.
    #[must_use]
    pub const fn expose_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// 64 lower-case hex digits, for key files and the DERP login of a mesh peer.
    #[must_use]
    pub fn expose_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl PartialEq for MeshKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for MeshKey {}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(redacted)")
    }
}

impl FromStr for MeshKey {
    type Err = ParseKeyError;

    /// Parses exactly 64 hex digits around which white space is ignored; all zero is refused.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = parse_hex(text.trim())?;
        if key == [0; KEY_LEN] { Err(ParseKeyError::Zero) } else { Ok(Self(key)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip_and_errors_never_echo_the_input() {
        let private = NodePrivate::generate();
        let public = private.public();
        assert_eq!(public.to_text().parse(), Ok(public));
        assert_eq!(NodePublic::from_untyped_hex(&public.to_untyped_hex().to_uppercase()), Ok(public));
        let secret = private.expose_text();
        let error = secret.parse::<NodePublic>().expect_err("a private key is no public key");
        assert!(!format!("{error} {error:?}").contains(&secret[8..]));
        assert_eq!(format!("{private:?}"), "NodePrivate(redacted)");
    }

    #[test]
    fn low_order_points_are_told() {
        let mut one = [0; 32];
        one[0] = 1;
        assert!(NodePublic::from_bytes(one).is_low_order());
        assert!(NodePublic::default().is_low_order());
        assert!(!NodePrivate::generate().public().is_low_order());
    }

    #[test]
    fn mesh_key_needs_64_hex_digits_and_not_all_zero() {
        let key = MeshKey::generate();
        assert_eq!(format!(" {}\n", key.expose_hex().to_uppercase()).parse(), Ok(key));
        assert_eq!("00".repeat(32).parse::<MeshKey>(), Err(ParseKeyError::Zero));
        assert_eq!("abc".parse::<MeshKey>(), Err(ParseKeyError::Hex));
    }
}
