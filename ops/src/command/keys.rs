//! `causeway mesh-key` and `causeway operator-ca`: files made on this machine, no node involved.

use std::path::Path;

use anyhow::Context;
use causeway_proto::key::MeshKey;
use serde::Serialize;

use crate::ca::{Authority, Issued, write_public, write_secret};
use crate::cli::{MeshKeyCommand, OperatorCaCommand};
use crate::failure::Failure;
use crate::output::Output;

const CA_CERTIFICATE: &str = "operator-ca.pem";
const CA_KEY: &str = "operator-ca-key.pem";

#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_file: Option<&'a Path>,
    key_file: &'a Path,
}

/// Makes a mesh key.
///
/// # Errors
/// If the file exists or cannot be written.
pub fn mesh_key(command: MeshKeyCommand, output: &mut Output<'_>) -> Result<(), Failure> {
    let MeshKeyCommand::New { file } = command;
    write_secret(&file, &format!("{}\n", MeshKey::generate().expose_hex()))?;
    Ok(output.one(&Written { certificate_file: None, key_file: &file }, || {
        format!("{}: a new mesh key; whoever can read it can run a node of the fleet", file.display())
    })?)
}

/// Makes the operators' CA, or a certificate under it.
///
/// # Errors
/// If a file exists, is missing, or cannot be written.
pub fn operator_ca(command: OperatorCaCommand, output: &mut Output<'_>) -> Result<(), Failure> {
    let (issued, certificate_file, key_file) = match command {
        OperatorCaCommand::New { dir, days } => {
            std::fs::create_dir_all(&dir).with_context(|| format!("--dir {}: cannot be made", dir.display()))?;
            (Authority::new("causeway operators", days)?.1, dir.join(CA_CERTIFICATE), dir.join(CA_KEY))
        }
        OperatorCaCommand::Issue { name, role, dir, out, days } => {
            check_operator_name(&name)?;
            let (certificate, key) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
            if !certificate.is_file() {
                let why = format!("--dir {}: there is no {CA_CERTIFICATE}; `causeway operator-ca new` makes it", dir.display());
                return Err(Failure::NotFound(why));
            }
            let issued = Authority::load(&certificate, &key)?.issue_operator(&name, role, days)?;
            let out = out.unwrap_or(dir);
            std::fs::create_dir_all(&out).with_context(|| format!("--out {}: cannot be made", out.display()))?;
            (issued, out.join(format!("{name}.pem")), out.join(format!("{name}-key.pem")))
        }
    };
    save(&issued, &certificate_file, &key_file)?;
    Ok(output.one(&Written { certificate_file: Some(&certificate_file), key_file: &key_file }, || {
        format!("certificate {}\nprivate key {}", certificate_file.display(), key_file.display())
    })?)
}

fn save(issued: &Issued, certificate_file: &Path, key_file: &Path) -> anyhow::Result<()> {
    write_secret(key_file, &issued.key_pem)?;
    write_public(certificate_file, &issued.certificate_pem)
}

fn check_operator_name(name: &str) -> Result<(), Failure> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if (1..=63).contains(&name.len()) && name.bytes().all(legal) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    Err(Failure::Usage(format!("operator name {name:?}: use 1 to 63 letters, digits, '.', '-' or '_', such as alice")))
}
