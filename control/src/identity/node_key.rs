//! This node's Ed25519 identity key: created on first start, kept in the data directory, never leaves it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use causeway_proto::id::NodeId;
use rand::RngCore;
use rcgen::KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use super::{PeerIdentity, pkcs8_of_seed};

/// Why the identity key cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum NodeKeyError {
    /// The file cannot be read or made.
    #[error("identity key {path}: {source}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Not a 32-byte Ed25519 seed.
    #[error(
        "identity key {path} is damaged: it must be exactly 32 bytes; restore it, or move the data directory away to start as a new node"
    )]
    Damaged {
        /// The key file.
        path: PathBuf,
    },
    /// Others may read the file.
    #[error(
        "identity key {path} is readable by others (mode {mode:04o}): run `chmod 600` on it, or replace the node if it leaked"
    )]
    Permissions {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// The identity key of a node; also the key of its mesh certificate.
pub struct NodeKey {
    key: KeyPair,
    identity: PeerIdentity,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({}, redacted)", self.identity.node_id)
    }
}

impl NodeKey {
    /// Reads the key at `path`, making it (mode 0600, synced with its directory) if the file does not exist.
    ///
    /// # Errors
    /// [`NodeKeyError`], naming the file.
    pub fn load_or_create(path: &Path) -> Result<Self, NodeKeyError> {
        let io_error = |source| NodeKeyError::Io { path: path.to_owned(), source };
        match fs::File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut seed = Zeroizing::new([0; 32]);
                rand::rng().fill_bytes(&mut *seed);
                Self::write(path, &seed).map_err(io_error)?;
                Ok(Self::from_seed(&seed))
            }
            Err(error) => Err(io_error(error)),
        }
    }

    fn read(path: &Path, file: fs::File) -> Result<Self, NodeKeyError> {
        let io_error = |source| NodeKeyError::Io { path: path.to_owned(), source };
        let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(NodeKeyError::Permissions { path: path.to_owned(), mode });
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(33));
        file.take(33).read_to_end(&mut bytes).map_err(io_error)?;
        let seed: Zeroizing<[u8; 32]> =
            Zeroizing::new(bytes.as_slice().try_into().map_err(|_| NodeKeyError::Damaged { path: path.to_owned() })?);
        Ok(Self::from_seed(&seed))
    }

    fn write(path: &Path, seed: &[u8; 32]) -> io::Result<()> {
        // Written aside and renamed: a crash leaves no half key behind.
        let aside = path.with_extension("tmp");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(seed)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    /// A key of a known seed: for tools and tests that keep keys themselves.
    ///
    /// # Panics
    /// Never: any 32 bytes are an Ed25519 seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pkcs8 = pkcs8_of_seed(seed);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()), &rcgen::PKCS_ED25519)
            .expect("any 32 bytes are an Ed25519 seed");
        let public_key = key.public_key_raw().try_into().expect("Ed25519 public keys are 32 bytes");
        Self { key, identity: PeerIdentity::of_public_key(public_key), pkcs8 }
    }

    /// The id that follows from the public half.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// Node id and public key.
    #[must_use]
    pub const fn identity(&self) -> PeerIdentity {
        self.identity
    }

    pub(super) const fn key_pair(&self) -> &KeyPair {
        &self.key
    }

    pub(super) fn pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_private_and_read_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node.key");
        let made = NodeKey::load_or_create(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
        assert_eq!(NodeKey::load_or_create(&path).expect("read").identity(), made.identity());
        assert!(!format!("{made:?}").contains("seed"));
    }

    #[test]
    fn damaged_and_exposed_keys_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node.key");
        NodeKey::load_or_create(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = NodeKey::load_or_create(&path).expect_err("readable by others");
        assert!(matches!(error, NodeKeyError::Permissions { mode: 0o644, .. }) && error.to_string().contains("node.key"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::write(&path, [0; 31]).expect("truncate");
        assert!(matches!(NodeKey::load_or_create(&path), Err(NodeKeyError::Damaged { .. })));
    }
}
