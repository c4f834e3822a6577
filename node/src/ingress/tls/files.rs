//! A certificate and its key in PEM files: two of the operator's, or one of our own that is replaced as a whole.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{CertificateError, Pair};
use crate::lifecycle::file_stamp::FileStamp;

/// Most certificates in a chain, and largest file worth reading.
const CHAIN_LEN_MAX: usize = 16;
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// Where a pair stands. The fields are named in errors.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    fields: [&'static str; 2],
}

impl Files {
    /// The operator's.
    pub(super) fn of_operator(cert: &Path, key: &Path) -> Self {
        Self { cert: cert.to_owned(), key: key.to_owned(), fields: ["tls.cert_file", "tls.key_file"] }
    }

    /// Our own: chain and key in one file, which belongs to the configuration's `field`.
    pub(super) fn of_ours(field: &'static str, file: PathBuf) -> Self {
        Self { cert: file.clone(), key: file, fields: [field, field] }
    }

    /// The versions of both that are there now.
    pub(super) fn stamp(&self) -> [FileStamp; 2] {
        [&self.cert, &self.key].map(|path| FileStamp::of(path))
    }

    pub(super) fn load(&self) -> Result<Pair, CertificateError> {
        let ([field, key_field], path) = (self.fields, &self.cert);
        let content = |wanted| CertificateError::Content { field, path: path.clone(), wanted };
        let chain = parse_chain(&read(field, path)?).map_err(content)?;
        let key = PrivateKeyDer::from_pem_slice(&read(key_field, &self.key)?).map_err(|_| CertificateError::Content {
            field: key_field,
            path: self.key.clone(),
            wanted: "a private key as PEM, not encrypted",
        })?;
        Ok(Pair { chain, key })
    }
}

/// The certificates of a PEM text; else what would be right.
pub(super) fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(CHAIN_LEN_MAX + 1).collect();
    match chain {
        Err(_) => Err("certificates as PEM"),
        Ok(chain) if chain.is_empty() => Err("at least one certificate as PEM, the leaf first"),
        Ok(chain) if chain.len() > CHAIN_LEN_MAX => Err("at most 16 certificates"),
        Ok(chain) => Ok(chain),
    }
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, CertificateError> {
    let failed = |source| CertificateError::Read { field, path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(CertificateError::Content { field, path: path.to_owned(), wanted: "at most 1 MiB of PEM" });
    }
    fs::read(path).map_err(failed)
}

/// Replaces a file that only its owner may read, and makes its directory; a reader sees the old content or the new.
pub(super) fn write_private(field: &'static str, path: &Path, content: &str) -> Result<(), CertificateError> {
    let write = || {
        let dir = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let aside = path.with_added_extension("tmp");
        // What an earlier process may have left could have another mode.
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| CertificateError::Write { field, path: path.to_owned(), source })
}
