//! ClientInfo and ServerInfo: the JSON inside the sealed boxes of a login (`derp.md` sections 4.5 and 4.6).

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::derp::PROTOCOL_VERSION;
use crate::json::{depth_is_bounded, deserialize_folded};
use crate::key::{KEY_LEN, MeshKey};
use crate::limits::JSON_DEPTH_MAX;

/// The JSON is not one that DERP takes. Never echoes the text: it may hold a mesh key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// Arrays and objects nest too deep.
    #[error("JSON nests deeper than {JSON_DEPTH_MAX}")]
    Depth,
    /// Not JSON, or a field of the wrong type.
    #[error("not the JSON object that a login carries (line {line}, column {column})")]
    Json {
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
}

/// What a client says of itself at login.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ClientInfo {
    /// Asks for the rights of a mesh peer.
    pub mesh_key: Option<MeshKey>,
    /// DERP protocol version; any is taken.
    pub version: i64,
    /// Answers pings of the server.
    pub can_ack_pings: bool,
    /// Is a prober.
    pub is_prober: bool,
    /// Opaque, for statistics.
    pub app_name: String,
}

impl ClientInfo {
    /// What a present client sends: our protocol version, all else as given by the caller later.
    #[must_use]
    pub fn current() -> Self {
        Self { version: i64::from(PROTOCOL_VERSION), ..Self::default() }
    }

    /// From JSON, by the rules of Go's decoder.
    ///
    /// # Errors
    /// [`InfoError`].
    pub fn from_json(json: &[u8]) -> Result<Self, InfoError> {
        let fields: ClientFields = parse(json)?;
        Ok(Self {
            mesh_key: fields.mesh_key.0,
            version: fields.version,
            can_ack_pings: fields.can_ack_pings,
            is_prober: fields.is_prober,
            app_name: fields.app_name,
        })
    }

    /// To JSON, in the order of stock clients.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let fields = ClientJson {
            mesh_key: self.mesh_key.as_ref().map(MeshKey::expose_hex),
            version: self.version,
            can_ack_pings: self.can_ack_pings,
            is_prober: self.is_prober,
            app_name: &self.app_name,
        };
        serde_json::to_vec(&fields).expect("strings, numbers and booleans are always JSON")
    }
}

/// What a server says of itself in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct ServerInfo {
    /// DERP protocol version.
    #[serde(skip_serializing_if = "is_zero")]
    pub version: i64,
    /// Rate of the token bucket that the client puts on its own SendPacket frames; 0: none.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "is_zero")]
    pub token_bucket_bytes_per_second: i64,
    /// Size of that bucket.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "is_zero")]
    pub token_bucket_bytes_burst: i64,
}

impl ServerInfo {
    /// Our version, no token bucket.
    #[must_use]
    pub fn current() -> Self {
        Self { version: i64::from(PROTOCOL_VERSION), ..Self::default() }
    }

    /// From JSON, by the rules of Go's decoder.
    ///
    /// # Errors
    /// [`InfoError`].
    pub fn from_json(json: &[u8]) -> Result<Self, InfoError> {
        parse(json)
    }

    /// To JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers are always JSON")
    }
}

fn parse<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Result<T, InfoError> {
    if !depth_is_bounded(json) {
        return Err(InfoError::Depth);
    }
    serde_json::from_slice(json).map_err(|e| InfoError::Json { line: e.line(), column: e.column() })
}

const fn is_zero(n: &i64) -> bool {
    *n == 0
}

#[derive(Serialize)]
struct ClientJson<'a> {
    #[serde(rename = "meshKey", skip_serializing_if = "Option::is_none")]
    mesh_key: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    version: i64,
    #[serde(rename = "CanAckPings")]
    can_ack_pings: bool,
    #[serde(rename = "IsProber", skip_serializing_if = "std::ops::Not::not")]
    is_prober: bool,
    #[serde(rename = "AppName", skip_serializing_if = "str::is_empty")]
    app_name: &'a str,
}

#[derive(Default)]
struct ClientFields {
    mesh_key: MeshKeyField,
    version: i64,
    can_ack_pings: bool,
    is_prober: bool,
    app_name: String,
}

deserialize_folded!(ClientFields, "a ClientInfo object", {
    "version" => version,
    "CanAckPings" => can_ack_pings,
    "IsProber" => is_prober,
    "AppName" => app_name,
}, never_null {
    "meshKey" => mesh_key,
});

deserialize_folded!(ServerInfo, "a ServerInfo object", {
    "version" => version,
    "TokenBucketBytesPerSecond" => token_bucket_bytes_per_second,
    "TokenBucketBytesBurst" => token_bucket_bytes_burst,
});

/// `None` if absent or all zero.
#[derive(Default)]
struct MeshKeyField(Option<MeshKey>);

impl<'de> Deserialize<'de> for MeshKeyField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom("a mesh key is exactly 64 hex digits");
        if text.len() != 2 * KEY_LEN || HEXLOWER_PERMISSIVE.decode(text.as_bytes()).is_err() {
            return Err(wrong());
        }
        // All zero stands for "no mesh key".
        Ok(Self(text.parse().ok()))
    }
}

#[cfg(test)]
mod tests;
