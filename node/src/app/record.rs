//! What this node says of itself to its peers and, through the DERP map, to clients; and the control plane's part of the configuration.

use std::sync::Arc;

use causeway_control::{Config as ControlConfig, Deps, NodeSet, RaftProfile, Tracing, derp_map_entry};
use causeway_proto::key::{MeshKey, NodePublic};
use causeway_rpc::v1;

use super::listeners::Bound;
use crate::config::{self, Advertise, Config};
use crate::lifecycle::clock::wall_clock;
use crate::lifecycle::tasks::Tasks;
use crate::telemetry::traces::{inject, proposal};

/// The node's record; the control plane fills in its identity. `pin` is that of a self-signed certificate.
pub(super) fn node_record(config: &Config, bound: &Bound, derp_public_key: &NodePublic, pin: Option<String>) -> v1::NodeRecord {
    let advertise = &config.advertise;
    let region = &config.region;
    v1::NodeRecord {
        name: config.name.clone(),
        region: Some(v1::Region {
            id: region.id.0,
            code: region.code.clone(),
            name: region.name.clone(),
            latitude: region.latitude,
            longitude: region.longitude,
        }),
        mesh_addr: mesh_addr(advertise, bound),
        relay: Some(v1::RelayEndpoint {
            host_name: advertise.host_name.clone(),
            ipv4: advertise.ipv4.clone(),
            ipv6: advertise.ipv6.clone(),
            derp_port: advertise.derp_port.unwrap_or(bound.derp.port()).into(),
            stun_port: bound.stun.map_or(-1, |stun| advertise.stun_port.unwrap_or(stun.port()).into()),
            can_port80: advertise.can_port80,
            stun_only: advertise.stun_only,
            cert_name: Some(advertise.cert_name.clone()).filter(|name| !name.is_empty()).or(pin).unwrap_or_default(),
            insecure_for_tests: advertise.insecure_for_tests,
            derp_public_key: derp_public_key.as_bytes().to_vec().into(),
        }),
        voter_eligible: config.voter_eligible,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..v1::NodeRecord::default()
    }
}

/// Where peers dial this node; port 0 if it has no mesh port, because it stands alone.
fn mesh_addr(advertise: &Advertise, bound: &Bound) -> String {
    let host = match advertise.ipv4.as_str() {
        "" | "none" => &advertise.host_name,
        ipv4 => ipv4,
    };
    let Some(mesh) = bound.mesh else { return format!("{host}:0") };
    advertise.mesh.clone().unwrap_or_else(|| format!("{host}:{}", mesh.port()))
}

/// Names of a self-signed certificate: everything that clients may dial.
pub(super) fn certificate_names(advertise: &Advertise) -> Vec<String> {
    let addresses = [&advertise.ipv4, &advertise.ipv6].into_iter().filter(|address| !matches!(address.as_str(), "" | "none"));
    std::iter::once(&advertise.host_name).chain(addresses).cloned().collect()
}

/// Tells what to put into a DERP map that is written by hand, so that clients take the self-signed certificate.
pub(super) fn tell_map_entry(pin: &str, nodes: &NodeSet) {
    let own = nodes.get(nodes.own()).and_then(|own| derp_map_entry(&own.record));
    let entry = own.and_then(|entry| serde_json::to_string(&entry).ok()).unwrap_or_default();
    tracing::info!(pin, entry, "the certificate is self-signed: clients need its pin in the DERP map, which /derpmap has");
}

/// The control plane's part of the configuration.
pub(super) fn control_config(config: &Config, record: v1::NodeRecord) -> ControlConfig {
    let next: Option<MeshKey> = config.mesh_key_next.clone();
    ControlConfig {
        name: config.name.clone(),
        data_dir: config.data_dir.clone(),
        mesh_key: config.mesh_key.clone(),
        mesh_key_next: next,
        record,
        seeds: config.seeds.clone(),
        profile: match config.raft_profile {
            config::RaftProfile::Lan => RaftProfile::Lan,
            config::RaftProfile::Wan => RaftProfile::Wan,
        },
        voter_eligible: config.voter_eligible,
        standalone: config.standalone,
    }
}

/// Where the control plane's tasks start and which clock it reads.
pub(super) fn control_deps(tasks: &Tasks) -> Deps {
    Deps {
        tracker: tasks.tracker.clone(),
        cancel: tasks.cancel.clone(),
        clock: Arc::new(wall_clock),
        tracing: Tracing { proposal, inject },
    }
}
