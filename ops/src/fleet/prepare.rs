//! Makes a fleet's files exist: mesh key, CA, certificates, configurations, seeds. Safe to repeat and to interrupt.

use anyhow::Context;
use causeway_proto::key::MeshKey;

use super::layout::{FileLock, FleetDir, NodeDir, make_private_dir, remove_dir, remove_file, write_atomically};
use super::ready::NodeReady;
use super::spec::NodeSpec;
use crate::ca::Authority;

/// How long the CA of a fleet on one machine is valid.
const CA_DAYS: u32 = 3650;
/// How long the certificates of its nodes are valid.
const CERTIFICATE_DAYS: u32 = 825;

/// Makes the fleet's own files where they are missing: its directory, mesh key, CA, an empty list of seeds.
///
/// # Errors
/// Naming the file.
pub fn fleet(dir: &FleetDir) -> anyhow::Result<()> {
    make_private_dir(dir.path())?;
    let _lock = FileLock::wait(&dir.lock())?;
    if !dir.mesh_key().exists() {
        write_atomically(&dir.mesh_key(), &format!("{}\n", MeshKey::generate().expose_hex()), 0o600)?;
    }
    // The key is written first: a CA certificate without its key would be of no use to a second attempt.
    if !dir.ca().exists() {
        let (_, ca) = Authority::new("causeway local fleet", CA_DAYS)?;
        write_atomically(&dir.ca_key(), &ca.key_pem, 0o600)?;
        write_atomically(&dir.ca(), &ca.certificate_pem, 0o644)?;
    }
    if !dir.seeds().exists() {
        write_atomically(&dir.seeds(), "[]\n", 0o644)?;
    }
    Ok(())
}

/// Makes a node's directory, certificate and configuration. An existing certificate is kept.
///
/// # Errors
/// Naming the file.
pub fn node(fleet: &FleetDir, spec: &NodeSpec) -> anyhow::Result<NodeDir> {
    let node = fleet.node(&spec.name)?;
    node.check_socket_len()?;
    make_private_dir(node.path())?;
    if !node.cert().exists() {
        let authority = Authority::load(&fleet.ca(), &fleet.ca_key())?;
        let names = [spec.host_name.as_str(), "localhost"];
        let certificate = authority
            .issue_server(&names, &[spec.bind], CERTIFICATE_DAYS)
            .with_context(|| format!("host_name {:?}: no certificate can be made for it", spec.host_name))?;
        write_atomically(&node.key(), &certificate.key_pem, 0o600)?;
        write_atomically(&node.cert(), &certificate.certificate_pem, 0o644)?;
    }
    save(fleet, &node, spec)?;
    Ok(node)
}

/// Writes a node's specification and the configuration made of it.
///
/// # Errors
/// Naming the file.
pub fn save(fleet: &FleetDir, node: &NodeDir, spec: &NodeSpec) -> anyhow::Result<()> {
    write_atomically(&node.config(), &spec.to_config(fleet, node)?, 0o600)?;
    save_spec(node, spec)
}

fn save_spec(node: &NodeDir, spec: &NodeSpec) -> anyhow::Result<()> {
    write_atomically(&node.spec(), &format!("{}\n", serde_json::to_string_pretty(spec)?), 0o600)
}

/// Reads a node's specification back.
///
/// # Errors
/// Naming the file.
pub fn read_spec(node: &NodeDir) -> anyhow::Result<NodeSpec> {
    let path = node.spec();
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    NodeSpec::parse(&text).with_context(|| path.display().to_string())
}

/// After a node's first start: keeps the ports it got, and tells the others where to find it.
///
/// # Errors
/// Naming the file.
pub fn pin(fleet: &FleetDir, node: &NodeDir, ready: &NodeReady) -> anyhow::Result<()> {
    let mut spec = read_spec(node)?;
    let before = spec.ports;
    spec.pin_ports(ready)?;
    if spec.ports != before {
        // The configuration stays as the process has read it, or it would refuse to take up any later change of it.
        save_spec(node, &spec)?;
    }
    publish_seeds(fleet, &FileLock::wait(&fleet.lock())?)
}

