//! Names in the MetaCert, the extra certificate that tells a client the server's key (`derp.md` section 4.3). Making and reading
//! certificates is the callers' business.

use crate::key::NodePublic;

/// What the common name starts with.
const COMMON_NAME_PREFIX: &str = "derpkey";

/// The common name for a server key.
#[must_use]
pub fn common_name(server_key: &NodePublic) -> String {
    format!("{COMMON_NAME_PREFIX}{}", server_key.to_untyped_hex())
}

/// Whether a certificate with this common name is a MetaCert, even one that cannot be used.
#[must_use]
pub fn is_meta_cert(common_name: &str) -> bool {
    common_name.starts_with(COMMON_NAME_PREFIX)
}

/// What a MetaCert tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaCert {
    /// The server's key.
    pub server_key: NodePublic,
    /// DERP protocol version.
    pub version: u8,
}

impl MetaCert {
    /// From common name and serial number (big-endian bytes as in the certificate). `None` if it is not usable; the slow path remains.
    #[must_use]
    pub fn parse(common_name: &str, serial: &[u8]) -> Option<Self> {
        let server_key = NodePublic::from_untyped_hex(common_name.strip_prefix(COMMON_NAME_PREFIX)?).ok()?;
        // At most 8 bits; above 127 a leading zero keeps it positive.
        let version = match serial {
            [version] if *version < 0x80 => *version,
            [0, version] => *version,
            _ => return None,
        };
        (version != 0).then_some(Self { server_key, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::NodePrivate;

    #[test]
    fn names_round_trip_and_odd_serials_are_refused() {
        let key = NodePrivate::generate().public();
        let name = common_name(&key);
        assert_eq!(name.len(), 71);
        assert_eq!(MetaCert::parse(&name, &[2]), Some(MetaCert { server_key: key, version: 2 }));
        assert_eq!(MetaCert::parse(&name, &[0, 200]), Some(MetaCert { server_key: key, version: 200 }));
        for serial in [&[][..], &[0], &[0, 0], &[0x80], &[1, 0], &[0, 0, 2]] {
            assert_eq!(MetaCert::parse(&name, serial), None, "{serial:?}");
        }
        assert!(is_meta_cert("derpkeyx") && MetaCert::parse("derpkeyx", &[2]).is_none());
        assert_eq!(MetaCert::parse(&name[7..], &[2]), None);
    }
}
