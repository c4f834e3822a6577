//! The DERP server's key: fresh per process, or kept in a file.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use causeway_proto::key::NodePrivate;

use crate::config::Derp;

/// The key cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("derp.server_key_file: {}: cannot write a fresh key: {source}", path.display())]
pub struct ServerKeyError {
    path: PathBuf,
    source: io::Error,
}

/// The key of this process. A file that is configured but missing is made, for its owner only.
///
/// # Errors
/// [`ServerKeyError`].
pub fn server_key(derp: &Derp) -> Result<NodePrivate, ServerKeyError> {
    if let Some(kept) = &derp.server_key {
        return Ok(kept.clone());
    }
    let fresh = NodePrivate::generate();
    if let Some(path) = &derp.server_key_file {
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(format!("{}\n", fresh.expose_text()).as_bytes())?;
            file.sync_all()
        };
        write().map_err(|source| ServerKeyError { path: path.clone(), source })?;
    }
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_missing_file_is_made_for_its_owner_only_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("derp.key");
        let mut derp = Derp {
            listen: ([127, 0, 0, 1], 0).into(),
            plain_http_listen: None,
            plain_http_serves_derp: false,
            server_key_file: Some(path.clone()),
            server_key: None,
        };
        let made = server_key(&derp).expect("made");
        assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        let kept: NodePrivate = std::fs::read_to_string(&path).expect("text").trim().parse().expect("a key");
        assert_eq!(kept.public(), made.public());
        assert!(server_key(&derp).expect_err("exists").to_string().contains("derp.key"));
        derp.server_key = Some(kept);
        assert_eq!(server_key(&derp).expect("kept").public(), made.public());
    }
}