/// Removes a stopped node's directory, and the fleet's own files with the last node.
///
/// # Errors
/// Naming the file.
pub fn remove_node(fleet: &FleetDir, node: &NodeDir) -> anyhow::Result<()> {
    // Held while a directory goes, so that nobody who lists the nodes meets half of one.
    let lock = match FileLock::wait(&fleet.lock()) {
        Err(_) if !fleet.path().exists() => return Ok(()),
        other => other?,
    };
    remove_dir(node.path())?;
    if fleet.nodes()?.is_empty() { remove_fleet(fleet) } else { publish_seeds(fleet, &lock) }
}

/// Rewrites the list of seeds from the nodes there are: every known mesh port.
fn publish_seeds(fleet: &FleetDir, _lock: &FileLock) -> anyhow::Result<()> {
    let mut seeds = Vec::new();
    for node in fleet.nodes()? {
        let spec = read_spec(&node)?;
        if spec.ports.mesh != 0 {
            seeds.push(std::net::SocketAddr::new(spec.bind, spec.ports.mesh).to_string());
        }
    }
    let text = format!("{}\n", serde_json::to_string(&seeds)?);
    if std::fs::read_to_string(fleet.seeds()).is_ok_and(|present| present == text) {
        return Ok(());
    }
    write_atomically(&fleet.seeds(), &text, 0o644)
}

/// Removes what [`fleet`] made; what others put into the directory stays, and then so does the directory.
///
/// # Errors
/// Naming the file.
pub fn remove_fleet(dir: &FleetDir) -> anyhow::Result<()> {
    for file in dir.own_files() {
        remove_file(&file)?;
    }
    // Fails if anything else is in it, which is as it should be.
    drop(std::fs::remove_dir(dir.path()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn spec(name: &str, mesh: u16) -> NodeSpec {
        let text =
            format!(r#"{{"name":"{name}","region":{{"id":901,"code":"a"}},"bind":"127.0.0.1","ports":{{"mesh":{mesh}}}}}"#);
        NodeSpec::parse(&text).expect("valid")
    }

    #[test]
    fn preparing_twice_keeps_keys_and_secrets_are_private() {
        let base = tempfile::tempdir().expect("dir");
        let dir = FleetDir::new(&base.path().join("fleet")).expect("fleet");
        fleet(&dir).expect("made");
        let made = node(&dir, &spec("a-1", 0)).expect("made");
        let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("there");
        let before = (read(&dir.mesh_key()), read(&dir.ca()), read(&made.cert()));
        fleet(&dir).expect("again");
        node(&dir, &spec("a-1", 0)).expect("again");
        assert_eq!((read(&dir.mesh_key()), read(&dir.ca()), read(&made.cert())), before);
        read(&dir.mesh_key()).parse::<MeshKey>().expect("a mesh key");
        for secret in [dir.mesh_key(), dir.ca_key(), made.key(), made.config()] {
            assert_eq!(std::fs::metadata(&secret).expect("there").permissions().mode() & 0o077, 0, "{}", secret.display());
        }
        assert_eq!(std::fs::metadata(made.path()).expect("there").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn seeds_name_every_known_mesh_port_and_removal_leaves_nothing() {
        let base = tempfile::tempdir().expect("dir");
        let dir = FleetDir::new(&base.path().join("fleet")).expect("fleet");
        fleet(&dir).expect("made");
        for (name, port) in [("a-1", 7001), ("a-2", 0), ("b-1", 7003)] {
            node(&dir, &spec(name, port)).expect("made");
        }
        publish_seeds(&dir, &FileLock::wait(&dir.lock()).expect("lock")).expect("published");
        assert_eq!(std::fs::read_to_string(dir.seeds()).expect("seeds"), "[\"127.0.0.1:7001\",\"127.0.0.1:7003\"]\n");
        for name in ["a-1", "a-2"] {
            remove_node(&dir, &dir.node(name).expect("name")).expect("removed");
        }
        assert_eq!(std::fs::read_to_string(dir.seeds()).expect("seeds"), "[\"127.0.0.1:7003\"]\n");
        for _ in 0..2 {
            remove_node(&dir, &dir.node("b-1").expect("name")).expect("removed, also when it is gone");
        }
        assert!(!dir.path().exists());
    }
}
