//! What unset fields of the configuration mean; sections not named here start empty.

use crate::clients::CONNECTIONS_PER_KEY;
use crate::pump::lanes::{CLIENT_QUEUE_BYTES, MEMORY_BUDGET_BYTES};

use super::file::{
    Acme, AcmeChallenge, Admission, Announce, Derp, DerpMesh, Limits, Log, LogFormat, Mesh, Metrics, Raft, RaftProfile, Stun,
};

impl Default for Derp {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:443".into(),
            plain_http_listen: String::new(),
            plain_http_serves_derp: false,
            server_key_file: String::new(),
        }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            allow_file: String::new(),
            deny_file: String::new(),
            verify_url: String::new(),
            verify_url_ca_file: String::new(),
            verify_url_plain: false,
            fail_open: false,
            tailscaled_socket: "/var/run/tailscale/tailscaled.sock".into(),
            allow_seconds: 300,
            deny_seconds: 30,
            stale_seconds: 3_600,
            recheck_seconds: 300,
        }
    }
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            directory: "https://acme-v02.api.letsencrypt.org/directory".into(),
            contact: String::new(),
            domains: Vec::new(),
            challenge: AcmeChallenge::TlsAlpn01,
            profile: String::new(),
            cache_dir: String::new(),
            ca_file: String::new(),
            eab_kid: String::new(),
            eab_key_file: String::new(),
        }
    }
}

impl Default for DerpMesh {
    fn default() -> Self {
        Self {
            key_file: String::new(),
            allow: Vec::new(),
            with: Vec::new(),
            ca_file: String::new(),
            announce: Announce::Region,
            // What a node may claim beyond the connections it takes.
            keys_max: 10_000,
        }
    }
}

impl Default for Stun {
    fn default() -> Self {
        Self { listen: "0.0.0.0:3478".into(), require_software: true }
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self { listen: "0.0.0.0:7443".into(), stripes: 2 }
    }
}

impl Default for Raft {
    fn default() -> Self {
        Self { profile: RaftProfile::Wan, voter_eligible: true }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9090".into() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

/// The numbers of the threat model, sections 4.1 to 4.7.
impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            unauthenticated: 2_048,
            unauthenticated_per_source: 128,
            accepts_per_second_per_source: 100,
            accept_burst_per_source: 500,
            accepts_per_second_per_core: 500,
            authenticated_per_ipv4: 1_024,
            authenticated_per_ipv6: 256,
            tls_handshakes_per_core: 32,
            queue_bytes_total: MEMORY_BUDGET_BYTES as u64,
            client_queue_bytes: CLIENT_QUEUE_BYTES as u64,
            connections_per_key: CONNECTIONS_PER_KEY as u64,
            key_rate_bits_per_second: 100_000_000,
            // What a prober keeps under way passes at once.
            key_burst_bytes: CLIENT_QUEUE_BYTES as u64,
            client_rate_bytes_per_second: 0,
            client_burst_bytes: CLIENT_QUEUE_BYTES as u64,
            stun_answers_per_second: 100_000,
        }
    }
}
